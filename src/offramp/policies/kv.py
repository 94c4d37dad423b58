"""Strategies for the K and V of skipped layers, which later tokens must find: each declared once.

`offramp.decoding.strategies` says how each is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.costs.counting import is_recurrent
from offramp.costs.probes import MapRanks
from offramp.costs.token import TokenCosts
from offramp.errors import PolicyError
from offramp.models.shape import ModelShape
from offramp.policies.cost_breakdown import Item, PriceAt, Usage
from offramp.policies.decisions import Decisions
from offramp.policies.policy import ExitPolicy
from offramp.policies.steps import Steps, count_rounds, count_steps, find_rounds
from offramp.tracing.trace import Trace


@dataclass(frozen=True)
class PolicyRun:
    """A policy on a trace, ready to be charged."""

    trace: Trace
    policy: ExitPolicy
    decisions: Decisions
    """Where tokens leave and are probed, batches taken into account."""
    steps: Steps
    """The step of each token: int64 [tokens]."""
    draft_length: int = 1
    batch: int = 1
    """Sequences decoded together."""


def _anything(policy: ExitPolicy, layers: int, maps: MapRanks) -> None:
    """Refuse nothing."""


def _as_projected(at: PriceAt, batch: int, shape: ModelShape) -> TokenCosts:
    return at(batch)


@dataclass(frozen=True)
class KeyValue:
    """One way to give later tokens the K and V of skipped layers."""

    name: str
    what: str
    """What becomes of them, in one sentence."""
    exactness: str
    """What is exact and what is approximate, in one sentence."""
    charge: Callable[[PolicyRun], Usage]
    """What it runs for a policy's decisions."""
    alone: Callable[[PriceAt, int, ModelShape], TokenCosts] | None = _as_projected
    """Prices of a step of so many sequences where each token is charged alone, as in a search: what a skipped
    layer takes later is in it. None where the price does not fall on each token alone."""
    admits: Callable[[ExitPolicy, int, MapRanks], None] = _anything
    """Raises PolicyError for a policy that it cannot work with, on so many layers and with such K,V maps."""
    exact: bool = True
    """Whether K and V are the full model's, so that a replay decides as decoding does."""
    lossless: bool = False
    """Whether every output is the full model's, too."""
    batches: bool = True
    """Whether it can be charged for more than one sequence."""
    searched: bool = True
    """Whether any policy may be searched with it, so that the tuner proposes it without a model."""
    mapped: bool = False
    """Whether it takes fitted K,V maps."""


def _propagate(run: PolicyRun) -> Usage:
    return count_steps(run.decisions, run.steps, run.trace.layers, repair=True)


def _mapped(run: PolicyRun) -> Usage:
    policy, layers = run.policy, run.trace.layers
    exits = policy.leaves_at(layers) if policy.reachable else run.decisions.exits.tolist()
    require_exits(maps_of(run.trace), exits, layers, str(policy))
    return count_steps(run.decisions, run.steps, layers, repair=True, maps=True)


def maps_of(trace: Trace) -> MapRanks:
    """The maps of the heads that a trace was made with.

    Raises PolicyError, with the command that fits them, if there are none.
    """
    ranks = ((trace.request.get("heads") or {}).get("kv_maps") or {}).get("ranks")
    if not ranks:
        raise PolicyError(
            "the trace's exit heads hold no K,V maps, so that it is not known what mapping K and V costs",
            where='kv "mapped"',
            fix="fit them and give the file: offramp heads fit MODEL --workload W --kv-maps EXITS -o FILE, "
            "then offramp trace ... --heads FILE",
        )
    return tuple(sorted((int(exit), rank) for exit, rank in ranks.items()))


def maps_charged(trace: Trace, kv: str) -> MapRanks:
    """The maps that a strategy is charged for, if it takes any. Raises as `maps_of` does."""
    return maps_of(trace) if STRATEGIES[kv].mapped else ()


def exits_without(maps: MapRanks, exits: Iterable[int], layers: int) -> list[int]:
    """Which of some exits have no maps, ascending; exits L - 1 and L of L layers need none."""
    return sorted(exit for exit in set(exits) - {exit for exit, _ in maps} if exit < layers - 1)


def require_exits(maps: MapRanks, exits: Iterable[int], layers: int, policy: str) -> None:
    """Refuse a policy with exits that have no maps; L - 1 and L need none. Raises PolicyError."""
    exits = set(exits)
    missing = exits_without(maps, exits, layers)
    if missing:
        listed = ", ".join(str(exit) for exit, _ in maps)
        wanted = ",".join(str(exit) for exit in exits_without((), exits, layers))
        raise PolicyError(
            f"{policy} leaves at exit {missing[0]}, which has no K,V maps; they start at: {listed}",
            where='kv "mapped"',
            fix="choose a policy whose exits are among these, or fit maps of its exits: "
            f"offramp heads fit MODEL --workload W --kv-maps {wanted} -o FILE",
        )


def _has_maps(policy: ExitPolicy, layers: int, maps: MapRanks) -> None:
    require_exits(maps, policy.leaves_at(layers), layers, str(policy))


def _recompute(run: PolicyRun) -> Usage:
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


def _as_a_row_more(at: PriceAt, batch: int, shape: ModelShape) -> TokenCosts:
    """Every skipped layer is one row more of a later step.

    A little too much for a document's last tokens, whose layers may never be needed.
    """
    costs = at(batch)
    more = np.maximum(at(batch + 1).layers - costs.layers, 0.0)
    # A recurrent layer runs for one token after the other.
    return replace(costs, key_value=np.where(is_recurrent(shape), costs.layers, more))


def _speculate(run: PolicyRun) -> Usage:
    _has_full_head(run.policy, run.trace.layers, ())
    trace = run.trace
    columns = np.searchsorted(trace.exits, run.decisions.exits)
    agrees = trace.agreement[np.arange(trace.token_count), columns]
    rounds = find_rounds(run.decisions.exits, agrees, trace.document, trace.layers, run.draft_length)
    usage = count_rounds(run.decisions, rounds, trace.layers)
    return _one_by_one(usage, trace.shape)


def _has_full_head(policy: ExitPolicy, layers: int, maps: MapRanks) -> None:
    if policy.short_head:  # it would verify nothing
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


def _monotone(run: PolicyRun) -> Usage:
    deepest = deepest_after(run.decisions.exits, run.trace.document)
    deeper = np.flatnonzero(deepest > run.decisions.exits)
    if deeper.size:
        row = int(deeper[0])
        name = run.trace.documents[int(run.trace.document[row])].id
        first, later = run.decisions.exits[row], deepest[row]
        example = f": in {name} one leaves at exit {first}, a later one at {later}"
        raise goes_deeper(run.policy, example)
    _never_deepens(run.policy, run.trace.layers, ())
    return count_steps(run.decisions, run.steps, run.trace.layers, repair=False)


def _never_deepens(policy: ExitPolicy, layers: int, maps: MapRanks) -> None:
    if not policy.never_deepens:
        raise goes_deeper(policy)


def goes_deeper(policy: ExitPolicy, example: str = "") -> PolicyError:
    """The error for a policy that lets tokens go deeper than those before them."""
    return PolicyError(
        f"{policy} lets tokens go deeper than those before them{example}",
        where='kv "monotone"',
        fix="put the policy into monotone:policy=[...], or choose another strategy for K and V",
    )


def _for_nothing(at: PriceAt, batch: int, shape: ModelShape) -> TokenCosts:
    costs = at(batch)
    return replace(costs, key_value=np.zeros_like(costs.key_value))


PROPAGATE = KeyValue(
    "propagate",
    "K and V of skipped layers are projected from the exit's hidden state (CALM, arXiv 2207.07061)",
    "Exits give their own outputs exactly; deeper layers of later tokens see K and V projected from the "
    "hidden state of the exit, an approximation.",
    _propagate,
    exact=False,
)
MAPPED = KeyValue(
    "mapped",
    "K and V of skipped layers are projected from what fitted maps make of the exit's hidden state",
    "Exits give their own outputs exactly; deeper layers of later tokens see K and V projected from what "
    "fitted maps make of the exit's hidden state, an approximation.",
    _mapped,
    admits=_has_maps,
    exact=False,
    mapped=True,
)
RECOMPUTE = KeyValue(
    "recompute",
    "skipped layers run later, as rows of the next token that goes deeper (EE-LLM, arXiv 2312.04916)",
    "All states are the full model's: tokens that reach the last exit get its logits, within rounding; "
    "the others get what their exit says.",
    _recompute,
    alone=_as_a_row_more,
    batches=False,
)
SPECULATE = KeyValue(
    "speculate",
    "early outputs are drafts that the full model verifies in blocks (LayerSkip, arXiv 2404.16710)",
    "Every token is the full model's: identical to greedy decoding in float32, equally distributed when "
    "sampling; in bfloat16 a near tie may fall the other way in a block.",
    _speculate,
    alone=None,
    admits=_has_full_head,
    lossless=True,
    batches=False,
    searched=False,
)
MONOTONE = KeyValue(
    "monotone",
    "nothing is left behind: no token goes deeper than the one before it (SkipDecode, arXiv 2307.02628)",
    "Every layer that runs finds exact K and V of all tokens before it; policies that let a token go "
    "deeper than the one before are refused.",
    _monotone,
    alone=_for_nothing,
    admits=_never_deepens,
    searched=False,
)

STRATEGIES: dict[str, KeyValue] = {
    strategy.name: strategy for strategy in (PROPAGATE, MAPPED, RECOMPUTE, SPECULATE, MONOTONE)
}
"""Strategies by the name that `kv=` takes."""


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
