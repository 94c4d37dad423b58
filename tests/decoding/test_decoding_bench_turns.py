"""Turns: who decodes when, what is kept from it, and that nothing else goes on meanwhile."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from bench_cases import recording

import offramp.decoding.bench.turns as turns
from offramp.decoding.bench.contenders import FAILURES
from offramp.decoding.bench.entrant import Decoded, Entrant, batches_of
from offramp.decoding.bench.turns import Group, Samples, take_turns
from offramp.errors import InputError, OfframpError

NAMES = ("a", "b", "c")
PROMPTS = batches_of([[1, 2], [3, 4, 5]], 1)


@pytest.fixture(autouse=True)
def collections(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether collecting was on at each collection asked for; none is made, it takes a tenth of a second."""
    made: list[bool] = []
    monkeypatch.setattr(gc, "collect", lambda *_: made.append(gc.isenabled()))
    return made


def turns_of(entrants: list[Entrant], rounds: int, **options: Any) -> Samples:
    (samples,) = take_turns([Group(entrants, PROMPTS, 4, rounds)], **options)
    assert not isinstance(samples, OfframpError)
    return samples


def logged(rounds: int, seed: int = 0) -> list[tuple[str, int]]:
    log: list[tuple[str, int]] = []
    turns_of([recording(name, log) for name in NAMES], rounds, seed=seed)
    return log


def test_each_prompt_is_decoded_by_all_before_the_next_one() -> None:
    log = logged(4)
    assert len(log) == 4 * len(PROMPTS) * len(NAMES)
    groups = [log[start : start + 3] for start in range(0, len(log), 3)]
    for place, group in enumerate(groups):
        assert {name for name, _ in group} == set(NAMES)
        assert {length for _, length in group} == {PROMPTS[place % 2].ids.shape[1]}


def test_the_order_within_a_round_is_random_and_repeatable() -> None:
    log = logged(20)
    groups = [tuple(name for name, _ in log[start : start + 3]) for start in range(0, len(log), 3)]
    assert len(set(groups)) == 6  # every order comes
    firsts = Counter(group[0] for group in groups)
    assert min(firsts.values()) >= 5  # nobody is always last
    assert logged(20) == log != logged(20, seed=1)


def test_samples_are_in_the_order_of_rounds_and_prompts() -> None:
    seconds = iter(range(100))
    entrants = [recording(name, [], lambda: Decoded(((0, 0),), 0.0, float(next(seconds)))) for name in NAMES]
    samples = turns_of(entrants, 3)
    for place in range(6):
        together = sorted(samples[name][place].seconds for name in NAMES)
        assert together == [3 * place, 3 * place + 1, 3 * place + 2]


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_a_contender_decodes(enabled: bool, collections: list[bool]) -> None:
    seen: list[bool] = []

    def decoded() -> Decoded:
        seen.append(gc.isenabled())
        return Decoded(((0, 0),), 0.0, 1.0)

    def failing() -> Decoded:
        raise KeyboardInterrupt

    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        turns_of([recording("a", [], decoded)], 1)
        assert gc.isenabled() is enabled
        with pytest.raises(KeyboardInterrupt):
            turns_of([recording("a", [], failing)], 1)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert seen == [False, False]
    assert len(collections) == 3  # before each prompt instead


@pytest.mark.parametrize(("budget", "made"), [(None, 9), (1e9, 9), (35.0, 3), (0.0, turns.FEWEST_ROUNDS)])
def test_a_budget_ends_the_rounds(monkeypatch: pytest.MonkeyPatch, budget: float | None, made: int) -> None:
    now = [0.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: now[0])

    def decoded() -> Decoded:
        now[0] += 5.0  # ten seconds a round
        return Decoded(((0, 0),), 0.0, 1.0)

    samples = turns_of([recording("a", [], decoded)], 9, budget_seconds=budget)
    assert len(samples["a"]) == made * len(PROMPTS)


def test_groups_take_turns_batch_by_batch_and_each_has_its_own_rounds() -> None:
    log: list[tuple[str, int]] = []
    longer = batches_of([[1] * 7], 1)
    groups = [Group([recording("a", log)], PROMPTS, 4, 1), Group([recording("b", log)], longer, 4, 3)]
    first, second = take_turns(groups)
    assert log == [("a", 2), ("b", 7), ("a", 3), ("b", 7), ("b", 7)]
    assert not isinstance(first, OfframpError)
    assert not isinstance(second, OfframpError)
    assert (len(first["a"]), len(second["b"])) == (2, 3)


def test_a_group_that_fails_leaves_the_others() -> None:
    def failing() -> Decoded:
        raise OfframpError("NaN logits")

    log: list[tuple[str, int]] = []
    groups = [Group([recording(name, log, decoded)], PROMPTS, 4, 2)
              for name, decoded in (("a", failing), ("b", None))]  # fmt: skip
    first, second = take_turns(groups)
    assert isinstance(first, OfframpError)
    assert not isinstance(second, OfframpError)
    assert len(second["b"]) == 2 * len(PROMPTS)
    assert log.count(("a", 2)) == 1


def test_prompts_are_padded_on_the_left_and_the_last_batch_is_filled() -> None:
    first, second = batches_of([[1], [2, 3], [4, 5, 6]], 2)
    assert first.ids.tolist() == [[0, 1], [2, 3]]
    assert first.mask is not None
    assert first.mask.tolist() == [[0, 1], [1, 1]]
    assert second.ids.tolist() == [[4, 5, 6], [0, 0, 1]]
    alone = batches_of([[1, 2]], 1)[0]
    assert alone.mask is None
    assert torch.equal(alone.attention_mask, torch.ones(1, 2, dtype=torch.long))


@pytest.mark.parametrize(
    ("prompts", "batch", "what"),
    [([], 1, "no prompts"), ([[1], []], 1, "prompt 1 has no"), ([[1]], 0, "of 0")],
)
def test_bad_prompts(prompts: list[list[int]], batch: int, what: str) -> None:
    with pytest.raises(InputError, match=what):
        batches_of(prompts, batch)


def test_an_interrupt_is_no_failure_of_a_contender() -> None:
    assert not any(issubclass(KeyboardInterrupt, kind) for kind in FAILURES)
    assert isinstance(recording("a", []), Entrant)
