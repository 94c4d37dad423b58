"""Runs and the models kept of them as pandas frames: which runs count, and what they are compared at.

A frame of models has a row for each kept model of each run, as `runs.csv` has them; a frame of runs one for
each run, with what it is after its last step.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from offramp import InputError
from offramp_lab.design import FACTORS, LEVELS, REPLICATION

Values = NDArray[np.float64]
Signs = NDArray[np.int64]
"""Of runs or cells: -1 and +1, int64 [runs, factors]."""

SKIPPED, SKIPPED_LENS, SKIPPED_CODE = "skipped", "skipped_lens", "skipped_code"
SKIPPED_THIRD = ("skipped_third_80", "skipped_third_90")
"""Of the replication: layers skipped at 80 and 90 % agreement, by exits from a third of the depth on."""
REPRESENTATION, REPRESENTATION_LENS = "representation", "representation_lens"
CALIBRATION, DEPTH, SCORE, ORACLE = "calibration", "required_depth", "score_", "oracle_saturation"
ENDPOINTS = (
    *(SKIPPED, SKIPPED_LENS, REPRESENTATION, REPRESENTATION_LENS, *SKIPPED_THIRD),
    *(CALIBRATION, f"{CALIBRATION}_first", f"{CALIBRATION}_second", DEPTH, SKIPPED_CODE, ORACLE),
)
"""P1 to P4, those of the replication, P5 with its two halves, D1, and of family 6 the saving and the oracle
that is shown beside its scores: columns "score_NAME", of which more means more is saved."""

MOST_ABOVE = 0.30
"""Nats above the median last loss of runs that are alike beyond which a run counts as diverged."""

DENSE, MIXTURE, MAMBA = KINDS = ("dense", "mixture", "mamba2")
GATE = "gate"
PLANNED = {GATE: 4, "1": 16, "2": 4, "3": 8, "4": 18, "5": 12, "6": 4}
"""Runs of each block in the design."""
REPLICATED = {REPLICATION: 24}
"""Likewise in the replication, a study of its own."""
CONTINUED, EXIT_LOSS, FROZEN, TUNED, PLAIN = "continued", "early_exit_loss", "frozen_exits", "tuned", "plain"
ARMS = {"4": (CONTINUED, EXIT_LOSS, FROZEN), "5": (TUNED, PLAIN)}
"""What is done to a base in blocks 4 and 5."""

CORNERS = {"GPT-2-like": (-1, -1, -1, -1, -1), "Llama-like": (1, 1, 1, 1, -1)}
"""Signs of the two corners of interest; residuals are plain in both."""

NAMES = ["run", "block", "base", "arm", *FACTORS, "kind"]
SIZES = ["layers", "hidden", "seed"]
COLUMNS = [*NAMES[:-1], "layers", "hidden", "kind", "seed", "step", "tokens", "loss", "diverged"]
"""Of every table of models, in their order; a column for each endpoint that was measured comes after them."""
KEY = ["run", "block", "arm"]
"""A run may stand for something in other blocks too: a base, frozen, with the exits trained for its lens."""


def read_models(path: Path) -> pd.DataFrame:
    """The models of a CSV table, those of a run together and by their steps.

    Raises InputError, with the line or the column, for what is wrong.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(
            f"the table cannot be read: {error}", where=str(path), fix="give a CSV file"
        ) from error
    return checked(table, str(path))


def checked(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Models with the types of their columns, of rows of text. Raises InputError as `read_models`."""
    if missing := [name for name in COLUMNS if name not in table]:
        needed = f"needed are {', '.join(COLUMNS)}"
        raise InputError(f"the table has no column {missing[0]!r}", where=where, fix=needed)
    endpoints = [name for name in table if name not in COLUMNS]
    for name in endpoints:
        if name not in ENDPOINTS and not name.startswith(SCORE):
            near = difflib.get_close_matches(name, ENDPOINTS, n=1)
            fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(ENDPOINTS)}, {SCORE}NAME"
            raise InputError(f"there is no endpoint {name!r}", where=f"{where}, line 1", fix=fix)
    if table.empty:
        raise InputError("the table has no runs", where=where, fix="add a line for each kept model")
    lines = table.index + 2

    def refuse(wrong: pd.Series | NDArray[np.bool_], what: str, fix: str) -> None:
        if np.any(wrong):
            raise InputError(what, where=f"{where}, line {lines[np.flatnonzero(wrong)[0]]}", fix=fix)

    found = table.copy()
    for name in (*SIZES, "step", "tokens", "loss", *endpoints):
        found[name] = pd.to_numeric(table[name].replace({"": "nan"}), errors="coerce")
        # A loss may be none; tokens are not read of a model without one; what was not measured is empty.
        empty = table[name].str.lower().isin(["", "nan"] if name in (*endpoints, "loss", "tokens") else [])
        refuse(found[name].isna() & ~empty, f"{name} is no number", "give one")
    for name in set(endpoints) - {DEPTH}:
        if not name.startswith(SCORE):
            refuse((found[name] < 0) | (found[name] > 1), f"{name} is no share", "a share is from 0 to 1")
    refuse(
        np.isinf(found[endpoints]).any(axis=1), "an endpoint is not finite", "leave it empty if not measured"
    )
    truth = (
        table["diverged"].str.lower().map({"true": True, "1": True, "false": False, "0": False, "": False})
    )
    refuse(truth.isna(), "diverged is neither", "write true or false")
    blocks = PLANNED | REPLICATED
    refuse(~table["block"].isin(blocks), "there is no such block", f"choose of {', '.join(blocks)}")
    refuse(~table["kind"].isin(KINDS), "there is no such kind", f"choose of {', '.join(KINDS)}")
    for factor, levels in LEVELS.items():
        wrong = (table["kind"] == DENSE) & ~table[factor].isin(levels)
        refuse(wrong, f"there is no such {factor}", f"choose of {', '.join(levels)}")
    known = [arm in ARMS.get(block, ("",)) for arm, block in zip(table["arm"], table["block"], strict=True)]
    refuse(~np.array(known), "the arm is none of its block", "see docs/preregistered.md")
    refuse(
        table["block"].isin(ARMS) != (table["base"] != ""),
        "the base does not fit the block",
        "runs of blocks 4 and 5 go on from the run that is their base, and no others do",
    )
    found["diverged"] = truth.astype(bool)
    refuse(found.duplicated([*KEY, "step"]), "a run has two lines of one step", "leave one out")
    groups = found.groupby(KEY, sort=False)
    for name in (*NAMES, *SIZES):
        refuse(
            groups[name].transform("nunique") > 1, f"a run has two values of {name}", "give it another name"
        )
    found["first"] = groups["step"].transform(lambda steps: steps.index[0])
    return found.sort_values(["first", "step"], kind="stable").drop(columns="first").reset_index(drop=True)


@dataclass(frozen=True)
class Study:
    """The runs of a study, and which of them count.

    models: see above. runs: a row for each, with what it is after its last step; its index is the place of
    the run. left_out: the reason by the name of a run that does not count.
    """

    models: pd.DataFrame
    runs: pd.DataFrame = field(init=False)
    left_out: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        groups = self.models.groupby(KEY, sort=False)
        # The row itself: `last` would take the last that is known of each column.
        last = self.models.loc[groups["step"].idxmax()].reset_index(drop=True)
        last["diverged"] = groups["diverged"].any().to_numpy()
        last["finite"] = groups["loss"].agg(lambda losses: bool(np.isfinite(losses).all())).to_numpy()
        object.__setattr__(self, "runs", last)
        object.__setattr__(self, "left_out", _left_out(last))

    def of(self, *blocks: str) -> pd.DataFrame:
        """The runs of some blocks that count."""
        runs = self.runs
        return runs[runs["block"].isin(blocks) & ~runs["run"].isin(self.left_out)]

    def models_of(self, run: pd.Series) -> pd.DataFrame:
        """The kept models of a run, by their steps."""
        models = self.models
        return models[(models[KEY] == run[KEY]).all(axis=1)]


def _left_out(runs: pd.DataFrame) -> dict[str, str]:
    """The runs of a whole study that do not count, by name with the reason."""
    found = dict.fromkeys(runs.loc[runs["diverged"], "run"], "it diverged")
    found |= dict.fromkeys(runs.loc[~runs["finite"], "run"], "a loss is not finite")
    longest = runs.groupby(["block", "arm"])["step"].transform("max")
    short = runs["finite"] & (runs["step"] < longest)
    for run, step, steps in zip(runs["run"][short], runs["step"][short], longest[short], strict=True):
        found[run] = f"it ends after step {step:,} of {steps:,}"
    # Sizes differ in the gate and in block 6, and losses with them.
    there = runs[runs["finite"] & ~short & ~runs["block"].isin([GATE, "6"])]
    alike = there["arm"].where(there["block"].isin(ARMS), there["kind"])
    above = there["loss"] - there.groupby([there["block"].replace("2", "1"), alike])["loss"].transform(
        "median"
    )
    for run, nats in zip(there["run"], above, strict=True):
        if nats > MOST_ABOVE:
            found[run] = f"its last loss is {nats:.2f} nat above the median"
    return found


def signs_of(runs: pd.DataFrame) -> Signs:
    """-1 or +1 of every factor of dense runs, int64 [runs, factors]."""
    columns = [runs[factor].map({low: -1, high: 1}) for factor, (low, high) in LEVELS.items()]
    return (
        np.stack([column.to_numpy() for column in columns], axis=1)
        .astype(np.int64)
        .reshape(len(runs), len(FACTORS))
    )


def in_corner(runs: pd.DataFrame, corner: str) -> pd.DataFrame:
    """The dense runs of a corner."""
    dense = runs[runs["kind"] == DENSE]
    return dense[(signs_of(dense) == CORNERS[corner]).all(axis=1)]


@dataclass(frozen=True)
class Block:
    """Runs that are compared, and what they are compared at.

    loss: the largest last loss of the runs that count, measured or not. runs: those of them that were
    measured. matched, last: float64 [runs, endpoints], at that loss and after the last step. not_measured: by
    name what runs lack that others have. below: runs at or below that loss from their first model on, which
    is taken as it is.
    """

    endpoints: tuple[str, ...]
    runs: pd.DataFrame
    loss: float
    matched: Values
    last: Values
    not_measured: dict[str, str]
    below: tuple[str, ...]

    @property
    def after(self) -> Values:
        """Values after the same number of tokens, like `last`; NaN where runs ended after different ones."""
        return self.last if self.runs["tokens"].nunique() == 1 else np.full_like(self.last, np.nan)


def make_block(
    study: Study, runs: pd.DataFrame, endpoints: Sequence[str], *, last: bool = True
) -> Block | None:
    """Runs at the loss that all of them reach; None if none of them was measured.

    runs: those that count. endpoints: of which those that no run has are left out. last: whether endpoints
    are needed after the last step too.
    """
    if runs.empty:
        return None
    loss = float(runs["loss"].max())
    models = [study.models_of(run) for _, run in runs.iterrows()]
    values = [one.reindex(columns=endpoints).to_numpy(np.float64) for one in models]
    losses = [one["loss"].to_numpy() for one in models]
    at = np.array([at_loss(loss_of, value, loss) for loss_of, value in zip(losses, values, strict=True)])
    after = np.array([value[-1] for value in values])
    there = np.isfinite(at) & (np.isfinite(after) if last else True)
    kept = there.any(axis=0)
    whole = there[:, kept].all(axis=1)
    if not (kept.any() and whole.any()):
        return None
    names = [name for name, one in zip(endpoints, kept, strict=True) if one]
    lacking = {
        run: ", ".join(name for name, one in zip(names, row, strict=True) if not one)
        for run, row in zip(runs["run"], there[:, kept], strict=True)
    }
    low = np.array([bool((one <= loss).all()) for one in losses])
    return Block(
        endpoints=tuple(names),
        runs=runs[whole],
        loss=loss,
        matched=at[whole][:, kept],
        last=after[whole][:, kept],
        not_measured={run: what for run, what in lacking.items() if what},
        below=tuple(runs["run"][whole & low]),
    )


def at_loss(losses: Values, values: Values, loss: float) -> Values:
    """Values at a validation loss, between two kept models in proportion to their losses: [...].

    Between the first model from which on no loss is above it and the one before; where that is the first of
    all, its own. losses: float64 [models]; values: [models, ...]. The last loss may not be above.
    """
    *_, after = matched_places(losses, loss)
    if after == 0 or losses[after] == loss:
        return np.asarray(values[after])
    share = (losses[after - 1] - loss) / (losses[after - 1] - losses[after])
    return np.asarray(values[after - 1] + share * (values[after] - values[after - 1]))


def matched_places(losses: Sequence[float] | Values, loss: float) -> tuple[int, ...]:
    """The kept models between which a run passes a loss: the first from which on none is above it, and the
    one before, if any. The last loss may not be above."""
    after = 1 + max((place for place, one in enumerate(losses) if one > loss), default=-1)
    return (after - 1, after) if after else (0,)
