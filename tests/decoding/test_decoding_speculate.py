"""Speculative decoding is greedy decoding, whatever policy drafts, in rounds that replay charges exactly."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_cases import (
    Scripted,
    agreeable,
    build_windowed,
    counted_layers,
    decode,
    engine_of,
    greedy,
    ids_of,
    llama,
    number_text,
    tiny_model,
    trace_of_new,
)

import offramp
from offramp.decoding.options import Auto, each_costs
from offramp.errors import InputError
from offramp.models.model import Model
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.kv import STRATEGIES, PolicyRun
from offramp.policies.policy import ExitPolicy
from offramp.policies.steps import count_plain

LAYERS, PROMPT, NEW = 5, 6, 18


@functools.cache
def model() -> Model:
    return tiny_model(llama(num_hidden_layers=LAYERS), head_scale=3.0, change=agreeable)


@functools.cache
def expected(seed: int = 1, new: int = NEW) -> tuple[torch.Tensor, list[int]]:
    ids = ids_of(model().hf, PROMPT, seed=seed)
    return ids, greedy(model().hf, ids, new)[0].tolist()


POLICIES = (
    "static:exit=1",
    "static:exit=4",
    "threshold:signal=max_prob,value=0.4,exits=2+4",
    "threshold:signal=margin,value=0.1,exits=all",
    "threshold:signal=hidden_cosine,value=0.5,exits=2+4",
    "patience:times=2,exits=1+2+3+4",
    "decaying:signal=max_prob,value=0.5,exits=1+3",
    "sustained:signal=max_prob,value=0.3,times=2,exits=1+2+3+4",
    "adaptive:signal=max_prob,target=0.3,warmup=2,exits=2+4",
    "bandit:signal=max_prob,value=0.3,exits=2+4",
    "bandit:signal=restricted_margin,value=0.3,exits=2+4",
    "monotone:policy=[threshold:signal=max_prob,value=0.4,exits=2+4]",
)


@pytest.mark.parametrize("policy", POLICIES)
def test_output_is_greedy_for_every_policy(policy: str) -> None:
    ids, tokens = expected()
    for draft_length in (3, "auto"):
        result = decode(model().hf, ids, policy, "speculate", new=NEW, draft_length=draft_length)
        assert result.rows[0].tokens == tokens == result.rows[0].chosen
    assert result.rows[0].exits[0] == LAYERS


@settings(deadline=None, max_examples=12)
@given(
    value=st.floats(0.02, 0.98),
    signal=st.sampled_from(["max_prob", "margin"]),
    draft_length=st.one_of(st.integers(1, 6), st.just("auto")),
    seed=st.integers(0, 5),
)
def test_output_is_greedy_for_random_thresholds(
    value: float, signal: str, draft_length: Any, seed: int
) -> None:
    ids, tokens = expected(seed)
    policy = f"threshold:signal={signal},value={value!r},exits=all"
    result = decode(model().hf, ids, policy, "speculate", new=NEW, draft_length=draft_length)
    assert result.rows[0].tokens == tokens


@pytest.mark.parametrize(
    "policy",
    [*map(parse_policy, POLICIES), Scripted((1, 4, 5, 2, 2, 3, 1, 5, 5, 4))],
    ids=lambda policy: str(policy)[:25],
)
def test_forced_exits_and_usage_are_those_of_replay(policy: ExitPolicy) -> None:
    ids = number_text(7, PROMPT + NEW)
    traced = trace_of_new(model(), ids, PROMPT)
    decisions = replay_decisions(policy, traced)
    rejected = drafted = 0
    for draft_length in (1, 4, 6):
        run = PolicyRun(traced, policy, decisions, np.arange(traced.token_count), draft_length)
        given = torch.tensor([ids[:PROMPT]])
        found = decode(model().hf, given, policy, "speculate", forced=ids[PROMPT:], draft_length=draft_length)
        assert found.rows[0].tokens == ids[PROMPT:]
        assert found.rows[0].exits[1:].tolist() == decisions.exits.tolist()
        assert found.usage == STRATEGIES["speculate"].charge(run)
        rejected += found.drafted - found.accepted
        drafted += found.drafted
    assert drafted > 0
    assert rejected > 0 or "exit=4" in str(policy) or "patience" in str(policy), "no draft was wrong"


def test_chosen_tokens_of_a_forced_text_are_the_full_models() -> None:
    ids = number_text(7, PROMPT + NEW)
    logits = model().hf(torch.tensor([ids])).logits[0]
    found = decode(
        model().hf, torch.tensor([ids[:PROMPT]]), "static:exit=3", "speculate", forced=ids[PROMPT:]
    )
    assert found.rows[0].chosen == logits[PROMPT - 1 : -1].argmax(-1).tolist()


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("policy", ["static:exit=4", "threshold:signal=max_prob,value=0.2,exits=2+4"])
def test_executed_layers_are_those_that_hooks_count(policy: str, batch: int) -> None:
    hf = model().hf
    ids = ids_of(hf, PROMPT, rows=batch)
    with counted_layers(hf) as counts:
        result = decode(hf, ids, policy, "speculate", new=12)
    assert sum(counts.values()) == sum(row.layers_executed for row in result.rows)
    prompt = batch * PROMPT
    by_layer = {
        layer: sum(
            count * item.rows
            for item, count in result.usage.items()
            if (item.part, item.place) == ("layers", layer + 1)
        )
        for layer in range(LAYERS)
    }
    assert {layer: rows + prompt for layer, rows in by_layer.items()} == dict(counts)
    assert result.accepted < result.drafted


def test_a_policy_that_never_leaves_runs_what_plain_decoding_runs() -> None:
    result = decode(model().hf, expected()[0], "never", "speculate", new=NEW)
    assert result.usage == count_plain(np.arange(NEW - 1), LAYERS)
    assert (result.drafted, result.accepted) == (0, 0)


def test_rejected_drafts_are_counted() -> None:
    ids, _ = expected()
    found = decode(model().hf, ids, "static:exit=1", "speculate", new=NEW, draft_length=1)
    # Each round of one draft gives two tokens if it was right, else one; the last one may stand alone.
    rounds = sum(count for item, count in found.usage.items() if item.part == "final head")
    assert found.drafted == rounds
    assert found.accepted == (NEW - 1) - rounds or found.accepted == NEW - rounds
    assert found.rows[0].layers_executed > (PROMPT + NEW - 1) * LAYERS
    assert found.rows[0].skip_ratio < 0


@pytest.mark.parametrize("draft_length", [1, 2, 5, "auto"])
def test_an_end_token_anywhere_in_a_round_ends_the_text_there(draft_length: Any) -> None:
    ids, tokens = expected(2)
    hf = model().hf
    firsts = {token: tokens.index(token) for token in tokens}
    early = [token for token, place in firsts.items() if place < 7]
    assert len(early) >= 4
    for token in early:
        ends = greedy(hf, ids, NEW, eos_token_id=token)[0].tolist()
        result = decode(
            hf, ids, "static:exit=4", "speculate", new=NEW, draft_length=draft_length, eos_token_id=token
        )
        assert result.rows[0].tokens == ends
        assert result.rows[0].stopped == "end token"


@pytest.mark.parametrize("new", [1, 2, 4, 7, 9])
def test_a_length_anywhere_in_a_round_ends_the_text_there(new: int) -> None:
    ids, tokens = expected()
    for draft_length in (1, 3, 6):
        with counted_layers(model().hf) as counts:
            result = decode(model().hf, ids, "static:exit=4", "speculate", new=new, draft_length=draft_length)
        assert result.rows[0].tokens == tokens[:new]
        # Nothing is drafted beyond the last token that is wanted.
        assert counts[0] <= PROMPT + max(0, new - 1) + (result.drafted - result.accepted)


def test_an_end_token_of_one_row_leaves_the_others_alone() -> None:
    hf = model().hf
    ids = ids_of(hf, PROMPT, rows=4, seed=3)
    ends = greedy(hf, ids[1:2], NEW)[0, 3].item()
    wanted = greedy(hf, ids, NEW, eos_token_id=ends)
    result = decode(hf, ids, "static:exit=4", "speculate", new=NEW, eos_token_id=ends)
    for row, full in zip(result.rows, wanted.tolist(), strict=True):
        assert row.tokens == full[: len(row.tokens)]
        assert row.tokens[-1] == ends or len(row.tokens) == NEW
    assert any(len(row.tokens) < NEW for row in result.rows)


@pytest.mark.parametrize("policy", ["static:exit=4", "threshold:signal=margin,value=0.02,exits=3+4"])
def test_a_padded_batch_gives_each_row_what_it_gets_alone(policy: str) -> None:
    hf = model().hf
    prompts = [ids_of(hf, 2 + row, seed=20 + row)[0].tolist() for row in range(8)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    result = decode(hf, ids, policy, "speculate", new=12, mask=mask)
    for row, prompt in zip(result.rows, prompts, strict=True):
        assert row.tokens == greedy(hf, torch.tensor([prompt]), 12)[0].tolist()
    assert result.accepted < result.drafted
    assert result.accepted > 0 or policy != "static:exit=4"


def test_processors_see_the_right_prefix_at_every_position() -> None:
    ids, plain = expected()
    options = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    wanted = greedy(model().hf, ids, NEW, **options)[0].tolist()
    assert wanted != plain
    for draft_length in (1, 4):
        result = decode(
            model().hf, ids, "static:exit=4", "speculate", new=NEW, draft_length=draft_length, **options
        )
        assert result.rows[0].tokens == wanted
        assert result.accepted > 0


def test_scores_are_the_full_models() -> None:
    from offramp.decoding.generation.early_exit import early_exit

    ids, tokens = expected()
    options = {"pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    out = model().hf.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        custom_generate=early_exit("static:exit=4", kv="speculate"),
        **options,
    )
    logits = model().hf(torch.tensor([ids[0].tolist() + tokens])).logits[0, PROMPT - 1 : -1]
    assert torch.allclose(torch.cat(out.scores), logits, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_numbers_that_are_not_finite_cost_no_token_before_them(name: str) -> None:
    poison = 60
    hf = build_windowed(name)
    # An end token, so that trials of what the model can do leave it out.
    hf.config.eos_token_id = hf.generation_config.eos_token_id = poison
    ids = ids_of(hf, PROMPT)
    with torch.no_grad():
        hf.get_input_embeddings().weight[poison] = torch.nan
    forced = [7, 8, 9, 10, 11, poison, 12, 13, 14]
    plain = decode(hf, ids, "never", "propagate", forced=forced)
    assert plain.rows[0].stopped == "problem"
    for policy in ("static:exit=2", Scripted((1, 3, 2))):
        for draft_length in (1, 4):
            with counted_layers(hf) as counts:
                found = decode(hf, ids, policy, "speculate", forced=forced, draft_length=draft_length)
            # Drafts that broke ran, too, and so did the layer that the problem is then found in.
            assert sum(counts.values()) == found.layers_executed + PROMPT + 6
            assert found.rows[0].tokens == plain.rows[0].tokens == forced[:6]
            assert found.rows[0].chosen == plain.rows[0].chosen
            assert found.rows[0].problem == plain.rows[0].problem


def test_an_adaptive_length_repeats_itself_and_drafts_long_where_it_pays() -> None:
    ids, tokens = expected()
    cheap = Auto(rows=each_costs(0.05), head=0.1)
    runs = [
        decode(model().hf, ids, Scripted((1,)), "speculate", new=NEW, draft_length=length)
        for length in (cheap, cheap, "auto")
    ]
    assert runs[0].usage == runs[1].usage
    assert [run.rows[0].tokens for run in runs] == [tokens] * 3
    assert runs[0].drafted > runs[2].drafted


def test_rows_that_leave_one_by_one_are_refused() -> None:
    ids = ids_of(model().hf, PROMPT, rows=2)
    with pytest.raises(InputError, match="leave one by one"):
        decode(model().hf, ids, "static:exit=2", "speculate", batching="rebatch")


# Of all kinds that are cached in ways of their own: windows, latent attention, state spaces, hybrids.
FAMILIES = ("gpt2", "mistral", "deepseek_v3", "mamba", "jamba", "falcon_h1", "qwen3_next", "lfm2")


# Of the layers' weights: so that some drafts are right and others wrong.
SCALES = {"gpt2": 2.0, "mamba": 4.0, "lfm2": 4.0}


@functools.cache
def family(name: str) -> Any:
    hf = build_windowed(name)
    stack = engine_of(hf).stack
    with torch.no_grad():
        for layer in stack.layers if name in SCALES else stack.layers[1:]:
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(SCALES.get(name, 0.7))
    return hf


@pytest.mark.parametrize("name", FAMILIES)
def test_output_is_greedy_on_every_kind_of_family(name: str) -> None:
    hf = family(name)
    engine = engine_of(hf)
    assert engine.abilities.reason("speculate") is None
    layers, ids, new = engine.layers, ids_of(hf, 9), 16
    tokens = greedy(hf, ids, new)[0].tolist()
    mixed = Scripted((layers - 1, 1, layers - 1, layers, 2, layers - 1, layers - 1))
    rejected = accepted = 0
    for policy, draft_length in ((mixed, 4), (mixed, 2), (f"static:exit={layers - 1}", 3)):
        result = decode(hf, ids, policy, "speculate", new=new, draft_length=draft_length)
        assert result.rows[0].tokens == tokens
        rejected += result.drafted - result.accepted
        accepted += result.accepted
    assert accepted > 0
    assert rejected > 0


@pytest.mark.parametrize("name", ["mistral", "jamba"])
def test_a_padded_batch_of_a_family_gives_each_row_its_own_text(name: str) -> None:
    hf = family(name)
    prompts = [ids_of(hf, 6 + row, seed=row + 1)[0].tolist() for row in range(3)]
    ids = torch.tensor([[0] * (8 - len(prompt)) + prompt for prompt in prompts])
    mask = (torch.arange(8)[None] >= torch.tensor([[8 - len(prompt)] for prompt in prompts])).long()
    layers = engine_of(hf).layers
    result = decode(hf, ids, f"static:exit={layers - 1}", "speculate", new=10, mask=mask)
    for row, prompt in zip(result.rows, prompts, strict=True):
        assert row.tokens == greedy(hf, torch.tensor([prompt]), 10)[0].tolist()


def test_forced_exits_and_usage_of_a_hybrid_are_those_of_replay() -> None:
    hybrid = tiny_model(family("jamba"))
    layers, ids = hybrid.layers, number_text(3, PROMPT + NEW)
    policy = Scripted((layers - 1, 1, layers - 1, layers, 2, 1, layers - 1))
    traced = trace_of_new(hybrid, ids, PROMPT)
    run = PolicyRun(traced, policy, replay_decisions(policy, traced), np.arange(traced.token_count), 3)
    given = torch.tensor([ids[:PROMPT]])
    found = decode(hybrid.hf, given, policy, "speculate", forced=ids[PROMPT:], draft_length=3)
    assert found.rows[0].exits[1:].tolist() == run.decisions.exits.tolist()
    assert found.usage == STRATEGIES["speculate"].charge(run)
    assert found.accepted < found.drafted


@pytest.mark.real_model
def test_the_bundled_model_speculates_as_it_decodes(smollm2: Model) -> None:
    prompt = "The capital of France is"
    plain = offramp.generate(smollm2, prompt, max_new_tokens=8)
    policy = "threshold:signal=max_prob,value=0.6,exits=24"
    found = offramp.generate(smollm2, prompt, policy=policy, kv="speculate", max_new_tokens=8)
    assert found.tokens == plain.tokens
    assert found.text == plain.text
