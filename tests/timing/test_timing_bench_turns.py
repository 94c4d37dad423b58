"""Turns: who takes a block when, what is kept of it, and when a turns of questions is answered."""

from __future__ import annotations

import gc
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from bench_cases import Clock, Fake

from offramp.defaults import FEWEST_VISITS
from offramp.errors import InputError, OfframpError
from offramp.timing.contenders import GENERATE, NEVER, ONE_CALL
from offramp.timing.decoder import batches_of
from offramp.timing.session import MARGIN, choose_plain, given_plain
from offramp.timing.stopping import ALPHA, FEWEST_TO_BEAT, LOOK_SPENDS, Budget
from offramp.timing.turns import (
    BLOCK,
    BLOCK_SECONDS,
    FEWEST_BLOCKS,
    Turns,
    Visit,
    block_of,
    pairs_of,
    visit,
)

NAMES = ("a", "b", "c")
PROMPT = batches_of([[1, 2]], 1)[0]
MANY, SHORT, FEW = 41, 3, 10


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture(autouse=True)
def collections(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether collecting was on at each collection asked for; none is made, it takes a tenth of a second."""
    made: list[bool] = []
    monkeypatch.setattr(gc, "collect", lambda *_: made.append(gc.isenabled()))
    return made


def visited(*fakes: Fake, tokens: int = MANY, seed: int = 0) -> Visit:
    return visit([one.decoder for one in fakes], PROMPT, tokens, random.Random(seed))


def test_in_every_round_each_contender_takes_one_block(clock: Clock) -> None:
    visited(*(Fake(clock, name, 0.1) for name in NAMES))
    rounds = (MANY - 1) // BLOCK
    assert len(clock.log) == len(NAMES) * (MANY - 1)
    blocks = [clock.log[start : start + BLOCK] for start in range(0, len(clock.log), BLOCK)]
    assert all(len({name for name, _ in block}) == 1 for block in blocks)
    order = [block[0][0] for block in blocks]
    for place in range(0, len(order), len(NAMES)):
        assert set(order[place : place + len(NAMES)]) == set(NAMES)
    assert len(order) == rounds * len(NAMES)


def test_the_order_within_a_round_is_random_and_repeatable(clock: Clock) -> None:
    fakes = [Fake(clock, name, 0.1) for name in NAMES]

    def orders(seed: int) -> list[tuple[str, ...]]:
        clock.log.clear()
        order = random.Random(seed)
        for _ in range(20):
            visit([one.decoder for one in fakes], PROMPT, FEW, order)
        firsts = [name for name, _ in clock.log[::SHORT]]
        return [tuple(firsts[start : start + 3]) for start in range(0, len(firsts), 3)]

    found = orders(0)
    assert len(set(found)) == 6  # every order comes
    assert min(Counter(one[0] for one in found).values()) >= 5  # nobody is always last
    assert orders(0) == found != orders(1)


def test_what_is_kept_of_a_visit(clock: Clock) -> None:
    found = visited(Fake(clock, "a", 0.1, prompt=2.0), Fake(clock, "b", 0.05), tokens=FEW)
    assert found["a"].blocks == (pytest.approx(0.1),) * FEWEST_BLOCKS
    assert found["b"].blocks == (pytest.approx(0.05),) * FEWEST_BLOCKS
    assert found["a"].first_seconds == pytest.approx(2.0)
    assert found["a"].seconds_per_token == pytest.approx(0.1)
    assert pairs_of(found["a"], found["b"]) == [(pytest.approx(0.1), pytest.approx(0.05))] * FEWEST_BLOCKS


def test_short_texts_are_cut_into_short_blocks_and_a_rest_is_no_block(clock: Clock) -> None:
    # 12 tokens after the first: three blocks of four; with one more the last has five.
    assert len(visited(Fake(clock, "a", 0.1), tokens=13)["a"].blocks) == 3
    assert len(visited(Fake(clock, "a", 0.1), tokens=14)["a"].blocks) == 3
    assert len(visited(Fake(clock, "a", 0.1), tokens=15)["a"].blocks) == 4
    assert len(visited(Fake(clock, "a", 0.1), tokens=4)["a"].blocks) == 3


def test_blocks_are_short_in_seconds_too(clock: Clock) -> None:
    asked = {0.0: 8, 0.001: 8, BLOCK_SECONDS / 2: 2, 0.06: 1, 2.0: 1}
    assert {seconds: block_of(100, seconds) for seconds in asked} == asked
    assert block_of(2, 0.001) == 1
    found = visit([Fake(clock, "a", 0.1).decoder], PROMPT, MANY, random.Random(0), 0.1)["a"]
    assert len(found.blocks) == MANY - 1


def test_steps_of_several_tokens_are_paired_as_whole_decodings(clock: Clock) -> None:
    """By blocks of steps, a token of a long draft would count for less than one of a short draft."""
    found = visit(
        [Fake(clock, "a", 0.1, at_once=3).decoder, Fake(clock, "b", 0.1).decoder],
        PROMPT,
        25,
        random.Random(0),
        0.1,
    )
    assert (len(found["a"].blocks), len(found["b"].blocks)) == (8, 24)
    assert pairs_of(found["b"], found["a"]) == [(pytest.approx(0.1), pytest.approx(0.1))]


def test_a_step_of_several_tokens_ends_its_block_late_and_is_counted_as_it_is(clock: Clock) -> None:
    found = visited(Fake(clock, "a", 0.1, at_once=3), Fake(clock, "b", 0.1), tokens=25)
    # Blocks of 8 asked for: three steps of three tokens each.
    assert [new for name, new in clock.log if name == "a"] == [3] * 8
    assert found["a"].blocks == (pytest.approx(0.1),) * 3
    assert len(found["b"].blocks) == 3


def test_rows_side_by_side_share_the_seconds(clock: Clock) -> None:
    pair = batches_of([[1, 2], [3, 4]], 2)[0]
    found = visit([Fake(clock, "a", 0.1).decoder], pair, FEW, random.Random(0))["a"]
    assert found.blocks == (pytest.approx(0.05),) * FEWEST_BLOCKS
    assert found.seconds_per_token == pytest.approx(0.05)


def test_who_cannot_be_stopped_decodes_at_a_stretch_between_two_blocks(clock: Clock) -> None:
    places = set()
    for seed in range(30):
        clock.log.clear()
        whole = Fake(clock, "whole", 0.2, stepping=False)
        found = visited(Fake(clock, "a", 0.1), whole, tokens=FEW, seed=seed)
        names = [name for name, _ in clock.log]
        first = names.index("whole")
        assert names[first : first + FEW - 1] == ["whole"] * (FEW - 1)
        places.add(first)
        assert found["whole"].blocks == ()
        assert pairs_of(found["a"], found["whole"]) == [(pytest.approx(0.1), pytest.approx(0.2))]
    assert places == {0, SHORT, 2 * SHORT, 3 * SHORT}


def test_a_drift_of_the_machine_cancels(clock: Clock) -> None:
    """A machine that slows down by a fifth within a visit: neighbours stay equal."""

    def slowing(clock: Clock) -> float:
        return 0.1 * (1.0 + 0.2 * clock.now / 10.0)

    ratios: list[float] = []
    for seed in range(40):
        clock.now = 0.0
        found = visited(Fake(clock, "a", slowing), Fake(clock, "b", slowing), seed=seed)
        ratios += [math.log(other / own) for other, own in pairs_of(found["a"], found["b"])]
    assert abs(math.fsum(ratios) / len(ratios)) < 0.004


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_contenders_decode(
    enabled: bool, collections: list[bool], clock: Clock
) -> None:
    seen: list[bool] = []

    def seconds(clock: Clock) -> float:
        seen.append(gc.isenabled())
        return 0.1

    def failing(clock: Clock) -> float:
        raise KeyboardInterrupt

    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        visited(Fake(clock, "a", seconds), tokens=FEW)
        assert gc.isenabled() is enabled
        with pytest.raises(KeyboardInterrupt):
            visited(Fake(clock, "a", failing), tokens=FEW)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert seen == [False] * (FEW - 1)
    assert len(collections) == 2  # before each visit instead


def test_prompts_are_padded_on_the_left_and_the_last_batch_is_filled() -> None:
    first, second = batches_of([[1], [2, 3], [4, 5, 6]], 2)
    assert first.ids.tolist() == [[0, 1], [2, 3]]
    assert first.mask.tolist() == [[0, 1], [1, 1]]
    assert second.ids.tolist() == [[4, 5, 6], [0, 0, 1]]
    assert batches_of([[1, 2]], 1)[0].mask.tolist() == [[1, 1]]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="prompt 1 has no"):
        batches_of([[1], []], 1)


# --- turns until all is answered

PROMPTS = batches_of([[1] * length for length in range(2, 8)], 1)
TOKENS = 9
PLAIN = "plain"


def noisy(mean: float, spread: float, seed: int) -> Callable[[Clock], float]:
    draws = random.Random(seed)
    return lambda clock: mean * draws.lognormvariate(0.0, spread)


def turns_of(*fakes: Fake, **changes: Any) -> Turns:
    values: dict[str, Any] = {
        "decoders": [one.decoder for one in fakes],
        "given": None,
        "questions": [one.name for one in fakes if one.role == "policy"],
        "prompts": PROMPTS,
        "new_tokens": TOKENS,
        "worth": 0.05,
    }
    return Turns(**{**values, **changes})


def timed(turns: Turns, seconds: float | None = None, **options: Any) -> None:
    turns.take(Budget(seconds), **options)


def plain(clock: Clock, seconds: float | Callable[[Clock], float] = 0.1) -> Fake:
    return Fake(clock, PLAIN, seconds, role="plain")


def test_prompts_are_visited_around_and_around(clock: Clock) -> None:
    one = plain(clock)
    timed(turns_of(one, Fake(clock, "a", 0.1), rounds=2))
    lengths = [prompt.ids.shape[1] for prompt in PROMPTS]
    assert one.prompts_seen == lengths * 2


def test_in_a_race_what_is_shown_to_be_slower_takes_no_further_part(clock: Clock) -> None:
    """Behind another whose output is the full model's: one with a short list may keep no floor at all."""
    fakes = {
        "slow": Fake(clock, "slow", 0.2, role="plain"),
        "lookup": Fake(clock, "lookup", 0.15, role="peer", full_depth=True),
        "cut": Fake(clock, "cut", 0.05, role="short list", full_depth=True, short_list=True),
        "as fast": Fake(clock, "as fast", 0.1, role="peer", full_depth=True),
        "policy": Fake(clock, "policy", 0.3),
    }
    rounds = -(-2 * FEWEST_TO_BEAT // len(PROMPTS))
    turns = turns_of(plain(clock), *fakes.values(), rounds=rounds, races=True)
    timed(turns)
    assert turns.beaten == {"slow": PLAIN, "lookup": PLAIN}
    visits = {name: len(fake.prompts_seen) for name, fake in fakes.items()}
    assert visits.pop("slow") == visits.pop("lookup") == FEWEST_TO_BEAT
    assert set(visits.values()) == {rounds * len(PROMPTS)}
    assert turns.plain == PLAIN


def test_without_a_race_everybody_is_timed_to_the_end(clock: Clock) -> None:
    slow = Fake(clock, "slow", 0.2, role="plain")
    turns = turns_of(plain(clock), slow, Fake(clock, "a", 0.1), rounds=2)
    timed(turns)
    assert (turns.beaten, len(slow.prompts_seen)) == ({}, 2 * len(PROMPTS))


def test_what_needs_not_be_beaten_is_no_rival(clock: Clock) -> None:
    """An answer waits for the rivals that are left alone."""
    turns = turns_of(
        plain(clock), Fake(clock, "slow", 0.2, role="plain"), Fake(clock, "a", 0.05),
        rounds=4, races=True,
    )  # fmt: skip
    timed(turns)
    assert turns.series["a"].is_over(0.05)
    over = turns.series["a"].over_plain()
    assert over is not None
    assert over.value == pytest.approx(2.0)


def test_a_second_round_refines_the_clusters_and_adds_none(clock: Clock) -> None:
    turns = turns_of(plain(clock), Fake(clock, "a", 0.05), rounds=2)
    timed(turns)
    clusters = turns.series["a"].clusters(PLAIN)
    assert [one.prompt for one in clusters] == list(range(len(PROMPTS)))
    assert {one.pairs for one in clusters} == {2 * 4}  # four blocks of two tokens, twice
    assert turns.stopped == "rounds"
    ratio = turns.series["a"].over_plain()
    assert ratio is not None
    assert ratio.value == pytest.approx(2.0)


def test_what_is_clearly_answered_is_timed_no_longer(clock: Clock) -> None:
    slow = Fake(clock, "slow", noisy(0.2, 0.02, 1))
    near = Fake(clock, "near", noisy(0.098, 0.2, 2))
    turns = turns_of(plain(clock, noisy(0.1, 0.02, 3)), slow, near, prompts=PROMPTS * 20)
    timed(turns, seconds=200.0)
    assert len(slow.prompts_seen) < len(near.prompts_seen)
    assert turns.series["slow"].level == pytest.approx(1 - LOOK_SPENDS[0] * ALPHA)
    assert turns.stopped == "seconds"
    assert "slow" in turns.answered
    assert "near" not in turns.answered
    # The rest of what may go wrong is spent at the end.
    assert turns.series["near"].level == pytest.approx(1 - (1 - sum(LOOK_SPENDS)) * ALPHA)
    assert clock.now <= 200.0


def test_all_questions_answered_end_it_before_the_budget_does(clock: Clock) -> None:
    turns = turns_of(plain(clock, noisy(0.1, 0.02, 3)), Fake(clock, "slow", noisy(0.2, 0.02, 1)))
    timed(turns, seconds=200.0)
    assert turns.stopped == "answered"
    assert 0.35 * 200.0 <= clock.now < 0.4 * 200.0
    without = turns_of(plain(clock, noisy(0.1, 0.02, 3)), Fake(clock, "slow", noisy(0.2, 0.02, 1)))
    timed(without, seconds=200.0, looks=False)
    assert without.stopped == "seconds"
    assert without.series["slow"].level == pytest.approx(1 - ALPHA)


def test_equal_contenders_end_it_when_they_are_precise(clock: Clock) -> None:
    turns = turns_of(plain(clock, noisy(0.1, 0.01, 3)), Fake(clock, "same", noisy(0.1, 0.01, 1)))
    timed(turns, seconds=100.0)
    assert turns.stopped == "answered"


def test_together_all_are_timed_until_all_are_answered(clock: Clock) -> None:
    slow, near = Fake(clock, "slow", noisy(0.2, 0.02, 1)), Fake(clock, "near", noisy(0.098, 0.3, 2))
    turns = turns_of(plain(clock, noisy(0.1, 0.02, 3)), slow, near, together=True)
    timed(turns, seconds=100.0)
    assert slow.prompts_seen == near.prompts_seen
    assert turns.stopped == "seconds"


@pytest.mark.parametrize(("seconds", "visits"), [(0.0, FEWEST_VISITS), (16.5, 10), (15.9, 9)])
def test_no_visit_begins_that_would_end_too_late(clock: Clock, seconds: float, visits: int) -> None:
    # Each visit takes 8 tokens of both: 1.6 seconds.
    turns = turns_of(plain(clock), Fake(clock, "a", 0.1))
    timed(turns, seconds=seconds, looks=False)
    assert len(turns.visits) == visits
    assert turns.stopped == "seconds"


def test_peers_that_cannot_be_stopped_take_part_in_every_second_visit(clock: Clock) -> None:
    peer = Fake(clock, "peer", 0.1, role="peer", stepping=False)
    without = Fake(clock, "without exits", 0.1, role="peer", stepping=False, full_depth=True)
    again = Fake(clock, "a/a", 0.1, role="a/a")
    asked = Fake(clock, "asked", 0.1, stepping=False)
    timed(turns_of(plain(clock), peer, again, asked, without, rounds=1))
    assert len(peer.prompts_seen) == 3
    assert len(again.prompts_seen) == len(asked.prompts_seen) == len(without.prompts_seen) == 6


def test_all_are_held_against_the_plain_decoder_that_turns_out_the_fastest(clock: Clock) -> None:
    """The first one is 13 % slower than the third; whatever is without exits stays till the end."""
    other, best = Fake(clock, "other", 0.11, role="plain"), Fake(clock, "best", 0.1, role="plain")
    cut = Fake(clock, "cut", 0.08, role="short list", full_depth=True)
    asked = Fake(clock, "asked", 0.08)
    fakes = [plain(clock, 0.113), other, best, cut, asked]
    turns = turns_of(*fakes, rounds=2, questions=["asked", "cut"])
    timed(turns)
    assert turns.plain == "best"
    assert {len(one.prompts_seen) for one in fakes} == {2 * len(PROMPTS)}
    over = {name: turns.series["asked"].ratio(name) for name in (PLAIN, "best", "cut")}
    speeds = {name: None if one is None else round(one.value, 4) for name, one in over.items()}
    assert speeds == {PLAIN: 1.4125, "best": 1.25, "cut": 1.0}
    fastest = turns.series["asked"].over_plain()
    assert fastest is not None
    assert fastest.value == pytest.approx(1.25)
    assert turns_of(*fakes, given=PLAIN).plain == PLAIN


def test_what_a_contender_raises_ends_all(clock: Clock) -> None:
    def failing(clock: Clock) -> float:
        raise OfframpError("NaN logits")

    turns = turns_of(plain(clock), Fake(clock, "a", failing), rounds=1)
    visits: list[int] = []
    with pytest.raises(OfframpError, match="NaN logits"):
        timed(turns, visited=lambda: visits.append(1))
    assert (turns.stopped, visits) == (None, [])


# --- the pilot


def pilot_of(clock: Clock, **seconds: float) -> tuple[str, tuple[str, ...]]:
    names = {"never": NEVER, "dynamic": GENERATE, "whole": ONE_CALL}
    fakes = [
        Fake(clock, names[name], each, role="plain", stepping=name != "whole")
        for name, each in seconds.items()
    ]
    found = choose_plain([one.decoder for one in fakes], PROMPTS[0], 64)
    assert set(found.seconds) == {names[name] for name in seconds}
    return found.plain, found.notes


@pytest.mark.parametrize(
    ("never", "whole", "plain", "said"),
    [
        (0.11, 0.101, GENERATE, "in one call generate() took 1.0 % more than in steps"),
        (0.09, 0.102, NEVER, "in one call generate() took 2.0 % more than in steps"),
        # In one call only if that is clearly faster: it cannot take turns.
        (0.11, 0.1 / (1 + MARGIN / 2), GENERATE, "in one call generate() took 2.4 % less than in steps"),
        (0.11, 0.1 / (1 + 2 * MARGIN), ONE_CALL, "in one call generate() took 9.1 % less than in steps"),
    ],
)
def test_the_pilot_takes_the_fastest_that_takes_turns(
    clock: Clock, never: float, whole: float, plain: str, said: str
) -> None:
    found, notes = pilot_of(clock, never=never, dynamic=0.1, whole=whole)
    assert (found, notes[-1]) == (plain, said)
    assert len(notes) == 1 + (plain == ONE_CALL)


def test_a_plain_decoder_chosen_elsewhere_must_be_at_hand(clock: Clock) -> None:
    decoders = [plain(clock).decoder]
    assert given_plain(decoders, PLAIN).plain == PLAIN
    with pytest.raises(InputError, match="no plain decoder 'other' here"):
        given_plain(decoders, "other")
