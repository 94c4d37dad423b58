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

import itertools
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from offramp.costs import roofline, timings
from offramp.costs.machine import Machine
from offramp.costs.probes import PROBES
from offramp.costs.roofline import Roofline
from offramp.costs.timings import TimingsProfile
from offramp.errors import InputError
from offramp.files import read_given_text

OPTIONAL_TIMES = ("overhead", "token", "key_value", "lens", "probes")
UNITS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}
"""Seconds of one unit that a timings file may be written in."""
KEYS = {
    roofline.KIND: "kind, name, description, source, bytes_per_second, launch_seconds, decision_seconds and "
    "a table [flops_per_second] with float32 and bfloat16",
    timings.KIND: "kind, name, source, dtype, unit, layers and for each batch size a table [[batch]] with "
    "size, layer, head",
}
"""What a profile of each kind must have, in words."""
# More layers, or sequences side by side, than any model or engine has: a slip of the pen.
LARGEST_COUNT = 100_000


class Entries:
    """The entries of one table of a file, read one by one; what is missing, wrong or left over is refused."""

    def __init__(self, table: Any, path: Path, key: str = "", header: str = "") -> None:
        self.path = path
        self.key = key
        self.header = header or f"[{key}]"
        self.kind = ""
        if not isinstance(table, dict):
            raise self.refused(key or "the file", "is not a table", "write it as a table of entries")
        self.table = dict(table)

    def refused(self, key: str, what: str, fix: str) -> InputError:
        """The error for one entry, with the file and the key."""
        return InputError(f"{key} {what}", where=str(self.path), fix=fix)

    def named(self, key: str) -> str:
        """The entry's full name in the file."""
        return f"{self.key}.{key}" if self.key else key

    def take(self, key: str) -> Any:
        """An entry that must be there."""
        if key not in self.table:
            place = f"to the table {self.header}" if self.key else "above the first table"
            needs = f"; a profile of kind {self.kind} has: {KEYS[self.kind]}" if self.kind else ""
            raise self.refused(self.named(key), "is missing", f"add the entry {key} {place}{needs}")
        return self.table.pop(key)

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self.take(key)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self.refused(self.named(key), f"is {value!r}, not a text", "write a line of text in quotes")
        return value

    def number(self, key: str, *, positive: bool = False) -> float:
        """A finite number of at least zero, or above zero."""
        return self.as_number(self.take(key), self.named(key), positive=positive)

    def as_number(self, value: Any, name: str, *, positive: bool) -> float:
        """A value of the file as a number; see `number`."""
        least = "above zero" if positive else "of at least zero"
        try:
            number = (
                math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
            )
        except OverflowError:  # a whole number of more than 308 digits
            number = math.inf
        if not math.isfinite(number) or number < 0 or (positive and number == 0):
            raise self.refused(name, f"is {value!r}", f"write a finite number {least}")
        return number

    def count(self, key: str) -> int:
        """A whole number of at least one."""
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_COUNT:
            raise self.refused(
                self.named(key), f"is {value!r}", f"write a whole number, 1 to {LARGEST_COUNT}"
            )
        return value

    def finish(self, known: str) -> None:
        """Refuse entries that nobody took."""
        if self.table:
            key = next(iter(self.table))
            raise self.refused(self.named(key), "is not an entry of a hardware profile", known)


def read_profile(path: Path) -> Machine:
    """The machine that a TOML file describes.

    Raises InputError, with the file and the key, for a file that is missing or no TOML, and for an entry that
    is missing, unknown, negative or not finite.
    """
    try:
        table = tomllib.loads(read_given_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the hardware profile cannot be read: {error}",
            where=str(path),
            fix="check the path" if isinstance(error, OSError) else "save it as UTF-8",
        ) from error
    except (ValueError, RecursionError) as error:  # a number or nesting beyond Python's limits is neither
        raise InputError(
            f"the hardware profile is not TOML: {error}", where=str(path), fix="correct the line"
        ) from error
    entries = Entries(table, path)
    kind = entries.text("kind")
    if kind not in READERS:
        raise entries.refused("kind", f"is {kind!r}", "write one of: " + ", ".join(READERS))
    entries.kind = kind
    return READERS[kind](entries)


def _read_roofline(entries: Entries) -> Machine:
    rates = Entries(entries.take("flops_per_second"), entries.path, "flops_per_second")
    machine = Roofline(
        name=entries.text("name"),
        description=entries.text("description"),
        source=entries.text("source"),
        flops_per_second={dtype: rates.number(dtype, positive=True) for dtype in roofline.DTYPES.values()},
        bytes_per_second=entries.number("bytes_per_second", positive=True),
        launch_seconds=entries.number("launch_seconds"),
        decision_seconds=entries.number("decision_seconds"),
    )
    rates.finish("keep only: " + ", ".join(roofline.DTYPES.values()))
    entries.finish("keep only the entries of a roofline: " + ", ".join(machine.to_json()))
    return machine


def _read_timings(entries: Entries) -> Machine:
    layers = entries.count("layers")
    steps = entries.take("batch")
    if not isinstance(steps, list) or not steps:
        raise entries.refused("batch", "holds no timings", "add a table [[batch]] for each batch size")
    unit = entries.text("unit")
    if unit not in UNITS:
        raise entries.refused("unit", f"is {unit!r}", "write the unit of every time: " + ", ".join(UNITS))
    tables = [Entries(step, entries.path, f"batch[{place}]", "[[batch]]") for place, step in enumerate(steps)]
    given = _given_throughout(entries, tables)
    rows = sorted(
        (_read_step(table, layers, UNITS[unit]) for table in tables), key=lambda row: int(row["size"])
    )
    for row, after in itertools.pairwise(rows):
        if row["size"] == after["size"]:
            raise entries.refused("batch", f"has the size {row['size']} twice", "give each size once")
    probes = sorted({name for row in rows for name in row.get("probes", {})})
    for name, row in itertools.product(probes, rows):
        if name not in row["probes"]:
            raise entries.refused(
                f'batch.probes."{name}"', f"is missing at batch size {row['size']}", "give it at every size"
            )
    dtype = entries.text("dtype")
    if dtype not in roofline.DTYPES.values():
        raise entries.refused(
            "dtype", f"is {dtype!r}", "write one of: " + ", ".join(roofline.DTYPES.values())
        )
    profile = TimingsProfile(
        name=entries.text("name"),
        source=entries.text("source"),
        dtype=dtype,
        layers_count=layers,
        batches=tuple(row["size"] for row in rows),
        layer_seconds=np.array([row["layer"] for row in rows]),
        layer_seconds_per_position=np.zeros((len(rows), layers)),
        head_seconds=np.array([row["head"] for row in rows]),
        probe_seconds={name: np.array([row["probes"][name] for row in rows]) for name in probes},
        lens_seconds=np.array([row["lens"] for row in rows]) if "lens" in given else None,
        key_value_seconds=(
            np.array([np.full(layers, row["key_value"]) for row in rows]) if "key_value" in given else None
        ),
        overhead_seconds=np.array([row["overhead"] for row in rows]),
    )
    entries.finish("keep only: kind, name, source, dtype, unit, layers, batch")
    return profile


def _given_throughout(entries: Entries, tables: list[Entries]) -> set[str]:
    """The optional times that are given; refuses one that some batch sizes have and others have not."""
    given = {key for table in tables for key in table.table if key in OPTIONAL_TIMES}
    for key, table in itertools.product(sorted(given), tables):
        if key not in table.table:
            raise entries.refused(table.named(key), "is missing", "give it at every batch size or at none")
    return given


def _read_step(entries: Entries, layers: int, unit: float) -> dict[str, Any]:
    """One table [[batch]] in seconds: "size", "layer" [layers], "head", "overhead" and what else is given.

    unit: seconds of the file's unit.
    """
    row: dict[str, Any] = {"size": entries.count("size"), "layer": _read_layers(entries, layers, unit)}
    row["head"] = entries.number("head", positive=True) * unit
    for key in ("key_value", "lens"):
        if key in entries.table:
            row[key] = entries.number(key) * unit
    if "probes" in entries.table:
        probes = Entries(entries.take("probes"), entries.path, entries.named("probes"))
        row["probes"] = {name: probes.number(name) * unit for name in list(probes.table) if name in PROBES}
        probes.finish("name one of the kinds of probe: " + ", ".join(PROBES))
    row["overhead"] = _read_overhead(entries, float(np.sum(row["layer"])) + row["head"], unit)
    entries.finish("keep only: size, layer, head, " + ", ".join(OPTIONAL_TIMES))
    return row


def _read_layers(entries: Entries, layers: int, unit: float) -> list[float]:
    value = entries.take("layer")
    name = entries.named("layer")
    values = value if isinstance(value, list) else [value] * layers
    if len(values) != layers:
        raise entries.refused(
            name, f"holds {len(values)} times", f"give one number, or one per layer: {layers}"
        )
    return [entries.as_number(item, name, positive=True) * unit for item in values]


def _read_overhead(entries: Entries, counted: float, unit: float) -> float:
    """Seconds of a step beside its layers and head, as given or as what is left of the whole step."""
    if "token" not in entries.table:
        return entries.number("overhead") * unit if "overhead" in entries.table else 0.0
    if "overhead" in entries.table:
        raise entries.refused(
            entries.named("token"), "stands beside overhead", "give the whole step or the overhead, not both"
        )
    left = entries.number("token") * unit - counted
    # A billionth: sums of decimal numbers are rounded.
    if left < -1e-9 * counted:
        raise entries.refused(
            entries.named("token"),
            f"is less than the layers and the head together, {counted / unit:.6g}",
            "give the time of the whole step",
        )
    return max(left, 0.0)


READERS = {roofline.KIND: _read_roofline, timings.KIND: _read_timings}
