"""Visits: who takes a block when, what is kept of it, and that nothing else goes on meanwhile."""

from __future__ import annotations

import gc
import math
import random
from collections import Counter

import pytest
from bench_cases import Clock, Fake

from offramp.decoding.measurement.contenders import FAILURES
from offramp.decoding.measurement.decoder import Decoded, batches_of
from offramp.decoding.measurement.turns import (
    BLOCK,
    FEW_TOKENS,
    SHORT_BLOCK,
    Timed,
    Visit,
    log_ratios,
    visit,
)
from offramp.errors import InputError

NAMES = ("a", "b", "c")
PROMPT = batches_of([[1, 2]], 1)[0]
MANY, FEW = FEW_TOKENS + 9, 2 * SHORT_BLOCK + 1


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
        firsts = [name for name, _ in clock.log[::SHORT_BLOCK]]
        return [tuple(firsts[start : start + 3]) for start in range(0, len(firsts), 3)]

    found = orders(0)
    assert len(set(found)) == 6  # every order comes
    assert min(Counter(one[0] for one in found).values()) >= 5  # nobody is always last
    assert orders(0) == found != orders(1)


def test_what_is_kept_of_a_visit(clock: Clock) -> None:
    found = visited(Fake(clock, "a", 0.1, prompt=2.0), Fake(clock, "b", 0.05), tokens=FEW)
    assert found["a"].blocks == (pytest.approx(0.1),) * 2
    assert found["b"].blocks == (pytest.approx(0.05),) * 2
    assert found["a"].decoded.first_seconds == pytest.approx(2.0)
    assert found["a"].decoded.seconds_per_token == pytest.approx(0.1)
    assert log_ratios(found["a"], found["b"]) == [pytest.approx(math.log(2.0))] * 2


def test_short_texts_are_cut_into_short_blocks_and_a_rest_is_no_block(clock: Clock) -> None:
    # 12 tokens after the first: three blocks of four; with one more the last has five.
    assert len(visited(Fake(clock, "a", 0.1), tokens=13)["a"].blocks) == 3
    assert len(visited(Fake(clock, "a", 0.1), tokens=14)["a"].blocks) == 3
    assert len(visited(Fake(clock, "a", 0.1), tokens=15)["a"].blocks) == 4
    assert len(visited(Fake(clock, "a", 0.1), tokens=4)["a"].blocks) == 1


def test_a_step_of_several_tokens_ends_its_block_late_and_is_counted_as_it_is(clock: Clock) -> None:
    found = visited(Fake(clock, "a", 0.1, at_once=3), Fake(clock, "b", 0.1), tokens=25)
    # Blocks of 4 asked for: two steps of three tokens each.
    assert [new for name, new in clock.log if name == "a"] == [3] * 8
    assert found["a"].blocks == (pytest.approx(0.1),) * 4
    assert len(found["b"].blocks) == 6
    assert len(log_ratios(found["a"], found["b"])) == 4


def test_rows_side_by_side_share_the_seconds(clock: Clock) -> None:
    pair = batches_of([[1, 2], [3, 4]], 2)[0]
    found = visit([Fake(clock, "a", 0.1).decoder], pair, FEW, random.Random(0))["a"]
    assert found.blocks == (pytest.approx(0.05),) * 2
    assert found.decoded.seconds_per_token == pytest.approx(0.05)


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
        assert log_ratios(found["a"], found["whole"]) == [pytest.approx(math.log(0.5))]
    assert places == {0, SHORT_BLOCK, 2 * SHORT_BLOCK}


def test_a_drift_of_the_machine_cancels(clock: Clock) -> None:
    """A machine that slows down by a fifth within a visit: neighbours stay equal."""

    def slowing(clock: Clock) -> float:
        return 0.1 * (1.0 + 0.2 * clock.now / 10.0)

    ratios: list[float] = []
    for seed in range(40):
        clock.now = 0.0
        found = visited(Fake(clock, "a", slowing), Fake(clock, "b", slowing), seed=seed)
        ratios += log_ratios(found["a"], found["b"])
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


def test_blocks_are_paired_only_where_both_have_some() -> None:
    def timed(*blocks: float) -> Timed:
        return Timed(blocks, Decoded(((0, 1, 2),), 0.0, 3.0))

    assert log_ratios(timed(2.0, 4.0, 8.0), timed(1.0, 1.0)) == [math.log(2.0), math.log(4.0)]
    assert log_ratios(timed(2.0), timed()) == [0.0]


def test_prompts_are_padded_on_the_left_and_the_last_batch_is_filled() -> None:
    first, second = batches_of([[1], [2, 3], [4, 5, 6]], 2)
    assert first.ids.tolist() == [[0, 1], [2, 3]]
    assert first.mask.tolist() == [[0, 1], [1, 1]]
    assert second.ids.tolist() == [[4, 5, 6], [0, 0, 1]]
    assert batches_of([[1, 2]], 1)[0].mask.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("prompts", "batch", "what"),
    [([], 1, "no prompts"), ([[1], []], 1, "prompt 1 has no"), ([[1]], 0, "of 0")],
)
def test_bad_prompts(prompts: list[list[int]], batch: int, what: str) -> None:
    with pytest.raises(InputError, match=what):
        batches_of(prompts, batch)


def test_an_interrupt_is_no_failure_of_a_contender() -> None:
    assert not any(issubclass(KeyboardInterrupt, kind) for kind in FAILURES)
