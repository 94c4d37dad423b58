"""Timings of one model as a machine: interpolation by hand and by property, derivation, JSON, bad input."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.costs import counting
from offramp.costs.probes import PROBES, ProbeSizes, lens_bytes, lens_flops, map_bytes, map_flops
from offramp.costs.timings import PartWork, TimingsProfile, resized, work_ratio
from offramp.errors import InputError
from offramp.kit.typed import from_json
from offramp.models.shape import LayerShape, ModelShape

LAYER = LayerShape("attention", 1000, 1000, 200, 20, 10, None, 0)
SHAPE = ModelShape((LAYER, dataclasses.replace(LAYER, window=5)), 10, 5000, 10, 50_000, 4)


def profile(**changes: Any) -> TimingsProfile:
    values: dict[str, Any] = {
        "name": "hand",
        "source": "made up",
        "dtype": "float32",
        "layers_count": 2,
        "batches": (1, 4, 8),
        "layer_seconds": [[1.0, 2.0], [4.0, 5.0], [6.0, 7.0]],
        "layer_seconds_per_position": [[0.1, 0.2], [0.1, 0.2], [0.3, 0.2]],
        "head_seconds": [10.0, 16.0, 20.0],
        "probe_seconds": {name: [1.0 + place, 2.0 + place, 2.0 + place] for place, name in enumerate(PROBES)},
        "lens_seconds": [0.5, 0.8, 1.6],
        "map_seconds": [0.7, 0.9, 1.1],
        "key_value_seconds": [[0.2, 0.3], [0.5, 0.6], [0.9, 1.0]],
        "key_value_seconds_per_position": [[0.0, 0.01]] * 3,
        "overhead_seconds": [3.0, 3.0, 5.0],
    }
    return TimingsProfile(**(values | changes))


def test_a_step_at_a_timed_batch_size_by_hand() -> None:
    costs = profile().token_costs(SHAPE, 20, batch=1)
    # The second layer's window lets it attend to 4 earlier positions, not 20.
    assert costs.layers == pytest.approx([1.0 + 0.1 * 20, 2.0 + 0.2 * 4])
    assert costs.key_value == pytest.approx([0.2, 0.3 + 0.01 * 4])
    assert (costs.head, costs.exit_head, costs.overhead) == (10.0, 10.0, 3.0)
    assert costs.plain == pytest.approx(3.0 + 3.0 + 2.8 + 10.0)
    assert (costs.unit, costs.batch) == ("seconds", 1)


def test_between_batch_sizes_on_a_straight_line_by_hand() -> None:
    costs = profile().token_costs(SHAPE, 0, batch=2)
    assert costs.layers == pytest.approx([2.0, 3.0])
    assert costs.head == pytest.approx(12.0)
    assert profile().token_costs(SHAPE, 0, batch=6).head == pytest.approx(18.0)


def test_beyond_the_largest_batch_size_by_hand() -> None:
    costs = profile().token_costs(SHAPE, 0, batch=32)
    assert costs.head == pytest.approx(20.0 + 6 * 4.0)
    assert costs.layers == pytest.approx([6.0 + 6 * 2.0, 7.0 + 6 * 2.0])
    falling = profile(head_seconds=[10.0, 30.0, 20.0]).token_costs(SHAPE, 0, batch=32)
    assert falling.head == 20.0


def test_below_the_smallest_batch_size_its_own_time() -> None:
    timed = profile(batches=(2, 4, 8))
    assert timed.token_costs(SHAPE, 0, batch=1).head == timed.token_costs(SHAPE, 0, batch=2).head == 10.0


def test_the_lens_is_added_to_what_reads_logits() -> None:
    plain, through = (profile().token_costs(SHAPE, 0, lens=lens) for lens in (False, True))
    assert through.exit_head == plain.exit_head + 0.5
    assert through.head == plain.head
    for name, kind in PROBES.items():
        assert through.probes[name] == pytest.approx(plain.probes[name] + (0.5 if kind.reads_logits else 0.0))


@given(
    seconds=st.lists(st.floats(0.0, 1e3), min_size=3, max_size=3).map(sorted),
    batches=st.lists(st.integers(1, 64), min_size=3, max_size=3, unique=True).map(sorted),
    asked=st.lists(st.integers(1, 256), min_size=2, max_size=2).map(sorted),
)
def test_rising_tables_give_rising_times(seconds: list[float], batches: list[int], asked: list[int]) -> None:
    timed = profile(batches=tuple(batches), head_seconds=seconds)
    low, high = (min(batch, 4 * batches[-1]) for batch in asked)
    prices = [timed.token_costs(SHAPE, 0, batch=batch).head for batch in (low, high)]
    assert prices[0] <= prices[1] * (1 + 1e-12)
    for batch, value in zip(batches, seconds, strict=True):
        assert timed.token_costs(SHAPE, 0, batch=batch).head == pytest.approx(value)


def test_a_probe_that_was_not_timed_is_derived_from_the_nearest_one_and_said_so() -> None:
    timed = {"full head": [8.0, 9.0, 9.0], "network": [1.0, 1.0, 1.0]}
    machine = profile(probe_seconds=timed)
    sizes = ProbeSizes()
    known, wanted = PROBES["network"], PROBES["candidates"]
    ratio = max(
        wanted.flops(SHAPE, sizes) / known.flops(SHAPE, sizes),
        wanted.bytes(SHAPE, sizes) / known.bytes(SHAPE, sizes),
    )
    costs = machine.token_costs(SHAPE, 0)
    assert costs.probes["candidates"] == pytest.approx(1.0 * ratio + 1e-5, rel=1e-9)
    # However little it computes, the program waits for its answer.
    assert costs.probes["cosine"] > 1e-5
    assert "10 us assumed to wait" in machine.notes[0]
    assert costs.probes["full head"] == 8.0
    note, between = machine.notes
    assert note.startswith("not timed: restricted head, candidates, cosine, classifier;")
    assert between.startswith("timed at batch 1, 4, 8; any other size is read off a straight line")
    assert profile().notes == (between,)


def test_a_lens_and_a_repair_that_were_not_timed_are_derived() -> None:
    machine = profile(
        probe_seconds={}, lens_seconds=None, key_value_seconds=None, key_value_seconds_per_position=None
    )
    costs = machine.token_costs(SHAPE, 0, lens=True)
    lens = costs.exit_head - costs.head
    assert lens == pytest.approx(10.0 * lens_bytes(SHAPE) / counting.head_bytes(SHAPE), rel=0.1)
    share = counting.key_value_bytes(SHAPE, 0) / counting.layer_bytes(SHAPE, 0)
    assert costs.key_value == pytest.approx(np.array([1.0, 2.0]) * share)
    assert len(machine.notes) == 3


def test_the_price_of_maps_scales_with_their_size() -> None:
    """Timed: maps of rank 64 to half of the layers."""
    wide = ModelShape((LAYER,) * 6, 10, 5000, 10, 50_000, 4)
    deep = profile(layers_count=6, **six_layers())
    priced = deep.token_costs(wide, 0, sizes=ProbeSizes(kv_maps=((2, 64), (4, None))))
    assert priced.maps[2] == pytest.approx(0.7)  # to layers 3 to 5 of 6: half of them
    assert priced.maps[4] == pytest.approx(
        resized(0.7, maps(wide, 3, 64), maps(wide, 1, None), head_of(wide))
    )
    assert priced.until_exit[1] == pytest.approx(deep.token_costs(wide, 0).until_exit[1] + 0.7)
    assert deep.token_costs(wide, 0).maps == {}


def test_maps_that_were_not_timed_are_derived_from_the_lens_and_said_so() -> None:
    machine = profile(map_seconds=None, layers_count=6, **six_layers())
    wide = ModelShape((LAYER,) * 6, 10, 5000, 10, 50_000, 4)
    costs = machine.token_costs(wide, 0, batch=8, sizes=ProbeSizes(kv_maps=((2, 3),)))
    lens, (head, _) = PartWork(lens_flops(wide), lens_bytes(wide)), head_of(wide)
    assert costs.maps[2] == pytest.approx(resized(1.6, lens, maps(wide, 3, 3), (head, costs.head)))
    (note,) = machine.derived_notes({"K,V map"})
    assert note == "K,V maps are not timed: a linear lens's time by their FLOPs and bytes"
    assert note in machine.notes
    assert profile().derived_notes({"K,V map"}) == ()


def maps(shape: ModelShape, layers: int, rank: int | None) -> PartWork:
    """K,V maps to so many layers."""
    return PartWork(map_flops(shape, layers, rank), map_bytes(shape, layers, rank))


def head_of(shape: ModelShape) -> tuple[PartWork, float]:
    """The output head and its seconds at batch 1."""
    return PartWork(counting.head_flops(shape), counting.head_bytes(shape)), 10.0


def six_layers() -> dict[str, Any]:
    """Tables of a model of six layers."""
    ones = np.ones((3, 6))
    return {
        "layer_seconds": ones,
        "layer_seconds_per_position": 0.1 * ones,
        "key_value_seconds": 0.2 * ones,
        "key_value_seconds_per_position": 0 * ones,
    }


def test_another_size_than_the_timed_one_is_charged_for_the_difference_at_the_pace_of_the_head() -> None:
    """Timed: 2.0 for 2,048 tokens, 2.5 for the whole head of 5,000; waiting for the answer has no size."""
    machine = profile(head_seconds=[2.5, 16.0, 20.0])
    head = PartWork(counting.head_flops(SHAPE), counting.head_bytes(SHAPE))
    kind, timed = PROBES["restricted head"], ProbeSizes()

    def price(tokens: int) -> float:
        sizes = ProbeSizes(shortlist=tokens)
        return float(machine.token_costs(SHAPE, 0, sizes=sizes).probes["restricted head"])

    assert price(2048) == 2.0
    for tokens, sign in ((1024, -1), (4096, 1)):
        sizes = ProbeSizes(shortlist=tokens)
        flops = kind.flops(SHAPE, sizes) - kind.flops(SHAPE, timed)
        moved = kind.bytes(SHAPE, sizes) - kind.bytes(SHAPE, timed)
        change = 2.5 * max(abs(flops) / head.flops, abs(moved) / head.bytes)
        assert price(tokens) == pytest.approx(2.0 + sign * change)
    assert price(4096) < 3.5  # not the 4.0 of a list twice as long, were waiting twice as long too
    assert (
        resized(1.0, PartWork(8.0, 8.0), PartWork(2.0, 4.0), (PartWork(4.0, 4.0), 10.0)) == 0.5
    )  # in proportion


def test_the_work_ratio_is_that_of_the_slower_resource() -> None:
    assert work_ratio(PartWork(6.0, 8.0), PartWork(3.0, 2.0)) == 4.0
    assert work_ratio(PartWork(6.0, 8.0), PartWork(3.0, 0.0)) == 2.0


def test_json_gives_the_same_profile_back() -> None:
    machine = profile(details={"rounds": 3}, sizes=ProbeSizes(shortlist=100, kv_maps=((1, None),)))
    value = json.loads(json.dumps(machine.to_json()))
    again = from_json(TimingsProfile, value)
    assert again.to_json() == machine.to_json()
    assert again.sizes == machine.sizes
    for position in (0, 77):
        first, second = (m.token_costs(SHAPE, position, batch=5, lens=True) for m in (machine, again))
        assert (first.layers == second.layers).all()
        assert (first.key_value == second.key_value).all()
        assert first.probes == second.probes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_seconds": [1.0, 2.0]}, r"head_seconds has the shape \[2\] instead of \[3\]"),
        ({"layer_seconds": [[1.0, 2.0]]}, "layer_seconds has the shape"),
        ({"overhead_seconds": [1.0, -2.0, 3.0]}, "overhead_seconds holds a negative time"),
        ({"lens_seconds": [1.0, float("nan"), 3.0]}, "lens_seconds holds .* not finite"),
        ({"head_seconds": ["fast", 1.0, 1.0]}, "head_seconds holds something that is not a number"),
        ({"batches": (4, 1, 8)}, "do not rise"),
        ({"batches": (0, 1, 8)}, "do not rise"),
        ({"probe_seconds": {"full heed": [1.0, 1.0, 1.0]}}, "no kind of probe 'full heed'"),
        ({"head_seconds": None}, "head_seconds has the shape"),
    ],
)
def test_bad_tables_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile(**change)


@pytest.mark.parametrize("batch", [0, -1, 33])
def test_a_batch_that_the_timings_do_not_reach_is_refused(batch: int) -> None:
    with pytest.raises(InputError, match=f"no timings for batch size {batch}"):
        profile().token_costs(SHAPE, 0, batch=batch)


def test_one_timed_batch_size_gives_no_line_to_larger_ones() -> None:
    names = ("layer_seconds", "layer_seconds_per_position", "head_seconds", "overhead_seconds")
    one = {
        name: getattr(profile(), name)[:1]
        for name in (*names, "lens_seconds", "map_seconds", "key_value_seconds")
    }
    machine = profile(batches=(1,), probe_seconds={}, key_value_seconds_per_position=None, **one)
    assert machine.token_costs(SHAPE, 0, batch=1).head == 10.0
    with pytest.raises(InputError, match="reach from 1 to 1"):
        machine.token_costs(SHAPE, 0, batch=2)


def test_another_model_or_position_is_refused() -> None:
    with pytest.raises(InputError, match="2 layers, this one has 1"):
        profile().token_costs(dataclasses.replace(SHAPE, layers=(LAYER,)), 0)
    with pytest.raises(InputError):
        profile().token_costs(SHAPE, float("nan"))


def test_tables_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="read-only"):
        profile().layer_seconds[0, 0] = 5.0


@pytest.mark.parametrize("head", [1e-7, 1e-5, 1e-2])
def test_a_derived_probe_never_costs_more_than_the_whole_head(head: float) -> None:
    machine = profile(probe_seconds={}, head_seconds=[head] * 3)
    costs = machine.token_costs(SHAPE, 0)
    whole = costs.probes["full head"]
    assert max(costs.probes.values()) == whole
    assert head < whole < 3 * head


def test_what_is_derived_is_said_of_the_parts_that_are_used() -> None:
    machine = profile(probe_seconds={}, key_value_seconds=None, key_value_seconds_per_position=None)
    (note,) = machine.derived_notes({"cosine", "layers"})
    assert note.startswith("not timed: cosine;")
    assert len(machine.derived_notes({"cosine", "K,V projection"})) == 2
    assert machine.derived_notes({"layers"}) == ()
