"""Every exit that a threshold rule makes as its threshold loosens, in order: the exact basis of a frontier.

As the threshold loosens, a token moves from exit to exit at the records of its signal, read from shallow to
deep: it leaves at exit i exactly when the threshold lies between the largest value up to i and the largest
before i. So there are at most tokens x exits moves, and sorting them by value visits every operating point.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.policy import columns_of
from offramp.policies.signals import Signal
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import Trace

# Rows packed and moves summed at once, so that the pieces stay in a core's cache.
ROWS = 1024
MOVES = 1 << 14
# Threads that sort and sum side by side; numpy lets go of the interpreter while it does.
THREADS = min(4, os.cpu_count() or 1)

KEY_BITS = np.uint64(32)

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sweep:
    """The moves of all tokens, sorted from the most cautious threshold to the boldest.

    exits: the checked exits, ascending. tokens: how many tokens were swept. layers: L.
    buckets: uint64 [moves] each, one after the other sorted. The upper half of a move is its value's
    descending key; the lower one its code: which exit a token comes from and goes to, and what that does to
    agreement. Moves of one value lie in one bucket; their last one is a point, a distinct threshold.
    """

    exits: tuple[int, ...]
    layers: int
    tokens: int
    exit_when: str
    buckets: tuple[NDArray[np.uint64], ...]

    @cached_property
    def _blocks(self) -> list[tuple[NDArray[np.uint64], NDArray[np.bool_]]]:
        """Pieces of the moves, and which of them are points."""
        pieces = [
            (bucket[start : start + MOVES], bucket[start + MOVES : start + MOVES + 1])
            for bucket in self.buckets
            for start in range(0, len(bucket), MOVES)
        ]
        return side_by_side(lambda piece: (piece[0], _points(*piece)), pieces)

    @cached_property
    def _starts(self) -> list[int]:
        """The number of points before each block, and that of all."""
        return list(itertools.accumulate(map(int, (points.sum() for _, points in self._blocks)), initial=0))

    @cached_property
    def thresholds(self) -> NDArray[np.float64]:
        """The threshold that nothing passes, then all distinct ones, in the signal's unit: [1 + points]."""
        found = np.empty(1 + self._starts[-1])
        found[0] = math.inf

        def write(block: int) -> None:
            moves, points = self._blocks[block]
            values = _value_of_key((moves[points] >> KEY_BITS).astype(np.uint32))
            found[1 + self._starts[block] : 1 + self._starts[block + 1]] = values

        side_by_side(write, range(len(self._blocks)))
        return np.subtract(0.0, found, out=found) if self.exit_when == "at most" else found

    @property
    def threshold(self) -> NDArray[np.float64]:
        """Distinct thresholds in the signal's own unit: float64 [points]."""
        return self.thresholds[1:]

    def agreement_count(self) -> NDArray[np.int64]:
        """Tokens whose exit agrees with the full model, at each point: int64 [points]."""
        return self.tokens + self.running([self.agreement_change])[0][1:].astype(np.int64)

    def total(self, per_exit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over tokens of a quantity that depends on the exit alone, at each point: float64 [points].

        per_exit: float64 [layers], the quantity of a token that leaves at exit l = 1..L.
        """
        return self.tokens * float(per_exit[-1]) + self.running([self.change(per_exit)])[0][1:]

    def total_at(self, point: int, per_exit: NDArray[np.float64]) -> float:
        """`total` at one point."""
        change = self.change(per_exit)
        moves = np.zeros(len(change), dtype=np.int64)
        for (block, points), start in zip(self._blocks, self._starts, strict=False):
            if point < start:
                break
            places = np.flatnonzero(points)
            end = int(places[point - start]) + 1 if point - start < len(places) else len(block)
            moves += np.bincount(_codes(block[:end]), minlength=len(change))
        return self.tokens * float(per_exit[-1]) + float(moves @ change)

    @property
    def agreement_change(self) -> NDArray[np.float64]:
        """What each code does to the number of tokens that agree."""
        slots = len(self.exits) + 1
        return np.tile(np.array([-1.0, 0.0, 1.0]), slots * slots)

    def change(self, per_exit: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each code does to a quantity that depends on the exit alone: per_exit float64 [layers]."""
        values = per_exit[np.array([*self.exits, self.layers]) - 1]
        return np.repeat((values[:, None] - values[None, :]).ravel(), 3)

    def running(self, changes: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """Running sums of some changes at no move (0) and at each point: float64 [1 + points] each.

        changes: float64 [codes] each. Summed block by block, so that rounding stays small.
        """
        sums = [np.zeros(1 + self._starts[-1]) for _ in changes]
        whole = np.zeros((len(changes), len(self._blocks) + 1))

        def within(block: int) -> None:
            moves, points = self._blocks[block]
            codes = _codes(moves)
            for place, change in enumerate(changes):
                summed = np.cumsum(change[codes])
                sums[place][1 + self._starts[block] : 1 + self._starts[block + 1]] = summed[points]
                whole[place, block + 1] = summed[-1]

        def onward(block: int) -> None:
            for place, before in enumerate(whole[:, block]):
                sums[place][1 + self._starts[block] : 1 + self._starts[block + 1]] += before

        side_by_side(within, range(len(self._blocks)))
        np.cumsum(whole, axis=1, out=whole)
        side_by_side(onward, range(len(self._blocks)))
        return sums


def side_by_side(task: Callable[[Task], Result], over: Iterable[Task]) -> list[Result]:
    """A task for every item, on several threads; the results in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(task, over))


def _codes(moves: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (moves & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _points(moves: NDArray[np.uint64], following: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each move is the last one of its value; following: the move after these, if there is one."""
    key = (moves >> KEY_BITS).astype(np.uint32)
    last = np.empty(len(key), dtype=np.bool_)
    np.not_equal(key[1:], key[:-1], out=last[:-1])
    last[-1] = not len(following) or int(following[0] >> KEY_BITS) != int(key[-1])
    return last


def sweep(trace: Trace, signal: Signal, exits: tuple[int, ...], agreement: NDArray[np.bool_]) -> Sweep:
    """All moves of one signal and one set of checked exits (ascending, below L) where a token may leave.

    agreement: bool [tokens, exits of the trace], as `trace.agreement`.

    Raises PolicyError for exits that were not traced or a signal that is NaN somewhere, InputError for a
    trace without the signal's fact.
    """
    columns = columns_of(trace, exits)
    fact = fact_of(trace, signal.fact)
    everything = slice(int(columns[0]), int(columns[-1]) + 1)
    chosen = everything if everything.stop - everything.start == len(columns) else columns

    def values_of(rows: slice) -> NDArray[np.float32]:
        values = np.array(fact[rows, chosen], dtype=np.float32)
        if np.isnan(values).any():
            for column in columns:
                require_numbers(trace, signal.fact, fact[:, column], int(trace.exits[column]))
        return np.negative(values, out=values) if signal.exit_when == "at most" else values

    pivots = _pivots(values_of(slice(0, None, max(1, trace.token_count // ROWS))))

    def packed(start: int) -> list[NDArray[np.uint64]]:
        rows = slice(start, start + ROWS)
        moves = _pack_moves(values_of(rows), agreement[rows, chosen])
        return [
            moves[(moves >= low) & (moves < high)] if len(pivots) > 2 else moves
            for low, high in itertools.pairwise(pivots)
        ]

    pieces = side_by_side(packed, range(0, trace.token_count, ROWS))
    parts = [[piece[place] for piece in pieces] for place in range(len(pivots) - 1)]
    del pieces
    return Sweep(
        exits=exits,
        layers=trace.layers,
        tokens=trace.token_count,
        exit_when=signal.exit_when,
        buckets=tuple(side_by_side(_sorted, parts)),
    )


def _pivots(values: NDArray[np.float32]) -> list[np.uint64]:
    """Limits of buckets of moves of about equal size, one for each thread; values: a sample."""
    keys = np.sort(_descending_key(values.ravel()))
    inner = {int(keys[len(keys) * place // THREADS]) for place in range(1, THREADS)} if keys.size else set()
    # All moves lie below the largest number: their codes are small.
    limits = [0, *sorted(inner - {0}), 0xFFFFFFFF]
    return [np.uint64(limit) << KEY_BITS for limit in limits[:-1]] + [np.uint64(0xFFFFFFFFFFFFFFFF)]


def _sorted(pieces: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    moves = np.concatenate(pieces)
    pieces.clear()
    moves.sort()
    return moves


def _pack_moves(values: NDArray[np.float32], agreement: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """One sortable number per move: the descending value above, the move's code below: uint64 [moves].

    values, agreement: [tokens, checked exits]; a larger value is more confident.
    """
    exits = values.shape[1]
    record = np.empty(values.shape, dtype=np.bool_)
    record[:, 0] = True
    if exits > 1:
        highest = np.maximum.accumulate(values, axis=1)
        np.greater(values[:, 1:], highest[:, :-1], out=record[:, 1:])
    place = np.flatnonzero(record)
    target = (place % exits).astype(np.uint32)
    agrees = agreement.ravel()[place].astype(np.int8)
    # Each token's records follow one another and begin at slot 0, so the next record is where it comes from,
    # unless that is another token's first: then it comes from exit L, which always agrees.
    source, agreed = np.roll(target, -1), np.roll(agrees, -1)
    from_last = source == 0
    source[from_last] = exits
    agreed[from_last] = 1
    code = (target * np.uint32(exits + 1) + source) * np.uint32(3) + (agrees - agreed + 1).astype(np.uint32)
    key = _descending_key(values.ravel()[place])
    packed = key.astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= code
    return packed


def _descending_key(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Unsigned integers in the opposite order of the floats; -0 counts as 0."""
    bits = (values + np.float32(0.0)).view(np.uint32)
    sign = np.uint32(0x80000000)
    # The bits of positive floats ascend and those of negative ones descend: flip the former, keep their sign.
    return np.where(bits & sign, bits, bits ^ np.uint32(0x7FFFFFFF))


def _value_of_key(key: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The float of a `_descending_key`."""
    sign = np.uint32(0x80000000)
    return np.where(key & sign, key, key ^ np.uint32(0x7FFFFFFF)).view(np.float32)


def require_numbers(trace: Trace, fact: str, values: NDArray[Any], exit: int) -> None:
    """Raise PolicyError if a fact of one exit, [tokens], holds a NaN, with the document's name."""
    broken = np.flatnonzero(np.isnan(values))
    if broken.size:
        document = trace.documents[int(trace.document[broken[0]])].id
        raise PolicyError(
            f"{fact} is not a number for {broken.size} tokens at exit {exit}",
            where=f"{document}, row {int(broken[0])} of {trace.folder or 'the trace'}",
            fix="trace the model again; a document with a broken logit should have been left out",
        )
