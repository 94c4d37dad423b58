"""Tokens grouped into steps of a batch, and what such steps run: lockstep, or rows that leave one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.bill import Item, Usage
from offramp.policies.charging import gives_output
from offramp.policies.signals import probes_of, suggest
from offramp.policies.walk import Walk

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


def as_it_is(walk: Walk, steps: Steps) -> Walk:
    """Rebatch: every row leaves at its own exit, and the step goes on with those that are left."""
    return walk


def in_lockstep(walk: Walk, steps: Steps) -> Walk:
    """Lockstep: all rows of a step leave at the deepest of their own exits.

    A check is made for all rows of a step as long as one of them asks for it. What a policy remembers is what
    it saw on each document alone.
    """
    deepest = np.zeros(int(steps.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(deepest, steps, walk.exits)
    probed = np.zeros((len(walk.exits), len(walk.needs)), dtype=np.bool_)
    for place in range(len(walk.needs)):
        asked = np.zeros(len(deepest), dtype=np.bool_)
        asked[steps[walk.probed_at(place)]] = True
        probed[:, place] = asked[steps]
    return replace(walk, exits=deepest[steps], probed=probed)


BATCHINGS: dict[str, Callable[[Walk, Steps], Walk]] = {"lockstep": in_lockstep, "rebatch": as_it_is}
"""What becomes of a walk when its tokens are decoded in batches, by name."""


def find_batching(name: str) -> Callable[[Walk, Steps], Walk]:
    """The batching of that name. Raises PolicyError, with near names, for one that there is not."""
    if name not in BATCHINGS:
        raise PolicyError(
            f"unknown batching {name!r}", where="batching= (--batching)", fix=suggest(name, BATCHINGS)
        )
    return BATCHINGS[name]


def count_steps(walk: Walk, steps: Steps, layers: int, *, repair: bool, maps: bool = False) -> Usage:
    """What the steps of a walk run: layers, probes and heads with the rows that need them.

    repair: whether K and V of skipped layers are projected from the exit's hidden state; the rows of a step
    that skip a layer are then projected together. maps: whether that state is mapped first, for the rows of a
    step that leave at one exit together; from exit L - 1 on there is nothing to map.
    """
    usage: Usage = Usage()
    everybody = np.ones(len(walk.exits), dtype=np.bool_)
    _count(usage, "overhead", 0, everybody, steps)
    for layer in range(1, layers + 1):
        runs = walk.exits >= layer
        _count(usage, "layers", layer, runs, steps)
        if repair:
            _count(usage, "K,V projection", layer, ~runs, steps)
    answered = np.zeros(len(walk.exits), dtype=np.bool_)
    for place, (exit, facts) in enumerate(walk.needs.items()):
        probed = walk.probed_at(place)
        for kind in probes_of(facts):
            _count(usage, "probe", exit, probed, steps, kind)
        if gives_output(facts):
            answered |= probed & (walk.exits == exit)
    for exit in np.unique(walk.exits):
        part = walk.head(final=bool(exit == layers))
        _count(usage, part, int(exit), (walk.exits == exit) & ~answered, steps)
        if maps and exit < layers - 1:
            _count(usage, "K,V map", int(exit), walk.exits == exit, steps)
    return usage


def count_plain(steps: Steps, layers: int) -> Usage:
    """What the full model runs in the same steps."""
    never = Walk(np.full(len(steps), layers, dtype=np.int64), {})
    return count_steps(never, steps, layers, repair=False)


def _count(
    usage: Usage, part: str, place: int, rows: NDArray[np.bool_], steps: Steps, probe: str = ""
) -> None:
    """Add one item for every step with such rows, by the number of them."""
    together = np.bincount(np.bincount(steps[rows])) if rows.any() else np.zeros(1, dtype=np.int64)
    for size, count in enumerate(together.tolist()):
        if size and count:
            usage[Item(part, place, size, probe)] += count
