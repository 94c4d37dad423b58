"""Groups: whose turn a prompt is, when a question is answered, and what ends a measurement."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
from bench_cases import Clock, Fake

from offramp.decoding.measurement.answers import ALPHA, LOOK_SPENDS, Budget
from offramp.decoding.measurement.contenders import GENERATE, NEVER, ONE_CALL
from offramp.decoding.measurement.decoder import batches_of
from offramp.decoding.measurement.trial import MARGIN, choose_plain, given_plain
from offramp.decoding.measurement.turns import FEWEST_VISITS, Group, time_groups
from offramp.errors import InputError, OfframpError

PROMPTS = batches_of([[1] * length for length in range(2, 8)], 1)
TOKENS = 9
PLAIN = "plain"


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    return Clock(monkeypatch)


def noisy(mean: float, spread: float, seed: int) -> Callable[[Clock], float]:
    draws = random.Random(seed)
    return lambda clock: mean * draws.lognormvariate(0.0, spread)


def group_of(*fakes: Fake, **changes: Any) -> Group:
    values: dict[str, Any] = {
        "decoders": [one.decoder for one in fakes],
        "plain": PLAIN,
        "questions": [one.name for one in fakes if one.role == "policy"],
        "prompts": PROMPTS,
        "new_tokens": TOKENS,
        "worth": 0.05,
    }
    return Group(**{**values, **changes})


def timed(*groups: Group, seconds: float | None = None, **options: Any) -> None:
    time_groups(groups, budget=Budget(seconds), **options)


def plain(clock: Clock, seconds: float | Callable[[Clock], float] = 0.1) -> Fake:
    return Fake(clock, PLAIN, seconds, role="plain")


def test_prompts_are_visited_around_and_around(clock: Clock) -> None:
    one = plain(clock)
    timed(group_of(one, Fake(clock, "a", 0.1), rounds=2))
    lengths = [prompt.ids.shape[1] for prompt in PROMPTS]
    assert one.prompts_seen == lengths * 2


def test_a_second_round_refines_the_clusters_and_adds_none(clock: Clock) -> None:
    group = group_of(plain(clock), Fake(clock, "a", 0.05), rounds=2)
    timed(group)
    clusters = group.series["a"].clusters
    assert [one.prompt for one in clusters] == list(range(len(PROMPTS)))
    assert {one.pairs for one in clusters} == {2 * 2}  # two blocks of four tokens, twice
    assert group.stopped == "rounds"
    ratio = group.series["a"].ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(2.0)


def test_what_is_clearly_answered_is_timed_no_longer(clock: Clock) -> None:
    slow = Fake(clock, "slow", noisy(0.2, 0.02, 1))
    near = Fake(clock, "near", noisy(0.098, 0.2, 2))
    group = group_of(plain(clock, noisy(0.1, 0.02, 3)), slow, near, prompts=PROMPTS * 20)
    timed(group, seconds=200.0)
    assert len(slow.prompts_seen) < len(near.prompts_seen)
    assert group.series["slow"].level == pytest.approx(1 - LOOK_SPENDS[0] * ALPHA)
    assert group.stopped == "seconds"
    assert "slow" in group.answered
    assert "near" not in group.answered
    # The rest of what may go wrong is spent at the end.
    assert group.series["near"].level == pytest.approx(1 - (1 - sum(LOOK_SPENDS)) * ALPHA)
    assert clock.now <= 200.0


def test_all_questions_answered_end_it_before_the_budget_does(clock: Clock) -> None:
    group = group_of(plain(clock, noisy(0.1, 0.02, 3)), Fake(clock, "slow", noisy(0.2, 0.02, 1)))
    timed(group, seconds=200.0)
    assert group.stopped == "answered"
    assert 0.35 * 200.0 <= clock.now < 0.4 * 200.0
    without = group_of(plain(clock, noisy(0.1, 0.02, 3)), Fake(clock, "slow", noisy(0.2, 0.02, 1)))
    timed(without, seconds=200.0, looks=False)
    assert without.stopped == "seconds"
    assert without.series["slow"].level == pytest.approx(1 - ALPHA)


def test_equal_contenders_end_it_when_they_are_precise(clock: Clock) -> None:
    group = group_of(plain(clock, noisy(0.1, 0.01, 3)), Fake(clock, "same", noisy(0.1, 0.01, 1)))
    timed(group, seconds=100.0)
    assert group.stopped == "answered"


def test_together_all_are_timed_until_all_are_answered(clock: Clock) -> None:
    slow, near = Fake(clock, "slow", noisy(0.2, 0.02, 1)), Fake(clock, "near", noisy(0.098, 0.3, 2))
    group = group_of(plain(clock, noisy(0.1, 0.02, 3)), slow, near, together=True)
    timed(group, seconds=100.0)
    assert slow.prompts_seen == near.prompts_seen
    assert group.stopped == "seconds"


@pytest.mark.parametrize(("seconds", "visits"), [(0.0, FEWEST_VISITS), (16.5, 10), (15.9, 9)])
def test_no_visit_begins_that_would_end_too_late(clock: Clock, seconds: float, visits: int) -> None:
    # Each visit takes 8 tokens of both: 1.6 seconds.
    group = group_of(plain(clock), Fake(clock, "a", 0.1))
    timed(group, seconds=seconds, looks=False)
    assert len(group.visits) == visits
    assert group.stopped == "seconds"


def test_a_budget_of_nothing_gives_an_interval_all_the_same(clock: Clock) -> None:
    group = group_of(plain(clock, noisy(0.1, 0.1, 3)), Fake(clock, "a", noisy(0.1, 0.1, 4)))
    timed(group, seconds=0.0)
    ratio = group.series["a"].ratio
    assert ratio is not None
    assert ratio.low is not None
    assert group.series["a"].level == pytest.approx(1 - ALPHA)


def test_peers_that_cannot_be_stopped_take_part_in_every_second_visit(clock: Clock) -> None:
    peer = Fake(clock, "peer", 0.1, role="peer", stepping=False)
    again = Fake(clock, "a/a", 0.1, role="a/a")
    asked = Fake(clock, "asked", 0.1, stepping=False)
    timed(group_of(plain(clock), peer, again, asked, rounds=1))
    assert len(peer.prompts_seen) == 3
    assert len(again.prompts_seen) == len(asked.prompts_seen) == 6


def test_groups_take_turns_and_one_that_fails_leaves_the_others(clock: Clock) -> None:
    def failing(clock: Clock) -> float:
        raise OfframpError("NaN logits")

    good, other = plain(clock), plain(clock)
    broken = group_of(plain(clock), Fake(clock, "a", failing), rounds=1)
    groups = [group_of(good, rounds=1), broken, group_of(other, rounds=2)]
    visits: list[int] = []
    timed(*groups, visited=lambda: visits.append(len(good.prompts_seen) - len(other.prompts_seen)))
    assert str(broken.error) == "NaN logits"
    assert [group.stopped for group in groups] == ["rounds", None, "rounds"]
    assert (len(good.prompts_seen), len(other.prompts_seen)) == (6, 12)
    assert max(visits[:12]) <= 1


# --- the pilot


def pilot_of(clock: Clock, **seconds: float) -> tuple[str, str]:
    names = {"never": NEVER, "dynamic": GENERATE, "whole": ONE_CALL}
    fakes = [
        Fake(clock, names[name], each, role="plain", stepping=name != "whole")
        for name, each in seconds.items()
    ]
    found = choose_plain([one.decoder for one in fakes], PROMPTS[0], 64)
    assert set(found.seconds) == {names[name] for name in seconds}
    return found.plain, found.note


def test_the_pilot_takes_the_fastest_that_takes_turns(clock: Clock) -> None:
    plain, note = pilot_of(clock, never=0.11, dynamic=0.1, whole=0.101)
    assert plain == GENERATE
    assert "in one call generate() took 1.0% more than in steps" in note
    assert pilot_of(clock, never=0.09, dynamic=0.1, whole=0.1)[0] == NEVER


def test_generate_in_one_call_is_the_baseline_only_if_it_is_clearly_faster(clock: Clock) -> None:
    assert pilot_of(clock, never=0.11, dynamic=0.1, whole=0.1 / (1 + MARGIN / 2))[0] == GENERATE
    plain, note = pilot_of(clock, never=0.11, dynamic=0.1, whole=0.1 / (1 + 2 * MARGIN))
    assert plain == ONE_CALL
    assert "less than in steps" in note


def test_a_plain_decoder_chosen_elsewhere_must_be_at_hand(clock: Clock) -> None:
    decoders = [plain(clock).decoder]
    assert given_plain(decoders, PLAIN).plain == PLAIN
    with pytest.raises(InputError, match="no plain decoder 'other' here"):
        given_plain(decoders, "other")
