"""Laying out a study of the lab: what is decided, what is to be done now, and what will follow.

What later trainings are depends on earlier ones: the number of tokens on how fast a pilot is, the learning
rate on its losses, everything on the gate, a second try on a first that diverged, and what is measured on the
losses of a whole block. So a study is planned again whenever all that its plan names has ended, until nothing
is new. Every task's recipe holds figures, and no promise of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.lab.design import GPT2_LIKE, LLAMA_LIKE, run_name
from offramp.lab.sizes import SIZES
from offramp.lab.training.architecture import make_architecture, require_matched
from offramp.lab.training.recipe import require_one_factor
from offramp.lab.training.record import RECORD
from offramp.records.given_file import did_you_mean
from offramp.studies.folder import StudyFolder
from offramp.studies.lab_collected import Collected
from offramp.studies.lab_runs import (
    GROUPS,
    Run,
    compared_with,
    designed,
    diverged,
    in_order,
    matched_places,
    second_try,
)
from offramp.studies.lab_study import PILOT, LabStudy
from offramp.studies.study import placed
from offramp.studies.task import Cell, Plan
from offramp.tracing.exits_folder import TRAINING_FILE

CORNERS = (run_name(GPT2_LIKE), run_name(LLAMA_LIKE))
PILOT_SEED = 1000
PACE_STEPS, PACE_RATE = 50, 2e-3
"""Of the first trainings of all, which tell nothing but how fast they are."""
RATES, PILOT_SHARE = (1e-3, 2e-3, 4e-3), 0.05
GATE_NATS = 0.05
"""By how much the loss with all layers is to be lower than with a third of them."""

DEAR_PLACES = 3
"""Kept models, the last ones, of which about everything is measured: where that is not known yet."""
AFTER_LAST = ("required_depth",)
"""Endpoints of the last kept model alone: earlier ones have too few answers right."""

Measured = list[tuple[int, tuple[str, ...]]]
"""Places of kept models in the schedule, and endpoints that are measured there together."""


def lay_out(study: LabStudy, folder: Path | None) -> Plan:
    """The plan of a study as far as it can be told from what is done in its folder.

    Raises InputError, with the line, for runs that there are not, and for sizes that cannot be matched.
    """
    return _Layout(study, None if folder is None else StudyFolder(folder)).plan()


class _Layout(Collected):
    """Goes through the stages. told: what was decided by results. notes: what a person should know. spent:
    seconds of one worker so far.
    """

    def __init__(self, study: LabStudy, folder: StudyFolder | None) -> None:
        super().__init__(study, folder)
        self.lab = study.lab
        self.size = SIZES[study.lab.size]
        self.blocks = [str(block) for block in study.lab.blocks]
        self.told: dict[str, Any] = {}
        self.notes: list[str] = []
        self.spent = 0.0

    def plan(self) -> Plan:
        """All of it."""
        tokens = self.tokens()
        rate = self.rate(tokens)
        if rate is not None:
            self.told |= {} if self.ahead else {"tokens": tokens, "rate": rate}
            planned = self.wanted(self.design(tokens, rate))
            before = [*self.runs.values(), *(run for run in planned.values() if run.block == "gate")]
            self.spent = self.pace * sum(map(self.run_seconds, before)) if self.fitted else 0.0
            if self.gate(planned):
                for blocks in GROUPS:
                    self.group([run for run in planned.values() if run.block in blocks])
        return Plan(
            study=self.described(),
            cells=tuple(self.cells.values()),
            tasks=self.tasks,
            jobs=self.made_jobs(),
            unavailable=self.absent,
            to_come=tuple(self.to_come.values()),
        )

    # --- what a pilot tells

    def tokens(self) -> int:
        """Of a run: those of the file, else the most with which all fits into the time."""
        if not self.fitted:
            return int(self.lab.tokens)
        fitting = (count for count in reversed(self.size.tokens) if self.effort(count) <= self.seconds)
        return next(fitting, self.size.tokens[0])

    @property
    def fitted(self) -> bool:
        """Whether tokens and runs are chosen by the time."""
        return self.lab.tokens == PILOT

    @property
    def seconds(self) -> float:
        """That all jobs may take together."""
        return 60.0 * self.lab.minutes * self.make.workers

    @cached_property
    def pace(self) -> float:
        """How many times as long as nominal a step of the two corners takes, side by side as in the study."""
        steps = PACE_STEPS * self.size.batch * self.size.context
        runs = [self.pilot_run(f"pace-{corner}", corner, PACE_RATE, steps) for corner in CORNERS]
        if any(one is None or one.failed for one in self.added(runs)):
            self.ahead = True
            return 1.0
        return statistics.mean(map(self._pace_of, runs))

    def _pace_of(self, run: Run) -> float:
        record = RECORD.read(self.model_of(run) / TRAINING_FILE)
        # One that diverged at once still took a step, which is not counted.
        tokens = max(record.tokens, run.recipe.batch * run.recipe.context)
        return record.seconds / (tokens * self.make.token_seconds(run.recipe))

    def effort(self, tokens: int) -> float:
        """Seconds of one worker for everything that is asked for."""
        pilots = self.pilot_runs(tokens) if self.lab.rate == PILOT else []
        runs = [*pilots, *self.wanted(self.design(tokens, PACE_RATE)).values()]
        return self.pace * sum(map(self.run_seconds, runs))

    def run_seconds(self, run: Run) -> float:
        """Nominal seconds of a training and of what is measured of it."""
        measured = [self.make.measure_estimate(run.recipe, names) for _, names in self.outlined(run)]
        return sum(one.seconds or 0.0 for one in (self.make.train_estimate(run.recipe), *measured))

    def rate(self, tokens: int) -> float | None:
        """The largest learning rate; None if every pilot diverged or failed."""
        if self.lab.rate != PILOT:
            return float(self.lab.rate)
        pilots = self.pilot_runs(tokens)
        sums = dict.fromkeys(RATES, 0.0)
        for run, outcome in zip(pilots, self.added(pilots), strict=True):
            if outcome is None:
                self.ahead = True
                return PACE_RATE
            sums[run.recipe.rate] += outcome.last
        best = min(sums, key=sums.__getitem__)
        if math.isfinite(sums[best]):
            self.told["losses_by_rate"] = {f"{one:g}": loss for one, loss in sums.items() if loss < math.inf}
            return best
        self.notes.append("every pilot diverged or failed: no rate can be chosen, and no run is made")
        return None

    def pilot_runs(self, tokens: int) -> list[Run]:
        """The two corners at each rate."""
        few = max(1, round(PILOT_SHARE * tokens))
        return [
            self.pilot_run(f"pilot-{corner}-{rate:g}", corner, rate, few)
            for rate in RATES
            for corner in CORNERS
        ]

    def pilot_run(self, name: str, corner: str, rate: float, tokens: int) -> Run:
        """A training of a corner that only its last loss or its pace is read of."""
        recipe = self.design(tokens, rate)[corner].recipe
        update = {"seed": PILOT_SEED, "checkpoints": 1, "against": None, "factor": None}
        return Run(name, "pilot", recipe.model_copy(update=update))

    # --- the design

    def design(self, tokens: int, rate: float) -> dict[str, Run]:
        """Every run that was written down before, by name, in the study's size."""
        lab = self.lab
        with placed(self.study, "lab", "size"):
            return designed(lab.size, self.make.vocabulary, lab.checkpoints, tokens=tokens, rate=rate)

    def wanted(self, runs: Mapping[str, Run]) -> dict[str, Run]:
        """Those that are asked for, and the corners that the gate needs, in the order of running.

        Raises InputError for a name that there is not, and for two that are to be compared and do not match.
        """
        for place, name in enumerate(self.lab.runs):
            if name not in runs:
                where, fix = self.study.where("lab", "runs", place), did_you_mean(name, runs)
                raise InputError(f"there is no run {name!r}", where=where, fix=fix)
        names = self.lab.runs or tuple(runs)
        chosen = {
            name: run
            for name, run in runs.items()
            if run.block in self.blocks and (run.block == "gate" or name in names)
        }
        if "gate" in self.blocks:
            chosen |= {corner: runs[corner] for corner in CORNERS}
        for run in chosen.values():
            if run.recipe.against is not None:
                self.require_comparable(run, runs[run.recipe.against.removesuffix(".toml")])
        return {run.name: run for run in in_order(list(chosen.values()))}

    def require_comparable(self, run: Run, other: Run) -> None:
        """Hold a recipe against what it names. Raises InputError."""
        with placed(self.study, "lab", "size"):
            require_one_factor(run.recipe, other.recipe, other.name)
            sizes = [make_architecture(one.recipe, self.make.vocabulary) for one in (run, other)]
            require_matched(sizes[0], sizes[1], other.name)

    # --- stages

    def gate(self, planned: Mapping[str, Run]) -> bool:
        """Whether to go on, as far as is known: depth is used. Adds the runs that tell."""
        if "gate" not in self.blocks:
            self.notes.append("the gate is not among the blocks: nothing can be concluded")
            return True
        runs = {name: run for name, run in planned.items() if run.block == "gate" or name in CORNERS}
        found = self.added(runs.values())
        ended = {name: one for name, one in zip(runs, found, strict=True) if one is not None}
        if len(ended) < len(runs):
            self.ahead = True
            return True
        pairs = {corner: (ended[f"gate-{corner}"].last, ended[corner].last) for corner in CORNERS}
        gains = {
            name: shallow - deep if max(shallow, deep) < math.inf else None
            for name, (shallow, deep) in pairs.items()
        }
        passed = all(gain is not None and gain > GATE_NATS for gain in gains.values())
        self.told["gate"] = {"passed": passed, "gains": gains}
        said = ", ".join(
            f"{name} {'cannot be told' if gain is None else f'{gain:+.3f} nat'}"
            for name, gain in gains.items()
        )
        stops = f"needed more than {GATE_NATS:g}: nothing is concluded, and no further run is made"
        self.notes.append(f"gate: depth is {f'used ({said})' if passed else f'idle ({said}); {stops}'}")
        return passed

    def group(self, runs: Sequence[Run]) -> None:
        """Trainings of some blocks; once all have ended, those in the place of the ones that diverged; once
        these have ended too, what is measured."""
        runs = self.within_time(runs)
        left_out = self.diverged(runs)
        again = [second_try(run) for run in runs if run.name in left_out]
        left_out |= self.diverged([*runs, *again])
        if not self.ahead:
            self.told["diverged"] = [*self.told.get("diverged", ()), *sorted(left_out)]
            left_out |= {*self.told["diverged"]}
        group = [*runs, *again]
        compared = [one for one in compared_with(group, self.runs) if one.name not in left_out]
        for run in (*group, *(one for one in compared if one not in group and not self.ahead)):
            if run.name not in left_out:
                self.measure(run, compared)

    def within_time(self, runs: Sequence[Run]) -> list[Run]:
        """Those that there is time for, from the beginning."""
        if not self.fitted:
            return list(runs)
        kept = []
        for run in runs:
            self.spent += self.pace * self.run_seconds(run)
            if self.spent <= self.seconds:
                kept.append(run)
            elif not self.ahead:
                self.notes.append(f"{run.name} is not made: there is no time left for it")
        return kept

    def diverged(self, runs: Sequence[Run]) -> set[str]:
        """Names of those that count as diverged; as long as one has not ended, none. Adds the runs."""
        found = {run.name: one for run, one in zip(runs, self.added(runs), strict=True)}
        ended = {name: one for name, one in found.items() if one is not None}
        if len(ended) < len(found):
            self.ahead = True
            return set()
        return diverged(runs, ended)

    def measure(self, run: Run, compared: Sequence[Run]) -> None:
        """Add what is measured of a training."""
        outcome = self.outcome(run)
        if outcome is not None and outcome.failed:
            return
        known = outcome is not None and not self.ahead
        for place, names in self.needed(run, compared) if known else self.outlined(run):
            task = self.make.measure(self.trained[run.name], run, place, names)
            which = "" if names == self.lab.endpoints else "dear"
            cell = Cell("measure", "", run.name, workload=f"step {run.recipe.schedule[place]}", policy=which)
            self.add(f"measure {run.name}", cell, task)

    def needed(self, run: Run, compared: Sequence[Run]) -> Measured:
        """What the comparison reads: of every kept model what is cheap; what is dear on both sides of the
        loss at which runs are compared, and of the last one."""
        outcomes = {one.name: self.outcome(one) for one in compared}
        last = [one.last for one in outcomes.values() if one is not None and one.last < math.inf]
        own = self.outcome(run)
        assert own is not None, "asked for once it has ended"
        places = range(len(own.losses))
        dear = {places[-1]}
        if run.name in outcomes and last:
            dear |= {*matched_places(own.losses, max(last))}
        return self._measured(places, sorted(dear))

    def outlined(self, run: Run) -> Measured:
        """About what is measured of a training, where its losses are not known yet."""
        places = range(len(run.recipe.schedule))
        return [] if run.block in ("pilot", "gate") else self._measured(places, places[-DEAR_PLACES:])

    def _measured(self, places: Sequence[int], dear: Iterable[int]) -> Measured:
        found = [(place, self.lab.endpoints) for place in places]
        for place in dear:
            names = [name for name in self.lab.dear if name not in self.lab.endpoints]
            kept = tuple(name for name in names if place == places[-1] or name not in AFTER_LAST)
            found += [(place, kept)] if kept else []
        return found

    def described(self) -> dict[str, Any]:
        """The study as its folder keeps it: what its file says, its runs, and what was told by now."""
        value = self.study.to_json()
        value["file"] = {"path": str(self.study.path.absolute()), "sha256": self.study.file_fingerprint}
        runs = {
            name: {
                **run.recipe.model_dump(mode="json", exclude={"text"}),
                **{key: getattr(run, key) for key in ("block", "base", "arm", "again")},
                "train": self.trained[name].key,
            }
            for name, run in self.runs.items()
            if self.trained[name].key in self.tasks
        }
        return {**value, "runs": runs, "told": self.told, "notes": self.notes}
