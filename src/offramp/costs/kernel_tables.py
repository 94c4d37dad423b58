"""Measured times of kernels, and how a time between them is read: a grid, and attention of one token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache, cached_property
from itertools import product as combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.kit.typed import FloatArray

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
    """Measured seconds over some axes.

    axes: rising positive values of each. seconds: float64 [axis 1, axis 2, ...], nan where nothing was
    measured.
    """

    axes: tuple[FloatArray, ...]
    seconds: FloatArray

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
    """Measured attention of one token per sequence over a full context.

    All float64 [rows]. batch, heads, key_value_heads, head_size: of the shape. context: positions attended
    to, the token's own included. seconds: measured.
    """

    batch: FloatArray
    heads: FloatArray
    key_value_heads: FloatArray
    head_size: FloatArray
    context: FloatArray
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
        for other in _by_nearness(groups.tolist(), group):
            grid, own = _attention_grid(self, size, other, width / size)
            yield grid, batch * width / size, own and other == group

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
