"""The exact frontier of a threshold rule: agreement, skip ratio and speedup at every distinct threshold.

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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.typed import FloatArray
from offramp.policies.decisions import require_comparisons
from offramp.policies.policy import columns_of
from offramp.policies.prices import costs_of, exit_costs, exit_costs_without_probes, layers_executed
from offramp.policies.rules.threshold import Threshold
from offramp.policies.signals import SIGNALS, Signal
from offramp.scoring.documents import fact_of, require_numbers
from offramp.tracing.trace import Trace

# Rows packed, moves sorted and moves summed at once, so that the pieces stay in a core's cache.
ROWS = 2048
BUCKET = 1 << 16
MOVES = 1 << 14
# Threads that sort and sum side by side; numpy lets go of the interpreter while it does.
THREADS = min(4, os.cpu_count() or 1)

KEY_BITS = np.uint64(32)
UPPER = np.uint64(48)

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Quantity:
    """A sum over all tokens, counted in whole numbers, so that no move adds a rounding.

    change: what each code adds to it, int64 [codes]. finish: of the sums of changes so far, int64 [points].
    """

    change: NDArray[np.int64]
    finish: Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Sweep:
    """The moves of all tokens, sorted from the most cautious threshold to the boldest.

    exits: the checked exits, ascending. tokens: how many tokens were swept. layers: L.
    codes: unsigned [moves], the state that a token comes to and, below it, the one it comes from: twice the
    place of its exit (that of L last), plus 1 where the exit agrees.
    last: bool [moves], whether a move is the last one of its value: a point, a distinct threshold.
    values: the value that each point's moves share, descending: float32, one piece after the other. It is the
    signal's, negated where a token leaves "at most" at the threshold.
    """

    exits: tuple[int, ...]
    layers: int
    tokens: int
    exit_when: str
    codes: NDArray[np.unsignedinteger[Any]]
    last: NDArray[np.bool_]
    values: tuple[NDArray[np.float32], ...]

    def thresholds(self) -> NDArray[np.float64]:
        """The threshold that nothing passes, then all distinct ones, in the signal's unit: [1 + points]."""
        starts = list(itertools.accumulate(map(len, self.values), initial=1))
        thresholds = np.empty(starts[-1])
        thresholds[0] = math.inf

        def write(piece: int) -> None:
            thresholds[starts[piece] : starts[piece + 1]] = self.values[piece]

        side_by_side(write, range(len(self.values)))
        return np.subtract(0.0, thresholds, out=thresholds) if self.exit_when == "at most" else thresholds

    def agreeing(self, finish: Callable[[NDArray[np.int64]], NDArray[np.float64]]) -> Quantity:
        """The number of tokens that agree. finish: of the numbers."""
        agrees = np.tile([0, 1], len(self.exits) + 1)
        return Quantity(_change(agrees), lambda change: finish(change + self.tokens))

    def summed(
        self, per_exit: NDArray[np.float64], finish: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> Quantity:
        """The sum over tokens of what depends on the exit alone: float64 [layers]. finish: of the sums.

        An exit's distance from L is rounded to a unit so small that all tokens' sum nearly fills an integer.
        """
        distance = per_exit[np.array([*self.exits, self.layers]) - 1] - per_exit[-1]
        largest = self.tokens * float(np.abs(distance).max())
        unit = math.ldexp(1.0, math.frexp(largest)[1] - 62)
        never = self.tokens * float(per_exit[-1])
        whole = np.repeat(np.rint(distance / unit).astype(np.int64), 2)
        return Quantity(_change(whole), lambda change: finish(never + change.astype(np.float64) * unit))

    def running(self, quantities: Sequence[Quantity]) -> list[NDArray[np.float64]]:
        """Some quantities with no move made and at each point: float64 [1 + points] each."""
        blocks = [slice(start, start + MOVES) for start in range(0, len(self.codes), MOVES)]
        starts = list(
            itertools.accumulate((np.count_nonzero(self.last[block]) for block in blocks), initial=1)
        )
        changes = np.stack([quantity.change for quantity in quantities], axis=1)
        before = np.zeros((len(blocks) + 1, len(quantities)), dtype=np.int64)

        def whole(place: int) -> None:
            before[place + 1] = np.bincount(self.codes[blocks[place]], minlength=len(changes)) @ changes

        side_by_side(whole, range(len(blocks)))
        np.cumsum(before, axis=0, out=before)
        results = [np.empty(starts[-1]) for _ in quantities]

        def within(place: int) -> None:
            codes = self.codes[blocks[place]].astype(np.intp)
            points = np.flatnonzero(self.last[blocks[place]])
            for quantity, result, base in zip(quantities, results, before[place], strict=True):
                change = np.cumsum(quantity.change.take(codes)).take(points) + base
                result[starts[place] : starts[place + 1]] = quantity.finish(change)

        for quantity, result in zip(quantities, results, strict=True):
            result[:1] = quantity.finish(np.zeros(1, dtype=np.int64))
        side_by_side(within, range(len(blocks)))
        return results


def side_by_side(task: Callable[[Task], Result], over: Iterable[Task]) -> list[Result]:
    """A task for every item, on several threads; the results in order."""
    items = list(over)
    if len(items) < 2:
        return [task(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(task, items))


def _change(states: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each code adds, from what each state counts for."""
    return (states[:, None] - states[None, :]).ravel()


def sweep(trace: Trace, signal: Signal, exits: tuple[int, ...], agreement: NDArray[np.bool_]) -> Sweep:
    """All moves of one signal and one set of checked exits (ascending, below L) where a token may leave.

    agreement: bool [tokens, exits of the trace], as `trace.agreement`.

    Raises PolicyError for exits that were not traced, InputError for a trace without the signal's fact, or
    one that is NaN somewhere.
    """
    columns = columns_of(trace, exits)
    fact = fact_of(trace, signal.fact)
    everything = slice(int(columns[0]), int(columns[-1]) + 1)
    chosen = everything if everything.stop - everything.start == len(columns) else columns

    def values_of(rows: slice) -> NDArray[np.float32]:
        values = np.array(fact[rows, chosen], dtype=np.float32)
        if np.isnan(values).any():
            for column in columns:
                at = f"at exit {int(trace.exits[column])}"
                require_numbers(trace, signal.fact, np.isnan(fact[:, column]), at)
        return np.negative(values, out=values) if signal.exit_when == "at most" else values

    _keep_freed_memory()
    width = len(columns)
    moves = np.empty(trace.token_count * width, dtype=np.uint64)
    bucket_of = _buckets(values_of(slice(0, None, max(1, trace.token_count // ROWS))), len(moves))

    def pack(start: int) -> NDArray[np.int64]:
        """Write the moves of some rows, in the order of their buckets; where each bucket begins and ends."""
        rows = slice(start, start + ROWS)
        packed = _pack_moves(values_of(rows), agreement[rows, chosen])
        bucket = bucket_of.take((packed >> UPPER).astype(np.intp))
        begin = start * width
        moves[begin : begin + len(packed)] = packed.take(np.argsort(bucket, kind="stable"))
        counts = np.bincount(bucket, minlength=int(bucket_of[-1]) + 1)
        return begin + np.cumsum(np.append(0, counts))

    limits = np.array(side_by_side(pack, range(0, trace.token_count, ROWS)))
    codes, last, values = _in_order(moves, limits, np.min_scalar_type((2 * width + 2) ** 2 - 1))
    return Sweep(exits, trace.layers, trace.token_count, signal.exit_when, codes, last, values)


def _in_order(
    moves: NDArray[np.uint64], limits: NDArray[np.int64], dtype: np.dtype[Any]
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.bool_], tuple[NDArray[np.float32], ...]]:
    """Sort moves bucket by bucket; their codes of this dtype, which are points, and the points' values.

    limits: int64 [pieces, 1 + buckets], where the buckets of each piece of the moves begin and end.
    """
    starts = list(itertools.accumulate(np.diff(limits).sum(axis=0).tolist(), initial=0))
    codes, last = np.empty(starts[-1], dtype=dtype), np.empty(starts[-1], dtype=np.bool_)

    def write(bucket: int) -> NDArray[np.float32]:
        pieces = [moves[begin:end] for begin, end in limits[:, bucket : bucket + 2].tolist()]
        ordered = _sorted(np.concatenate(pieces))
        place = slice(starts[bucket], starts[bucket + 1])
        codes[place] = ordered  # the lower bits
        key = (ordered >> KEY_BITS).astype(np.uint32)
        np.not_equal(key[1:], key[:-1], out=last[place][:-1])
        # Moves of one value lie in one bucket.
        last[place][-1:] = True
        return _value_of_key(key.compress(last[place]))

    return codes, last, tuple(side_by_side(write, range(len(starts) - 1)))


def _keep_freed_memory() -> None:
    """Let glibc keep what pieces free for the next ones, which would else wait for the system each time.

    It raises its own limit to the largest block that was freed, up to 32 MB; this one is never touched.
    """
    np.empty(31 << 20, dtype=np.uint8)


def _buckets(values: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """The bucket of a move by the upper half of its key, from a sample of values: uint8 [65536].

    Buckets ascend with the key and take about as many moves each; size: how many moves there may be.
    """
    counts = np.bincount(_descending_key(values.ravel()) >> np.uint32(16), minlength=1 << 16)
    buckets = min(256, 1 + size // BUCKET)
    bucket = np.minimum((np.cumsum(counts) - counts) * buckets // max(1, values.size), buckets - 1)
    return np.asarray(bucket, dtype=np.uint8)


def _sorted(moves: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Moves in the order of their keys, 16 bits at a time: numpy sorts so few by counting.

    Quicker than `np.sort`, which on some processors with AVX-512 takes several times longer.
    """
    if not len(moves):
        return moves
    key = (moves >> KEY_BITS).astype(np.uint32)
    key -= key.min()
    order = np.argsort(key.astype(np.uint16), kind="stable")
    upper = (key >> np.uint32(16)).astype(np.uint16)
    if upper.any():
        order = order.take(np.argsort(upper.take(order), kind="stable"))
    return moves.take(order)


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
    state = (2 * np.arange(exits, dtype=np.uint32) + agreement).ravel().take(place)
    # Each token's records follow one another and begin at the first exit, so the next record is where it
    # comes from, unless that is another token's first: then it comes from exit L, which always agrees.
    source = np.roll(state, -1)
    source = np.where(source < 2, np.uint32(2 * exits + 1), source)
    packed = _descending_key(values.ravel().take(place)).astype(np.uint64)
    packed <<= KEY_BITS
    packed |= state * np.uint32(2 * exits + 2) + source
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


@dataclass(frozen=True)
class Frontier:
    """Every distinct operating point of one threshold rule (one signal, one set of exits), float64 [points].

    Points run from the most cautious threshold (never exit) to the boldest. Speedups are plain cost over
    policy cost in bytes moved at batch 1, with probes charged and with probes left out.
    """

    signal: str
    exits: tuple[int, ...]
    threshold: FloatArray
    agreement: FloatArray
    skip_ratio: FloatArray
    speedup: FloatArray
    speedup_without_probes: FloatArray

    def __repr__(self) -> str:
        return f"Frontier({self.signal} at {len(self.exits)} exits, {len(self.threshold):,} points)"


def frontier(trace: Trace, signal: str, exits: tuple[int, ...] | None = None) -> Frontier:
    """Every distinct operating point of the rule "leave at the first of these exits that passes".

    exits: ascending, below L; by default all that were traced. Prices are bytes moved at the trace's mean
    position. The first point, at an infinite threshold, never leaves early but still pays every probe.

    Raises PolicyError for an unknown signal, too few exits, exits beyond the model or not traced, or a signal
    that was recorded against other exits than these; InputError for a NaN.

    >>> offramp.frontier(trace, "max_prob", exits=(2,)).agreement[0] == 1.0
    np.True_
    """
    checked = tuple(int(exit) for exit in trace.exits if exit < trace.layers) if exits is None else exits
    if not checked:
        raise PolicyError("no exits to check", fix=f"choose exits from 1 to {trace.layers - 1}")
    needs = Threshold(signal, 0.0, checked).needs(trace.layers)
    require_comparisons(needs, trace)
    rule = SIGNALS[signal]
    prices = costs_of(trace, "bytes")
    # Two columns are read from disk in the time of one; `agreement` then finds its own in the trace.
    side_by_side(trace.fact, (rule.fact, "top1"))
    # The first check of a signal that compares exits never lets a token leave.
    moves = sweep(trace, rule, checked[1:] if rule.opens else checked, trace.agreement)
    charged, unprobed = exit_costs(prices, needs), exit_costs_without_probes(prices)
    skipped = trace.layers - layers_executed(trace.shape)
    tokens, layers, plain = trace.token_count, trace.layers, trace.token_count * prices.plain
    agreement, skip_ratio, speedup, speedup_unprobed = moves.running(
        [
            moves.agreeing(lambda count: count / tokens),
            moves.summed(skipped, lambda total: total / (tokens * layers)),
            moves.summed(charged, lambda total: plain / total),
            moves.summed(unprobed, lambda total: plain / total),
        ]
    )
    return Frontier(
        signal=signal,
        exits=checked,
        threshold=moves.thresholds(),
        agreement=agreement,
        skip_ratio=skip_ratio,
        speedup=speedup,
        speedup_without_probes=speedup_unprobed,
    )
