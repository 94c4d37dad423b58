"""From the times of made-up steps to the tables of a profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.costs.timings import LENS, MAPS, TimingsProfile
from offramp.models.shape import LayerShape, ModelShape
from offramp.timing.timed_steps import PLAIN, PROBED, WHOLE, StepTimes
from offramp.timing.timing_tables import StepSamples, build_tables

SHAPE = ModelShape(
    (LayerShape("attention", 1000, 1000, 200, 20, 10, None, 0),) * 2
    + (
        LayerShape("recurrent", 900, 900, 0, 0, 0, None, 50),
        LayerShape("attention", 1000, 1000, 200, 20, 10, 5, 0),
    ),
    10,
    50,
    10,
    500,
    4,
)


def made_up_samples(noise: float = 0.0, clock: float = 1.0) -> StepSamples:
    """Layers of 1, 2, 3, 4 s at position 0; +0.01 s a position; cut layers a tenth or a fifth of that.

    clock: how much longer than a whole step one with a clock inside it takes.
    """
    samples = StepSamples(SHAPE, (1,), (64, 448))
    random = np.random.default_rng(0)
    for asked in (64, 448):
        for position in range(asked, asked + 9):
            attended = np.array([position, position, 0, min(position, 4)])
            layers = np.array([1.0, 2.0, 3.0, 4.0]) + 0.01 * attended
            noisy = layers + noise * random.standard_cauchy(4) ** 2
            probes = {"cosine": 0.5, LENS: 0.25, MAPS: 0.125} if position % 2 else {"cosine": 0.7}
            for kind, times, cut in (
                (PLAIN, noisy, frozenset[int]()),
                (PROBED, layers, frozenset[int]()),
                ("cut 0", layers / 10, frozenset({0, 1, 3})),
                # The first layer ran whole here, and says nothing of the one like it that was cut.
                ("cut 1", layers / np.array([1.0, 5.0, 1.0, 5.0]), frozenset({1, 3})),
            ):
                seconds = tuple(float(value) for value in times)
                given = probes if kind == PROBED else {}
                whole = sum(seconds) + 6.0 + 0.5 + sum(given.values())
                samples.add(1, asked, kind, StepTimes(position, seconds, 6.0, given, whole, cut))
            whole = float(layers.sum() + 6.5) / clock
            samples.add(1, asked, WHOLE, StepTimes(position, (), 0.0, {}, whole))
    return samples


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_tables_from_made_up_samples_by_hand(noise: float) -> None:
    tables = build_tables(made_up_samples(noise))
    close: Any = lambda values: pytest.approx(values, rel=1e-2, abs=2e-5)  # noqa: E731
    assert tables.arrays["layer_seconds"][0] == close([1.0, 2.0, 3.0, 4.04])
    assert tables.arrays["layer_seconds_per_position"][0] == close([0.01, 0.01, 0.0, 0.0])
    # The recurrent layer is charged whole, the second and the last one as they are just above the deeper
    # exit.
    assert tables.arrays["key_value_seconds"][0] == close([0.1, 0.4, 3.0, 0.808])
    assert tables.arrays["key_value_seconds_per_position"][0] == close([0.001, 0.002, 0.0, 0.0])
    assert tables.arrays["head_seconds"] == close([6.0])
    assert tables.arrays["overhead_seconds"] == close([0.5])
    assert tables.arrays["probe_seconds"] == {"cosine": [pytest.approx(0.6, abs=0.1)]}
    assert tables.arrays["lens_seconds"] == close([0.25])
    assert tables.parts_over_step == {1: pytest.approx(1.0, abs=1e-2)}
    assert tables.notes == [
        "1 recurrent layers are charged whole when skipped: their state moves only by running"
    ]


def test_layers_that_were_never_cut_take_their_share_and_a_note_says_so() -> None:
    samples = made_up_samples()
    samples.cut = {kind: frozenset() for kind in samples.cut}
    tables = build_tables(samples)
    whole, repair = tables.arrays["layer_seconds"][0], tables.arrays["key_value_seconds"][0]
    assert 0 < repair[0] < 0.5 * whole[0]
    assert repair[2] == pytest.approx(whole[2])
    assert tables.notes[0].startswith("3 attention layers could not be stopped after their K,V")


def plain_steps(samples: StepSamples) -> list[tuple[float, float]]:
    """The plain step by the tables and the whole steps that were timed, at both positions."""
    arrays = build_tables(samples).arrays
    profile = TimingsProfile("local", "a test", "float32", len(SHAPE.layers), samples.batches, **arrays)
    found = []
    for asked in samples.positions:
        at, whole = samples.whole_step(1, asked)
        found.append((profile.token_costs(SHAPE, at).plain, whole))
    return found


def test_a_clock_inside_a_step_costs_nothing() -> None:
    slowed, free = build_tables(made_up_samples(clock=1.25)), build_tables(made_up_samples())
    assert slowed.parts_over_step == {1: pytest.approx(1.25)}
    for name, value in free.arrays.items():
        if name == "probe_seconds":
            continue
        assert np.allclose(slowed.arrays[name], np.array(value) / 1.25), name


times = st.floats(1e-3, 10.0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    layers=st.lists(st.tuples(times, times, times, times), min_size=4, max_size=9),
    wholes=st.lists(st.tuples(times, times), min_size=1, max_size=9),
    head=times,
    overhead=times,
)
def test_prices_add_up_to_whole_steps(
    layers: list[tuple[float, ...]], wholes: list[tuple[float, float]], head: float, overhead: float
) -> None:
    samples = StepSamples(SHAPE, (1,), (64, 448))
    for place, asked in enumerate(samples.positions):
        for step, seconds in enumerate(layers):
            # The later position takes a little longer in every part.
            parts, alone = tuple((1.0 + place / 10) * one for one in seconds), head
            made = StepTimes(asked + step, parts, alone, {}, sum(parts) + alone + overhead)
            samples.add(1, asked, PLAIN, made)
            samples.add(1, asked, PROBED, made)
        for step, pair in enumerate(wholes):
            samples.add(1, asked, WHOLE, StepTimes(asked + step, (), 0.0, {}, pair[place]))
    (near, sooner), (far, later) = plain_steps(samples)
    assert near + far == pytest.approx(sooner + later)
    # The layers alone grow, and none takes less than nothing at position 0.
    assert -1e-9 <= far - near <= max(later - sooner, 0.0) + 1e-9
    arrays = build_tables(samples).arrays
    if later > sooner and (arrays["layer_seconds"][0][[0, 1, 3]] > 1e-9).all():  # 0 but for rounding is 0
        assert far == pytest.approx(later)


def test_a_single_slow_part_moves_no_price_of_the_others() -> None:
    """A step that was held up is left out whole, so that what it held up is not charged to anything."""
    samples, held_up = made_up_samples(), StepTimes(70, (1.7, 99.0, 3.0, 4.04), 6.0, {}, 120.0)
    samples.add(1, 64, PLAIN, held_up)
    expected = build_tables(made_up_samples()).arrays
    found = build_tables(samples).arrays
    assert found["layer_seconds"][0] == pytest.approx(expected["layer_seconds"][0], rel=1e-2, abs=1e-2)
    assert found["head_seconds"] == pytest.approx(expected["head_seconds"], rel=1e-2)
