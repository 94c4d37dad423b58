"""Hardware profiles from TOML files: roofline constants, or timings of a serving engine.

A roofline::

    kind = "roofline"
    name = "my card"
    description = "24 GB card in the lab"
    source = "its data sheet"
    bytes_per_second = 1.0e12
    launch_seconds = 2e-6
    decision_seconds = 15e-6
    [flops_per_second]
    float32 = 80e12
    bfloat16 = 160e12

Timings, all of one decoding step in the unit that the file names, at as many batch sizes as there are::

    kind = "timings"
    name = "our engine"
    source = "profiled on the 3rd of March"
    dtype = "bfloat16"
    unit = "milliseconds"         # of every time below; or "seconds", "microseconds"
    layers = 32
    [[batch]]
    size = 1
    layer = 0.31                  # one number for every layer, or a list of one per layer
    head = 1.2
    token = 11.5                  # optional: the whole step; or overhead = 0.4, what a step costs beside
    key_value = 0.02              # optional: K and V of one skipped layer
    lens = 0.05                   # optional: one linear lens
    probes = { "full head" = 1.3 }  # optional, by kind of probe
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, create_model

from offramp.costs import machine, timings
from offramp.costs.machine import LONGEST_WAIT, Machine, Roofline
from offramp.costs.probes import PROBES
from offramp.costs.timings import TimingsProfile
from offramp.kit.given_file import (
    Line,
    NotNegative,
    Positive,
    Source,
    TomlTable,
    checked,
    did_you_mean,
    read_toml,
)
from offramp.kit.numbers import LARGEST_NUMBER

UNITS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}
"""Seconds of one unit that a timings file may be written in."""

# More layers, or sequences side by side, than any model or engine has: a slip of the pen.
Size = Annotated[int, Field(strict=True, ge=1, le=100_000)]
Rate = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=1, le=LARGEST_NUMBER)]
Wait = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=LONGEST_WAIT)]


class Rates(TomlTable):
    """The table [flops_per_second]: dense peaks."""

    float32: Rate
    bfloat16: Rate


class RooflineFile(TomlTable):
    """A profile of kind "roofline"; see `Roofline`."""

    kind: Literal["roofline"]
    name: Line
    description: Line
    source: Line
    flops_per_second: Rates
    bytes_per_second: Rate
    launch_seconds: Wait
    decision_seconds: Wait


KINDS: dict[str, Any] = {
    kind.replace(" ", "_"): (NotNegative | None, Field(None, alias=kind)) for kind in PROBES
}
Probes: Any = create_model("Probes", __base__=TomlTable, __doc__="Times of probes, by their kinds.", **KINDS)


class Step(TomlTable):
    """One table [[batch]], in the file's unit."""

    size: Size
    layer: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)]
    head: Positive
    overhead: NotNegative | None = None
    token: NotNegative | None = None
    key_value: NotNegative | None = None
    lens: NotNegative | None = None
    probes: Probes = Probes()

    @property
    def optional(self) -> dict[str, float | None]:
        """Times to be given at every batch size or at none, probes by their kinds."""
        times = {name: getattr(self, name) for name in ("overhead", "token", "key_value", "lens")}
        times.update(self.probes.model_dump(by_alias=True))
        return times

    def layers(self, count: int) -> tuple[float, ...]:
        """The time of each layer."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,) * count


class TimingsFile(TomlTable):
    """A profile of kind "timings"; see `TimingsProfile`."""

    hints: ClassVar[Mapping[str, str]] = {"unit": "write the unit of every time: " + ", ".join(UNITS)}

    kind: Literal["timings"]
    name: Line
    source: Line
    dtype: Literal["float32", "bfloat16", "float16"]
    unit: Literal["seconds", "milliseconds", "microseconds"]
    layers: Size
    batch: tuple[Step, ...] = Field(min_length=1)


def read_profile(path: Path) -> Machine:
    """The machine that a TOML file describes.

    Raises InputError, with the file, the line and the key, for a file that is missing or no TOML, and for an
    entry that is missing, unknown, negative or not finite.
    """
    values, source = read_toml(path, "hardware profile")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in READERS:
        what = "'kind' is missing" if kind is None else f"kind is {kind!r}"
        raise source.refused(what, did_you_mean(str(kind), READERS), "kind")
    return READERS[kind](values, source)


def _read_roofline(values: Mapping[str, Any], source: Source) -> Machine:
    given = checked(RooflineFile, values, source)
    return Roofline(**{**dict(given), "flops_per_second": dict(given.flops_per_second)})


def _read_timings(values: Mapping[str, Any], source: Source) -> Machine:
    given = checked(TimingsFile, values, source)
    for place, step in enumerate(given.batch):
        _check_step(step, place, given.layers, source)
    _check_together(given.batch, source)
    steps = sorted(given.batch, key=lambda step: step.size)
    unit = UNITS[given.unit]

    # Of each step in seconds, of all that the file gives.
    times = {
        name: np.array([step.optional[name] for step in steps]) * unit
        for name, time in steps[0].optional.items()
        if time is not None
    }
    layers = np.array([step.layers(given.layers) for step in steps]) * unit
    head, key_value = np.array([step.head for step in steps]) * unit, times.get("key_value")
    return TimingsProfile(
        name=given.name,
        source=given.source,
        dtype=given.dtype,
        layers_count=given.layers,
        batches=tuple(step.size for step in steps),
        layer_seconds=layers,
        layer_seconds_per_position=np.zeros_like(layers),
        head_seconds=head,
        probe_seconds={kind: times[kind] for kind in sorted(PROBES) if kind in times},
        lens_seconds=times.get("lens"),
        key_value_seconds=None if key_value is None else np.repeat(key_value[:, None], given.layers, axis=1),
        overhead_seconds=np.array(
            [
                _overhead(step, float(seconds.sum() + last), unit)
                for step, seconds, last in zip(steps, layers, head, strict=True)
            ]
        ),
    )


def _check_step(step: Step, place: int, layers: int, source: Source) -> None:
    """Refuse what does not fit together in one table [[batch]]."""
    given = len(step.layers(layers))
    if given != layers:
        raise source.refused(
            f"layer holds {given} times",
            f"give one number, or one per layer: {layers}",
            "batch",
            place,
            "layer",
        )
    if step.token is None:
        return
    if step.overhead is not None:
        raise source.refused(
            "token stands beside overhead",
            "give the whole step or the overhead, not both",
            "batch",
            place,
            "token",
        )
    counted = sum(step.layers(layers)) + step.head
    if step.token < counted * (1 - ROUNDING):
        raise source.refused(
            f"token is less than the layers and the head together, {counted:.6g}",
            "give the time of the whole step",
            *("batch", place, "token"),
        )


ROUNDING = 1e-9
"""Sums of decimal numbers are rounded."""


def _check_together(steps: Sequence[Step], source: Source) -> None:
    """Refuse batch sizes given twice, and times that some of them have and others have not."""
    sizes = [step.size for step in steps]
    for place, size in enumerate(sizes):
        if size in sizes[:place]:
            raise source.refused(
                f"batch has the size {size} twice", "give each size once", "batch", place, "size"
            )
    for name in steps[0].optional:
        lacking = [place for place, step in enumerate(steps) if step.optional[name] is None]
        if 0 < len(lacking) < len(steps):
            raise source.refused(
                f"{name!r} is missing", "give it at every batch size or at none", "batch", lacking[0]
            )


def _overhead(step: Step, counted: float, unit: float) -> float:
    """Seconds of a step beside its layers and head, as given or as what is left of the whole step."""
    if step.token is not None:
        return max(step.token * unit - counted, 0.0)
    return 0.0 if step.overhead is None else step.overhead * unit


READERS = {machine.KIND: _read_roofline, timings.KIND: _read_timings}


def required_keys() -> set[str]:
    """Every key that some kind of profile must have, those of its tables included."""
    tables = (RooflineFile, Rates, TimingsFile, Step)
    return {name for table in tables for name, field in table.model_fields.items() if field.is_required()}
