"""A machine known by timings of one model on it: its layers, head, probes and repair, by batch size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from offramp.costs import counting
from offramp.costs.machine import DTYPES
from offramp.costs.probes import (
    PROBES,
    ProbeSizes,
    lens_bytes,
    lens_flops,
    map_bytes,
    map_flops,
    timed_map_layers,
)
from offramp.costs.token import TokenCosts
from offramp.errors import BusyMachineError, InputError
from offramp.kit.numbers import LARGEST_NUMBER, Count, Layers, NotNegative
from offramp.kit.typed import FloatArray, to_json
from offramp.models.shape import ELEMENT_BYTES, LayerShape, ModelShape


@dataclass(frozen=True)
class PartWork:
    """FLOPs of a part, and the bytes that it moves."""

    flops: float
    bytes: float


def work_ratio(wanted: PartWork, known: PartWork) -> float:
    """How many times longer some work takes than other work on one machine, by FLOPs and by bytes.

    The larger of the two ratios: a part never takes less time than its slower resource needs.
    """
    by_bytes = wanted.bytes / known.bytes if known.bytes else 0.0
    return max(wanted.flops / known.flops, by_bytes)


def resized(seconds: float, known: PartWork, wanted: PartWork, head: tuple[PartWork, float]) -> float:
    """Seconds of a part at another size than the one that was timed.

    What it does more or less is charged at the pace of the output head, the largest product that was timed;
    launching it and waiting for the answer takes as long at any size. (In proportion to its size a short list
    four times as long was dearer than most of the head.) A smaller one takes no less than in proportion.
    """
    more = PartWork(max(wanted.flops - known.flops, 0.0), max(wanted.bytes - known.bytes, 0.0))
    less = PartWork(max(known.flops - wanted.flops, 0.0), max(known.bytes - wanted.bytes, 0.0))
    work, pace = head
    grown = seconds + pace * work_ratio(more, work)
    return max(grown - pace * work_ratio(less, work), seconds * min(work_ratio(wanted, known), 1.0))


SCHEMA_VERSION = 1
KIND = "timings"
# A straight line through two batch sizes says little about one that is many times larger.
LARGEST_EXTRAPOLATION = 4
# Seconds until the program knows the answer of a check that has no time of its own: a launch and a wait.
ASSUMED_WAIT = 1e-5
UNTIMED = "read off a straight line through timed sizes, which can be off by tens of percent"
LENS, REPAIR, MAPS = "lens", "K,V projection", "K,V map"
"""Names of parts, beside the kinds of probe, that may be derived instead of timed."""
OPTIONAL = ("lens_seconds", "map_seconds", "key_value_seconds", "key_value_seconds_per_position")

Table = FloatArray
Timed = list[tuple[PartWork, float]]
"""Work and seconds of parts that have a time of their own: the head first, then the timed probes."""


OTHER_LOAD = "other_load"
"""The detail that says how many processors anything else kept busy meanwhile; older profiles lack it."""
TOLERABLE_LOAD = 0.3
"""Processors that others may keep busy during a timing, beside those that our threads leave free."""


@dataclass(frozen=True)
class TimingsProfile:
    """Seconds of every part of a decoding step, measured on one model at some batch sizes.

    All times are of a whole step that decodes one token of each sequence. Those of lens, maps and K and V may
    be None, and kinds of probe may be missing: they are then derived from the FLOPs and bytes of what was
    timed, with a wait for a check's answer, which `notes` says.

    Anything that numpy reads as an array is taken for one. Raises InputError for a table of another size, a
    negative or non-finite time, an unknown kind of probe, or batch sizes that do not rise from 1 or more.
    """

    IF_ANY: ClassVar[tuple[str, ...]] = ("encoder_seconds",)

    name: str
    source: str
    """Where the timings come from."""
    dtype: str
    """Of the weights."""
    layers_count: Layers
    batches: tuple[Count, ...]
    """Batch sizes, rising."""
    layer_seconds: Table
    """[batches, layers], at position 0."""
    layer_seconds_per_position: Table
    """[batches, layers], for every position after it (within the window of a layer that has one)."""
    head_seconds: Table
    """[batches], final norm, output head and choice of the token."""
    probe_seconds: Mapping[str, Table]
    """[batches] by kind of probe (see `offramp.costs.probes.PROBES`), the lens left out."""
    lens_seconds: Table | None
    """[batches], one linear lens."""
    key_value_seconds: Table | None
    """[batches, layers], leaving behind what later tokens need of a skipped layer."""
    overhead_seconds: Table
    """[batches], what a step costs whatever it runs."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON values on how it was measured."""
    sizes: ProbeSizes = field(default_factory=ProbeSizes)
    """Of the timed probes."""
    key_value_seconds_per_position: Table | None = None
    """[batches, layers]; None where the position does not matter."""
    map_seconds: Table | None = None
    """[batches], the K,V maps of one exit (to `timed_map_layers`, of rank sizes.map_rank)."""
    encoder_seconds: tuple[tuple[NotNegative, NotNegative], ...] | None = None
    """By positions that it gives, rising: seconds of the encoder with K and V of its output for every decoder
    layer; None without one, or where it was not timed."""
    kind: str = KIND

    def __post_init__(self) -> None:
        batches = tuple(int(batch) for batch in self.batches)
        if not batches or batches[0] < 1 or any(low >= high for low, high in itertools.pairwise(batches)):
            raise self._refused(f"the batch sizes {self.batches} do not rise from 1 or more")
        unknown = sorted(set(self.probe_seconds) - set(PROBES))
        if unknown:
            raise self._refused(f"no kind of probe {unknown[0]!r}; there are: {', '.join(PROBES)}")
        object.__setattr__(self, "batches", batches)
        by_layer, by_batch = (len(batches), self.layers_count), (len(batches),)
        for name, shape in (
            ("layer_seconds", by_layer),
            ("layer_seconds_per_position", by_layer),
            ("head_seconds", by_batch),
            ("lens_seconds", by_batch),
            ("map_seconds", by_batch),
            ("key_value_seconds", by_layer),
            ("key_value_seconds_per_position", by_layer),
            ("overhead_seconds", by_batch),
        ):
            value = getattr(self, name)
            if value is not None or name not in OPTIONAL:
                object.__setattr__(self, name, self._table(name, value, shape))
        probes = {name: self._table(name, value, by_batch) for name, value in self.probe_seconds.items()}
        object.__setattr__(self, "probe_seconds", probes)

    def _table(self, name: str, value: ArrayLike, shape: tuple[int, ...]) -> Table:
        try:
            table = np.array(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self._refused(f"{name} holds something that is not a number ({error})") from error
        if table.shape != shape:
            raise self._refused(f"{name} has the shape {list(table.shape)} instead of {list(shape)}")
        if not ((table >= 0) & (table <= LARGEST_NUMBER)).all():
            raise self._refused(f"{name} holds a negative time, or one that is not finite or too large")
        table.setflags(write=False)
        return table

    def _refused(self, what: str) -> InputError:
        return InputError(what, where=f"timings {self.name}", fix="correct the entry or measure again")

    @property
    def unfit(self) -> str | None:
        """Why its times are neither kept nor fit to decide anything: what others did meanwhile; None if they
        are. Asked wherever one is kept, found again or prices something (`token_costs`)."""
        load = self.details.get(OTHER_LOAD)
        return None if load is None else too_busy(self.details["machine"], load)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the profile is derived instead of measured, in sentences."""
        notes = list(self.derived_notes({*PROBES, LENS, REPAIR, MAPS}))
        if len(self.batches) > 1:
            notes.append(f"timed at batch {self._timed_batches}; any other size is {UNTIMED}")
        return (*notes, *self.details.get("notes", ()))

    def derived_notes(self, used: Collection[str]) -> tuple[str, ...]:
        """What must be said where some parts are used: kinds of probe, LENS, REPAIR and MAPS."""
        missing = [name for name in PROBES if name in used and name not in self.probe_seconds]
        if LENS in used and self.lens_seconds is None:
            missing.append(LENS)
        notes = []
        if missing:
            notes.append(
                f"not timed: {', '.join(missing)}; derived by FLOPs and bytes from the timed part that is "
                f"nearest in FLOPs, and {1e6 * ASSUMED_WAIT:.0f} us assumed to wait for a check's answer (at "
                "most the head's time)"
            )
        if REPAIR in used and self.key_value_seconds is None:
            notes.append("K,V repair is not timed: a layer's time by the share of its weights that make K,V")
        if MAPS in used and self.map_seconds is None:
            notes.append("K,V maps are not timed: a linear lens's time by their FLOPs and bytes")
        return tuple(notes)

    @property
    def largest_batch(self) -> int:
        """The largest batch that it prices."""
        return self.batches[-1] * (LARGEST_EXTRAPOLATION if len(self.batches) > 1 else 1)

    @property
    def _timed_batches(self) -> str:
        return ", ".join(map(str, self.batches))

    def price_notes(self, shape: ModelShape, position: float, batches: Iterable[int]) -> tuple[str, ...]:
        """What must be said of its prices at batch sizes that were not timed, whatever the model is."""
        untimed = ", ".join(map(str, sorted(set(batches) - set(self.batches))))
        timed = f"{self.name} was timed at batch {self._timed_batches}"
        return (f"{timed}, not at {untimed}: there it is {UNTIMED}",) if untimed else ()

    def token_costs(
        self,
        shape: ModelShape,
        position: float,
        *,
        batch: int = 1,
        lens: bool = False,
        sizes: ProbeSizes | None = None,
    ) -> TokenCosts:
        """Seconds of one step that decodes a token of each of `batch` sequences at `position` (0 = first).

        Linear between the timed batch sizes, and beyond the largest through the last two, but never falling
        there; below the smallest the smallest one's time. sizes: of the probes; what was timed at
        another size is priced as `resized` says.

        Raises BusyMachineError for times that are not fit to decide (`unfit`); InputError for a model with
        another number of layers or of another dtype, a batch below 1 or above four times the largest timed
        one (with one timed size, any above it), or a position that is negative or not finite.
        """
        if self.unfit is not None:
            raise busy_machine(self.unfit)
        counting.check_position(position)
        self._check(shape, batch)
        sizes = self.sizes if sizes is None else sizes
        attended = np.array([attended_before(layer, position) for layer in shape.layers])
        layers = self._at(self.layer_seconds + self.layer_seconds_per_position * attended, batch)
        head = float(self._at(self.head_seconds, batch))
        timed = self._timed(shape, batch)
        of_lens = PartWork(lens_flops(shape), lens_bytes(shape))
        wanted_lens = PartWork(lens_flops(shape, 1, sizes), lens_bytes(shape, sizes))
        lens_seconds = self._price(self.lens_seconds, of_lens, wanted_lens, timed, batch) if lens else 0.0
        probes = {}
        # The wait is a guess: it never outweighs the head that a check replaces.
        wait = min(ASSUMED_WAIT, head)
        for name, kind in PROBES.items():
            measured = PartWork(kind.flops(shape, self.sizes), kind.bytes(shape, self.sizes))
            wanted = PartWork(kind.flops(shape, sizes), kind.bytes(shape, sizes))
            price = self._price(self.probe_seconds.get(name), measured, wanted, timed, batch)
            probes[name] = price if name in self.probe_seconds else price + wait
        for name in set(PROBES) - set(self.probe_seconds):
            # A guess is never dearer than the check that computes everything.
            probes[name] = min(probes[name], probes["full head"])
        for name, kind in PROBES.items():
            probes[name] += lens_seconds if kind.reads_logits else 0.0
        return TokenCosts(
            unit="seconds",
            layers=layers,
            head=head,
            exit_head=head + lens_seconds,
            probes=probes,
            key_value=self._key_value(shape, attended, layers, batch),
            overhead=float(self._at(self.overhead_seconds, batch)),
            batch=batch,
            maps={
                exit: self._map(shape, len(shape.layers) - 1 - exit, rank, timed, batch)
                for exit, rank in sizes.kv_maps
            },
        )

    def request_seconds(self, positions: float) -> float | None:
        """Seconds of an encoder's run and what comes of it: between timed lengths on a straight line, else in
        proportion to the nearest; None where it was not timed."""
        if not self.encoder_seconds:
            return None
        lengths, seconds = np.array(((0.0, 0.0), *self.encoder_seconds)).T
        return float(np.interp(positions, lengths, seconds) * max(1.0, positions / lengths[-1]))

    def _check(self, shape: ModelShape, batch: int) -> None:
        if len(shape.layers) != self.layers_count:
            raise InputError(
                f"the timings are of a model with {self.layers_count} layers, this one has "
                f"{len(shape.layers)}",
                where=f"timings {self.name}",
                fix="use timings of this model: offramp hardware measure MODEL",
            )
        stated = DTYPES.get(shape.element_bytes)
        if stated is not None and shape.element_bytes != ELEMENT_BYTES[self.dtype]:
            raise InputError(
                f"the timings are of weights in {self.dtype}, this model's are in {stated}",
                where=f"timings {self.name}",
                fix=f"use timings in {stated}: offramp hardware measure MODEL --dtype {stated}",
            )
        largest = self.largest_batch
        if batch < 1 or batch > largest:
            raise InputError(
                f"no timings for batch size {batch}: those at {self._timed_batches} reach from 1 to "
                f"{largest}",
                where=f"timings {self.name}",
                fix=f"choose a batch size from 1 to {largest}, or time larger batches",
            )

    def _at(self, table: Table, batch: int) -> Table:
        """A table's row at a batch size: [batches, ...] to [...]."""
        sizes = self.batches
        if batch <= sizes[0]:
            return np.asarray(table[0], dtype=np.float64)
        after = next((index for index, size in enumerate(sizes) if size >= batch), len(sizes) - 1)
        low, high = sizes[after - 1], sizes[after]
        line = table[after - 1] + (table[after] - table[after - 1]) * ((batch - low) / (high - low))
        # Timings that fell with the batch fell by chance: no batch beyond them is cheaper.
        return np.asarray(np.maximum(line, table[-1]) if batch > sizes[-1] else line)

    def _timed(self, shape: ModelShape, batch: int) -> Timed:
        timed = [
            (
                PartWork(PROBES[name].flops(shape, self.sizes), PROBES[name].bytes(shape, self.sizes)),
                float(self._at(table, batch)),
            )
            for name, table in self.probe_seconds.items()
        ]
        head = PartWork(counting.head_flops(shape), counting.head_bytes(shape))
        return [(head, float(self._at(self.head_seconds, batch))), *timed]

    def _price(
        self,
        table: Table | None,
        measured: PartWork,
        wanted: PartWork,
        timed: Timed,
        batch: int,
    ) -> float:
        if table is not None:
            return resized(float(self._at(table, batch)), measured, wanted, timed[0])
        work, seconds = min(timed, key=lambda part: abs(math.log(part[0].flops / wanted.flops)))
        return seconds * work_ratio(wanted, work)

    def _map(
        self,
        shape: ModelShape,
        layers: int,
        rank: int | None,
        timed: Timed,
        batch: int,
    ) -> float:
        """The K,V maps of one exit to so many layers; by the lens where no maps were timed."""
        wanted = PartWork(map_flops(shape, layers, rank), map_bytes(shape, layers, rank))
        if self.map_seconds is None:
            lens = PartWork(lens_flops(shape), lens_bytes(shape))
            return self._price(self.lens_seconds, lens, wanted, timed, batch)
        known = timed_map_layers(shape), self.sizes.map_rank
        measured = PartWork(map_flops(shape, *known), map_bytes(shape, *known))
        return self._price(self.map_seconds, measured, wanted, timed, batch)

    def _key_value(self, shape: ModelShape, attended: Table, layers: Table, batch: int) -> Table:
        if self.key_value_seconds is None:
            return layers * counting.key_value_bytes(shape, 0.0) / counting.layer_bytes(shape, 0.0)
        slope = self.key_value_seconds_per_position
        return self._at(self.key_value_seconds + (0.0 if slope is None else slope * attended), batch)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that is read back bit for bit (see `offramp.kit.typed.from_json`)."""
        return {"schema_version": SCHEMA_VERSION, **to_json(self)}


def too_busy(facts: Mapping[str, Any], load: float) -> str | None:
    """What others did beside a timing, if that is too much for it; None if not.

    facts: "cores" of the machine and "threads" of ours. load: processors that others kept busy.
    """
    cores, threads = facts["cores"] or 1, facts["threads"]
    tolerable = max(0, cores - threads) + TOLERABLE_LOAD
    if load <= tolerable:
        return None
    return (
        f"other work kept {load:.1f} of {cores} processors busy, {tolerable:g} are tolerable beside "
        f"{threads} thread{'' if threads == 1 else 's'} of ours"
    )


def busy_machine(why: str) -> BusyMachineError:
    """The error for times that are not fit to decide. why: as `TimingsProfile.unfit` says it."""
    return BusyMachineError(
        f"the machine is busy: {why}, so that times of now are neither kept nor used",
        where="the hardware profile local",
        fix="give the same command again (of a study with --retry) when other programs are done, which "
        "offramp doctor shows, or leave processors to them (OMP_NUM_THREADS=1); or price by a data sheet: "
        "offramp list hardware",
    )


def attended_before(layer: LayerShape, position: float) -> float:
    """Earlier positions that the token at `position` (0 = first) attends to: at most a window's rest."""
    return counting.attended_positions(layer, position) - 1.0
