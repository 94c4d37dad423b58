"""Runs and their checkpoints, as a table has them: a line for each checkpoint of each run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.files import read_given_text
from offramp.lab.effects.factors import FACTORS, LEVELS, Signs
from offramp.records.given_file import did_you_mean

Values = NDArray[np.float64]
Number = TypeVar("Number", int, float)

MOST_ABOVE = 0.30
"""Nats above the median last loss of a block beyond which a run counts as diverged."""

KEYS = ("run", "step", "loss")


@dataclass(frozen=True)
class Run:
    """One training. levels: by factor. steps: ascending, one for each checkpoint.

    losses: float64 [checkpoints], validation, nats a token. values: float64 [checkpoints, endpoints].
    """

    name: str
    levels: Mapping[str, str]
    steps: tuple[int, ...]
    losses: Values
    values: Values

    @property
    def signs(self) -> tuple[int, ...]:
        """-1 or +1 of every factor."""
        return tuple(2 * LEVELS[name].index(self.levels[name]) - 1 for name in FACTORS)

    @property
    def finished(self) -> bool:
        """Whether all its losses are numbers."""
        return bool(np.isfinite(self.losses).all())


@dataclass(frozen=True)
class Block:
    """Runs of one block that count, what they are compared at, and those left out with the reason.

    loss: the largest last loss of the runs that count. signs: [runs, factors]. matched, last: float64 [runs,
    endpoints], at that loss and after the last step. losses: float64 [runs], after the last step. below:
    runs that are at or below that loss from their first checkpoint on, which is taken as it is.
    """

    endpoints: tuple[str, ...]
    names: tuple[str, ...]
    loss: float
    signs: Signs
    matched: Values
    last: Values
    losses: Values
    left_out: Mapping[str, str]
    below: tuple[str, ...] = ()


def make_block(runs: Sequence[Run], endpoints: Sequence[str]) -> Block:
    """The runs of a block, as docs/lab/preregistered.md compares them.

    Raises InputError if none counts, and for runs that do not end after the same step.
    """
    left_out = {run.name: "a loss is not finite" for run in runs if not run.finished}
    finished = [run for run in runs if run.finished]
    median = float(np.median([run.losses[-1] for run in finished])) if finished else math.nan
    for run in finished:
        if (above := float(run.losses[-1]) - median) > MOST_ABOVE:
            left_out[run.name] = f"its last loss is {above:.2f} nat above the median"
    kept = [run for run in runs if run.name not in left_out]
    if not kept:
        raise InputError("no run of the table has ended", where="loss", fix="train them to the end")
    steps = max(run.steps[-1] for run in kept)
    if short := [run for run in kept if run.steps[-1] < steps]:
        raise InputError(
            f"the run {short[0].name} ends after step {short[0].steps[-1]:,}, and others after {steps:,}",
            where="step",
            fix="train it to the end, leave it out, or write nan as its last loss if it diverged",
        )
    loss = max(float(run.losses[-1]) for run in kept)
    return Block(
        endpoints=tuple(endpoints),
        names=tuple(run.name for run in kept),
        loss=loss,
        signs=np.array([run.signs for run in kept], dtype=np.int64),
        matched=np.stack([at_loss(run.losses, run.values, loss) for run in kept]),
        last=np.stack([run.values[-1] for run in kept]),
        losses=np.array([run.losses[-1] for run in kept]),
        left_out=left_out,
        below=tuple(run.name for run in kept if (run.losses <= loss).all()),
    )


def at_loss(losses: Values, values: Values, loss: float) -> Values:
    """Values at a validation loss: float64 [endpoints], between two checkpoints in proportion to the losses.

    Between the first checkpoint from which on no loss is above it and the one before; where that is the first
    of all, its own. losses [checkpoints], values [checkpoints, endpoints]. The last loss may not be above.
    """
    above = np.flatnonzero(losses > loss)
    after = int(above[-1]) + 1 if len(above) else 0
    if after == 0:
        return np.asarray(values[0])
    before = after - 1
    share = (losses[before] - loss) / (losses[before] - losses[after])
    return np.asarray(values[before] + share * (values[after] - values[before]))


def read_runs(path: Path) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """The runs in a CSV table, in its order, and the names of its endpoints.

    Columns: run, the five factors, step, loss, and any others, which are endpoints. A loss that is not a
    number ("nan") marks a run that diverged, and there alone an endpoint may be none.

    Raises InputError, with the line, for what is wrong.
    """
    try:
        lines = list(csv.reader(read_given_text(path).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"the table cannot be read: {error}", where=str(path), fix="give a CSV file"
        ) from error
    header = lines[0] if lines else []
    needed = (*KEYS, *FACTORS)
    if missing := [name for name in needed if name not in header]:
        raise InputError(
            f"the table has no column {missing[0]!r}",
            where=f"{path}, line 1",
            fix=f"needed are {', '.join(needed)}; all others are endpoints",
        )
    endpoints = tuple(name for name in header if name not in needed)
    if not endpoints or len(set(header)) < len(header):
        what = "two columns have one name" if endpoints else "the table has no endpoint"
        raise InputError(
            what, where=f"{path}, line 1", fix="add a column for each endpoint, each with its name"
        )
    found: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise InputError(
                f"a line has {len(line)} entries, and the first {len(header)}",
                where=f"{path}, line {number}",
                fix="give each column an entry",
            )
        entry = dict(zip(header, line, strict=True))
        found.setdefault(entry["run"], []).append((number, entry))
    if not found:
        raise InputError("the table has no runs", where=str(path), fix="add a line for each checkpoint")
    return tuple(_run(path, name, entries, endpoints) for name, entries in found.items()), endpoints


def _run(path: Path, name: str, entries: list[tuple[int, dict[str, str]]], endpoints: Sequence[str]) -> Run:
    levels = {factor: entries[0][1][factor] for factor in FACTORS}
    for line, entry in entries:
        for factor in FACTORS:
            if entry[factor] not in LEVELS[factor]:
                fix = did_you_mean(entry[factor], LEVELS[factor])
                raise InputError(f"{factor} is {entry[factor]!r}", where=f"{path}, line {line}", fix=fix)
            if entry[factor] != levels[factor]:
                raise InputError(
                    f"the run {name} has two levels of {factor}",
                    where=f"{path}, line {line}",
                    fix="give another training another name",
                )
    checkpoints: dict[int, list[float]] = {}
    for line, entry in entries:
        where = f"{path}, line {line}"
        step = _number(int, entry, "step", where)
        if step in checkpoints:
            raise InputError(
                f"the run {name} has two lines of step {step:,}", where=where, fix="leave one out"
            )
        loss, *values = (_number(float, entry, key, where) for key in ("loss", *endpoints))
        if math.isfinite(loss) and not np.isfinite(values).all():
            key = endpoints[int(np.argmin(np.isfinite(values)))]
            fix = "measure it: a checkpoint whose loss is a number has all endpoints"
            raise InputError(f"{key} is {entry[key]!r}", where=where, fix=fix)
        checkpoints[step] = [loss, *values]
    found = np.array([checkpoints[step] for step in sorted(checkpoints)])
    return Run(name, levels, tuple(sorted(checkpoints)), found[:, 0], found[:, 1:])


def _number(kind: type[Number], entry: Mapping[str, str], key: str, where: str) -> Number:
    try:
        return kind(entry[key])
    except ValueError as error:
        what = f"{key} is {entry[key]!r}, which is no {'whole number' if kind is int else 'number'}"
        raise InputError(what, where=where, fix="give one") from error
