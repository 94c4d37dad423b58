from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy, policy_kinds
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows, Tokens
from offramp.policies.rules.fixed import Oracle
from offramp.policies.rules.threshold import Threshold
from offramp.policies.signals import SIGNALS
from offramp.testing import policies as contract
from offramp.testing.policies import check_policy
from policy_traces import make_trace

MARGIN = "[threshold:signal=margin,value=0.8,exits=1+2+4]"
PATIENCE = "[patience:times=1,exits=1+2+4]"
LEARNING = (
    "[bandit:signal=max_prob,value=0.7,exits=1+2+4]+"
    "[adaptive:signal=margin,target=0.4,warmup=1,exits=1+3]+"
    "[dynamic:signal=margin,value=0.6,exits=2+4,complexity=running_entropy,slope=0.1]"
)
BUILT_IN = [
    "never",
    "static:exit=1",
    "static:exit=20",
    "schedule:first=6,last=2,length=9",
    "threshold:signal=max_prob,value=0.7,exits=all",
    *[f"threshold:signal={signal},value=0.5,exits=1+2+5" for signal in SIGNALS],
    "thresholds:signal=margin,values=0.9+0.4,exits=1+2",
    "decaying:signal=entropy,value=3,exits=1+3,decay=3,length=10",
    "dynamic:signal=margin,value=0.5,exits=1+3,complexity=position,slope=0.1,centre=1",
    "dynamic:signal=kl_to_previous,value=0.5,exits=1+3,complexity=running_entropy,slope=0.3",
    "dynamic:signal=restricted_margin,value=0.5,exits=1+3,complexity=prompt_entropy,slope=0.3,centre=1",
    "adaptive:signal=max_prob,target=0.5,warmup=2,exits=1+3",
    "bandit:signal=max_prob,value=0.5,exits=1+2+4",
    "patience:times=2,exits=all",
    "patience:times=1,exits=1+3+4,fact=restricted_top1",
    "sustained:signal=js_to_previous,value=0.5,times=2,exits=1+2+3+5",
    f"minimum:exit=2,policy={MARGIN}",
    "filtered:signal=correctness,value=0.4,exit=1,policy=[threshold:signal=margin,value=0.8,exits=2+4]",
    f"shortlist:policy={MARGIN}",
    "shortlist:policy=[patience:times=1,exits=1+3+4,fact=restricted_top1]",
    f"monotone:policy=[votes:need=2,of={MARGIN}+{PATIENCE}]",
    f"votes:need=all,of={MARGIN}+{PATIENCE}",
    f"votes:need=2,of={LEARNING}",
    f"monotone:policy=[votes:need=any,of={LEARNING}]",
    f"tasks:names=code+chat,policies={MARGIN}+{PATIENCE},fallback=[static:exit=1]",
    f"minimum:exit=2,policy=[tasks:names=code,policies={MARGIN},fallback={MARGIN}]",
    "oracle:which=first_match",
    "oracle:which=saturation",
]


@pytest.fixture(autouse=True)
def few_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "DEPTHS", (3, 6, 24))


@pytest.mark.parametrize("text", BUILT_IN)
def test_the_built_in_policies_meet_the_contract(text: str) -> None:
    assert check_policy(parse_policy(text)) == parse_policy(text)


def test_every_kind_is_among_them() -> None:
    assert {text.partition(":")[0] for text in BUILT_IN} == set(policy_kinds())


@dataclass(frozen=True)
class Odd(Threshold):
    """A threshold policy whose decider has one fault."""

    fault: ClassVar[type[Decider]]

    def decider(self, layers: int, streams: int) -> Decider:
        return self.fault()


def above(facts: FactsAtExit) -> Rows:
    return np.asarray(facts["max_prob"] > 0.6)


class Strays(Decider):
    """Depends on the streams beside it."""

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return above(facts) & (self.streams > 1)


class NeedsMore(Decider):
    """Reads a fact that the policy does not name."""

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return np.asarray(facts["entropy"] < 1)


class Remembers(Decider):
    """Remembers the token before, which the policy does not say."""

    before = False

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return np.full(self.streams, self.before)

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        self.before = True


class ReadsOthers(Decider):
    """Looks at streams that have left or do not check."""

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.sure = np.zeros(self.streams, dtype=np.bool_)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return above(facts) & np.isfinite(facts["max_prob"]).all()


class ChecksAtOdds(Decider):
    """Checks other tokens when streams are many, and leaves alike."""

    def checks(self, exit: int) -> Rows:
        return np.full(self.streams, self.streams == 1)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return np.zeros(self.streams, dtype=np.bool_)


class SaysOneThing(Decider):
    """Answers for all streams together."""

    def decide(self, exit: int, facts: FactsAtExit) -> Any:
        return True


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (Strays, "in replay, "),
        (NeedsMore, "reads 'entropy', which needs does not list"),
        (Remembers, "in replay, "),
        (ReadsOthers, "facts of streams that read none"),
        (ChecksAtOdds, "replay checks other tokens at exit 1"),
        (SaysOneThing, r"it answers True for one stream, not bool \[streams\]"),
    ],
)
def test_the_contract_finds_a_broken_decider(
    monkeypatch: pytest.MonkeyPatch, fault: type[Decider], what: str
) -> None:
    monkeypatch.setattr(contract, "_check_round_trip", lambda policy: None)
    monkeypatch.setattr(Odd, "fault", fault, raising=False)
    with pytest.raises(PolicyError, match=what):
        check_policy(Odd("max_prob", 0.6, (1, 2)))


@dataclass(frozen=True)
class LeavesUnsaid(Threshold):
    """Loses a parameter in its text."""

    def __str__(self) -> str:
        return "threshold:signal=max_prob,value=0.5,exits=1"


@dataclass(frozen=True)
class LosesInJson(Threshold):
    """Loses a parameter in its JSON."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Threshold) and self.value == other.value

    def parameter_values(self) -> dict[str, Any]:
        return {**super().parameter_values(), "value": 0.5}


@pytest.mark.parametrize(
    ("policy", "what"),
    [(LeavesUnsaid, "its text reads back"), (LosesInJson, "its JSON reads back")],
)
def test_the_contract_finds_a_lost_parameter(policy: type[Threshold], what: str) -> None:
    with pytest.raises(PolicyError, match=what):
        check_policy(policy("max_prob", 0.6, (1,)))


@dataclass(frozen=True)
class Needs(Threshold):
    """Needs what it is told to."""

    needed: ClassVar[Mapping[int, tuple[str, ...]]]

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        return self.needed


@pytest.mark.parametrize(
    ("needed", "what"),
    [
        ({3: ("max_prob",)}, "do not ascend within 1 to 2"),
        ({2: ("max_prob",), 1: ("max_prob",)}, "do not ascend"),
        ({1: ("kl_to_final",)}, "no probe gives the fact 'kl_to_final'"),
        ({1: ("luck",)}, "the unknown fact 'luck'"),
    ],
)
def test_the_contract_finds_impossible_needs(
    monkeypatch: pytest.MonkeyPatch, needed: Mapping[int, tuple[str, ...]], what: str
) -> None:
    monkeypatch.setattr(contract, "_check_round_trip", lambda policy: None)
    monkeypatch.setattr(Needs, "needed", needed, raising=False)
    with pytest.raises(PolicyError, match=what):
        check_policy(Needs("max_prob", 0.6, (1,)))


@dataclass(frozen=True)
class LeavesElsewhere(Threshold):
    """Lets tokens go where it says that none leave."""

    def leaves_at(self, layers: int) -> tuple[int, ...]:
        return (2,)


def test_the_contract_finds_an_exit_where_nothing_is_said_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_check_round_trip", lambda policy: None)
    with pytest.raises(PolicyError, match="exits that it does not say tokens leave at"):
        check_policy(LeavesElsewhere("max_prob", 0.6, (1, 2)))


@dataclass(frozen=True)
class Learns(Threshold):
    """A threshold that is given facts of exit L."""

    learned: ClassVar[tuple[str, ...]] = ()

    @property
    def final_facts(self) -> tuple[str, ...]:
        return self.learned


@pytest.mark.parametrize("fact", ["nll", "kl_to_final", "final_rank", "hidden_cosine_to_final"])
def test_what_no_decoder_knows_at_the_last_exit_is_refused(
    monkeypatch: pytest.MonkeyPatch, fact: str
) -> None:
    monkeypatch.setattr(contract, "_check_round_trip", lambda policy: None)
    monkeypatch.setattr(Learns, "learned", (fact,))
    policy = Learns("max_prob", 0.5, (1,))
    for judge in (check_policy, lambda policy: replay_decisions(policy, make_trace())):
        with pytest.raises(PolicyError, match=f"no probe gives the fact '{fact}'"):
            judge(policy)


@dataclass(frozen=True)
class Peeks(Oracle):
    """Says that it is reachable, but looks the answer up."""

    reachable: ClassVar[bool] = True


def test_an_oracle_that_hides_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_check_round_trip", lambda policy: None)
    with pytest.raises(PolicyError, match="an oracle knows the full model's answer"):
        check_policy(Peeks("saturation"))


def test_a_policy_that_sees_deeper_exits_or_later_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What replay shows to both ways of deciding alike must still not be deeper or later."""
    policy = Threshold("max_prob", 0.6, (1, 2))
    honest = contract.replay_decisions

    def deeper(own: ExitPolicy, trace: Any) -> Any:
        decisions = honest(own, trace)
        decisions.exits[trace.fact("max_prob")[:, -1] > 0.5] = 1
        return decisions

    def later(own: ExitPolicy, trace: Any) -> Any:
        decisions = honest(own, trace)
        shallow = np.roll(decisions.exits, -1) == 1
        decisions.exits[shallow] = trace.layers
        return decisions

    monkeypatch.setattr(contract, "_check_sequential", lambda policy, decisions, expected: None)
    monkeypatch.setattr(contract, "replay_decisions", deeper)
    with pytest.raises(PolicyError, match="deeper than the one it takes"):
        check_policy(policy)
    monkeypatch.setattr(contract, "replay_decisions", later)
    with pytest.raises(PolicyError, match="depends on later tokens"):
        check_policy(policy)


def test_a_policy_that_fits_no_model_is_refused() -> None:
    with pytest.raises(PolicyError, match="fits no model of 3, 6, 24 layers"):
        check_policy(parse_policy("static:exit=25"))
