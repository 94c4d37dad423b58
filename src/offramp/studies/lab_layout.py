"""Laying out a study of the lab: what is decided, what is to be done now, and what will follow.

What later trainings are depends on earlier ones: the number of tokens on how fast a pilot is, the learning
rate on its losses, everything on the gate, a second try on a first that diverged, and what is measured on the
losses of a whole block. So a study is planned again whenever all that its plan names has ended, until nothing
is new. Every task's recipe holds figures, and no promise of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offramp.studies.folder import StudyFolder
from offramp.studies.lab_collected import CORNERS
from offramp.studies.lab_pilot import Measured, Pilot
from offramp.studies.lab_runs import (
    GROUPS,
    Run,
    compared_with,
    diverged,
    matched_places,
    second_name,
    second_try,
)
from offramp.studies.lab_study import LabStudy
from offramp.studies.task import Cell, Plan

GATE_NATS = 0.05
"""By how much the loss with all layers is to be lower than with a third of them."""


def lay_out(study: LabStudy, folder: Path | None) -> Plan:
    """The plan of a study as far as it can be told from what is done in its folder.

    Raises InputError, with the line, for runs that there are not, and for sizes that cannot be matched.
    """
    return _Layout(study, None if folder is None else StudyFolder(folder)).plan()


class _Layout(Pilot):
    """Goes through the stages. spent: seconds of one worker so far."""

    spent = 0.0

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
        runs = self.within_time(self.with_bases(runs))
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

    def with_bases(self, runs: Iterable[Run]) -> Iterator[Run]:
        """With the run that stands for each base: itself, or the one in its place; without those that have
        none."""
        out = self.told.get("diverged", ())
        for run in runs:
            names = (run.base, second_name(run.base))
            standing = next((name for name in names if name in self.runs and name not in out), None)
            if not run.base or standing == run.base:
                yield run
            elif standing is not None:
                yield replace(run, base=standing)
            elif not self.ahead:
                self.notes.append(f"{run.name} is not made: {run.base}, from which it goes on, is not there")

    def within_time(self, runs: Iterable[Run]) -> list[Run]:
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
            task = self.make.measure(self.trained[run.name], run, self.text, place, names)
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

    def described(self) -> dict[str, Any]:
        """The study as its folder keeps it: what its file says, its runs, and what was told by now."""
        value = super().described()
        runs = {
            name: {
                **run.model.model_dump(mode="json", exclude={"text"}),
                **run.recipe.model_dump(mode="json", exclude={"text"}),
                "kind": run.model.kind,
                **{key: getattr(run, key) for key in ("block", "base", "arm", "again")},
                "train": self.trained[name].key,
            }
            for name, run in self.runs.items()
            if self.trained[name].key in self.tasks
        }
        return {**value, "runs": runs, "told": self.told, "notes": self.notes}
