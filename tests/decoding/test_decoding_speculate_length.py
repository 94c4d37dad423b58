"""The adaptive draft length: its formula against brute force, and how it learns, pauses and tries again."""

from __future__ import annotations

import itertools

import pytest
from generation_cases import tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.decoding.engine.build import engine_of
from offramp.decoding.options import Auto, each_costs
from offramp.decoding.strategies.speculate import AdaptiveLength, draft_length_of
from offramp.policies.grammar import parse_policy

LAYERS, HEAD = 30, 6.0


def adaptive(
    share: float = 0.1, exit_head: float = HEAD, exit: float = 10.0, longest: int = 8
) -> AdaptiveLength:
    return AdaptiveLength(Auto(rows=each_costs(share), longest=longest), LAYERS, HEAD, exit_head, exit)


def tokens_per_cost(length: int, right: float, exit: float, share: float) -> float:
    """A round played through for every outcome of its drafts."""
    tokens = 0.0
    for outcome in itertools.product([True, False], repeat=length):
        chance = 1.0
        for is_right in outcome:
            chance *= right if is_right else 1 - right
        kept = length if all(outcome) else outcome.index(False)
        tokens += chance * (kept + 1)
    if length == 0:
        return 1 / (LAYERS + HEAD)
    drafts = length * (exit + HEAD)
    closing = exit
    block = (LAYERS - exit + HEAD) * (1 + share * length)
    return tokens / (drafts + closing + block)


@pytest.mark.parametrize("right", [0.1, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize(("exit", "share"), [(5.0, 0.1), (10.0, 0.6), (25.0, 0.1), (3.0, 0.0)])
def test_the_best_length_is_that_of_every_outcome_played_through(
    right: float, exit: float, share: float
) -> None:
    gains = [tokens_per_cost(length, right, exit, share) for length in range(9)]
    assert gains[adaptive(share, exit=exit).best(right)] == pytest.approx(max(gains))


class Counted(float):
    """Counts its powers."""

    taken = 0

    def __pow__(self, power: float) -> float:
        Counted.taken += 1
        return float(self) ** power


@settings(deadline=None)
@given(right=st.floats(0, 1), share=st.floats(0, 1), exit=st.floats(0, LAYERS), longest=st.integers(0, 60))
def test_the_best_length_is_that_of_the_formula_written_out_and_each_is_weighed_once(
    right: float, share: float, exit: float, longest: int
) -> None:
    length = adaptive(share, exit=exit, longest=longest)

    def gain(drafts: int) -> float:
        tokens, left = sum(right**draft for draft in range(drafts + 1)), exit if drafts else 0.0
        rows = each_costs(share)(drafts + 1)
        return tokens / ((drafts + 1) * left + drafts * HEAD + (LAYERS - left + HEAD) * rows)

    Counted.taken = 0
    found = length.best(Counted(right))
    assert Counted.taken <= longest + 1
    assert gain(found) == pytest.approx(max(map(gain, range(longest + 1))), rel=1e-12)


def test_right_drafts_make_rounds_longer_and_wrong_ones_shorter() -> None:
    length = adaptive()
    lengths = []
    for _ in range(12):
        lengths.append(length.next())
        length.learn(lengths[-1], False, [5] * lengths[-1])
    assert lengths[0] == 1
    assert lengths == sorted(lengths)
    assert lengths[-1] == 8
    for _ in range(30):
        drafted = length.next()
        length.learn(0, True, [5] * drafted)
    assert length.next() <= 1


def test_pauses_grow_while_drafts_are_wrong() -> None:
    length = adaptive(share=0.6)
    drafted = []
    for _ in range(70):
        drafted.append(length.next())
        length.learn(0, drafted[-1] > 0, [10] * drafted[-1])
    tries = [place for place, made in enumerate(drafted) if made]
    pauses = [later - earlier - 1 for earlier, later in itertools.pairwise(tries)]
    assert set(drafted) == {0, 1}
    assert pauses == [8, 16, 32]


def test_drafts_are_expected_where_tokens_leave_not_where_they_are_filtered() -> None:
    # With drafts of exit 1 nine tokens cost 44.2 layers, plainly 45; with those of exit 3 45.8.
    auto = Auto(rows=each_costs(0.9), head=1.0, exit_head=0.3)
    filtered = "filtered:signal=margin,value=0.9,exit=1,policy=[static:exit=3]"
    for text, drafted in (("static:exit=1", 1), ("static:exit=3", 0), (filtered, 0)):
        length = draft_length_of(auto, engine_of(tiny_llama()), parse_policy(text))
        assert isinstance(length, AdaptiveLength), text
        assert length.next() == drafted, text


def test_nothing_is_tried_where_not_even_right_drafts_would_pay() -> None:
    # 9 tokens cost 9 x 25 + 8 x 6 + 11 x 5.8 = 337 layers, plainly 324.
    assert [adaptive(share=0.6, exit=25.0).next() for _ in range(300)] == [0] * 300
    # Off a short list drafts hardly cost a head.
    assert adaptive(share=0.6, exit=25.0, exit_head=0.1).next() == 1
