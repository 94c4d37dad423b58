"""From the times of many decoding steps to the tables of a machine profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.costs import counting
from offramp.costs.timings import MAPS, attended_before
from offramp.decoding.stopwatch import StepTimes
from offramp.decoding.timed_probes import LENS
from offramp.models.shape import ModelShape

PLAIN, PROBED = "plain", "probed"

Array = NDArray[np.float64]
Key = tuple[int, int, str]


@dataclass
class Samples:
    """Times of decoding steps by (batch, position asked for, kind of step), and which layers were cut."""

    shape: ModelShape
    batches: tuple[int, ...]
    positions: tuple[int, int]
    steps: dict[Key, list[StepTimes]] = field(default_factory=dict)
    cut: dict[str, frozenset[int]] = field(default_factory=dict)

    def add(self, batch: int, position: int, kind: str, times: StepTimes, cut: frozenset[int]) -> None:
        """Keep one step. cut: the layers (0 = the first) that ran only until their K and V."""
        self.steps.setdefault((batch, position, kind), []).append(times)
        self.cut[kind] = cut

    def of(self, batch: int, *kinds: str) -> list[StepTimes]:
        """All steps of a batch size of some kinds, at both positions."""
        keys = [(batch, position, kind) for kind in kinds for position in self.positions]
        return [step for key in keys for step in self.steps.get(key, [])]

    def whole_step(self, batch: int, position: int) -> tuple[float, float]:
        """Mean position and median seconds of plain steps."""
        steps = self.steps[batch, position, PLAIN]
        return float(np.mean([step.position for step in steps])), _median([step.whole for step in steps])

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
                steps = self.steps[batch, position, PLAIN]
                parts[f"all layers at {position}"] = [sum(step.layers) for step in steps]
                parts[f"whole step at {position}"] = [step.whole for step in steps]
            found[str(batch)] = {name: _spread(values) for name, values in parts.items()}
        return found


@dataclass(frozen=True)
class Tables:
    """The arrays of a `TimingsProfile` by the constructor's names, and what must be said about them."""

    arrays: Mapping[str, Any]
    notes: list[str]


def build_tables(samples: Samples) -> Tables:
    """Medians at every batch size; layers and K,V repair as straight lines in the position."""
    layers = [_layer_lines(samples, batch, PLAIN, PROBED) for batch in samples.batches]
    repairs = [
        _repair_lines(samples, batch, lines) for batch, lines in zip(samples.batches, layers, strict=True)
    ]
    probed = [samples.of(batch, PROBED) for batch in samples.batches]
    # A model of one layer has room for one probe in a step: one that never had its turn is left to be
    # derived.
    names = {name for steps in probed for step in steps for name in step.probes}
    names = {name for name in names if all(_probe_times(steps, name) for steps in probed)}
    by_name = {name: [_median(_probe_times(steps, name)) for steps in probed] for name in sorted(names)}
    return Tables(
        arrays={
            "layer_seconds": [line[0] for line in layers],
            "layer_seconds_per_position": [line[1] for line in layers],
            "key_value_seconds": [line[0] for line in repairs],
            "key_value_seconds_per_position": [line[1] for line in repairs],
            "head_seconds": _medians(samples, lambda step: step.head),
            "overhead_seconds": _medians(samples, lambda step: max(step.overhead, 0.0)),
            "lens_seconds": by_name.pop(LENS, None),
            "map_seconds": by_name.pop(MAPS, None),
            "probe_seconds": by_name,
        },
        notes=_notes(samples),
    )


def _layer_lines(
    samples: Samples, batch: int, *kinds: str, among: frozenset[int] | None = None
) -> tuple[Array, Array]:
    """Seconds at position 0 and per attended position after it, of every layer: two arrays [layers].

    Layers of one shape share the slope; each has its own level. among: the layers (0 = the first) that did
    the same in these steps, None for all; the others have no line.
    """
    shape = samples.shape
    medians, attended = [], []
    for position in samples.positions:
        steps = [step for kind in kinds for step in samples.steps[batch, position, kind]]
        medians.append(np.median([step.layers for step in steps], axis=0))
        mean_position = float(np.mean([step.position for step in steps]))
        attended.append([attended_before(layer, mean_position) for layer in shape.layers])
    seconds, x = np.array(medians), np.array(attended)
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


def _repair_lines(samples: Samples, batch: int, layers: tuple[Array, Array]) -> tuple[Array, Array]:
    """The same of leaving behind what later tokens need of a skipped layer.

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
            levels[cut], slopes[cut] = lines[0][cut], lines[1][cut]
    return levels, slopes


def _notes(samples: Samples) -> list[str]:
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


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _medians(samples: Samples, part: Callable[[StepTimes], float]) -> list[float]:
    """Medians over plain steps by batch size, the mean of both positions."""
    return [
        float(
            np.mean(
                [
                    _median([part(step) for step in samples.steps[batch, position, PLAIN]])
                    for position in samples.positions
                ]
            )
        )
        for batch in samples.batches
    ]


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "low": float(low), "high": float(high), "count": len(values)}
