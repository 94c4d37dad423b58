"""What K and V of skipped layers cost, which later tokens must find: by strategy, and the maps of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.costs.counting import is_recurrent
from offramp.costs.probes import MapRanks
from offramp.errors import PolicyError
from offramp.models.shape import ModelShape
from offramp.policies.cost_breakdown import Item, Usage
from offramp.policies.decisions import Decisions
from offramp.policies.policy import ExitPolicy
from offramp.policies.steps import Steps, count_rounds, count_steps, find_rounds
from offramp.tracing.trace import Trace

MAPPED = "mapped"
"""The KV strategy that takes them."""


def maps_of(trace: Trace) -> MapRanks:
    """The maps of the heads that a trace was made with.

    Raises PolicyError, with the command that fits them, if there are none.
    """
    found = ((trace.request.get("heads") or {}).get("kv_maps") or {}).get("ranks")
    if not found:
        raise PolicyError(
            "the trace's exit heads hold no K,V maps, so that it is not known what mapping K and V costs",
            where='kv "mapped"',
            fix="fit them and give the file: offramp heads fit MODEL --workload W --kv-maps EXITS -o FILE, "
            "then offramp trace ... --heads FILE",
        )
    return tuple(sorted((int(exit), rank) for exit, rank in found.items()))


def maps_charged(trace: Trace, kv: str) -> MapRanks:
    """The maps that a KV strategy is charged for: none but for "mapped". Raises as `maps_of` does."""
    return maps_of(trace) if kv == MAPPED else ()


def exits_without(maps: MapRanks, exits: Iterable[int], layers: int) -> list[int]:
    """Which of some exits have no maps, ascending; exits L - 1 and L of L layers need none."""
    return sorted(exit for exit in set(exits) - {exit for exit, _ in maps} if exit < layers - 1)


def require_exits(maps: MapRanks, exits: Iterable[int], layers: int, policy: str) -> None:
    """Refuse a policy with exits that have no maps; L - 1 and L need none. Raises PolicyError."""
    missing = exits_without(maps, exits, layers)
    if missing:
        listed = ", ".join(str(exit) for exit, _ in maps)
        raise PolicyError(
            f"{policy} leaves at exit {missing[0]}, which has no K,V maps; they start at: {listed}",
            where='kv "mapped"',
            fix="choose a policy whose exits are among these, or fit maps of its exits: "
            f"offramp heads fit MODEL --workload W --kv-maps {','.join(map(str, missing))} -o FILE",
        )


@dataclass(frozen=True)
class Run:
    """A policy on a trace, ready to be charged.

    decisions: where tokens leave and are probed, batches taken into account. steps: int64 [tokens], the step
    of each token.
    """

    trace: Trace
    policy: ExitPolicy
    decisions: Decisions
    steps: Steps
    draft_length: int


@dataclass(frozen=True)
class KeyValueStrategy:
    """One way to give later tokens the K and V of skipped layers.

    exact: every output is the full model's. batches: whether it can be charged for more than one sequence.
    count: what it runs for a policy's decisions.
    """

    name: str
    meaning: str
    count: Callable[[Run], Usage]
    exact: bool = False
    batches: bool = True


def _propagate(run: Run) -> Usage:
    return count_steps(run.decisions, run.steps, run.trace.layers, repair=True)


def _mapped(run: Run) -> Usage:
    exits = (
        run.policy.leaves_at(run.trace.layers) if run.policy.reachable else set(run.decisions.exits.tolist())
    )
    require_exits(maps_of(run.trace), exits, run.trace.layers, str(run.policy))
    return count_steps(run.decisions, run.steps, run.trace.layers, repair=True, maps=True)


def _recompute(run: Run) -> Usage:
    """A token that runs a layer takes along all those before it that skipped the layer and wait for it.

    They are one block of rows. What no later token of the document runs is never charged.
    """
    layers, exits, document = run.trace.layers, run.decisions.exits, run.trace.document
    alone = count_steps(run.decisions, run.steps, layers, repair=False)
    usage: Usage = Usage({item: count for item, count in alone.items() if item.part != "layers"})
    for layer in range(1, layers + 1):
        runs = np.flatnonzero(exits >= layer)
        same = document[runs[1:]] == document[runs[:-1]]
        first = np.searchsorted(document, document[runs])
        rows = runs + 1 - first
        rows[1:][same] = np.diff(runs)[same]
        for size, count in enumerate(np.bincount(rows).tolist()):
            if size and count:
                usage[Item("layers", layer, size)] += count
    return _one_by_one(usage, run.trace.shape)


def _speculate(run: Run) -> Usage:
    require_full_head(run.policy)
    trace = run.trace
    columns = np.searchsorted(trace.exits, run.decisions.exits)
    agrees = trace.agreement[np.arange(trace.token_count), columns]
    rounds = find_rounds(run.decisions.exits, agrees, trace.document, trace.layers, run.draft_length)
    usage = count_rounds(run.decisions, rounds, trace.layers)
    return _one_by_one(usage, trace.shape)


def require_full_head(policy: ExitPolicy) -> None:
    """Raise PolicyError for a policy whose last exit is cut to a short list: it would verify nothing."""
    if policy.short_head:
        raise PolicyError(
            f"{policy} never computes the full model's head, which speculation verifies drafts with",
            where='kv "speculate"',
            fix="choose another strategy for K and V, or write at=exits instead of at=all",
        )


def _one_by_one(usage: Usage, shape: ModelShape) -> Usage:
    """The same usage with a recurrent layer run for one token of a document after the other.

    Each token starts from the state that the one before leaves, so that rows of one document share no step.
    """
    recurrent = is_recurrent(shape)
    apart: Usage = Usage()
    for item, count in usage.items():
        if item.part == "layers" and recurrent[item.place - 1]:
            apart[Item("layers", item.place)] += count * item.rows
        else:
            apart[item] += count
    return apart


def _monotone(run: Run) -> Usage:
    deepest = deepest_after(run.decisions.exits, run.trace.document)
    deeper = np.flatnonzero(deepest > run.decisions.exits)
    if not run.policy.never_deepens or deeper.size:
        example = ""
        if deeper.size:
            row = int(deeper[0])
            name = run.trace.documents[int(run.trace.document[row])].id
            first, later = run.decisions.exits[row], deepest[row]
            example = f": in {name} one leaves at exit {first}, a later one at {later}"
        raise PolicyError(
            f"{run.policy} lets tokens go deeper than those before them{example}",
            where='kv "monotone"',
            fix="put the policy into monotone:policy=[...], or choose another strategy for K and V",
        )
    return count_steps(run.decisions, run.steps, run.trace.layers, repair=False)


STRATEGIES: dict[str, KeyValueStrategy] = {
    strategy.name: strategy
    for strategy in (
        KeyValueStrategy(
            "propagate",
            "K and V of skipped layers are projected from the exit's hidden state (CALM, arXiv 2207.07061)",
            _propagate,
        ),
        KeyValueStrategy(
            MAPPED,
            "K and V of skipped layers are projected from what fitted maps make of the exit's hidden state",
            _mapped,
        ),
        KeyValueStrategy(
            "recompute",
            "skipped layers run later, as rows of the next token that goes deeper (EE-LLM, arXiv 2312.04916)",
            _recompute,
            batches=False,
        ),
        KeyValueStrategy(
            "speculate",
            "early outputs are drafts that the full model verifies in blocks (LayerSkip, arXiv 2404.16710)",
            _speculate,
            exact=True,
            batches=False,
        ),
        KeyValueStrategy(
            "monotone",
            "nothing is left behind: no token goes deeper than the one before it (SkipDecode, arXiv "
            "2307.02628)",
            _monotone,
        ),
    )
}


def executed_layers(usage: Usage, shape: ModelShape) -> int:
    """Layers that the rows of some usage execute, sooner or later.

    K and V of a recurrent layer cannot be projected: it is executed.
    """
    whole = is_recurrent(shape)
    return sum(
        count * item.rows
        for item, count in usage.items()
        if item.part == "layers" or (item.part == "K,V projection" and whole[item.place - 1])
    )


def deepest_after(exits: NDArray[np.int64], document: NDArray[np.int32]) -> NDArray[np.int64]:
    """The deepest exit of later tokens of the same document, 0 for its last token: int64 [tokens].

    exits, document: [tokens], rows of one document contiguous.
    """
    if not len(exits):
        return exits
    # Backwards each document gets an offset above all exits of those met before, so that one running
    # maximum serves all.
    offset = (np.cumsum(np.diff(document[::-1], prepend=document[-1]) != 0)) * (int(exits.max()) + 1)
    running = (np.maximum.accumulate(exits[::-1] + offset) - offset)[::-1]
    last = np.append(np.diff(document) != 0, True)
    return np.where(last, 0, np.append(running[1:], 0))
