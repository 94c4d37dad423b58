"""Tokens grouped into the steps that decode them, and what such steps run.

A batch in lockstep or with rows that leave one by one; or self-speculation, where tokens that leave early are
drafts and the deeper layers verify them in blocks: LayerSkip (arXiv 2404.16710, section 4.3) made exact for
any policy, since every output comes from the full model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.cost_breakdown import Item, Usage
from offramp.policies.decisions import Decisions
from offramp.policies.prices import gives_output
from offramp.policies.signals import probes_of

Steps = NDArray[np.int64]


def group_into_steps(document: NDArray[np.int32], batch: int, seed: int) -> Steps:
    """The step in which each token is decoded: int64 [tokens], steps count from 0.

    document: int [tokens], rows of one document contiguous. Documents are shuffled and taken `batch` at a
    time; the n-th tokens of such a group are one step. A step has fewer rows where a document of the group
    has ended, and in a last group of fewer documents.

    Raises PolicyError for fewer documents than the batch has rows.
    """
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    if batch > len(starts):
        raise PolicyError(
            f"a batch of {batch} needs as many documents, the trace has {len(starts)}",
            fix="choose a smaller batch, or trace more documents",
        )
    if batch == 1:
        return np.arange(len(document), dtype=np.int64)
    lengths = np.diff(starts, append=len(document))
    group = np.empty(len(starts), dtype=np.int64)
    group[np.random.default_rng(seed).permutation(len(starts))] = np.arange(len(starts)) // batch
    index = np.arange(len(document)) - np.repeat(starts, lengths)
    key = np.repeat(group, lengths) * (int(lengths.max()) + 1) + index
    return np.asarray(np.unique(key, return_inverse=True)[1], dtype=np.int64)


def as_it_is(decisions: Decisions, steps: Steps) -> Decisions:
    """Rebatch: every row leaves at its own exit, and the step goes on with those that are left."""
    return decisions


def in_lockstep(decisions: Decisions, steps: Steps) -> Decisions:
    """Lockstep: all rows of a step leave at the deepest of their own exits.

    A check is made for all rows of a step as long as one of them asks for it. What a policy remembers is what
    it saw on each document alone.
    """
    deepest = np.zeros(int(steps.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(deepest, steps, decisions.exits)
    probed = np.zeros((len(decisions.exits), len(decisions.needs)), dtype=np.bool_)
    for place in range(len(decisions.needs)):
        asked = np.zeros(len(deepest), dtype=np.bool_)
        asked[steps[decisions.probed_at(place)]] = True
        probed[:, place] = asked[steps]
    return replace(decisions, exits=deepest[steps], probed=probed)


BATCHINGS: dict[str, Callable[[Decisions, Steps], Decisions]] = {"lockstep": in_lockstep, "rebatch": as_it_is}
"""What becomes of a policy's decisions when tokens are decoded in batches, by name."""


def count_steps(
    decisions: Decisions, steps: Steps, layers: int, *, repair: bool, maps: bool = False
) -> Usage:
    """What the steps run: layers, probes and heads with the rows that need them.

    repair: whether K and V of skipped layers are projected from the exit's hidden state; the rows of a step
    that skip a layer are then projected together. maps: whether that state is mapped first, for the rows of a
    step that leave at one exit together; from exit L - 1 on there is nothing to map.
    """
    usage: Usage = Usage()
    everybody = np.ones(len(decisions.exits), dtype=np.bool_)
    _count(usage, "overhead", 0, everybody, steps)
    for layer in range(1, layers + 1):
        runs = decisions.exits >= layer
        _count(usage, "layers", layer, runs, steps)
        if repair:
            _count(usage, "K,V projection", layer, ~runs, steps)
    answered = np.zeros(len(decisions.exits), dtype=np.bool_)
    for place, (exit, facts) in enumerate(decisions.needs.items()):
        probed = decisions.probed_at(place)
        for kind in probes_of(facts):
            _count(usage, "probe", exit, probed, steps, kind)
        if gives_output(facts, short_list=decisions.short_list):
            answered |= probed & (decisions.exits == exit)
    for exit in np.unique(decisions.exits):
        part = decisions.head(final=bool(exit == layers))
        _count(usage, part, int(exit), (decisions.exits == exit) & ~answered, steps)
        if maps and exit < layers - 1:
            _count(usage, "K,V map", int(exit), decisions.exits == exit, steps)
    return usage


def count_plain(steps: Steps, layers: int) -> Usage:
    """What the full model runs in the same steps."""
    never = Decisions(np.full(len(steps), layers, dtype=np.int64), {})
    return count_steps(never, steps, layers, repair=False)


def _count(
    usage: Usage, part: str, place: int, rows: NDArray[np.bool_], steps: Steps, probe: str = ""
) -> None:
    """Add one item for every step with such rows, by the number of them."""
    # How many such rows each step has, then how many steps have so many: an item for each number of rows.
    together = np.bincount(np.bincount(steps[rows])) if rows.any() else np.zeros(1, dtype=np.int64)
    for size, count in enumerate(together.tolist()):
        if size and count:
            usage[Item(part, place, size, probe)] += count


Integers = NDArray[np.int64]

AUTO = "auto"
"""The draft length that adapts itself while it decodes."""


@dataclass(frozen=True)
class Rounds:
    """Rounds of drafting and verifying, int64 [rounds] and bool [rounds].

    start: the first token's row in the trace. drafts: tokens drafted. closed: whether a token after the
    drafts was run to exit L with them (a document's last drafts are verified alone).
    """

    start: Integers
    drafts: Integers
    closed: NDArray[np.bool_]


def find_rounds(
    exits: Integers, agrees: NDArray[np.bool_], document: NDArray[np.int32], layers: int, draft_length: int
) -> Rounds:
    """The rounds of every document, one after the other.

    exits: [tokens], where the policy lets each token leave. agrees: bool [tokens], whether the output there
    is the full model's. document: [tokens], rows of one document contiguous.

    A round drafts tokens while they leave before exit L, `draft_length` at most. The token after them (one
    that did not leave, or the next one after a full draft) runs to exit L together with what the drafts have
    still to run, and so gets the full model's output itself. If all drafts agree, the next round starts after
    that token. Otherwise the first draft that disagrees gets the full model's output from the verification,
    all work after it is thrown away, and the next round starts right behind it. What was drafted on a wrong
    token is taken to cost what the trace's own tokens there do.
    """
    count = len(exits)
    place = np.arange(count)
    ends = np.append(np.flatnonzero(np.diff(document)) + 1, count)
    end = ends[np.searchsorted(ends, place, side="right")] if count else place
    stop = np.minimum(_next_true(exits >= layers), end)
    drafts = np.minimum(stop - place, draft_length)
    closed = place + drafts < end
    wrong = _next_true((exits < layers) & ~agrees)
    following = np.where(wrong < place + drafts, wrong + 1, place + drafts + closed).tolist()
    # One after the other: where a round starts depends on how the one before it ended.
    starts = []
    at = 0
    while at < count:
        starts.append(at)
        at = following[at]
    start = np.array(starts, dtype=np.int64)
    return Rounds(start, drafts[start].astype(np.int64), closed[start])


def count_rounds(decisions: Decisions, rounds: Rounds, layers: int) -> Usage:
    """What the rounds run.

    Each draft runs layers 1 to its exit, with its probes and its exit's head, as one row. The row that closes
    a round pays the same probes, also after a full draft, so that every token is asked. A layer above is
    run for it together with the first later row of the round that runs that layer, so that every row finds
    the K and V that it attends to; the row that closes the round runs all layers, the last of a document's
    drafts are verified by a step of their own. The final head is then made for all rows of the round. Each
    row is priced as a sequence of its own, although rows of one document read its K and V together.
    """
    drafted = np.repeat(rounds.start, rounds.drafts) + _counting(rounds.drafts)
    closing = (rounds.start + rounds.drafts)[rounds.closed]
    rows = np.concatenate([drafted, closing])
    # Wherever the policy lets a closing row leave, it runs to exit L and needs no exit's head.
    exits = np.where(np.arange(len(rows)) < len(drafted), decisions.exits[rows], layers)
    probed = [decisions.probed_at(place)[rows] for place in range(len(decisions.needs))]
    shallow = replace(decisions, exits=exits, probed=np.stack(probed, axis=1) if probed else None)
    alone = count_steps(shallow, np.arange(len(rows), dtype=np.int64), layers, repair=False)
    usage: Usage = Usage(
        {item: count for item, count in alone.items() if item.part in ("probe", "exit head", "short head")}
    )
    usage[Item("overhead")] += len(drafted)
    for size, count in enumerate(np.bincount(rounds.drafts + rounds.closed).tolist()):
        if size and count:
            usage[Item("overhead", 0, size)] += count
            usage[Item("final head", layers, size)] += count
    _count_layers(usage, _reaches(decisions, rounds, layers), rounds, layers)
    return usage


def _reaches(decisions: Decisions, rounds: Rounds, layers: int) -> Integers:
    """How deep each row of a round runs by itself, 0 where there is no row: [rounds, longest draft + 1]."""
    column = np.arange(int(rounds.drafts.max(initial=0)) + 1)
    rows = np.minimum(rounds.start[:, None] + column, len(decisions.exits) - 1)
    reaches = np.where(column < rounds.drafts[:, None], decisions.exits[rows], 0)
    reaches[(column == rounds.drafts[:, None]) & rounds.closed[:, None]] = layers
    return np.asarray(reaches, dtype=np.int64)


def _count_layers(usage: Usage, reaches: Integers, rounds: Rounds, layers: int) -> None:
    """Every layer with the rows that run it together."""
    for layer in range(1, layers + 1):
        waiting = np.zeros(len(reaches), dtype=np.int64)
        sizes = np.zeros(reaches.shape[1] + 1, dtype=np.int64)
        for column in range(reaches.shape[1]):
            waiting += reaches[:, column] > 0
            runs = reaches[:, column] >= layer
            sizes += np.bincount(waiting[runs], minlength=len(sizes))
            waiting[runs] = 0
        left = ~rounds.closed
        sizes += np.bincount(waiting[left], minlength=len(sizes))
        for size, count in enumerate(sizes.tolist()):
            if size and count:
                usage[Item("layers", layer, size)] += count


def _next_true(flags: NDArray[np.bool_]) -> Integers:
    """The place of the first true flag at or after each place, the number of flags where none follows."""
    places = np.where(flags, np.arange(len(flags)), len(flags))
    return np.asarray(np.minimum.accumulate(places[::-1])[::-1], dtype=np.int64)


def _counting(lengths: Integers) -> Integers:
    """0, 1, ... up to each length: [sum of lengths]."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
