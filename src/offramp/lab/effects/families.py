"""The families of tests, from runs: what each compares, and what it lacks where runs are missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from offramp.lab.effects.effect import SMALLEST, Effect, beyond_rounding, make_effects, two_sided
from offramp.lab.effects.factorial import main_effects, pair_effects, tells_apart, untested
from offramp.lab.effects.matching import Block, make_block
from offramp.lab.effects.relabelled import flip_effects, kind_effects
from offramp.lab.effects.runs import (
    ARMS,
    CALIBRATION,
    CONTINUED,
    DEPTH,
    EXIT_LOSS,
    FROZEN,
    KINDS,
    MAMBA,
    ORACLE,
    PLAIN,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SCORE,
    SKIPPED,
    SKIPPED_CODE,
    SKIPPED_LENS,
    TUNED,
    Run,
    Values,
)
from offramp.lab.effects.score_validity import ScoreValidity, score_validity

MATCHED = (SKIPPED, SKIPPED_LENS, REPRESENTATION, REPRESENTATION_LENS)
"""P1 to P4."""

CACHED = (SKIPPED, SKIPPED_LENS)
"""Endpoints that rest on K and V of skipped layers; the state of a recurrent layer cannot be propagated."""

SPED = "representation_by_tokens"
"""D2: the slope of the representation on log2 of the tokens trained on."""

DOUBLINGS, MORE_STEPS = 7, 5
"""Between the first kept model and the last; between k = 1 and k = 6."""

WIDER, DEEPER = "doubling of the width", "doubling of the depth"


@dataclass(frozen=True)
class Family:
    """Tests that share an error rate. tests: how many there should be. notes: what is missing, and what must
    be known to read the effects. block: what its runs are compared at, where they are at one loss."""

    name: str
    tests: int
    effects: tuple[Effect, ...] = ()
    notes: tuple[str, ...] = ()
    block: Block | None = None


def factor_families(runs: Sequence[Run], permutations: int, seed: int) -> dict[str, Family]:
    """Families 1 and 2, and the two corners. runs: those of blocks 1 and 2 that count."""
    names = {"1": ("factors", 20), "corners": ("the two corners", 4), "2": ("pairs of factors", 40)}
    block = make_block(runs, MATCHED)
    if block is None or not tells_apart(block.signs):
        cells = 0 if block is None else len(np.unique(block.signs, axis=0))
        why = f"{cells} of the 16 cells are measured, which do not tell the factors apart"
        return {key: Family(*named, notes=(why,), block=block) for key, named in names.items()}
    found = main_effects(block, permutations=permutations, seed=seed)
    pairs = pair_effects(block, permutations=permutations, seed=seed)
    notes = {
        "1": [*_block_notes(block), *untested(block.signs)],
        "corners": ["both corners are needed, one with two seeds, and the four factors between them"],
        "2": ["pairs are tested with all 16 cells and one of them with two seeds"],
    }
    if all(one.low is None for one in found):
        notes["1"].append("no two seeds of a cell differ: there is no error of a seed, nothing is claimed")
    effects = {key: tuple(one for one in (*found, *pairs) if one.family == key) for key in names}
    return {
        key: Family(*named, effects[key], tuple(notes[key] if key == "1" or not effects[key] else ()), block)
        for key, named in names.items()
    }


def _block_notes(block: Block, asked: Sequence[str] = MATCHED) -> Iterator[str]:
    yield f"compared at a validation loss of {block.loss:.3f}"
    yield from (f"{name} was not measured" for name in asked if name not in block.endpoints)
    yield from (f"{run} is left out: {what} was not measured" for run, what in block.not_measured.items())
    if block.below:
        yield f"at or below that loss from their first model on, which is taken: {', '.join(block.below)}"


def kind_family(corner: Sequence[Run], runs: Sequence[Run]) -> Family:
    """Family 3. corner: the Llama-like runs; runs: those of block 3 that count."""
    block = make_block([*corner, *runs], MATCHED)
    there = {run.kind for run in block.runs} if block else set()
    missing = tuple(f"no run of the kind {kind} is measured" for kind in KINDS if kind not in there)
    if block is None or not runs:
        return Family("kinds of models", 8, notes=missing)
    effects = tuple(
        replace(one, word="cannot be told") if one.name.endswith(MAMBA) and one.endpoint in CACHED else one
        for one in kind_effects(block)
    )
    fixed = ("what a state space skips as executed is 0 by its state, whatever exits say: shown, no finding",)
    notes = (*_block_notes(block), *missing, *(fixed if MAMBA in there else ()))
    return Family("kinds of models", 8, effects, notes, block)


def arm_families(runs: Sequence[Run], permutations: int) -> dict[str, Family]:
    """Families 4 and 5. runs: those of their blocks that count."""
    exits, tuned = ([run for run in runs if run.block == block] for block in ARMS)
    regained = ((EXIT_LOSS, CONTINUED), (FROZEN, CONTINUED))
    found = {
        "4": _paired("4", "regularisation", exits, regained, MATCHED[::2], permutations),
        "5": _paired("5", "tuning", tuned, ((TUNED, PLAIN),), (*MATCHED[::2], CALIBRATION), permutations),
    }
    halves = tuple(_halves(arm, [run for run in tuned if run.arm == arm]) for arm in ARMS["5"])
    return found | {"5": replace(found["5"], notes=(*found["5"].notes, *filter(None, halves)))}


def _halves(arm: str, runs: Sequence[Run]) -> str:
    """The calibration error with that of either half of the documents, which bound it from above."""
    names = (CALIBRATION, f"{CALIBRATION}_first", f"{CALIBRATION}_second")
    values = np.array([[run.at(name)[-1] for name in names] for run in runs]).reshape(len(runs), len(names))
    known = values[np.isfinite(values).all(axis=1)]
    if not len(known):
        return ""
    mean, first, second = known.mean(axis=0)
    return f"{CALIBRATION} of {arm}: {mean:.3f} (by halves of the documents {first:.3f} and {second:.3f})"


def _paired(
    key: str,
    name: str,
    runs: Sequence[Run],
    contrasts: Sequence[tuple[str, str]],
    endpoints: Sequence[str],
    permutations: int,
) -> Family:
    """Differences between what was done to the same bases, at the last kept models."""
    by_base: dict[str, dict[str, Run]] = {}
    for run in runs:
        by_base.setdefault(run.base, {})[run.arm] = run
    tests = [(more, less, endpoint) for more, less in contrasts for endpoint in endpoints]
    values = np.array([[_difference(arms, *test) for test in tests] for arms in by_base.values()])
    there = np.isfinite(values.reshape(len(by_base), len(tests)))
    kept = there.any(axis=0)
    whole = there[:, kept].all(axis=1) & kept.any()
    lacking = itertools.compress(tests, ~kept)
    notes = [
        f"{more} less {less} on {endpoint}: no base has both measured" for more, less, endpoint in lacking
    ]
    if kept.any():
        notes += [
            f"{base} is left out: some of it is missing" for base in itertools.compress(by_base, ~whole)
        ]
        few = "" if whole.sum() > 5 else ": six that all agree reach p = 2/64, fewer nothing below 0.05"
        notes.append(f"{whole.sum()} of 6 bases{few}")
    for more, less in contrasts:
        losses = np.array([_difference(arms, more, less) for arms in by_base.values()])
        if len(known := losses[np.isfinite(losses)]):
            limits = f"{known.min():+.3f} to {known.max():+.3f} in single bases"
            notes.append(f"validation loss of {more} less that of {less}: {known.mean():+.3f} nat ({limits})")
    named = [(f"{more} - {less}", endpoint) for more, less, endpoint in itertools.compress(tests, kept)]
    effects: tuple[Effect, ...] = ()
    if kept.any():
        effects = flip_effects(key, named, values[whole][:, kept], SMALLEST, permutations=permutations)
    return Family(name, len(tests), effects, tuple(notes))


def _difference(arms: Mapping[str, Run], more: str, less: str, endpoint: str = "") -> float:
    """Of an endpoint, or of the loss where none is named; NaN where one of the two is missing."""
    if more not in arms or less not in arms:
        return float("nan")
    one, other = ((run.at(endpoint) if endpoint else run.losses)[-1] for run in (arms[more], arms[less]))
    return float(one - other)


def size_family(corner: Sequence[Run], runs: Sequence[Run]) -> Family:
    """Block 6: trends over width and depth, by the error of the corner's seeds."""
    name, tests = "sizes", 4
    block = make_block([*corner, *runs], (SKIPPED, REPRESENTATION), last=False)
    if block is None or not runs or not corner:
        return Family(name, tests, notes=("no run of another size is measured",))
    sizes = np.array([(run.layers, run.hidden) for run in block.runs])
    in_corner = np.array([run.block != "6" for run in block.runs])
    effects: list[Effect] = []
    notes = [*_block_notes(block, (SKIPPED, REPRESENTATION))]
    for along, moves in ((WIDER, 1), (DEEPER, 0)):
        here = in_corner | (sizes[:, 1 - moves] == (corner[0].layers, corner[0].hidden)[1 - moves])
        at = np.log2(sizes[here, moves])
        if (count := len(set(at.tolist()))) < 3:
            notes.append(f"{along}: {count} of 3 sizes are measured")
        if count > 1 and in_corner.sum() > 1:
            effects += _slopes(along, block.endpoints, at, block.matched[here], in_corner[here])
            notes += _at_the_ends(along, at, [run for run, one in zip(block.runs, here, strict=True) if one])
    if effects:
        notes.append("p of each test alone, and no fit with the loss as covariate, which goes with the size")
    return Family(name, tests, tuple(effects), tuple(notes))


def _at_the_ends(along: str, at: Values, runs: Sequence[Run]) -> Iterator[str]:
    """Representation of the last models: at one loss, large ones are read in the middle of their training."""
    last = np.array([run.at(REPRESENTATION)[-1] for run in runs])
    if np.isfinite(last).all():
        means = [f"{2**size:g}: {last[at == size].mean():.3f}" for size in np.unique(at)]
        yield f"{along}: representation of the last models, at losses of their own, {', '.join(means)}"


def _slopes(
    along: str, endpoints: Sequence[str], at: Values, values: Values, in_corner: NDArray[np.bool_]
) -> tuple[Effect, ...]:
    """Least squares over sizes, those of several seeds by their mean; the error is that of the corner's.

    at: where runs stand, [runs]; values: [runs, endpoints].
    """
    member = (at == np.unique(at)[:, None]).astype(np.float64)
    seeds = member.sum(1)
    sizes = member @ at / seeds
    weights = (sizes - sizes.mean()) / ((sizes - sizes.mean()) ** 2).sum()
    of_seeds, freedom = values[in_corner], int(in_corner.sum()) - 1
    squares = beyond_rounding(((of_seeds - of_seeds.mean(0)) ** 2).sum(0), of_seeds)
    errors = np.sqrt(squares / freedom * (weights**2 / seeds).sum())
    slopes = weights @ (member @ values / seeds[:, None])
    return make_effects(
        "sizes",
        [(along, endpoint) for endpoint in endpoints],
        slopes,
        errors,
        freedom=freedom,
        adjusted=two_sided(slopes, errors, freedom),
        limit=float(student.ppf(0.975, freedom)),
        smallest={},
    )


def trend_families(runs: Sequence[Run], permutations: int, seed: int) -> dict[str, Family]:
    """Families 7 and 8. runs: those of blocks 1 and 2 that count."""
    layers = runs[0].layers if runs else 0
    slopes = {SPED: [_by_tokens(run) for run in runs], DEPTH: [float(run.at(DEPTH)[-1]) for run in runs]}
    smallest = {SPED: 0.03 / DOUBLINGS, DEPTH: 0.05 * layers / MORE_STEPS}
    named = {"7": ("training time", SPED), "8": ("required depth", DEPTH)}
    found = {}
    for key, (name, endpoint) in named.items():
        known = np.isfinite(slopes[endpoint])
        signs = np.array([run.signs for run, one in zip(runs, known, strict=True) if one])
        notes = [f"{known.sum()} of {len(runs)} trainings have it"]
        effects: tuple[Effect, ...] = ()
        if known.any():
            cells, cell_of = np.unique(signs, axis=0, return_inverse=True)
            sums = np.bincount(cell_of.ravel(), weights=np.array(slopes[endpoint])[known])
            values = sums / np.bincount(cell_of.ravel())
            notes.append(f"{len(cells)} of 16 cells")
            effects = flip_effects(
                key, [(name, endpoint)], values[:, None], smallest, permutations=permutations, seed=seed
            )
        found[key] = Family(name, 1, effects, tuple(notes))
    return found


def _by_tokens(run: Run) -> float:
    """Slope of the representation on log2 of tokens; NaN where a kept model was not measured."""
    values = run.at(REPRESENTATION)
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    return float(np.polyfit(np.log2(np.array(run.tokens, dtype=np.float64)), values, 1)[0])


def score_family(
    groups: Sequence[tuple[Sequence[Run], Sequence[Run]]], permutations: int
) -> tuple[Family, ScoreValidity | None]:
    """Family 6. groups: runs that share a loss, and those of them that are taken at it."""
    columns = {key for group, _ in groups for run in group for key in run.values}
    scores = sorted(key for key in columns if key.startswith(SCORE) or key == ORACLE)
    taken: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for group, own in groups:
        block = make_block(group, (SKIPPED_CODE, *scores), last=False) if own else None
        if block is not None and SKIPPED_CODE in block.endpoints:
            of_run = zip(block.runs, block.matched.tolist(), strict=True)
            here = {run.name: dict(zip(block.endpoints, row, strict=True)) for run, row in of_run}
            taken |= {run.name: here[run.name] for run in own if run.name in here}
        lacking = {} if block is None else block.not_measured
        notes += [
            f"{run.name} is left out: {lacking.get(run.name, 'not all of it')} was not measured"
            for run in own
            if run.name not in taken
        ]
    shared = [name for name in scores if taken and all(name in values for values in taken.values())]
    notes += [f"{name} was not measured on all of them" for name in scores if name not in shared]
    if not shared:
        nothing = "no training has both a score and layers skipped on code"
        return Family("one score", 1, notes=(nothing,)), None
    values = {name.removeprefix(SCORE): np.array([one[name] for one in taken.values()]) for name in shared}
    savings = np.array([one[SKIPPED_CODE] for one in taken.values()])
    found = score_validity(list(taken), values, savings, permutations=permutations)
    recurrent = {run.name for _, own in groups for run in own if run.kind == MAMBA}
    kept = np.array([name not in recurrent for name in taken])
    if kept.any() and not kept.all():
        names = list(itertools.compress(taken, kept))
        of_kept = {key: one[kept] for key, one in values.items()}
        without = score_validity(names, of_kept, savings[kept], permutations=permutations)
        found = replace(found, without_recurrent=without)
    return Family("one score", 1, notes=tuple(notes)), found
