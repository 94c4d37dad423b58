"""Sets of exits worth checking, and the signals that a trace lets one check there."""

from __future__ import annotations

from collections.abc import Iterable

from offramp.policies.signals import SIGNALS, Signal
from offramp.tracing.trace import Trace

Exits = tuple[int, ...]


def exit_sets(below: Exits) -> tuple[Exits, ...]:
    """Sets worth checking of the exits below L: last quarter, last half, every 4th, every 2nd, all."""
    count = len(below)
    sets = (
        below[count - -(-count // 4) :],
        below[count - -(-count // 2) :],
        below[::-1][::4][::-1],
        below[::-1][::2][::-1],
        below,
    )
    return tuple(dict.fromkeys(exits for exits in sets if exits))


def recorded_signals(trace: Trace) -> tuple[Signal, ...]:
    """The signals whose fact, and what their first check reads, the trace holds without a NaN."""
    return tuple(signal for signal in SIGNALS.values() if holds(trace, signal.fact))


def holds(trace: Trace, fact: str) -> bool:
    """Whether a trace holds a fact."""
    return fact in trace.fact_names


def fitting_sets(trace: Trace, signal: Signal, sets: Iterable[Exits]) -> tuple[Exits, ...]:
    """The sets of exits on which a signal can be checked, each with the exit that it opens with.

    A signal that looks back was recorded against the previous traced exit, so its checks follow one another;
    the candidates of one that opens were taken at one exit.
    """
    sets = tuple(sets)
    if not signal.opens:
        return sets
    traced = [int(exit) for exit in trace.exits]
    opened: list[Exits] = []
    for exits in sets:
        if signal.looks_back:
            first = max(traced.index(exits[0]) - 1, 0)
            run = tuple(traced[first : traced.index(exits[-1]) + 1])
            if len(run) > 1 and set(run[1:]) <= set(exits):
                opened.append(run)
        else:
            opener = opening_exit(trace)
            beyond = tuple(exit for exit in exits if opener is not None and exit > opener)
            if opener is not None and beyond:
                opened.append((opener, *beyond))
    return tuple(dict.fromkeys(opened))


def firing_exits(signal: Signal, exits: Exits) -> Exits:
    """The exits of a set where a signal may let a token leave: all but one that only opens."""
    return exits[1:] if signal.opens else exits


def opening_exit(trace: Trace) -> int | None:
    """The exit whose best tokens are the candidates of the trace's candidate head, if that was recorded."""
    heads = trace.request.get("heads")
    opener = heads.get("candidate_exit") if heads else None
    if opener is None or opener not in trace.exits:
        return None
    return int(opener)
