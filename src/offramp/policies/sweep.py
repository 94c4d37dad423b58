"""Every exit that a threshold rule makes as its threshold loosens, in order: the exact basis of a frontier.

As the threshold loosens, a token moves from exit to exit at the records of its signal, read from shallow to
deep: it leaves at exit i exactly when the threshold lies between the largest value up to i and the largest
before i. So there are at most tokens x exits moves, and sorting them by value visits every operating point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.policies.kinds import check_numbers
from offramp.policies.policy import columns_of
from offramp.policies.signals import Signal
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import Trace

# Rows handled at once while packing, so that the pieces stay in the processor's cache.
ROWS = 8192


@dataclass(frozen=True)
class Sweep:
    """The moves of all tokens, sorted from the most cautious threshold to the boldest.

    exits: the checked exits, ascending. tokens: how many tokens were swept. layers: L.
    code: uint32 [moves], which exit a token comes from and goes to, and what that does to agreement.
    last: int64 [points], the last move of each distinct threshold.
    threshold: float64 [points], in the signal's own unit.
    """

    exits: tuple[int, ...]
    layers: int
    tokens: int
    code: NDArray[np.uint32]
    last: NDArray[np.int64]
    threshold: NDArray[np.float64]

    def agreement_count(self) -> NDArray[np.int64]:
        """Tokens whose exit agrees with the full model, at each point: int64 [points]."""
        slots = len(self.exits) + 1
        gain = np.tile(np.array([-1, 0, 1], dtype=np.int8), slots * slots)
        return self.tokens + np.cumsum(gain[self.code], dtype=np.int64)[self.last]

    def total(self, per_exit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over tokens of a quantity that depends on the exit alone, at each point: float64 [points].

        per_exit: float64 [layers], the quantity of a token that leaves at exit l = 1..L.
        """
        moved = np.cumsum(self._change(per_exit)[self.code])[self.last]
        return self.tokens * float(per_exit[-1]) + moved

    def total_at(self, point: int, per_exit: NDArray[np.float64]) -> float:
        """`total` at one point."""
        change = self._change(per_exit)
        moves = np.bincount(self.code[: int(self.last[point]) + 1], minlength=len(change))
        return self.tokens * float(per_exit[-1]) + float(moves @ change)

    def _change(self, per_exit: NDArray[np.float64]) -> NDArray[np.float64]:
        """The quantity's change for every code."""
        values = per_exit[np.array([*self.exits, self.layers]) - 1]
        return np.repeat((values[:, None] - values[None, :]).ravel(), 3)


def sweep(trace: Trace, signal: Signal, exits: tuple[int, ...], agreement: NDArray[np.bool_]) -> Sweep:
    """All moves of one signal and one set of checked exits (ascending, below L).

    agreement: bool [tokens, exits of the trace], as `trace.agreement`.

    Raises PolicyError for exits that were not traced or a signal that is NaN somewhere, InputError for a
    trace without the signal's fact.
    """
    columns = columns_of(trace, exits)
    fact = fact_of(trace, signal.fact)
    everything = slice(int(columns[0]), int(columns[-1]) + 1)
    chosen = everything if everything.stop - everything.start == len(columns) else columns
    packed = np.empty(trace.token_count * len(columns), dtype=np.uint64)
    count = 0
    for start in range(0, trace.token_count, ROWS):
        values = np.ascontiguousarray(fact[start : start + ROWS, chosen], dtype=np.float32)
        if np.isnan(values).any():
            for column in columns:
                check_numbers(trace, signal.fact, fact[:, column], int(trace.exits[column]))
        if signal.exit_when == "at most":
            np.negative(values, out=values)
        moves = _pack_moves(values, agreement[start : start + ROWS, chosen])
        packed[count : count + len(moves)] = moves
        count += len(moves)
    return _sorted_sweep(packed[:count], signal, exits, trace)


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


def _sorted_sweep(packed: NDArray[np.uint64], signal: Signal, exits: tuple[int, ...], trace: Trace) -> Sweep:
    """Sort the moves (in place) and find the distinct thresholds."""
    packed.sort()
    halves = packed.view(np.uint32).reshape(-1, 2)
    high = 1 if np.little_endian else 0
    key = halves[:, high]
    last = np.append(np.flatnonzero(key[1:] != key[:-1]), len(key) - 1)
    threshold = _value_of_key(key[last]).astype(np.float64)
    return Sweep(
        exits=exits,
        layers=trace.layers,
        tokens=trace.token_count,
        code=np.ascontiguousarray(halves[:, 1 - high]),
        last=last,
        threshold=0.0 - threshold if signal.exit_when == "at most" else threshold,
    )


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
