"""Families 3, 4, 5, 7 and 8: kinds tested by all relabelings, differences and trends by flips of signs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from offramp.lab.effects.effect import (
    SMALLEST,
    Effect,
    beyond_rounding,
    largest_limit,
    make_effects,
    step_down,
    two_sided,
)
from offramp.lab.effects.matching import Block
from offramp.lab.effects.runs import KINDS, Values

ENUMERATED = 12
"""Up to so many values all flips of signs are taken, else so many at random as are asked for."""


@cache
def relabelings(sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Every way to deal runs to groups of these sizes: groups int64 [ways, runs], in the first way ascending.

    3, 4 and 4 runs: 11,550 ways.
    """
    found = [np.zeros(sum(sizes), dtype=np.int64)]
    for group in range(1, len(sizes)):
        count = sum(sizes[group:])
        dealt = []
        for labels in found:
            free = np.flatnonzero(labels == group - 1)
            for chosen in itertools.combinations(free.tolist(), len(free) - count):
                more = labels.copy()
                more[np.setdiff1d(free, chosen)] = group
                dealt.append(more)
        found = dealt
    return np.stack(found)


def group_t(values: Values, sizes: tuple[int, ...], ways: NDArray[np.int64]) -> tuple[Values, Values, Values]:
    """Each group less the next: t, difference and standard error, float64 [ways, groups - 1, endpoints] each.

    values: float64 [runs, endpoints]. The variance is that within all groups, pooled.
    """
    centred = values - values.mean(0)
    member = (ways[:, None, :] == np.arange(len(sizes))[None, :, None]).astype(np.float64)
    counts = np.array(sizes, dtype=np.float64)[:, None]
    means = member @ centred / counts
    squares = beyond_rounding((centred**2).sum(0) - (counts * means**2).sum(1), values)
    within = squares / (len(values) - len(sizes))
    differences = means[:, :-1] - means[:, 1:]
    errors = np.sqrt(within[:, None, :] * (1 / counts[:-1] + 1 / counts[1:]))
    return _ratio(differences, errors), differences, errors


def kind_effects(block: Block, smallest: Mapping[str, float] = SMALLEST) -> tuple[Effect, ...]:
    """Each kind less the next, at matched loss; none without two kinds and an error."""
    kinds = [kind for kind in KINDS if any(run.kind == kind for run in block.runs)]
    order = sorted(range(len(block.runs)), key=lambda place: kinds.index(block.runs[place].kind))
    sizes = tuple(sum(run.kind == kind for run in block.runs) for kind in kinds)
    freedom = len(order) - len(kinds)
    if len(kinds) < 2 or freedom < 2:  # the covariate takes another one
        return ()
    t, differences, errors = group_t(block.matched[order], sizes, relabelings(sizes))
    adjusted, limit = step_down(t[0], t[1:]), largest_limit(t)
    pairs = [f"{first} - {second}" for first, second in itertools.pairwise(kinds)]
    return make_effects(
        "3",
        [(pair, endpoint) for endpoint in block.endpoints for pair in pairs],
        differences[0],
        errors[0],
        freedom=freedom,
        adjusted=adjusted,
        limit=limit,
        smallest=smallest,
        with_loss=_with_loss(block.last[order], block.losses[order], sizes),
    )


def _with_loss(values: Values, losses: Values, sizes: tuple[int, ...]) -> tuple[Values, Values]:
    """Each group less the next in a fit with the loss: effect and p-value, [groups - 1, endpoints] each."""
    member = np.repeat(np.eye(len(sizes)), sizes, axis=0)
    design = np.concatenate([member, (losses - losses.mean())[:, None]], axis=1)
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ values
    freedom = len(values) - int(np.linalg.matrix_rank(design))
    variance = ((values - design @ coefficients) ** 2).sum(0) / freedom
    contrasts = (np.eye(len(sizes)) - np.eye(len(sizes), k=1))[:-1]
    contrasts = np.concatenate([contrasts, np.zeros((len(contrasts), 1))], axis=1)
    spread = np.einsum("ij,jk,ik->i", contrasts, inverse, contrasts)
    effects = contrasts @ coefficients
    return effects, two_sided(effects, np.sqrt(np.outer(spread, variance)), freedom)


def flips(count: int, permutations: int, seed: int) -> Values:
    """Signs, float64 [ways, count]: first as it is, then all others, or so many at random."""
    if count <= ENUMERATED:
        return np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    drawn = np.random.default_rng(seed).choice((1.0, -1.0), size=(permutations, count))
    return np.concatenate([np.ones((1, count)), drawn])


def flipped_t(values: Values, signs: Values) -> tuple[Values, Values]:
    """t of the mean and its standard error: float64 [ways, tests] each. values [units, tests]."""
    count = len(values)
    means = signs @ values / count
    squares = beyond_rounding((values**2).sum(0) - count * means**2, values)
    errors = np.sqrt(squares / (count - 1) / count)
    return _ratio(means, errors), errors


def flip_effects(
    family: str,
    names: Sequence[tuple[str, str]],
    values: Values,
    smallest: Mapping[str, float],
    *,
    permutations: int,
    seed: int = 0,
) -> tuple[Effect, ...]:
    """Whether means are 0, all tested together by flips of the units' signs; none with fewer than two units.

    names: of each test what it compares and its endpoint. values: float64 [units, tests].
    """
    if len(values) < 2:
        return ()
    t, errors = flipped_t(values, flips(len(values), permutations, seed))
    adjusted, limit = step_down(t[0], t[1:]), largest_limit(t)
    return make_effects(
        family,
        names,
        values.mean(0),
        errors[0],
        freedom=len(values) - 1,
        adjusted=adjusted,
        limit=limit,
        smallest=smallest,
    )


def _ratio(above: Values, below: Values) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(below > 0, above / below, 0.0))
