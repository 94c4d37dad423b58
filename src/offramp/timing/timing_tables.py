"""From the times of many decoding steps to the tables of a machine profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.costs import counting
from offramp.costs.timings import LENS, MAPS, attended_before
from offramp.models.shape import ModelShape
from offramp.timing.timed_steps import PLAIN, PROBED, WHOLE, StepTimes

Array = NDArray[np.float64]
Lines = tuple[Array, Array]
"""Seconds at position 0 and per attended position: [layers] each."""
Key = tuple[int, int, str]


@dataclass
class StepSamples:
    """Times of decoding steps by (batch, position asked for, kind of step), and which layers were cut."""

    shape: ModelShape
    batches: tuple[int, ...]
    positions: tuple[int, int]
    steps: dict[Key, list[StepTimes]] = field(default_factory=dict)
    cut: dict[str, frozenset[int]] = field(default_factory=dict)

    def add(self, batch: int, position: int, kind: str, times: StepTimes) -> None:
        """Keep one step."""
        self.steps.setdefault((batch, position, kind), []).append(times)
        self.cut[kind] = times.cut

    def of(self, batch: int, *kinds: str) -> list[StepTimes]:
        """All steps of a batch size of some kinds, at both positions."""
        keys = [(batch, position, kind) for kind in kinds for position in self.positions]
        return [step for key in keys for step in self.steps.get(key, [])]

    def typical(self, batch: int, position: int, kind: str) -> list[StepTimes]:
        """The middle half of some steps by their time without probes.

        Means over the same steps add up: those of the parts to that of the whole. Medians do not, since a
        part that is held up now and then has a median below its mean.
        """
        ranked = sorted(self.steps[batch, position, kind], key=lambda step: step.unprobed)
        out = len(ranked) // 4
        return ranked[out : len(ranked) - out]

    def whole_step(self, batch: int, position: int) -> tuple[float, float]:
        """Mean position and mean seconds of typical plain steps, timed as a whole."""
        steps = self.typical(batch, position, WHOLE)
        return _mean_position(steps), float(np.mean([step.whole for step in steps]))

    def summary(self) -> dict[str, Any]:
        """Medians, quartiles and counts of every part by batch size, as JSON values."""
        found: dict[str, Any] = {}
        for batch in self.batches:
            plain, probed = self.of(batch, PLAIN), self.of(batch, PROBED)
            parts: dict[str, Sequence[float]] = {
                "head": [step.head for step in plain],
                "overhead": [step.overhead for step in plain],
            }
            for name in sorted({name for step in probed for name in step.probes}):
                parts[name] = _probe_times(probed, name)
            for position in self.positions:
                timed = self.steps[batch, position, PLAIN]
                parts[f"all layers at {position}"] = [sum(step.layers) for step in timed]
                wholes = self.steps[batch, position, WHOLE]
                parts[whole_at(position)] = [step.whole for step in wholes]
            found[str(batch)] = {name: _spread(values) for name, values in parts.items()}
        return found


def whole_at(position: int) -> str:
    """The name of whole steps near a position in a summary."""
    return f"whole step at {position}"


@dataclass(frozen=True)
class PriceTables:
    """The arrays of a `TimingsProfile` by the constructor's names, and what must be said about them."""

    arrays: Mapping[str, Any]
    notes: list[str]
    parts_over_step: dict[int, float]
    """By batch size, what timed parts added up to over the whole step, before they were scaled to it."""


def build_tables(samples: StepSamples) -> PriceTables:
    """Means over typical steps at every batch size; layers and K,V repair as straight lines in the position.

    All prices of a batch size are scaled by one factor, so that layers, head and overhead add up to a plain
    step that was timed as a whole; and the layers' slopes so that this holds at both positions (where the
    longer one took no more time, and where no layer depends on the position: at their mean).
    """
    by_batch = [_of_batch(samples, batch) for batch in samples.batches]
    # A model of one layer has room for one probe in a step: one that never had its turn is left to be
    # derived.
    names = set.intersection(*[set(prices.probes) for prices in by_batch])
    probes = {name: [prices.probes[name] for prices in by_batch] for name in sorted(names)}
    return PriceTables(
        arrays={
            "layer_seconds": [prices.layers[0] for prices in by_batch],
            "layer_seconds_per_position": [prices.layers[1] for prices in by_batch],
            "key_value_seconds": [prices.repair[0] for prices in by_batch],
            "key_value_seconds_per_position": [prices.repair[1] for prices in by_batch],
            "head_seconds": [prices.head for prices in by_batch],
            "overhead_seconds": [prices.overhead for prices in by_batch],
            "lens_seconds": probes.pop(LENS, None),
            "map_seconds": probes.pop(MAPS, None),
            "probe_seconds": probes,
        },
        notes=_notes(samples),
        parts_over_step={
            batch: 1.0 / prices.scale for batch, prices in zip(samples.batches, by_batch, strict=True)
        },
    )


@dataclass(frozen=True)
class _Prices:
    """The prices at one batch size."""

    layers: Lines
    repair: Lines
    """Levels and slopes, [layers] each."""
    head: float
    overhead: float
    probes: dict[str, float]
    scale: float
    """Of all these prices."""


def _of_batch(samples: StepSamples, batch: int) -> _Prices:
    shape = samples.shape
    lines = _layer_lines(samples, batch, PLAIN)
    head = _mean_part(samples, batch, lambda step: step.head)
    overhead = max(_mean_part(samples, batch, lambda step: step.overhead), 0.0)
    wholes = [samples.whole_step(batch, position) for position in samples.positions]
    parts = [float((lines[0] + lines[1] * _attended(shape, at)).sum()) + head + overhead for at, _ in wholes]
    scale = float(np.mean([seconds for _, seconds in wholes]) / np.mean(parts))
    probed = samples.of(batch, PROBED)
    names = {name for step in probed for name in step.probes}
    layers = _growing(shape, (lines[0] * scale, lines[1] * scale), wholes)
    return _Prices(
        layers=layers,
        repair=_repair_lines(samples, batch, layers, scale),
        head=head * scale,
        overhead=overhead * scale,
        probes={name: _middle(_probe_times(probed, name)) * scale for name in names},
        scale=scale,
    )


def _growing(shape: ModelShape, lines: Lines, wholes: Sequence[tuple[float, float]]) -> Lines:
    """The same prices on average over both positions, which together grow as whole steps do.

    wholes: mean position and seconds of whole steps, at both positions.
    """
    levels, slopes = lines
    (near, sooner), (far, later) = wholes
    attended = np.array([_attended(shape, near), _attended(shape, far)])
    distance, middle = attended[1] - attended[0], attended.mean(axis=0)
    growth = float(slopes @ distance)
    wanted = max(later - sooner, 0.0) if distance.any() else 0.0
    steeper = slopes * (wanted / growth) if growth > 0 else (distance > 0) * (wanted / max(distance.sum(), 1))
    values = levels + slopes * middle
    # No layer takes less than nothing at position 0.
    steeper = np.minimum(steeper, np.divide(values, middle, out=np.zeros_like(values), where=middle > 0))
    return np.maximum(values - steeper * middle, 0.0), steeper


def _layer_lines(
    samples: StepSamples, batch: int, kind: str, *, among: frozenset[int] | None = None
) -> Lines:
    """Seconds at position 0 and per attended position after it, of every layer.

    Layers of one shape share the slope; each has its own level. among: the layers (0 = the first) that did
    the same in these steps, None for all; the others have no line.
    """
    shape = samples.shape
    typical = [samples.typical(batch, position, kind) for position in samples.positions]
    seconds = np.array([np.mean([step.layers for step in steps], axis=0) for steps in typical])
    x = np.array([_attended(shape, _mean_position(steps)) for steps in typical])
    levels, slopes = np.zeros(len(shape.layers)), np.zeros(len(shape.layers))
    for layer in dict.fromkeys(shape.layers):
        alike = [
            index
            for index, other in enumerate(shape.layers)
            if other == layer and (among is None or index in among)
        ]
        if not alike:
            continue
        distance = x[1, alike[0]] - x[0, alike[0]]
        if distance > 0:
            slopes[alike] = max(float(np.mean(seconds[1, alike] - seconds[0, alike])) / distance, 0.0)
        levels[alike] = np.maximum(np.mean(seconds[:, alike] - slopes[alike] * x[:, alike], axis=0), 0.0)
    return levels, slopes


def _repair_lines(samples: StepSamples, batch: int, layers: Lines, scale: float) -> Lines:
    """The same of leaving behind what later tokens need of a skipped layer. scale: of what was timed.

    A cut layer has its own time. A recurrent layer is run whole; a layer that keeps nothing costs nothing; an
    attention layer that could not be cut takes its time's share of weights that make K and V.
    """
    shape = samples.shape
    share = counting.key_value_bytes(shape, 0.0) / counting.layer_bytes(shape, 0.0)
    levels, slopes = layers[0] * share, layers[1] * share
    # From the shallowest cut to the deepest, so that the time just above an exit is the one that stays.
    for kind in sorted(samples.cut, key=lambda kind: min(samples.cut[kind], default=-1)):
        cut = sorted(samples.cut[kind])
        if cut:
            lines = _layer_lines(samples, batch, kind, among=samples.cut[kind])
            levels[cut], slopes[cut] = scale * lines[0][cut], scale * lines[1][cut]
    return levels, slopes


def _attended(shape: ModelShape, position: float) -> Array:
    """Earlier positions that each layer attends to: [layers]."""
    return np.array([attended_before(layer, position) for layer in shape.layers])


def _notes(samples: StepSamples) -> list[str]:
    cut = frozenset().union(*samples.cut.values())
    kept = [index for index, layer in enumerate(samples.shape.layers) if layer.key_value_width]
    recurrent = [
        index for index, layer in enumerate(samples.shape.layers) if layer.kind in ("recurrent", "hybrid")
    ]
    uncut = [index for index in kept if index not in cut and index not in recurrent]
    notes = []
    if uncut:
        notes.append(
            f"{len(uncut)} attention layers could not be stopped after their K,V: their repair is taken as "
            "the share of the layer's bytes that K,V moves"
        )
    if recurrent:
        notes.append(
            f"{len(recurrent)} recurrent layers are charged whole when skipped: their state moves only by "
            "running"
        )
    return notes


def _probe_times(steps: Sequence[StepTimes], name: str) -> list[float]:
    return [step.probes[name] for step in steps if name in step.probes]


def _mean_part(samples: StepSamples, batch: int, part: Callable[[StepTimes], float]) -> float:
    """Mean over typical plain steps at both positions, each with the same weight."""
    typical = [samples.typical(batch, position, PLAIN) for position in samples.positions]
    return float(np.mean([np.mean([part(step) for step in steps]) for steps in typical]))


def _mean_position(steps: Sequence[StepTimes]) -> float:
    return float(np.mean([step.position for step in steps]))


def _middle(values: Sequence[float]) -> float:
    """Mean of the middle half."""
    ranked, out = sorted(values), len(values) // 4
    return float(np.mean(ranked[out : len(ranked) - out]))


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "low": float(low), "high": float(high), "count": len(values)}
