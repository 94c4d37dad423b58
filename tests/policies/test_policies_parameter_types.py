"""Policies moved to models that have lost layers: every kind of exit parameter, and when none is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import PolicyError
from offramp.policies.grammar import parse_policy
from offramp.policies.parameter_types import pruned_policy

LAYERS = 10


def moved(text: str, dropped: set[int]) -> str:
    kept = [layer for layer in range(1, LAYERS + 1) if layer not in dropped]
    return str(pruned_policy(parse_policy(text), kept, LAYERS))


@pytest.mark.parametrize(
    ("before", "dropped", "after"),
    [
        ("static:exit=6", {7, 8}, "static:exit=6"),
        ("static:exit=6", {2, 3}, "static:exit=4"),
        ("static:exit=6", {6}, "static:exit=5"),
        ("never", {2}, "never"),
        ("schedule:first=10,last=4,length=32", {2, 9}, "schedule:first=8,last=3,length=32"),
        (
            "threshold:signal=margin,value=0.9,exits=3+6+9",
            {3, 4, 5},
            "threshold:signal=margin,value=0.9,exits=2+3+6",
        ),
        (
            "threshold:signal=margin,value=0.9,exits=all",
            {3},
            "threshold:signal=margin,value=0.9,exits=all",
        ),
        # Exits 5 and 6 come to the same one: the deeper stands for both. Nothing is left after exit 9.
        (
            "thresholds:signal=margin,values=0.9+0.8+0.7+0.6,exits=4+5+6+9",
            {6, 10},
            "thresholds:signal=margin,values=0.9+0.7,exits=4+5",
        ),
        (
            "votes:need=1,of=[threshold:signal=margin,value=0.9,exits=4+8]+[patience:times=1,exits=4+8]",
            {1, 2},
            "votes:need=1,of=[threshold:signal=margin,value=0.9,exits=2+6]+[patience:times=1,exits=2+6]",
        ),
        (
            "minimum:exit=6,policy=[static:exit=8]",
            {1},
            "minimum:exit=5,policy=[static:exit=7]",
        ),
    ],
)
def test_exits_move_to_the_layers_that_are_left(before: str, dropped: set[int], after: str) -> None:
    assert moved(before, dropped) == str(parse_policy(after))


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        ("static:exit=3", {1, 2, 3}),
        ("static:exit=8", {9, 10}),
        ("threshold:signal=margin,value=0.9,exits=1+8", {1, 9, 10}),
        ("schedule:first=8,last=2,length=4", {1, 2}),
        ("patience:times=1,exits=4+5", {5}),  # a single exit cannot be compared with another
    ],
)
def test_nothing_left_is_refused(text: str, dropped: set[int]) -> None:
    with pytest.raises(PolicyError, match=r"no exit is left below the last of the \d layers"):
        moved(text, dropped)


def test_a_model_with_all_layers_keeps_the_policy() -> None:
    policy = parse_policy("static:exit=6")
    assert pruned_policy(policy, range(1, LAYERS + 1), LAYERS) is policy


@given(
    st.sets(st.integers(1, LAYERS), min_size=1, max_size=LAYERS - 2),
    st.sets(st.integers(1, LAYERS - 1), min_size=1),
)
def test_an_exit_never_runs_layers_that_it_did_not_run(dropped: set[int], exits: set[int]) -> None:
    kept = [layer for layer in range(1, LAYERS + 1) if layer not in dropped]
    text = "threshold:signal=margin,value=0.9,exits=" + "+".join(map(str, sorted(exits)))
    deepest = {exit: [layer for layer in kept if layer <= exit] for exit in exits}
    expected = sorted({len(run) for run in deepest.values()} - {0, len(kept)})
    if not expected:
        with pytest.raises(PolicyError):
            moved(text, dropped)
    else:
        assert list(parse_policy(moved(text, dropped)).needs(len(kept))) == expected
