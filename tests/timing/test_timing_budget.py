"""A budget of seconds, by a made clock: kept to within a quarter, or what it takes is announced."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_cases import Clock, Fake, family_model, settled

from offramp.defaults import FEWEST_PROMPTS, FEWEST_VISITS
from offramp.timing.contenders import GENERATE, NEVER, ONE_CALL, STATIC_CACHE, WITHOUT_PEERS
from offramp.timing.decoder import Decoder
from offramp.timing.results import NO_TIME
from offramp.timing.session import SPARE, Session
from offramp.timing.stopping import Budget, TimeLimits

pytestmark = pytest.mark.usefixtures("uncollected")

PROMPTS = [[5 + place, 6, 7, 8] for place in range(16)]


class Timed:
    """A session of made-up contenders on a clock of its own. each: seconds of a token of everybody."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, each: float, seconds: float, **further: float
    ) -> None:
        self.clock = Clock(monkeypatch)
        self.judging, self.each = further.get("judging", 0.0), each
        self.slower = further.get("slower", 1.0)
        self.said: list[tuple[str, float]] = []
        monkeypatch.setattr(
            "offramp.timing.session.say", lambda line: self.said.append((line, self.clock.now))
        )
        roles = {
            "policy": "policy",
            NEVER: "plain",
            GENERATE: "plain",
            ONE_CALL: "plain",
            STATIC_CACHE: "plain",
        }
        roles |= {
            "lookup": "peer",
            "assistant": "peer",
            **dict.fromkeys(["int8", "int8 + exits"], "combination"),
        }
        self.decoders = [
            replace(
                Fake(
                    self.clock, name, self.seconds, prompt=each, role=role, stepping=name != ONE_CALL
                ).decoder,
                required=name in ("policy", NEVER, ONE_CALL),
                full_depth=name == "lookup",
            )
            for name, role in roles.items()
        ]
        budget = Budget(seconds)
        self.clock.now += further.get("loading", 0.0)
        self.session = Session(
            settled(family_model("llama"), "static:exit=2", prompts=PROMPTS, new_tokens=32),
            WITHOUT_PEERS,
            TimeLimits(seconds),
            budget=budget,
            judged=self.judging > 0.0,
        )
        self.session.run(self.decoders)
        for _ in range(self.prompts):
            for decoder in self.session.decoders:
                self.judge(decoder)

    def seconds(self, clock: Clock) -> float:
        """Of a token: `slower` times as many once 20 seconds are over."""
        return self.each * (self.slower if clock.now > 20.0 else 1.0)

    def judge(self, decoder: Decoder) -> None:
        """As long as decoding its answers takes, times `judging`."""
        if decoder.role in ("policy", "combination"):
            self.clock.now += self.judging * self.each * self.session.setting.new_tokens

    @property
    def prompts(self) -> int:
        return int(self.session.fields({})["prompts"])

    @property
    def missing(self) -> set[str]:
        assert {one.left_out for one in self.session.missing} <= {NO_TIME}
        return {one.name for one in self.session.missing}


@pytest.mark.parametrize("loading", [0.0, 20.0])
@pytest.mark.parametrize("judging", [0.0, 0.5])
@pytest.mark.parametrize("each", [0.001, 0.01, 0.02, 0.04, 0.06, 0.15, 0.5])
def test_a_budget_is_kept_to_within_a_quarter_or_said_beforehand(
    monkeypatch: pytest.MonkeyPatch, each: float, judging: float, loading: float
) -> None:
    timed = Timed(monkeypatch, each, 60.0, judging=judging, loading=loading)
    if timed.said:
        ((line, when),) = timed.said
        assert line.startswith("the smallest timing takes about")
        expected = float(line.split()[5])
        assert expected >= SPARE * 60.0
        assert timed.clock.now <= SPARE * expected
        assert when < timed.clock.now / 2
        assert timed.prompts == FEWEST_PROMPTS
        assert line in timed.session.fields({})["notes"]
    else:
        assert timed.clock.now <= SPARE * 60.0
        assert timed.prompts >= FEWEST_PROMPTS
    assert {"policy", NEVER, GENERATE, ONE_CALL} <= {one.name for one in timed.session.decoders}


def test_with_time_enough_nobody_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, 0.01, 60.0, judging=0.5)
    assert (timed.missing, timed.said) == (set(), [])
    assert timed.prompts >= FEWEST_PROMPTS


def test_who_is_left_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that as many prompts are decoded as an answer needs; combinations go, the largest first."""
    orders = [Timed(monkeypatch, each, 60.0).missing for each in (0.03, 0.034, 0.038, 0.042, 0.046, 0.05)]
    stages = [
        set(),
        {"assistant"},
        {"assistant", STATIC_CACHE},
        {"assistant", STATIC_CACHE, "int8 + exits"},
        {"assistant", STATIC_CACHE, "int8 + exits", "int8"},
        {"assistant", STATIC_CACHE, "int8 + exits", "int8", "lookup"},
    ]
    assert all(missing in stages for missing in orders), orders
    assert orders == sorted(orders, key=len)
    assert len(orders[-1]) > len(orders[0])


def test_of_no_seconds_at_all_the_least_of_everything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, 0.1, 0.0)
    assert (timed.missing, timed.said, timed.prompts) == (set(), [], FEWEST_VISITS)


def test_fewer_tokens_are_decoded_before_a_combination_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(monkeypatch, 0.06, 60.0)
    fields = timed.session.fields({})
    assert (timed.missing, fields["new_tokens"]) == ({"assistant", STATIC_CACHE}, 16)
    assert "16 new tokens instead of 32, for which there was no time" in fields["notes"]
    assert timed.prompts >= FEWEST_PROMPTS


def test_a_machine_that_slows_down_ends_the_timing_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer prompts than an answer needs, since more than a quarter beyond the seconds was not announced."""
    timed = Timed(monkeypatch, 0.02, 60.0, slower=6.0)
    assert timed.said == []
    assert timed.clock.now <= SPARE * 60.0
    assert FEWEST_VISITS <= timed.prompts < FEWEST_PROMPTS
    answers = {one.shortage for one in timed.session.fields({})["contenders"] if one.clusters}
    assert answers == {f"inconclusive: {timed.prompts} of {FEWEST_PROMPTS} prompts"}
