"""What is told by short trainings before a study of the lab: how many tokens a run has, and its rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from offramp.lab.sizes import SIZES
from offramp.lab.training.recipe import ContinuedRecipe
from offramp.lab.training.record import RECORD
from offramp.studies.folder import StudyFolder
from offramp.studies.lab_collected import CORNERS, Collected
from offramp.studies.lab_runs import Run
from offramp.studies.lab_study import PILOT, LabStudy
from offramp.tracing.exits_folder import TRAINING_FILE

PILOT_SEED = 1000
PACE_STEPS, PACE_RATE = 50, 2e-3
"""Of the first trainings of all, which tell nothing but how fast they are."""
RATES, PILOT_SHARE = (1e-3, 2e-3, 4e-3), 0.05
DEAR_PLACES = 3
"""Kept models, the last ones, of which about everything is measured: where that is not known yet."""
AFTER_LAST = ("required_depth",)
"""Endpoints of the last kept model alone: earlier ones have too few answers right."""

Measured = list[tuple[int, tuple[str, ...]]]
"""Places of kept models in the schedule, and endpoints that are measured there together."""


class Pilot(Collected):
    """Adds the short trainings. told: what was decided by results. notes: what a person should know."""

    def __init__(self, study: LabStudy, folder: StudyFolder | None) -> None:
        super().__init__(study, folder)
        self.size = SIZES[study.lab.size]
        self.told: dict[str, Any] = {}
        self.notes: list[str] = []

    def tokens(self) -> int:
        """Of a run: those of the file, else the most with which all fits into the time; the fewest, and a
        note, where nothing does."""
        if not self.fitted:
            return int(self.lab.tokens)
        *more, fewest = reversed(self.size.tokens)
        for count in more:
            if self.effort(count) <= self.seconds:
                return count
        if (times := self.effort(fewest) / self.seconds) > 1:
            known = "by estimates" if self.ahead else "as fast as the pilot"
            self.notes.append(
                f"even {fewest:,} tokens a run, the fewest, do not fit into {self.lab.minutes:g} minutes: "
                f"all takes about {times * self.lab.minutes:,.0f} ({known}), and the last runs are not made"
            )
        return fewest

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
        return record.seconds / (tokens * self.make.token_seconds(run))

    def effort(self, tokens: int) -> float:
        """Seconds of one worker for everything that is asked for."""
        pilots = self.pilot_runs(tokens) if self.lab.rate == PILOT else []
        runs = [*pilots, *self.wanted(self.design(tokens, PACE_RATE)).values()]
        return self.pace * sum(map(self.run_seconds, runs))

    def run_seconds(self, run: Run) -> float:
        """Nominal seconds of a training and of what is measured of it."""
        measured = [self.make.measure_estimate(run, names) for _, names in self.outlined(run)]
        return sum(one.seconds or 0.0 for one in (self.make.train_estimate(run), *measured))

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
        changed = recipe.model_copy(update=update)
        assert not isinstance(changed, ContinuedRecipe), "corners are trained from scratch"
        return Run(name, "pilot", changed, changed)

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
