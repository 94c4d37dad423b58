"""Runs and the models kept of them, as `runs.csv` has them: a line for each kept model of each run."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.files import read_given_text
from offramp.lab.effects.factors import FACTORS, LEVELS
from offramp.records.given_file import did_you_mean

Values = NDArray[np.float64]
Number = TypeVar("Number", int, float)

SKIPPED, SKIPPED_LENS, SKIPPED_CODE = "skipped", "skipped_lens", "skipped_code"
REPRESENTATION, REPRESENTATION_LENS = "representation", "representation_lens"
CALIBRATION, DEPTH, SCORE, ORACLE = "calibration", "required_depth", "score_", "oracle_saturation"
ENDPOINTS = (
    *(SKIPPED, SKIPPED_LENS, REPRESENTATION, REPRESENTATION_LENS),
    *(CALIBRATION, f"{CALIBRATION}_first", f"{CALIBRATION}_second", DEPTH, SKIPPED_CODE, ORACLE),
)
"""P1 to P4, P5 with its two halves, D1, and of family 6 the saving and the oracle that is shown beside its
scores: columns "score_NAME", of which more means more is saved."""

SHARES = {*ENDPOINTS} - {DEPTH}
"""Endpoints that lie between 0 and 1."""

MOST_ABOVE = 0.30
"""Nats above the median last loss of runs that are alike beyond which a run counts as diverged."""

DENSE, MIXTURE, MAMBA = KINDS = ("dense", "mixture", "mamba2")
GATE = "gate"
BLOCKS = (GATE, "1", "2", "3", "4", "5", "6")
CONTINUED, EXIT_LOSS, FROZEN, TUNED, PLAIN = "continued", "early_exit_loss", "frozen_exits", "tuned", "plain"
ARMS = {"4": (CONTINUED, EXIT_LOSS, FROZEN), "5": (TUNED, PLAIN)}
"""What is done to a base in blocks 4 and 5."""

NAMES = ("run", "block", "base", "arm", *FACTORS, "kind")
SIZES = ("layers", "hidden", "seed")
NEEDED = (*NAMES, *SIZES, "step", "tokens", "loss", "diverged")
WORDS = {"true": True, "1": True, "false": False, "0": False, "": False}


@dataclass(frozen=True)
class Run:
    """One training. levels: by factor. steps, tokens: ascending, one for each kept model.

    losses: float64 [models], validation, nats a token. values: by endpoint, float64 [models], NaN where it
    was not measured.
    """

    name: str
    block: str
    base: str
    arm: str
    levels: Mapping[str, str]
    kind: str
    layers: int
    hidden: int
    seed: int
    steps: tuple[int, ...]
    tokens: tuple[int, ...]
    losses: Values
    diverged: bool
    values: Mapping[str, Values]

    @property
    def signs(self) -> tuple[int, ...]:
        """-1 or +1 of every factor, of a dense run."""
        return tuple(2 * LEVELS[name].index(self.levels[name]) - 1 for name in FACTORS)

    def at(self, endpoint: str) -> Values:
        """An endpoint at every kept model, float64 [models]; NaN where it was not measured."""
        return self.values.get(endpoint, np.full(len(self.steps), np.nan))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV table. Raises InputError for what is no table."""
    try:
        lines = list(csv.reader(read_given_text(path).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"the table cannot be read: {error}", where=str(path), fix="give a CSV file"
        ) from error
    header = lines[0] if lines else []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise InputError(
                f"a line has {len(line)} entries, and the first {len(header)}",
                where=f"{path}, line {number}",
                fix="give each column an entry",
            )
    if len(set(header)) < len(header):
        raise InputError("two columns have one name", where=f"{path}, line 1", fix="leave one out")
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


def _require_columns(header: Iterable[str], where: str) -> None:
    if missing := [name for name in NEEDED if name not in header]:
        fix = f"needed are {', '.join(NEEDED)}"
        raise InputError(f"the table has no column {missing[0]!r}", where=where, fix=fix)
    for name in header:
        if name not in (*NEEDED, *ENDPOINTS) and not name.startswith(SCORE):
            fix = did_you_mean(name, (*ENDPOINTS, f"{SCORE}NAME"))
            raise InputError(f"there is no endpoint {name!r}", where=where, fix=fix)


def runs_of(rows: Sequence[Mapping[str, str]], table: str = "runs.csv") -> tuple[Run, ...]:
    """The runs of rows as `runs.csv` has them. Raises InputError, with the line, for what is wrong."""
    if not rows:
        raise InputError("the table has no runs", where=table, fix="add a line for each kept model")
    _require_columns(rows[0], f"{table}, line 1")
    # A run may stand for something in other blocks too: a base, frozen, with the exits trained for its lens.
    found: dict[tuple[str, ...], list[tuple[str, Mapping[str, str]]]] = {}
    for number, row in enumerate(rows, start=2):
        place = (row["run"], row["block"], row["arm"])
        found.setdefault(place, []).append((f"{table}, line {number}", row))
    return tuple(_run(lines) for lines in found.values())


def _run(lines: Sequence[tuple[str, Mapping[str, str]]]) -> Run:
    where, first = lines[0]
    _require_known(first, where)
    for other, row in lines:
        for key in (*NAMES, *SIZES):
            if row[key] != first[key]:
                what = f"the run {first['run']} has two values of {key}"
                raise InputError(what, where=other, fix="give another training another name")
    models = sorted((_number(int, row, "step", other), other, row) for other, row in lines)
    for (step, *_), (again, other, _) in itertools.pairwise(models):
        if step == again:
            what = f"the run {first['run']} has two lines of step {step:,}"
            raise InputError(what, where=other, fix="leave one out")
    losses = np.array([_number(float, row, "loss", other) for _, other, row in models])
    endpoints = [key for key in first if key not in NEEDED]
    return Run(
        name=first["run"],
        block=first["block"],
        base=first["base"],
        arm=first["arm"],
        kind=first["kind"],
        levels={factor: first[factor] for factor in FACTORS},
        layers=_number(int, first, "layers", where),
        hidden=_number(int, first, "hidden", where),
        seed=_number(int, first, "seed", where),
        steps=tuple(step for step, *_ in models),
        tokens=tuple(
            _number(int, row, "tokens", other) if np.isfinite(loss) else 0
            for loss, (_, other, row) in zip(losses, models, strict=True)
        ),
        losses=losses,
        diverged=any(_truth(row, other) for _, other, row in models),
        values={key: np.array([_measured(row, key, other) for _, other, row in models]) for key in endpoints},
    )


def _require_known(row: Mapping[str, str], where: str) -> None:
    arms = ARMS.get(row["block"], ("",))
    known: dict[str, Sequence[str]] = {"block": BLOCKS, "kind": KINDS, "arm": arms}
    if row["kind"] == DENSE:
        known |= LEVELS
    for key, values in known.items():
        if row[key] not in values:
            raise InputError(f"{key} is {row[key]!r}", where=where, fix=did_you_mean(row[key], values))
    if (row["block"] in ARMS) != bool(row["base"]):
        what = "names no base" if row["block"] in ARMS else "names a base"
        fix = "runs of blocks 4 and 5 go on from the run that is their base, and no others do"
        raise InputError(f"the run {row['run']} {what}", where=where, fix=fix)


def _measured(row: Mapping[str, str], key: str, where: str) -> float:
    if row[key] == "":
        return math.nan
    value = _number(float, row, key, where)
    if not math.isfinite(value):
        raise InputError(
            f"{key} is {row[key]!r}", where=where, fix="leave it empty where it was not measured"
        )
    if key in SHARES and not 0.0 <= value <= 1.0:
        raise InputError(f"{key} is {row[key]!r}", where=where, fix="a share is from 0 to 1")
    return value


def _truth(row: Mapping[str, str], where: str) -> bool:
    if row["diverged"].lower() not in WORDS:
        raise InputError(f"diverged is {row['diverged']!r}", where=where, fix="write true or false")
    return WORDS[row["diverged"].lower()]


def _number(kind: type[Number], row: Mapping[str, str], key: str, where: str) -> Number:
    try:
        return kind(row[key])
    except ValueError as error:
        what = f"{key} is {row[key]!r}, which is no {'whole number' if kind is int else 'number'}"
        raise InputError(what, where=where, fix="give one") from error
