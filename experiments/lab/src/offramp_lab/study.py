"""Running a study: its text, its trainings, what is measured of them, its table of runs and its page.

What later trainings are depends on earlier ones: the learning rate on the losses of a pilot, everything on
the gate, a second try on a first that diverged, and what is measured on the losses of a whole block. Each
stage is worked off side by side; what is there already is left: the same command goes on after a kill.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from joblib import Parallel, delayed
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp import InputError
from offramp_lab.design import (
    CORNERS,
    LLAMA_LIKE,
    MORE_SEEDS,
    REPLICATION,
    Run,
    design,
    run_name,
    stands_for,
)
from offramp_lab.endpoints import ENDPOINTS, MEASURABLE, Endpoints, Sizes, measure
from offramp_lab.families import USED, analyse
from offramp_lab.page import TABLES, write_report
from offramp_lab.recipes import Continued, Dense, invalid, read_toml
from offramp_lab.runs import COLUMNS, FROZEN, MOST_ABOVE, matched_places, read_models
from offramp_lab.text import LabText, TextRequest, make_text, read_text, sha256_of
from offramp_lab.train import train

GROUPS = (("1", "2"), ("3",), ("4",), ("5",), ("6",), (REPLICATION,))
"""Blocks in the order of running. Nothing of a group is measured before its last checkpoint is written."""

PILOT_SEED = 1000
RATES, PILOT_SHARE = (1e-3, 2e-3, 4e-3), 0.05
AFTER_LAST = "required_depth"
"""An endpoint of the last kept model alone: earlier ones have too few answers right."""
LENS = "_lens"
"""What the columns of endpoints through a lens that is trained end with."""


class StudyFile(BaseModel):
    """A study: its runs, and what holds for all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runs: tuple[str, ...] = Field(min_length=1)
    """By name (`offramp_lab.design`). Without those of the gate nothing can be concluded."""
    size: Literal["design", "narrow", "smoke", "100m"] = "design"
    rate: float | Literal["pilot"] = "pilot"
    """The largest learning rate; "pilot": the best of three after a twentieth of the tokens."""
    tokens: int = Field(ge=1)
    """Of a run."""
    checkpoints: int = Field(8, ge=1, le=32)
    endpoints: tuple[str, ...] = ("representation", "calibration")
    """Of every kept model: both are read off one trace."""
    dear: tuple[str, ...] = tuple(name for name in ENDPOINTS if name not in ("representation", "calibration"))
    """Of those kept models, besides, that the comparison at matched loss reads."""
    seed: int = Field(0, ge=0)
    """Of what is measured."""
    threads: int = Field(1, ge=1)
    """Of one training or measurement: as many run side by side as there are cores for."""
    device: str = "cpu"
    sizes: Sizes = Sizes()
    """How much is decoded and read of each kept model: less for a trial."""
    text: TextRequest = TextRequest()


def read_study(path: Path) -> StudyFile:
    """The study in a TOML file; paths in it are relative to it. Raises InputError for what is wrong."""
    try:
        study = StudyFile.model_validate(read_toml(path))
    except ValidationError as error:
        raise invalid(error, str(path)) from error
    known = design("design", tokens=1, rate=1.0)
    for name in study.runs:
        if name not in known:
            raise InputError(f"there is no run {name!r}", where=f"{path}, runs", fix="see offramp_lab.design")
        needed = CORNERS if known[name].block == "gate" else [known[name].base] if known[name].base else []
        if missing := [run for run in needed if run not in study.runs]:
            raise InputError(f"{name} needs {missing[0]}", where=f"{path}, runs", fix="add it")
    for name in (*study.endpoints, *study.dear):
        if name not in MEASURABLE:
            fix = f"choose of: {', '.join(MEASURABLE)}"
            raise InputError(f"there is no endpoint {name!r}", where=str(path), fix=fix)
    return study.model_copy(update={"text": study.text.placed(path.parent)})


def run_study(study: StudyFile, folder: Path, command: str = "") -> Path:
    """Run a study, or go on with it; the page's path.

    Raises InputError for sizes that cannot be matched, and a folder that holds other trainings.
    """
    return Stages(study, folder, text_in(folder, study.text), command).run()


def text_in(folder: Path, request: TextRequest) -> LabText:
    """The text in a study's folder, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "text"
    return read_text(place) if place.exists() else make_text(request, place)


class Stages:
    """One study on its way. records: of trainings that have ended, by the run's name, with `losses` of kept
    models. told: what was decided by results, for the page. out: runs that count as diverged."""

    def __init__(self, study: StudyFile, folder: Path, text: LabText, command: str) -> None:
        self.study, self.folder, self.text, self.command = study, folder, text, command
        self.records: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, Run] = {}
        self.out: set[str] = set()
        self.told: list[str] = []
        cores = max(1, len(os.sched_getaffinity(0)) // study.threads)
        self.workers = cores if study.device == "cpu" else 1

    def run(self) -> Path:
        """All stages; the page's path."""
        tokens = self.study.tokens
        rate = self._rate(tokens)
        planned = in_order(self.design(tokens, rate).values())
        self.told.append(f"{tokens:,} tokens a run, at a largest rate of {rate:g}")
        gate = [run for run in planned if run.block == "gate" or (run.name in CORNERS and self.has_gate)]
        if all(run.block == REPLICATION for run in planned):
            self.told.append("a replication: the gate of these sizes is that of the study that it repeats")
        elif not self.has_gate:
            self.told.append("the gate is not among the runs: nothing can be concluded")
        elif not self._passed(gate):
            return self.report()
        groups = [[run for run in planned if run.block in blocks] for blocks in GROUPS]
        for group in filter(None, groups):
            self._group(group)
            page = self.report()
        return page

    @property
    def has_gate(self) -> bool:
        """Whether runs of the gate are among those that are asked for."""
        return any(name.startswith("gate") for name in self.study.runs)

    def design(self, tokens: int, rate: float) -> dict[str, Run]:
        """Every run that is asked for, by name."""
        every = design(
            self.study.size,
            tokens=tokens,
            rate=rate,
            vocabulary=self.text.vocabulary,
            checkpoints=self.study.checkpoints,
        )
        return {name: run for name, run in every.items() if name in self.study.runs}

    def train(self, runs: Sequence[Run]) -> None:
        """Train some runs side by side, each once."""
        new = [run for run in runs if run.name not in self.records]
        self.runs |= {run.name: run for run in new}
        where = {"device": self.study.device, "threads": self.study.threads}
        recipes = [
            run.recipe.model_copy(update={"base": str(self.folder / "models" / run.base)})
            if isinstance(run.recipe, Continued)
            else run.recipe
            for run in new
        ]
        jobs = [
            delayed(train)(recipe, self.text, self.folder / "models" / run.name, **where)
            for recipe, run in zip(recipes, new, strict=True)
        ]
        (self.folder / "models").mkdir(exist_ok=True)
        for run, record in zip(new, Parallel(n_jobs=self.workers)(jobs), strict=True):
            self.records[run.name] = record | {"losses": [one["natural"] for one in record["history"]]}

    def last(self, run: Run | str) -> float:
        """A run's loss after the last step; infinite if that was not reached."""
        record = self.records[run if isinstance(run, str) else run.name]
        return math.inf if record["diverged"] or not record["losses"] else float(record["losses"][-1])

    def _passed(self, runs: Sequence[Run]) -> bool:
        """Whether depth is used: without it nothing is concluded, and no further run is made."""
        self.train(runs)
        gains = {corner: self.last(f"gate-{corner}") - self.last(corner) for corner in CORNERS}
        passed = all(gain > USED and math.isfinite(gain) for gain in gains.values())
        said = ", ".join(f"{corner} {gain:+.3f} nat" for corner, gain in gains.items())
        stops = f"; needed more than {USED:g}: nothing is concluded, and no further run is made"
        self.told.append(f"gate: depth is {'used' if passed else 'idle'} ({said}){'' if passed else stops}")
        return passed

    def _group(self, runs: Sequence[Run]) -> None:
        """Trainings of some blocks, then those in the place of the diverged ones, then what is measured."""
        runs = self._with_bases(runs)
        self.train(runs)
        again = [run.second_try for run in runs if run.name in self._diverged(runs)]
        self.train(again)
        group = [*runs, *again]
        self.out |= self._diverged(group)
        blocks = {run.block for run in group}
        beside: list[Run] = []
        if blocks & {"3", "6"}:  # compared with the Llama-like corner at one loss
            corner = {
                run_name(seed)
                for seed in (LLAMA_LIKE, *MORE_SEEDS)
                if MORE_SEEDS.get(seed, seed) == LLAMA_LIKE
            }
            beside = [run for run in self.runs.values() if {run.name, run.again} & corner]
        compared = [run for run in [*group, *beside] if run.name not in self.out]
        at_last = blocks & {"4", "5", REPLICATION}  # are compared after their last step
        reached = [] if at_last else [last for run in compared if (last := self.last(run)) < math.inf]
        own = [run for run in group if run.name not in self.out]
        tasks = [task for run in {*own, *compared} for task in self._measurements(run, reached)]
        self.measure(sorted(tasks, key=lambda task: (task[0].name, task[1])))

    def _with_bases(self, runs: Iterable[Run]) -> list[Run]:
        """With the run that stands for each base; without those that have none."""
        found = []
        for run in runs:
            names = (run.base, f"{run.base}-again")
            standing = next((name for name in names if name in self.records and name not in self.out), "")
            if run.base and not standing:
                self.told.append(f"{run.name} is not made: {run.base}, from which it goes on, is not there")
                continue
            found.append(replace(run, base=standing if run.base else ""))
        return found

    def _diverged(self, runs: Sequence[Run]) -> set[str]:
        """Names of runs of which a loss was not finite, or whose last is too far above the median of alike.

        Alike are blocks 1 and 2, one kind in block 3, what the same was done to in blocks 4 and 5.
        """
        found = {run.name for run in runs if self.records[run.name]["diverged"]}
        alike: dict[str, list[Run]] = {}
        for run in runs:
            if run.block != "6" and math.isfinite(self.last(run)):
                kind = f"{run.block} {run.arm}" if run.arm else run.model.kind
                alike.setdefault(kind, []).append(run)
        for some in alike.values():
            median = statistics.median(map(self.last, some))
            found |= {run.name for run in some if self.last(run) - median > MOST_ABOVE}
        return found

    def _measurements(self, run: Run, reached: Sequence[float]) -> list[tuple[Run, int, tuple[str, ...]]]:
        """Of each kept model what is cheap; what is dear on both sides of the loss reached, and last."""
        losses = self.records[run.name]["losses"]
        dear = {len(losses) - 1, *(matched_places(losses, max(reached)) if reached else ())}
        tasks = [(run, place, self.study.endpoints) for place in range(len(losses))]
        for place in sorted(dear):
            names = (name for name in self.study.dear if name != AFTER_LAST or place == len(losses) - 1)
            tasks.append((run, place, tuple(name for name in names if name not in self.study.endpoints)))
        return [task for task in tasks if task[2]]

    def measure(self, tasks: Sequence[tuple[Run, int, tuple[str, ...]]]) -> None:
        """Measure endpoints of kept models side by side; what is there already is left."""
        (self.folder / "measured").mkdir(exist_ok=True)
        new = [task for task in tasks if not self._figures(*task).is_file()]
        jobs = [
            delayed(measure_into)(
                self._figures(*task),
                self._model(task[0], task[1]),
                self.text,
                endpoints=task[2],
                seed=self.study.seed,
                sizes=self.study.sizes,
                device=self.study.device,
                threads=self.study.threads,
            )
            for task in new
        ]
        Parallel(n_jobs=self.workers)(jobs)

    def _figures(self, run: Run, place: int, endpoints: tuple[str, ...]) -> Path:
        """The file of some endpoints of a kept model."""
        step = self.records[run.name]["history"][place]["step"]
        which = "cheap" if endpoints == self.study.endpoints else "dear"
        return self.folder / "measured" / f"{run.name}@{step}.{which}.json"

    def _model(self, run: Run, place: int) -> Path:
        history = self.records[run.name]["history"]
        last = place == len(history) - 1
        return self.folder / "models" / (run.name if last else f"{run.name}@{history[place]['step']}")

    def table(self) -> pd.DataFrame:
        """`runs.csv`: a row for each kept model of each training that has ended. loss: nan where it was not
        finite. An endpoint that was not measured or cannot be told is empty."""
        rows: list[dict[str, Any]] = []
        blocks = {run.block for run in self.design(1, 1.0).values()}
        for name, run in sorted(self.runs.items()):
            if run.block == "pilot":
                continue
            record = self.records[name]
            about = {key: getattr(run.model, key, "") for key in COLUMNS}
            about |= {key: getattr(run, key) for key in ("block", "base", "arm")}
            out = bool(record["diverged"] or name in self.out)
            about |= {
                "run": name,
                "kind": run.model.kind,
                "seed": run.recipe.seed,
                "diverged": str(out).lower(),
            }
            for place, kept in enumerate(record["history"]):
                row = {**about, "step": kept["step"], "tokens": kept["tokens"], "loss": kept["natural"]}
                rows.append(row | self._values(run, place))
            if record["diverged"]:
                step = record["step"] + 1
                tokens = step * run.recipe.batch * run.recipe.context
                rows.append({**about, "step": step, "tokens": tokens, "loss": "nan"})
            if (elsewhere := stands_for(run)) is not None and elsewhere[0] in blocks:
                rows.append(standing_elsewhere(run, rows[-1], *elsewhere))
        return pd.DataFrame(rows, dtype=object)

    def _values(self, run: Run, place: int) -> dict[str, float | None]:
        """What was measured of a kept model, by column."""
        found: dict[str, float | None] = {}
        for endpoints in (self.study.endpoints, self.study.dear):
            path = self._figures(run, place, endpoints)
            if path.is_file():
                values = json.loads(path.read_text(encoding="utf-8"))["values"]
                found |= {name: values[name] for name in sorted(values)}
        return found

    def report(self) -> Path:
        """Write the table of runs, and the page that is made of it."""
        (self.folder / TABLES).mkdir(exist_ok=True)
        path = self.folder / TABLES / "runs.csv"
        self.table().to_csv(path, index=False, lineterminator="\n")
        findings = analyse(read_models(path))
        write_report(findings, self.folder, text=self.text, command=self.command, notes=self.told)
        print("\n".join(self.told), file=sys.stderr, flush=True)
        return self.folder / "report.html"

    def _rate(self, tokens: int) -> float:
        """The largest learning rate. Raises InputError if every pilot diverged."""
        if self.study.rate != "pilot":
            return float(self.study.rate)
        pilots = self._pilots(tokens)
        self.train(pilots)
        sums = dict.fromkeys(RATES, 0.0)
        for run in pilots:
            sums[run.recipe.rate] += self.last(run)
        best = min(sums, key=sums.__getitem__)
        if not math.isfinite(sums[best]):
            raise InputError(
                "every pilot of the rate diverged", where="rate", fix="write a rate, a smaller one"
            )
        self.told.append(
            "sums of both corners' losses by rate: " + ", ".join(f"{k:g} {v:.3f}" for k, v in sums.items())
        )
        return best

    def _pilots(self, tokens: int) -> list[Run]:
        """The two corners at each rate."""
        few = max(1, round(PILOT_SHARE * tokens))
        return [
            self._pilot(f"pilot-{corner}-{rate:g}", corner, rate, few) for rate in RATES for corner in CORNERS
        ]

    def _pilot(self, name: str, corner: str, rate: float, tokens: int) -> Run:
        """A training of a corner that only its last loss or its pace is read of."""
        every = design(self.study.size, tokens=tokens, rate=rate, vocabulary=self.text.vocabulary)
        recipe = every[corner].recipe.model_copy(update={"seed": PILOT_SEED, "checkpoints": 1})
        assert isinstance(recipe, Dense), "corners are dense"
        return Run(name, "pilot", recipe, recipe)


def standing_elsewhere(run: Run, last: Mapping[str, Any], block: str, arm: str) -> dict[str, Any]:
    """The row of another block that a run's last model stands for (`offramp_lab.design.stands_for`)."""
    base = run.base or run.name
    name = f"{base}-{arm.replace('_', '-')}" + ("-again" if run.base and run.again else "")
    moved = {**last, "run": name, "block": block, "base": base, "arm": arm}
    if arm != FROZEN:
        return moved
    lens = {key.removesuffix(LENS): value for key, value in last.items() if key.endswith(LENS)}
    return {key: value for key, value in moved.items() if key in COLUMNS} | lens


def in_order(runs: Iterable[Run]) -> list[Run]:
    """In the order of running: blocks 1 and 2 by a hash of the name, others as they are numbered."""

    def place(run: Run) -> tuple[int, str]:
        group = next((place for place, blocks in enumerate(GROUPS) if run.block in blocks), -1)
        return group, sha256_of(run.name) if group == 0 else ""

    return sorted(runs, key=place)


def measure_into(path: Path, model: Path | str, text: LabText, **how: Any) -> None:
    """Measure endpoints of a model and keep them in a file, which appears when it is whole."""
    made = path.with_name(f"{path.name}.making")
    made.write_text(json.dumps(kept(measure(model, text, **how)), indent=1), encoding="utf-8")
    os.replace(made, path)


def kept(found: Endpoints) -> dict[str, Any]:
    """What was measured as JSON: figures, why others cannot be told, and what is behind them."""
    executed = {
        name: {
            "share": one.share,
            "above": one.above,
            "bound": one.bound,
            "monotone": one.monotone,
            "points": [vars(point) for point in one.points],
        }
        for name, one in found.executed.items()
    }
    depth = found.depth
    return {
        "model": found.model.identity.fingerprint,
        "text": found.text.fingerprint,
        "seed": found.seed,
        "sizes": vars(found.sizes),
        "values": found.values,
        "untold": found.untold,
        "executed": executed,
        "depth": None
        if depth is None
        else {"low": depth.low, "high": depth.high, "table": depth.table.to_dict("list")},
    }
