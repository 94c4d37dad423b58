"""A policy's decisions on a trace, exit by exit, as a decoder asks: the one way every policy is replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.costs.probes import FULL_HEAD
from offramp.errors import PolicyError
from offramp.policies.policy import Decider, ExitPolicy, Rows, Tokens, columns_of
from offramp.policies.policy_checks import broken
from offramp.policies.signals import looks_back, probed_at_last, probes_of
from offramp.scoring.documents import fact_of, require_numbers
from offramp.tracing.trace import Trace

# Rows decided at once, so that the columns of a block stay in the processor's cache.
ROWS = 8192

CANDIDATES = "candidate_score"


def tokens_by_exit(exits: NDArray[np.int64]) -> dict[int, int]:
    """How many tokens leave at each exit that any of them takes, ascending. exits: int64 [tokens]."""
    layers, counts = np.unique(exits, return_counts=True)
    return dict(zip(layers.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class Decisions:
    """Where each token left and where it was probed.

    exits: int64 [tokens]. needs: the facts probed for at every checked exit, by exit, ascending; L is among
    them where the policy learns from facts at L that the full model's own head does not give.
    probed: bool [tokens, checked exits], None if every token was probed at each checked exit up to its own.
    short_list, short_head: whether outputs below L, and at L, are read off the short list, as the policy
    says.
    """

    exits: NDArray[np.int64]
    needs: dict[int, tuple[str, ...]]
    probed: NDArray[np.bool_] | None = None
    short_list: bool = False
    short_head: bool = False

    def head(self, *, final: bool) -> str:
        """The part of a cost breakdown (`PARTS`) that an output is, at exit L or below."""
        if self.short_head if final else self.short_list:
            return "short head"
        return "final head" if final else "exit head"

    def at_rows(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Decisions:
        """The decisions on some of the tokens."""
        probed = None if self.probed is None else self.probed[rows]
        return replace(self, exits=self.exits[rows], probed=probed)

    def unchecked(self) -> Decisions:
        """The same exits without a single check."""
        return replace(self, needs={}, probed=None)

    def probed_at(self, place: int) -> NDArray[np.bool_]:
        """Which tokens were probed at one of the checked exits (its place among them): bool [tokens]."""
        if self.probed is not None:
            return self.probed[:, place]
        return self.exits >= list(self.needs)[place]


def probed_facts(policy: ExitPolicy, layers: int) -> dict[int, tuple[str, ...]]:
    """The facts that a policy pays for, by exit: those of its checks, and those that it learns from at L.

    Raises PolicyError if the policy does not fit, or for a fact at L that no decoder could compute.
    """
    checked = {exit: facts for exit, facts in policy.needs(layers).items() if facts}
    last = probed_at_last(policy.final_facts)
    return {**checked, layers: last} if last else checked


def task_of(trace: Trace) -> str | None:
    """The workload class of a trace: its workload's name, None if it is unknown."""
    request = trace.request
    name = (request.get("workload") or {}).get("name")
    return None if name is None else str(name)


def replay_decisions(policy: ExitPolicy, trace: Trace) -> Decisions:
    """Every token of a trace through a policy, an oracle included.

    Raises PolicyError if the policy does not fit the trace: exits that it lacks, or facts that compare with
    other exits than the policy's; InputError for facts that are not numbers, or were not recorded, with the
    option that records them.
    """
    policy = policy.for_task(task_of(trace))
    if not policy.reachable:
        exits = policy.exits_of(trace)
        require_exits(policy, exits, trace)
        return Decisions(exits, {})
    return _Replay(policy, trace).decisions()


def require_exits(policy: ExitPolicy, exits: Any, trace: Trace) -> None:
    """Raise PolicyError unless these are exits that the trace has, int64 [tokens]."""
    taken = np.asarray(exits)
    if taken.dtype != np.int64 or taken.shape != (trace.token_count,):
        raise broken(policy, f"it takes exits {taken.dtype} {taken.shape}, not int64 [tokens]")
    if not np.isin(taken, trace.exits).all():
        raise broken(policy, "it takes exits that the trace does not have")


class _Replay:
    """One policy on one trace."""

    def __init__(self, policy: ExitPolicy, trace: Trace) -> None:
        self.policy = policy
        self.trace = trace
        self.needs = dict(policy.needs(trace.layers))
        self.columns = columns_of(trace, tuple(self.needs))
        self.checked = probed_facts(policy, trace.layers)
        self.place = {exit: place for place, exit in enumerate(self.checked)}
        self.facts = {name: fact_of(trace, name) for facts in self.needs.values() for name in facts}
        self.final = {name: fact_of(trace, name)[:, -1] for name in policy.final_facts}
        self.document = {name: trace.document_fact(name) for name in policy.document_facts}
        require_comparisons(self.checked, trace)
        for name, values in self.document.items():
            require_numbers(trace, name, np.isnan(values))
        starts = np.flatnonzero(np.diff(trace.document, prepend=-1))
        lengths = np.diff(starts, append=trace.token_count)
        self.index = np.asarray(np.arange(trace.token_count) - np.repeat(starts, lengths), dtype=np.int64)
        self.exits = np.full(trace.token_count, trace.layers, dtype=np.int64)
        self.probed = np.zeros((trace.token_count, len(self.checked)), dtype=np.bool_)
        self.everywhere = True

    def decisions(self) -> Decisions:
        """All tokens: at once if the policy remembers nothing, else the n-th of all documents together."""
        count = self.trace.token_count
        if self.policy.remembers:
            starts = np.flatnonzero(self.index == 0)
            lengths = np.diff(starts, append=count)
            decider = self.policy.decider(self.trace.layers, len(starts))
            for step in range(int(lengths.max(initial=0))):
                alive = lengths > step
                self._step(decider, starts + np.where(alive, step, 0), alive)
        else:
            for start in range(0, count, ROWS):
                rows = slice(start, min(start + ROWS, count))
                streams = rows.stop - start
                decider = self.policy.decider(self.trace.layers, streams)
                self._step(decider, rows, np.ones(streams, dtype=np.bool_))
        return Decisions(
            self.exits,
            self.checked,
            None if self.everywhere else self.probed,
            short_list=self.policy.short_list,
            short_head=self.policy.short_head,
        )

    def _step(self, decider: Decider, rows: slice | NDArray[np.int64], live: Rows) -> None:
        """One token of every stream; streams that are not live have ended and are only carried along."""
        index = self.index[rows]
        decider.begin(Tokens(index, {name: fact[rows] for name, fact in self.document.items()}))
        facts = {name: fact[rows] for name, fact in self.facts.items()}
        chosen = np.full(len(index), self.trace.layers, dtype=np.int64)
        probed = np.zeros((len(index), len(self.checked)), dtype=np.bool_)
        running = live.copy()
        for exit, column in zip(self.needs, self.columns, strict=True):
            if not running.any():
                break
            asked = running & decider.checks(exit)
            read = {name: facts[name][:, column] for name in self.needs[exit]}
            if exit in self.place:
                probed[:, self.place[exit]] = asked
                self.everywhere = self.everywhere and np.array_equal(asked, running)
                for name, values in read.items():
                    if values.dtype.kind == "f":
                        self._require_numbers(name, rows, asked & np.isnan(values), f"at exit {exit}")
            leaving = asked & decider.decide(exit, read)
            chosen[leaving] = exit
            running &= ~leaving
        final = {name: fact[rows] for name, fact in self.final.items()}
        for name, values in final.items():
            if values.dtype.kind == "f":
                self._require_numbers(name, rows, running & np.isnan(values), "at the last exit")
        decider.end(chosen, final)
        if self.trace.layers in self.place:
            probed[:, self.place[self.trace.layers]] = running
        if isinstance(rows, slice):
            self.exits[rows], self.probed[rows] = chosen, probed
        else:
            self.exits[rows[live]], self.probed[rows[live]] = chosen[live], probed[live]

    def _require_numbers(self, name: str, rows: slice | NDArray[np.int64], broken: Rows, at: str) -> None:
        """Raise InputError if a fact that is read is NaN in some of the rows, with the document's name."""
        if broken.any():
            among = np.zeros(self.trace.token_count, dtype=np.bool_)
            among[rows] = broken
            require_numbers(self.trace, name, among, at)


def require_comparisons(checked: Mapping[int, tuple[str, ...]], trace: Trace) -> None:
    """Facts that compare exits were recorded against those that the policy compares with.

    checked: the facts read at each checked exit, ascending. The output to compare with is that of the last
    check before with a full head, and a candidate's that of the first.

    Raises PolicyError if the trace recorded them against other exits.
    """
    heads = trace.request.get("heads") or {}
    candidates = heads.get("candidate_exit")
    where = str(trace.folder or "the trace")
    require_neighbours(checked, [int(exit) for exit in trace.exits], where)
    full = _full_heads(checked)
    for exit, facts in checked.items():
        first = full[0] if full and full[0] < exit else None
        if CANDIDATES in facts and (first is None or first != candidates):
            raise PolicyError(
                f"{CANDIDATES} was recorded with the candidates of {_exit(candidates)}, but the policy's "
                f"first check with a full head is at {_exit(first)}",
                where=where,
                fix=f"start its exits with {candidates}"
                if candidates
                else "trace again with heads=FILE (--heads FILE)",
            )


def require_neighbours(checked: Mapping[int, tuple[str, ...]], traced: Sequence[int], where: str) -> None:
    """Facts that look back to the last check before with a full head were recorded against that exit.

    checked: as in `require_comparisons`. traced: exits of the trace, ascending. where: for the error.

    Raises PolicyError if they were, or would be, recorded against others.
    """
    full = _full_heads(checked)
    for exit, facts in checked.items():
        before, recorded = _last_below(full, exit), _last_below(traced, exit)
        names = [name for name in facts if looks_back(name)]
        if names and (before is None or before != recorded):
            together = ",".join(map(str, (*full, traced[-1])))
            raise PolicyError(
                f"{names[0]} at exit {exit} was recorded against {_exit(recorded)}, but the policy's check "
                f"with a full head before it is at {_exit(before)}",
                where=where,
                fix=f'trace again with exits="{together}" (--exits {together}) and the same signals',
            )


def _full_heads(checked: Mapping[int, tuple[str, ...]]) -> list[int]:
    return [exit for exit, facts in checked.items() if FULL_HEAD in probes_of(facts)]


def _last_below(exits: Sequence[int], exit: int) -> int | None:
    return max((shallower for shallower in exits if shallower < exit), default=None)


def _exit(exit: int | None) -> str:
    return "no exit" if exit is None else f"exit {exit}"
