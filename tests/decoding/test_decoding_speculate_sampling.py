"""Speculation with sampling: what comes out is distributed as the full model's own samples are."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from strategy_cases import ExitReader, decode, engine_of, llama

from offramp.decoding.generation.loop import Loop, Plan
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.generation.transcript import Transcript
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.next_token import Chooser
from offramp.decoding.strategies.propagate import Propagate
from offramp.decoding.strategies.speculate import Speculate, accept_or_resample
from offramp.decoding.strategies.strategy import Strategy
from offramp.policies.grammar import parse_policy

VOCABULARY = 8
SURE = 1e-4
"""Chance that a test with the right distribution fails; its random numbers are fixed."""


def chi_square(counts: Any, shares: Any) -> float:
    """How likely such counts are at least this far from the shares: the p-value."""
    expected = np.asarray(shares, dtype=np.float64) * np.sum(counts)
    # Cells with few expected draws are taken together.
    few = expected < 5
    observed = np.append(np.asarray(counts)[~few], np.asarray(counts)[few].sum())
    wanted = np.append(expected[~few], expected[few].sum())
    kept = wanted > 0
    observed, wanted = observed[kept], wanted[kept]
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize("seed", range(4))
def test_accepted_and_replaced_drafts_have_the_full_models_distribution(seed: int) -> None:
    torch.manual_seed(seed)
    draws = 20_000
    scores, draft_scores = 1.5 * torch.randn(VOCABULARY), 1.5 * torch.randn(VOCABULARY)
    # Tokens that a processor has removed on one side only.
    scores[0], draft_scores[1] = -torch.inf, -torch.inf
    drafted = torch.multinomial(draft_scores.softmax(-1), draws, replacement=True)
    wide = (draws, VOCABULARY)
    chosen, right = accept_or_resample(drafted, draft_scores.expand(wide), scores.expand(wide))
    wanted, offered = scores.softmax(-1), draft_scores.softmax(-1)
    assert chi_square(np.bincount(chosen, minlength=VOCABULARY), wanted) > SURE
    assert chi_square(np.bincount(drafted, minlength=VOCABULARY), wanted) < SURE
    # Leviathan et al., theorem 3.5: the share that stands is the overlap of the two.
    overlap = float(torch.minimum(wanted, offered).sum())
    assert float(right.float().mean()) == pytest.approx(overlap, abs=0.02)
    assert torch.equal(chosen[right], drafted[right])


def test_equal_distributions_accept_every_draft() -> None:
    scores = torch.randn(500, VOCABULARY)
    drafted = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
    chosen, right = accept_or_resample(drafted, scores, scores.clone())
    assert right.all()
    assert torch.equal(chosen, drafted)


@functools.cache
def model() -> Any:
    return llama(vocabulary=VOCABULARY, initializer_range=0.5)


def exact(temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The full model's distributions of the second and the third new token, over all that come before."""
    prompt = [3, 5]

    def after(*rows: list[int]) -> torch.Tensor:
        return (model()(torch.tensor(rows)).logits[:, -1] / temperature).softmax(-1).double()

    first = after(prompt)[0]
    second = after(*([*prompt, one] for one in range(VOCABULARY)))
    pairs = first[:, None] * second
    third = after(*([*prompt, one, two] for one in range(VOCABULARY) for two in range(VOCABULARY)))
    return pairs.numpy(), (pairs.flatten()[:, None] * third).sum(0).numpy()


def sampled(strategy: type[Strategy], rows: int, temperature: float) -> BatchGeneration:
    """Four new tokens for so many rows with one prompt, drawn by a strategy without transformers' loop."""
    engine, policy, ids = engine_of(model()), parse_policy("static:exit=1"), torch.tensor([[3, 5]] * rows)
    plan = Plan(
        engine=engine,
        options=DecodingOptions(policy, strategy.of.name, draft_length=2),
        reader=ExitReader(engine, None, policy.needs(engine.layers)),
        limit=4,
        end_tokens=frozenset(),
        decode=str,
    )
    answers = Transcript(
        ids,
        stops=lambda seen, scores: torch.full((rows,), seen.shape[1] >= 6),
        pad=0,
        streamer=None,
        keep_scores=False,
    )
    chooser = Chooser(lambda seen, scores: scores / temperature, prompt=2, sampling=True)
    return Loop(plan, answers, None, chooser).run()


def counts_of(strategy: type[Strategy], rows: int, draws: int, temperature: float) -> tuple[Any, Any, float]:
    """How often each pair of first tokens came, each third token, and the share of drafts that were kept."""
    torch.manual_seed(5)
    pairs, thirds = np.zeros((VOCABULARY, VOCABULARY)), np.zeros(VOCABULARY)
    drafted = accepted = 0
    for _ in range(draws // rows):
        result = sampled(strategy, rows, temperature)
        drafted, accepted = drafted + result.drafted, accepted + result.accepted
        for row in result.rows:
            pairs[row.tokens[0], row.tokens[1]] += 1
            thirds[row.tokens[2]] += 1
    return pairs.flatten(), thirds, accepted / max(drafted, 1)


# Of many rows hardly ever all keep their drafts, so that a round ends at its first one.
@pytest.mark.parametrize(("rows", "draws"), [(1, 200), (64, 3200)])
def test_sampled_texts_are_distributed_as_the_full_models(rows: int, draws: int) -> None:
    temperature = 1.3
    pairs, thirds, kept = counts_of(Speculate, rows, draws, temperature)
    pair_shares, third_shares = exact(temperature)
    assert chi_square(pairs, pair_shares.flatten()) > SURE
    assert chi_square(thirds, third_shares) > SURE
    assert rows == 64 or 0.1 < kept < 0.9


def test_drafts_that_are_never_held_against_the_full_model_would_be_noticed() -> None:
    _, thirds, _ = counts_of(Propagate, 64, 640, 1.3)
    assert chi_square(thirds, exact(1.3)[1]) < SURE


def test_sampling_in_transformers_repeats_itself_with_its_seed() -> None:
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        options = {"do_sample": True, "top_k": 4, "top_p": 0.9}
        result = decode(model(), torch.tensor([[3, 5]]), "static:exit=1", "speculate", new=20, **options)
        texts.append(result.rows[0].tokens)
    assert texts[0] == texts[1] != texts[2]
