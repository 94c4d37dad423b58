"""All that the runs of a study tell: the gate, and families of tests, each with what it lacks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from offramp_lab.design import FACTORS, LEVELS, REPLICATION
from offramp_lab.effects import (
    NONE,
    PERMUTATIONS,
    SMALLEST,
    UNTOLD,
    beyond_rounding,
    flip_effects,
    joined,
    kind_effects,
    main_effects,
    make_effects,
    pair_effects,
    seeds_apart,
    tells_apart,
    two_sided,
)
from offramp_lab.runs import (
    ARMS,
    CALIBRATION,
    CONTINUED,
    CORNERS,
    DEPTH,
    EXIT_LOSS,
    FROZEN,
    GATE,
    KINDS,
    MAMBA,
    ORACLE,
    PLAIN,
    REPLICATED,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SCORE,
    SKIPPED,
    SKIPPED_CODE,
    SKIPPED_LENS,
    SKIPPED_THIRD,
    TUNED,
    Block,
    Signs,
    Study,
    Values,
    in_corner,
    make_block,
    signs_of,
)
from offramp_lab.scores import ScoreValidity, score_validity

MATCHED = (SKIPPED, SKIPPED_LENS, REPRESENTATION, REPRESENTATION_LENS)
"""P1 to P4."""

CACHED = (SKIPPED, SKIPPED_LENS)
"""Endpoints that rest on K and V of skipped layers; the state of a recurrent layer cannot be propagated."""

SPED = "representation_by_tokens"
"""D2: the slope of the representation on log2 of the tokens trained on."""

DOUBLINGS, MORE_STEPS = 7, 5
"""Between the first kept model and the last; between k = 1 and k = 6."""

WIDER, DEEPER = "doubling of the width", "doubling of the depth"
ROTARY = "rotary - learned"
"""What the replication compares."""

USED = 0.05
"""Nats by which the deeper model of the gate has to be better."""


@dataclass(frozen=True)
class Family:
    """Tests that share an error rate. tests: how many there should be. notes: what is missing, and what must
    be known to read the effects. block: what its runs are compared at, where they are at one loss."""

    name: str
    tests: int
    effects: pd.DataFrame = field(default_factory=lambda: NONE)
    notes: tuple[str, ...] = ()
    block: Block | None = None


@dataclass(frozen=True)
class Findings:
    """What a study's runs tell.

    gate: by corner the last validation losses of the `deep` model, the `shallow` one, and the shallow one of
    as many parameters (`wide`), NaN for none; layers of both; and what the deep one has `gained`. families:
    by their number, in the order of the page; none where the gate is not passed, only a replication's where
    there is none. validity: of family 6.
    """

    study: Study
    gate: pd.DataFrame
    families: Mapping[str, Family] = field(default_factory=dict)
    validity: ScoreValidity | None = None

    @property
    def passed(self) -> bool | None:
        """Whether depth is used; None where that is not known."""
        gained = self.gate["gained"]
        if (gained <= USED).any():
            return False
        return True if gained.notna().all() else None

    @property
    def effects(self) -> pd.DataFrame:
        """Of all families."""
        return joined([family.effects for family in self.families.values()])


def analyse(models: pd.DataFrame, *, permutations: int = PERMUTATIONS, seed: int = 0) -> Findings:
    """Everything that the kept models of a study's runs tell; only the gate where it is not passed."""
    study = Study(models)
    found = Findings(study, find_gate(study))
    if found.passed is False:
        return found
    replicated = replication_family(study)
    if found.passed is None:
        return replace(found, families=replicated)
    factorial, kinds, sizes = study.of("1", "2"), study.of("3"), study.of("6")
    corner = in_corner(factorial, "Llama-like")
    with_kinds, with_sizes = pd.concat([corner, kinds]), pd.concat([corner, sizes])
    groups = ((factorial, factorial), (with_kinds, kinds), (with_sizes, sizes))
    score, validity = score_family(study, groups, permutations)
    families = {
        **factor_families(study, factorial, permutations, seed),
        "3": kind_family(study, with_kinds, kinds),
        **arm_families(study, permutations),
        "6": score,
        **trend_families(study, factorial, permutations, seed),
        "sizes": size_family(study, corner, sizes),
        **replicated,
    }
    return replace(found, families=families, validity=validity)


def find_gate(study: Study) -> pd.DataFrame:
    """By corner whether deep models are better than shallow ones, without which nothing is concluded."""
    rows = []
    for corner in CORNERS:
        alike = in_corner(study.of(GATE, "1"), corner)
        wide = alike["run"].str.startswith("gate-wide-")  # which decides nothing
        shallow = alike["block"] == GATE
        some = {"deep": alike[~shallow], "shallow": alike[shallow & ~wide], "wide": alike[wide]}
        first = {name: runs.iloc[0] if len(runs) else None for name, runs in some.items()}
        losses = {name: np.nan if run is None else float(run["loss"]) for name, run in first.items()}
        layers = {f"{name}_layers": 0 if run is None else int(run["layers"]) for name, run in first.items()}
        rows.append({"corner": corner, **losses, **layers, "gained": losses["shallow"] - losses["deep"]})
    return pd.DataFrame(rows)


def factor_families(study: Study, runs: pd.DataFrame, permutations: int, seed: int) -> dict[str, Family]:
    """Families 1 and 2, and the two corners. runs: those of blocks 1 and 2 that count."""
    names = {"1": ("factors", 20), "corners": ("the two corners", 4), "2": ("pairs of factors", 40)}
    block = make_block(study, runs, MATCHED)
    signs = None if block is None else signs_of(block.runs)
    if block is None or signs is None or not tells_apart(signs):
        cells = 0 if signs is None else len(np.unique(signs, axis=0))
        why = f"{cells} of the 16 cells are measured, which do not tell the factors apart"
        return {key: Family(*named, notes=(why,), block=block) for key, named in names.items()}
    found = main_effects(block, permutations=permutations, seed=seed)
    pairs = pair_effects(block, permutations=permutations, seed=seed)
    notes = {
        "1": [*_block_notes(block), *_untested(signs)],
        "corners": ["both corners are needed, one with two seeds, and the four factors between them"],
        "2": ["pairs are tested with all 16 cells and one of them with two seeds"],
    }
    if found["low"].isna().all():
        notes["1"].append("no two seeds of a cell differ: there is no error of a seed, nothing is claimed")
    effects = {key: frame for frame in (found, pairs) for key, frame in frame.groupby("family")}
    return {
        key: Family(
            *named,
            effects.get(key, NONE),
            tuple(notes[key] if key == "1" or key not in effects else ()),
            block,
        )
        for key, named in names.items()
    }


def _untested(signs: Signs) -> Iterator[str]:
    """What the cells that are there do not tell, in words. signs: int64 [runs, factors]."""
    for factor, column in zip(FACTORS, signs.T, strict=True):
        if np.ptp(column) == 0:
            level = LEVELS[factor][(column[0] + 1) // 2]
            yield f"{factor} is {level} in every run that counts, and is not tested"
    if (cells := len(np.unique(signs, axis=0))) < 16:
        yield (
            f"{cells} of 16 cells are there: main effects and pairs are not at right angles, an effect may "
            "hold a part of what pairs do, and pairs are not tested"
        )


def _block_notes(block: Block, asked: Sequence[str] = MATCHED) -> Iterator[str]:
    yield f"compared at a validation loss of {block.loss:.3f}"
    yield from _lacking(block, asked)
    if block.below:
        yield f"at or below that loss from their first model on, which is taken: {', '.join(block.below)}"


def _lacking(block: Block, asked: Sequence[str]) -> Iterator[str]:
    """Endpoints that no run has, and runs that lack what others have."""
    yield from (f"{name} was not measured" for name in asked if name not in block.endpoints)
    yield from (f"{run} is left out: {what} was not measured" for run, what in block.not_measured.items())


def kind_family(study: Study, with_corner: pd.DataFrame, runs: pd.DataFrame) -> Family:
    """Family 3. with_corner: the Llama-like runs too; runs: those of block 3 that count."""
    block = make_block(study, with_corner, MATCHED)
    there = set() if block is None else {*block.runs["kind"]}
    missing = tuple(f"no run of the kind {kind} is measured" for kind in KINDS if kind not in there)
    if block is None or runs.empty:
        return Family("kinds of models", 8, notes=missing)
    effects = kind_effects(block)
    cached = effects["name"].str.endswith(MAMBA) & effects["endpoint"].isin(CACHED)
    effects = effects.assign(word=effects["word"].mask(cached, UNTOLD))
    fixed = ("what a state space skips as executed is 0 by its state, whatever exits say: shown, no finding",)
    notes = (*_block_notes(block), *missing, *(fixed if MAMBA in there else ()))
    return Family("kinds of models", 8, effects, notes, block)


def arm_families(study: Study, permutations: int) -> dict[str, Family]:
    """Families 4 and 5: differences between what was done to the same bases."""
    regained = ((EXIT_LOSS, CONTINUED), (FROZEN, CONTINUED))
    found = _paired("4", "regularisation", study.of("4"), regained, MATCHED[::2], permutations)
    tuned = study.of("5")
    tuning = _paired("5", "tuning", tuned, ((TUNED, PLAIN),), (*MATCHED[::2], CALIBRATION), permutations)
    halves = filter(None, (_halves(arm, tuned[tuned["arm"] == arm]) for arm in ARMS["5"]))
    return {"4": found, "5": replace(tuning, notes=(*tuning.notes, *halves))}


def _halves(arm: str, runs: pd.DataFrame) -> str:
    """The calibration error with that of either half of the documents, which bound it from above."""
    names = [CALIBRATION, f"{CALIBRATION}_first", f"{CALIBRATION}_second"]
    known = runs.reindex(columns=names).astype(np.float64).dropna()
    if known.empty:
        return ""
    mean, first, second = known.to_numpy().mean(axis=0)
    return f"{CALIBRATION} of {arm}: {mean:.3f} (by halves of the documents {first:.3f} and {second:.3f})"


def _paired(
    key: str,
    name: str,
    runs: pd.DataFrame,
    contrasts: Sequence[tuple[str, str]],
    endpoints: Sequence[str],
    permutations: int,
) -> Family:
    """Differences between what was done to the same bases, at the last kept models."""
    bases = runs["base"].drop_duplicates()
    wide = runs.set_index(["base", "arm"]).reindex(columns=["loss", *endpoints]).astype(np.float64)

    def difference(more: str, less: str, endpoint: str) -> Values:
        one, other = (wide[endpoint].reindex([(base, arm) for base in bases]) for arm in (more, less))
        return np.asarray(one.to_numpy() - other.to_numpy())

    tests = [(more, less, endpoint) for more, less in contrasts for endpoint in endpoints]
    values = np.array([difference(*test) for test in tests]).T.reshape(len(bases), len(tests))
    there = np.isfinite(values)
    kept = there.any(axis=0)
    whole = there[:, kept].all(axis=1) & kept.any()
    notes = [
        f"{more} less {less} on {endpoint}: no base has both measured"
        for more, less, endpoint in itertools.compress(tests, ~kept)
    ]
    if kept.any():
        notes += [f"{base} is left out: some of it is missing" for base in bases[~whole]]
        few = "" if whole.sum() > 5 else ": six that all agree reach p = 2/64, fewer nothing below 0.05"
        notes.append(f"{whole.sum()} of 6 bases{few}")
    for more, less in contrasts:
        losses = difference(more, less, "loss")
        if len(known := losses[np.isfinite(losses)]):
            limits = f"{known.min():+.3f} to {known.max():+.3f} in single bases"
            notes.append(f"validation loss of {more} less that of {less}: {known.mean():+.3f} nat ({limits})")
    named = [(f"{more} - {less}", endpoint) for more, less, endpoint in itertools.compress(tests, kept)]
    effects = NONE
    if kept.any():
        measured = itertools.compress(tests, kept)
        means = wide.loc[wide.index.get_level_values("base").isin(bases[whole])].groupby("arm").mean()
        reachable = [means[endpoint].reindex([more, less]).max() for more, less, endpoint in measured]
        effects = flip_effects(
            key,
            named,
            values[whole][:, kept],
            SMALLEST,
            permutations=permutations,
            reachable=np.array(reachable),
        )
    return Family(name, len(tests), effects, tuple(notes))


def size_family(study: Study, corner: pd.DataFrame, runs: pd.DataFrame) -> Family:
    """Block 6: trends over width and depth, by the error of the corner's seeds."""
    name, tests, asked = "sizes", 4, (SKIPPED, REPRESENTATION)
    block = make_block(study, pd.concat([corner, runs]), asked, last=False)
    if block is None or runs.empty or corner.empty:
        return Family(name, tests, notes=("no run of another size is measured",))
    notes = [*_block_notes(block, asked)]
    effects = []
    of_corner = (block.runs["block"] != "6").to_numpy()
    for along, moves, stays in ((WIDER, "hidden", "layers"), (DEEPER, "layers", "hidden")):
        here = of_corner | (block.runs[stays] == corner[stays].iloc[0]).to_numpy()
        at = np.log2(block.runs[moves][here].to_numpy())
        if (count := len(np.unique(at))) < 3:
            notes.append(f"{along}: {count} of 3 sizes are measured")
        if count > 1 and of_corner.sum() > 1:
            effects.append(_slopes(along, block, here, at, of_corner[here]))
            # At one loss, large ones are read in the middle of their training: their ends are said too.
            ends = pd.Series(
                block.runs.loc[here, REPRESENTATION].to_numpy(), index=block.runs.loc[here, moves]
            )
            if ends.notna().all():
                means = [f"{size:g}: {mean:.3f}" for size, mean in ends.groupby(level=0).mean().items()]
                said = "representation of the last models, at losses of their own"
                notes.append(f"{along}: {said}, {', '.join(means)}")
    if effects:
        notes.append(
            "p of each test alone; in the place of a fit with the loss as covariate, which goes with the "
            "size, a trend has to be there after the same tokens too"
        )
    return Family(name, tests, joined(effects), tuple(notes))


def _slopes(
    along: str, block: Block, here: NDArray[np.bool_], at: Values, in_corner: NDArray[np.bool_]
) -> pd.DataFrame:
    """Least squares over sizes, those of several seeds by their mean; the error is that of the corner's.

    At one loss larger models have seen fewer tokens, so that a trend may be one of training: it has to be
    there after the same tokens too. here: which runs of the block; of these, at: where they stand, and
    in_corner: whether they are the corner's.
    """
    member = (at == np.unique(at)[:, None]).astype(np.float64)
    seeds = member.sum(1)
    sizes = member @ at / seeds
    weights = (sizes - sizes.mean()) / ((sizes - sizes.mean()) ** 2).sum()
    freedom = int(in_corner.sum()) - 1

    def slopes_of(values: Values) -> tuple[Values, Values]:
        of_seeds = values[in_corner]
        squares = beyond_rounding(((of_seeds - of_seeds.mean(0)) ** 2).sum(0), of_seeds)
        errors = np.sqrt(squares / freedom * (weights**2 / seeds).sum())
        return weights @ (member @ values / seeds[:, None]), errors

    slopes, errors = slopes_of(block.matched[here])
    after, errors_after = slopes_of(block.after[here])
    return make_effects(
        "sizes",
        [(along, endpoint) for endpoint in block.endpoints],
        slopes,
        errors,
        freedom=freedom,
        adjusted=two_sided(slopes, errors, freedom),
        limit=float(student.ppf(0.975, freedom)),
        smallest={},
        at_tokens=(after, two_sided(after, errors_after, freedom)),
    )


def replication_family(study: Study) -> dict[str, Family]:
    """Rotary less learned positions in the cells of the replication, after the same tokens; none without."""
    runs = study.of(REPLICATION)
    block = make_block(study, runs, SKIPPED_THIRD)
    if runs.empty:
        return {}
    name, tests = "replication", len(SKIPPED_THIRD)
    if block is None or not np.isfinite(block.after).all():
        why = "nothing is measured" if block is None else "trainings ended after different numbers of tokens"
        return {REPLICATION: Family(name, tests, notes=(why,))}
    rotary = (block.runs["positions"] == LEVELS["positions"][1]).to_numpy()
    effects = seeds_apart(
        REPLICATION, ROTARY, block.endpoints, block.after[~rotary], block.after[rotary], SMALLEST
    )
    notes = (
        f"{rotary.sum()} and {(~rotary).sum()} of {sum(REPLICATED.values())} trainings, rotary and learned",
        *_lacking(block, SKIPPED_THIRD),
    )
    return {REPLICATION: Family(name, tests, effects, notes)}


def trend_families(study: Study, runs: pd.DataFrame, permutations: int, seed: int) -> dict[str, Family]:
    """Families 7 and 8. runs: those of blocks 1 and 2 that count."""
    layers = int(runs["layers"].iloc[0]) if len(runs) else 0
    by_tokens = [_by_tokens(study.models_of(run)) for _, run in runs.iterrows()]
    slopes = {SPED: np.array(by_tokens), DEPTH: runs.reindex(columns=[DEPTH])[DEPTH].to_numpy(np.float64)}
    smallest = {SPED: 0.03 / DOUBLINGS, DEPTH: 0.05 * layers / MORE_STEPS}
    found = {}
    for key, name, endpoint in (("7", "training time", SPED), ("8", "required depth", DEPTH)):
        known = np.isfinite(slopes[endpoint])
        notes = [f"{known.sum()} of {len(runs)} trainings have it"]
        effects = NONE
        if known.any():
            cells, cell_of = np.unique(signs_of(runs[known]), axis=0, return_inverse=True)
            sums = np.bincount(cell_of.ravel(), weights=slopes[endpoint][known])
            values = sums / np.bincount(cell_of.ravel())
            notes.append(f"{len(cells)} of 16 cells")
            effects = flip_effects(
                key, [(name, endpoint)], values[:, None], smallest, permutations=permutations, seed=seed
            )
        found[key] = Family(name, 1, effects, tuple(notes))
    return found


def _by_tokens(models: pd.DataFrame) -> float:
    """Slope of the representation on log2 of tokens; NaN where a kept model was not measured."""
    values = models.reindex(columns=[REPRESENTATION])[REPRESENTATION].to_numpy(np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    return float(np.polyfit(np.log2(models["tokens"].to_numpy(np.float64)), values, 1)[0])


def score_family(
    study: Study, groups: Sequence[tuple[pd.DataFrame, pd.DataFrame]], permutations: int
) -> tuple[Family, ScoreValidity | None]:
    """Family 6. groups: runs that share a loss, and those of them that are taken at it."""
    scores = sorted(name for name in study.models if name.startswith(SCORE) or name == ORACLE)
    taken, notes = [], []
    for group, own in groups:
        block = make_block(study, group, (SKIPPED_CODE, *scores), last=False) if len(own) else None
        there = pd.DataFrame()
        if block is not None and SKIPPED_CODE in block.endpoints:
            there = pd.DataFrame(block.matched, index=block.runs["run"], columns=[*block.endpoints])
            there = there[there.index.isin(own["run"])]
            taken.append(there)
        lacking = {} if block is None else block.not_measured
        notes += [
            f"{run} is left out: {lacking.get(run, 'not all of it')} was not measured"
            for run in own["run"]
            if run not in there.index
        ]
    found = pd.concat(taken) if taken else pd.DataFrame()
    shared = [name for name in scores if name in found and found[name].notna().all()]
    notes += [f"{name} was not measured on all of them" for name in scores if name not in shared]
    if not shared:
        nothing = "no training has both a score and layers skipped on code"
        return Family("one score", 1, notes=(nothing,)), None

    def validity(some: pd.DataFrame) -> ScoreValidity:
        values = {name.removeprefix(SCORE): some[name].to_numpy() for name in shared}
        return score_validity([*some.index], values, some[SKIPPED_CODE].to_numpy(), permutations=permutations)

    made = validity(found)
    recurrent = found.index.isin(study.runs.loc[study.runs["kind"] == MAMBA, "run"])
    if recurrent.any() and not recurrent.all():
        made = replace(made, without_recurrent=validity(found[~recurrent]))
    return Family("one score", 1, notes=tuple(notes)), made
