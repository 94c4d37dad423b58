"""Free-running quality against a naive reference, and drift by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_modules import benchmark
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.decoding import judging as module
from offramp.decoding.judging import (
    JudgedAnswer,
    agreement_of,
    free_running,
    full_models_choices,
    judge,
)
from offramp.errors import InputError
from offramp.models.model import Model
from offramp.scoring.estimate import Estimate
from offramp.tracing.loading import load_model
from tiny_models import VOCABULARY

DRIFT = benchmark("drift")
TOKENS = st.lists(st.integers(2, VOCABULARY - 61), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(str(tiny_model), dtype="float32")


@pytest.fixture(scope="module")
def rounded(tiny_model: Path) -> Model:
    return load_model(str(tiny_model), dtype="bfloat16")


def own_greedy(model: Model, prompt: Sequence[int], count: int) -> list[int]:
    """The full model's greedy answer, one whole forward per token."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def one_by_one(model: Model, prompt: list[int], answer: list[int]) -> tuple[list[int], list[float]]:
    """Top-1 and log-probability in each place, from one whole forward per token."""
    best, logprob = [], []
    for place, token in enumerate(answer):
        ids = torch.tensor([prompt + answer[:place]])
        with torch.no_grad():
            scores = model.hf(input_ids=ids, use_cache=False).logits[0, -1].double().log_softmax(-1)
        best.append(int(scores.argmax()))
        logprob.append(float(scores[token]))
    return best, logprob


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TOKENS, st.integers(1, 8), TOKENS), min_size=1, max_size=3))
def test_it_equals_the_naive_reference(model: Model, cases: list[tuple[list[int], int, list[int]]]) -> None:
    prompts = [prompt for prompt, _, _ in cases]
    plains = [own_greedy(model, prompt, 8) for prompt in prompts]
    # Each answer follows the plain one for a while and then goes its own way.
    answers = [plain[:keep] + rest for plain, (_, keep, rest) in zip(plains, cases, strict=True)]
    result = free_running(model, prompts, answers, plains)
    assert agreement_of(model, prompts, answers, plains) == result.agreement
    divergence, agreeing, nll, plain_nll = [], 0, 0.0, 0.0
    for prompt, answer, plain in zip(prompts, answers, plains, strict=True):
        place = 0
        while place < min(len(answer), len(plain)) and answer[place] == plain[place]:
            place += 1
        divergence.append(place)
        best, logprob = one_by_one(model, prompt, answer)
        agreeing += sum(one == other for one, other in zip(best[1:], answer[1:], strict=True))
        nll -= sum(logprob)
        plain_nll -= sum(one_by_one(model, prompt, plain)[1])
    new = sum(map(len, answers))
    assert result.tokens_before_divergence.value == pytest.approx(np.mean(divergence))
    assert result.agreement.value == pytest.approx(agreeing / (new - len(answers)))
    assert result.nll.value == pytest.approx(nll / new, abs=1e-4)
    assert result.plain_nll.value == pytest.approx(plain_nll / sum(map(len, plains)), abs=1e-4)
    matches = np.mean([one == other for one, other in zip(answers, plains, strict=True)])
    assert result.sequence_match.value == pytest.approx(matches)
    assert (result.prompts, result.new_tokens) == (len(cases), new)


def test_what_depends_on_each_other_is_drawn_together(model: Model) -> None:
    """Three prompts in ten rounds are three, and rows of a batch are one."""
    prompts = [[0, number + 2, 2 * number + 3] for number in range(40)]
    plains = [own_greedy(model, prompt, 4) for prompt in prompts]
    wrong = [[(token + 1) % 61 for token in plain] if n % 4 < 2 else plain for n, plain in enumerate(plains)]

    def match(places: list[int], **options: int) -> Estimate[float]:
        asked = [[values[place] for place in places] for values in (prompts, wrong, plains)]
        return free_running(model, *asked, **options).sequence_match

    repeated = match([0, 2, 5] * 10)
    assert repeated == Estimate(repeated.value, None, None)
    assert repeated.value == pytest.approx(1 / 3)
    alone, paired = match(list(range(40))), match(list(range(40)), batch=2)
    assert alone.value == paired.value == 0.5
    assert alone.low is not None
    assert paired.low is not None
    assert (0.5 - paired.low) / (0.5 - alone.low) == pytest.approx(np.sqrt(2), rel=0.25)
    assert match(list(range(40)), batch=4).low is None, "ten batches"
    # A prompt that comes again joins the batches that it is in.
    assert match([*range(19), 0, *range(19, 38), 30], batch=2).low is None


def test_bfloat16_answers_of_the_full_model_agree_by_definition(rounded: Model) -> None:
    prompts = [[0, number + 2] for number in range(4)]
    plains = [own_greedy(rounded, prompt, 8) for prompt in prompts]
    result = free_running(rounded, prompts, plains, plains)
    assert (result.agreement.value, result.sequence_match.value) == (1.0, 1.0)


def test_bfloat16_logits_are_read_in_float32(rounded: Model) -> None:
    prompt, answer = [0, 5, 6], [7, 8, 9, 10]
    judged = judge(rounded, prompt, answer)
    with torch.no_grad():
        found = rounded.hf(input_ids=torch.tensor([prompt + answer[:-1]]), use_cache=False)
        logprob = found.logits[0, 2:].double().log_softmax(-1)
    expected = logprob.gather(1, torch.tensor(answer)[:, None]).squeeze(1).numpy()
    np.testing.assert_allclose(judged.logprob, expected, atol=0.05)
    best = torch.tensor(judged.largest)
    assert not torch.equal(best, best.bfloat16().double()), "the largest logits are not rounded"


def test_near_ties_count_as_the_full_models_choice() -> None:
    zeros = np.zeros(4)
    judged = JudgedAnswer(zeros.astype(np.int64), zeros, np.array([0.0, 0.9e-4, 2e-4, 0.2]), np.full(4, 30.0))
    assert full_models_choices(judged, 0, "float32").tolist() == [True, True, False, False]
    assert full_models_choices(judged, 0, "bfloat16").tolist() == [True, True, True, True]
    judged = replace(judged, gap=np.array([0.3, 0.1, 0.3, 0.3]))
    assert full_models_choices(judged, 1, "bfloat16").tolist() == [True, True, False, False]


def test_long_answers_are_judged_in_parts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = list(range(10, 60))
    whole = judge(model, [0, 1], answer)
    monkeypatch.setattr("offramp.decoding.judging.ROWS_AT_ONCE", 7)
    parts = judge(model, [0, 1], answer)
    np.testing.assert_allclose(parts.logprob, whole.logprob, atol=1e-5)
    assert parts.chosen.tolist() == whole.chosen.tolist()
    assert len(parts.gap) == 50


@pytest.mark.parametrize(
    ("prompts", "answers", "plains"),
    [([], [], []), ([[1]], [[1]], []), ([[1]], [[]], [[1]]), ([[]], [[1]], [[1]])],
)
def test_unusable_lists_are_refused(
    model: Model, prompts: list[list[int]], answers: list[list[int]], plains: list[list[int]]
) -> None:
    with pytest.raises(InputError):
        free_running(model, prompts, answers, plains)


def test_a_non_finite_logit_is_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*arguments: Any) -> torch.Tensor:
        logits = torch.zeros(3, VOCABULARY)
        logits[1, 5] = float("nan")
        return logits

    monkeypatch.setattr("offramp.decoding.judging.float_logits", poisoned)
    with pytest.raises(InputError, match="token 2 of the answer"):
        module.judge(model, [0], [1, 2, 3])


def test_an_answer_is_read_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, plain, answers = [[5, 6], [7]], [[8, 9], [10, 11]], [[8, 9], [10, 12]]
    expected = free_running(model, prompts, answers, plain)
    read: list[Sequence[int]] = []

    def counted(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> JudgedAnswer:
        read.append(answer)
        return judge(model, prompt, answer)

    monkeypatch.setattr(module, "judge", counted)
    known: module.Judgements = {}
    for _ in range(2):
        assert free_running(model, prompts, answers, plain, known=known) == expected
    assert read == [[8, 9], [10, 12], [10, 11]]


def test_drift_by_hand() -> None:
    result = DRIFT.drift_of([4, 2, 3, 4], [9, 8, 7, 6], [4, 3, 3, 2], [9, 8, 7, 5])
    assert (result.tokens, result.exits_differ, result.mean_exit_difference) == (4, 0.5, 0.25)
    assert result.tokens_differ == 0.25
    with pytest.raises(InputError):
        DRIFT.drift_of([1], [1], [1, 2], [1])
    with pytest.raises(InputError):
        DRIFT.drift_of([], [], [], [])


def test_the_first_token_of_an_answer_does_not_count(model: Model) -> None:
    """It comes with the prompt, at full depth; of answers of one token nothing is to be said."""
    prompts = [[0, number + 2] for number in range(3)]
    plains = [own_greedy(model, prompt, 5) for prompt in prompts]
    other = [
        [(plain[0] + 1) % 61, *own_greedy(model, [*prompt, (plain[0] + 1) % 61], 4)]
        for prompt, plain in zip(prompts, plains, strict=True)
    ]
    assert free_running(model, prompts, other, plains).agreement.value == 1.0
    short = [answer[:1] for answer in other]
    alone = free_running(model, prompts, short, plains)
    assert alone.agreement == Estimate(1.0)
    assert alone.sequence_match.value == 0.0
    some = free_running(model, prompts, [short[0], *other[1:]], plains)
    assert some.agreement.value == 1.0
