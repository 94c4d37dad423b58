"""A GPU known by measured times of its kernels: products and decode attention, part by part of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache, cached_property
from itertools import product as combinations
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.costs import counting
from offramp.costs.machine import (
    DTYPES,
    HEAD_LAUNCHES,
    KEY_VALUE_LAUNCHES,
    LAYER_LAUNCHES,
    MAP_LAUNCHES,
    MLP_LAUNCHES,
    STEP_LAUNCHES,
    DataSheet,
)
from offramp.costs.probes import PROBES, ProbeKind, ProbeSizes, lens_products, map_bytes, map_flops
from offramp.costs.timings import KIND
from offramp.costs.token import TokenCosts
from offramp.errors import InputError
from offramp.kit.typed import FloatArray
from offramp.models.shape import LayerShape, ModelShape

Number = TypeVar("Number", int, float)
USUAL_HEAD_SIZES = (128, 64, 256)
"""Tried in this order: a shape holds how wide all heads together are, not how many there are."""


class Basis(IntEnum):
    """What a figure rests on, the firmest first."""

    MEASURED = 0
    INTERPOLATED = 1
    DATA_SHEET = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class KernelTime:
    """Seconds of one part of a step, and what they rest on."""

    seconds: float
    basis: Basis


@dataclass(frozen=True, eq=False)
class KernelGrid:
    """Measured seconds over some axes."""

    axes: tuple[FloatArray, ...]
    """Rising positive values of each."""
    seconds: FloatArray
    """float64 [axis 1, axis 2, ...], nan where nothing was measured."""

    def at(self, *point: float) -> KernelTime | None:
        """Seconds at one value per axis: measured, or from the nearest measured value below and above on
        each axis, linear in the logarithms of time and of every axis.

        None outside the axes, or where one of those neighbours was not measured.
        """
        sides = [_neighbours(axis, value) for axis, value in zip(self.axes, point, strict=True)]
        corners = list(combinations(*sides))
        if not corners:
            return None
        found = [float(self.seconds[tuple(place for place, _ in corner)]) for corner in corners]
        if any(math.isnan(seconds) for seconds in found):
            return None
        if len(corners) == 1:
            return KernelTime(found[0], Basis.MEASURED)
        shares = [math.prod(share for _, share in corner) for corner in corners]
        mean = sum(share * math.log(seconds) for share, seconds in zip(shares, found, strict=True))
        return KernelTime(math.exp(mean), Basis.INTERPOLATED)


def _neighbours(axis: FloatArray, value: float) -> list[tuple[int, float]]:
    """Places of the values at, or below and above, with their shares; empty outside the axis."""
    if not axis[0] <= value <= axis[-1]:
        return []
    above = int(np.searchsorted(axis, value))
    if axis[above] == value:
        return [(above, 1.0)]
    share = math.log(value / axis[above - 1]) / math.log(axis[above] / axis[above - 1])
    return [(above - 1, 1.0 - share), (above, share)]


def grid_of(columns: Iterable[FloatArray], seconds: FloatArray) -> KernelGrid:
    """A grid of measurements: one column per axis, all of the same length as `seconds`.

    Of several times of one shape, which are those of different kernels, the shortest is kept.
    """
    axes, places = zip(*(np.unique(column, return_inverse=True) for column in columns), strict=True)
    table = np.full([len(axis) for axis in axes], np.nan)
    np.fmin.at(table, places, seconds)
    return KernelGrid(tuple(np.asarray(axis, dtype=np.float64) for axis in axes), table)


@dataclass(frozen=True, eq=False)
class DecodeAttention:
    """Measured attention of one token per sequence over a full context, all float64 [rows]."""

    batch: FloatArray
    heads: FloatArray
    key_value_heads: FloatArray
    head_size: FloatArray
    context: FloatArray
    """Positions attended to, the token's own included."""
    seconds: FloatArray

    def at(self, batch: int, attention_width: int, key_value_width: int, context: float) -> KernelTime | None:
        """Seconds of a layer's attention; None outside the tables.

        Looked up by the head size, the query heads of each K,V head, and the streams: sequences times K,V
        heads, each of which is read by its own part of the device. Rows of the very number of K,V heads come
        before others. A head size that was not measured is replaced by the nearest that was, at as many bytes
        of K and V; a number of query heads by the nearest that was measured with as many streams; a context
        below the smallest by that one.
        """
        for grid, streams, own in self.grids(batch, attention_width, key_value_width):
            figure = grid.at(streams, max(context, float(grid.axes[1][0])))
            if figure is not None:
                return figure if own else replace(figure, basis=Basis.INTERPOLATED)
        return None

    def longest(self, batch: int, attention_width: int, key_value_width: int) -> KernelTime | None:
        """Seconds over the longest context that was measured of such a layer; None if there is none."""
        for grid, streams, _ in self.grids(batch, attention_width, key_value_width):
            found = (grid.at(streams, float(context)) for context in reversed(grid.axes[1]))
            longest = next((figure for figure in found if figure is not None), None)
            if longest is not None:
                return longest
        return None

    def grids(
        self, batch: int, attention_width: int, key_value_width: int
    ) -> Iterator[tuple[KernelGrid, float, bool]]:
        """Seconds by streams and context, the streams, and whether heads of this very kind were measured.

        The nearest number of query heads a K,V head first.
        """
        width = key_value_width / 2.0
        size = self.size_of(attention_width, key_value_width)
        group = attention_width / width
        of_size = self.head_size == size
        groups = np.unique((self.heads / self.key_value_heads)[of_size])
        for near in _by_nearness(groups.tolist(), group):
            grid, own = _attention_grid(self, size, near, width / size)
            yield grid, batch * width / size, own and near == group

    def size_of(self, attention_width: int, key_value_width: int) -> int:
        """The head size that a layer is looked up with: a usual one that divides its widths and was measured.

        Failing that, the nearest to one that divides them.
        """
        fitting = [
            size
            for size in USUAL_HEAD_SIZES
            if attention_width % size == 0 and key_value_width % (2 * size) == 0
        ]
        known = next((size for size in fitting if size in self._head_sizes), None)
        nearest = _by_nearness(self._head_sizes, (*fitting, USUAL_HEAD_SIZES[0])[0])[0]
        return nearest if known is None else known

    @cached_property
    def _head_sizes(self) -> frozenset[int]:
        return frozenset(np.unique(self.head_size).astype(int).tolist())


def _by_nearness(values: Iterable[Number], wanted: float) -> list[Number]:
    """The values, the nearest in ratio first; of two as near the smaller."""
    return sorted(values, key=lambda value: (round(abs(math.log(value / wanted)), 9), value))


@cache
def _attention_grid(
    rows: DecodeAttention, head_size: int, group: float, key_value_heads: float
) -> tuple[KernelGrid, bool]:
    """Seconds by streams and context, for some query heads per K,V head that were measured; whether with this
    number of K,V heads, which is not whole where `head_size` stands in for another.
    """
    chosen = (rows.head_size == head_size) & (rows.heads / rows.key_value_heads == group)

    def grid(mask: NDArray[np.bool_]) -> KernelGrid:
        streams = (rows.batch * rows.key_value_heads)[mask]
        return grid_of((streams, rows.context[mask]), rows.seconds[mask])

    found, own = grid(chosen), chosen & (rows.key_value_heads == key_value_heads)
    seconds = found.seconds.copy()
    if own.any():
        first = grid(own)
        places = np.ix_(*(np.searchsorted(*axes) for axes in zip(found.axes, first.axes, strict=True)))
        seconds[places] = np.where(np.isnan(first.seconds), seconds[places], first.seconds)
    # A longer context is never cheaper: where one was timed so, by chance, it takes the shorter one's time.
    rising = np.fmax.accumulate(seconds, axis=1)
    return KernelGrid(found.axes, np.where(np.isnan(seconds), np.nan, rising)), bool(own.any())


DTYPE, ELEMENT_BYTES = "bfloat16", 2
TABLED_LAUNCHES = 5
"""Of a layer's kernels those that have a table: four products and attention."""
# Of the probes that are a product, its columns; the others are too small for any table.
PROBE_COLUMNS: Mapping[str, Callable[[ModelShape, ProbeSizes], int]] = {
    "full head": lambda shape, sizes: shape.vocabulary_size,
    "restricted head": lambda shape, sizes: min(sizes.shortlist, shape.vocabulary_size),
    "network": lambda shape, sizes: sizes.hidden,
}


@dataclass(frozen=True, eq=False)
class KernelMachine(DataSheet[float]):
    """A machine priced by measured kernels where they reach, by its data sheet in bfloat16 elsewhere."""

    NOT_KEPT: ClassVar[tuple[str, ...]] = ("products", "attention")

    products: KernelGrid
    """Seconds of a bfloat16 product, by columns n, inner size k and rows m."""
    attention: DecodeAttention
    """Of one token a sequence."""
    details: Mapping[str, Any]
    """JSON values: package, version, system, backend and the SHA-256 of each table, in whose place they are
    written."""
    kind: str = KIND

    def product(self, rows: int, columns: int, inner: int) -> KernelTime:
        """[rows, inner] times [inner, columns]. More columns than were measured run as several products."""
        pieces = math.ceil(columns / self.products.axes[0][-1])
        found = self.products.at(columns / pieces, inner, rows)
        if found is None:
            elements = float(columns) * inner
            return KernelTime(
                self._by_data_sheet(2.0 * rows * elements, ELEMENT_BYTES * elements, 1), Basis.DATA_SHEET
            )
        return found if pieces == 1 else KernelTime(pieces * found.seconds, Basis.INTERPOLATED)

    def layer_parts(
        self, layer: LayerShape, hidden: int, position: float, batch: int
    ) -> dict[str, KernelTime]:
        """What one dense layer runs at a position (0 = first), by name.

        small kernels: two norms, rotation, cache write and activation, which no table holds.
        """
        width, kept = layer.attention_width, layer.key_value_width
        inner = feed_forward_width(layer, hidden)
        launches = LAYER_LAUNCHES["attention"] - TABLED_LAUNCHES
        return {
            "Q,K,V product": self.product(batch, width + kept, hidden),
            "attention": self._attention(layer, position, batch),
            "output product": self.product(batch, hidden, width),
            "gate and up product": self.product(batch, 2 * inner, hidden),
            "down product": self.product(batch, hidden, inner),
            "small kernels": self._launches(launches),
        }

    def _attention(self, layer: LayerShape, position: float, batch: int) -> KernelTime:
        context = counting.attended_positions(layer, position)
        found = self.attention.at(batch, layer.attention_width, layer.key_value_width, context)
        if found is not None:
            return found
        flops = 4.0 * batch * layer.attention_width * context
        moved = ELEMENT_BYTES * batch * layer.key_value_width * context
        # Peak rates would make a context beyond the tables cheaper than the longest one in them.
        longest = self.attention.longest(batch, layer.attention_width, layer.key_value_width)
        least = 0.0 if longest is None else longest.seconds
        return KernelTime(max(self._by_data_sheet(flops, moved, 1), least), Basis.DATA_SHEET)

    def step_parts(self, shape: ModelShape, batch: int, sizes: ProbeSizes) -> dict[str, KernelTime]:
        """What a step runs beside its layers: the output head, and what exits may add."""
        repairs = [
            self.product(batch, layer.key_value_width, shape.hidden_size) for layer in set(shape.layers)
        ]
        return {
            "output head": self.product(batch, shape.vocabulary_size, shape.hidden_size),
            "K,V of a skipped layer": max(repairs, key=lambda repair: repair.basis),
            "linear lens": self.product(batch, shape.hidden_size, shape.hidden_size),
            **{
                f"{name}": self.product(batch, columns(shape, sizes), shape.hidden_size)
                for name, columns in PROBE_COLUMNS.items()
                if name != "full head"
            },
            "small checks and K,V maps": self._launches(1),
            "wait for a decision": KernelTime(self.decision_seconds, Basis.DATA_SHEET),
        }

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

        A model in float32 is priced in bfloat16, the dtype of the tables (a note says so).

        Raises InputError for a position that is negative or not finite, a batch below 1, and a model with a
        layer that is not dense with attention (see `require_dense`).
        """
        counting.check_position(position)
        counting.check_batch(batch)
        require_dense(shape, self.name)
        sizes = ProbeSizes() if sizes is None else sizes
        hidden, launch = shape.hidden_size, self.launch_seconds
        layers = {
            layer: sum(part.seconds for part in self.layer_parts(layer, hidden, position, batch).values())
            for layer in set(shape.layers)
        }
        repairs = {
            layer: self.product(batch, layer.key_value_width, hidden).seconds
            + (KEY_VALUE_LAUNCHES - 1) * launch
            for layer in set(shape.layers)
        }
        head = self.product(batch, shape.vocabulary_size, hidden).seconds + (HEAD_LAUNCHES - 1) * launch
        through_lens = self._lens(batch, hidden, sizes) if lens else 0.0
        maps = {}
        for exit, rank in sizes.kv_maps:
            above = len(shape.layers) - 1 - exit
            work = map_flops(shape, above, rank, batch), map_bytes(shape, above, rank)
            maps[exit] = self._by_data_sheet(*work, MAP_LAUNCHES + int(rank is not None))
        return TokenCosts(
            unit="seconds",
            layers=np.array([layers[layer] for layer in shape.layers]),
            head=head,
            exit_head=head + through_lens,
            probes={
                name: self._probe(kind, shape, sizes, batch) + (through_lens if kind.reads_logits else 0.0)
                for name, kind in PROBES.items()
            },
            key_value=np.array([repairs[layer] for layer in shape.layers]),
            overhead=STEP_LAUNCHES * launch + self.decision_seconds,
            batch=batch,
            maps=maps,
            decision=self.decision_seconds,
        )

    def _lens(self, batch: int, hidden: int, sizes: ProbeSizes) -> float:
        """The products of a linear lens and of a network behind it, with what is between them."""
        products = sum(self.product(batch, *product).seconds for product in lens_products(hidden, sizes))
        return products + (MLP_LAUNCHES * self.launch_seconds if sizes.mlp_units else 0.0)

    def _probe(self, kind: ProbeKind, shape: ModelShape, sizes: ProbeSizes, batch: int) -> float:
        """One check without its lens: its product, what its rows move beside, the wait for its answer."""
        if kind.name not in PROBE_COLUMNS:
            work = kind.batch_flops(shape, sizes, batch), kind.batch_bytes(shape, sizes, batch)
            return self.decision_seconds + self._by_data_sheet(*work, kind.launches)
        product = self.product(batch, PROBE_COLUMNS[kind.name](shape, sizes), shape.hidden_size)
        beside = self._by_data_sheet(0.0, batch * kind.row_bytes(shape, sizes), kind.launches - 1)
        return self.decision_seconds + product.seconds + beside

    def _by_data_sheet(self, flops: float, moved: float, launches: int) -> float:
        return (
            max(flops / self.flops_per_second, moved / self.bytes_per_second) + launches * self.launch_seconds
        )

    def _launches(self, count: int) -> KernelTime:
        return KernelTime(count * self.launch_seconds, Basis.DATA_SHEET)

    def price_notes(self, shape: ModelShape, position: float, batches: Iterable[int]) -> tuple[str, ...]:
        """What the prices of a model at a position and some batch sizes rest on, in sentences."""
        firmest: dict[str, Basis] = {}
        for batch in sorted(set(batches)):
            parts = [
                self.layer_parts(layer, shape.hidden_size, position, batch) for layer in set(shape.layers)
            ]
            for name, figure in (
                item for of in (*parts, self.step_parts(shape, batch, ProbeSizes())) for item in of.items()
            ):
                firmest[name] = max(figure.basis, firmest.get(name, Basis.MEASURED))
        said = [
            f"{basis}: {', '.join(name for name, found in firmest.items() if found is basis)}"
            for basis in Basis
            if basis in firmest.values()
        ]
        sizes = {
            self.attention.size_of(layer.attention_width, layer.key_value_width)
            for layer in set(shape.layers)
        }
        notes = [
            f"{self.name}: {'; '.join(said)}; heads are taken to be {' and '.join(map(str, sorted(sizes)))} "
            "wide, as a trace holds the width of all together"
        ]
        if shape.element_bytes != ELEMENT_BYTES:
            notes.append(
                f"traced in {DTYPES[shape.element_bytes]}, priced in {DTYPE}, the dtype of the tables"
            )
        return tuple(notes)


def feed_forward_width(layer: LayerShape, hidden: int) -> int:
    """Inner size of a feed-forward network of a gate, an up and a down matrix with a layer's elements.

    What of a layer's elements is not Q, K, V and the attention's output, rounded down to a multiple of 8:
    norms and biases are a few elements more for each. Of a network without a gate the same bytes are moved by
    other shapes.
    """
    attention = 2 * hidden * layer.attention_width + layer.key_value_parameters
    inner = (layer.active_parameters - attention) // (3 * hidden)
    return inner // 8 * 8 or inner


def require_dense(shape: ModelShape, machine: str) -> None:
    """Raise InputError unless every layer is attention and one network, with weights of the model's dtype."""
    for number, layer in enumerate(shape.layers, start=1):
        problems = {
            f"is of kind {layer.kind}": layer.kind != "attention",
            f"has {layer.experts} experts": layer.experts > 0,
            "caches a latent": layer.expansion_parameters > 0,
            "keeps no K and V of its own": layer.key_value_width == 0,
            "has quantised weights": layer.element_bytes is not None,
            "has no feed-forward network beside attention": feed_forward_width(layer, shape.hidden_size) < 1,
        }
        problem = next((what for what, holds in problems.items() if holds), None)
        if problem is not None:
            raise _not_priced(
                machine, f"layer {number} {problem}; the tables hold dense layers with attention"
            )
    if shape.element_bytes not in DTYPES:
        raise _not_priced(machine, f"weights of {shape.element_bytes} bytes an element are not {DTYPE}")


def _not_priced(machine: str, what: str) -> InputError:
    return InputError(
        what,
        where=f"machine {machine}",
        fix="choose a data sheet, such as --hardware h100, or a profile of your own engine "
        "(docs/hardware.md)",
    )
