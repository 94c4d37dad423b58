"""Policies made in Python: parameters of the types of their fields, and numbers of numpy as Python's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from offramp.errors import InputError, PolicyError
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.around import Minimum
from offramp.policies.rules.combined import Votes
from offramp.policies.rules.fixed import Oracle, StaticExit
from offramp.policies.rules.threshold import Threshold, Thresholds
from policy_traces import make_trace


@pytest.mark.parametrize(
    ("make", "what", "fix"),
    [
        (lambda: StaticExit(True), "exit cannot be bool True", "give int"),
        (lambda: Threshold("margin", "0.5", (2,)), "value cannot be str '0.5'", "give float"),
        (lambda: Threshold("margin", 0.5, (2.0,)), "exits cannot be tuple (2.0,)", "give tuple[int, ...]"),
        (lambda: Minimum(2, "never"), "policy cannot be str 'never'", "give ExitPolicy"),
        (lambda: Votes("most", (StaticExit(2),)), "need cannot be str 'most'", "give 'all' or 'any' or int"),
    ],
)
def test_another_type_is_named(make: Callable[[], ExitPolicy], what: str, fix: str) -> None:
    with pytest.raises(PolicyError) as refused:
        make()
    assert refused.value.what.startswith(what)
    assert refused.value.fix.startswith(fix)


def test_numbers_of_numpy_are_pythons_and_their_text_reads_back() -> None:
    trace = make_trace()
    for made, plain in (
        (StaticExit(np.int64(2)), StaticExit(2)),
        (Threshold("margin", np.float32(0.5), np.array([1, 2])), Threshold("margin", 0.5, (1, 2))),
        (Threshold("margin", np.float64(0.25), [np.int32(2)]), Threshold("margin", 0.25, (2,))),
        (Thresholds("margin", np.array([0.5, 0.25]), [1, 2]), Thresholds("margin", (0.5, 0.25), (1, 2))),
        (Votes(np.int64(1), [StaticExit(2)]), Votes(1, (StaticExit(2),))),
    ):
        assert (made, str(made)) == (plain, str(plain))
        assert parse_policy(str(made)) == made
        assert np.array_equal(replay_decisions(made, trace).exits, replay_decisions(plain, trace).exits)


@pytest.mark.parametrize(
    "policy", ["static:exit=2", "threshold:signal=margin,value=0.5,exits=all", "patience:times=1,exits=1+2"]
)
def test_layers_are_a_whole_number(policy: str) -> None:
    made = parse_policy(policy)
    assert made.needs(np.int64(6)) == made.needs(6)
    with pytest.raises(InputError, match="layers cannot be str '6'"):
        made.needs("6")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Twice(StaticExit):
    """A policy of others, with a check of its own."""

    kind: ClassVar[str] = "twice"
    seen: ClassVar[list[Any]] = []

    def __post_init__(self) -> None:
        self.seen.append(self.exit)


def test_a_check_of_ones_own_sees_parameters_of_their_types() -> None:
    assert Twice(np.int64(3)).exit == 3
    assert [type(one) for one in Twice.seen] == [int]
    with pytest.raises(PolicyError, match="exit cannot be str"):
        Twice("3")
    assert Twice.seen == [3]


@dataclass(frozen=True)
class Looks(Oracle):
    """An oracle of others that takes no exits of the trace."""

    found: ClassVar[Any] = None

    def exits_of(self, trace: Any) -> Any:
        return self.found


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (None, r"takes exits object \(\)"),
        (np.full(60, 1.0), "float64"),
        (np.full(59, 1), "59"),
        (np.full(60, 99), "does not have"),
    ],
)
def test_an_oracle_of_others_takes_exits_of_the_trace(
    monkeypatch: pytest.MonkeyPatch, found: Any, what: str
) -> None:
    monkeypatch.setattr(Looks, "found", found)
    with pytest.raises(PolicyError, match=what) as refused:
        replay_decisions(Looks("saturation"), make_trace())
    assert refused.value.where.endswith("test_policies_policy_checks.Looks")
