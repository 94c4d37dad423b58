"""A training of exits' readings in its folder: states on disk, the steps, and what goes with the exits."""

from __future__ import annotations

import time

import torch

from offramp.errors import InputError
from offramp.lab.exits.checkpoint import Progress
from offramp.lab.exits.evaluation import FLOORS, Evaluator
from offramp.lab.exits.folder import STATES
from offramp.lab.exits.job import Job
from offramp.lab.exits.kinds import Reading
from offramp.lab.exits.record import Rows, Seconds, TrainingRecord
from offramp.lab.exits.states import CachedStates, StatesPlan, read_states, require_enough, write_states
from offramp.lab.exits.trained_readings import TrainedReadings
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.fitting.documents import FittingRows, plan_rows, split_documents, without_text_of
from offramp.tracing.fitting.fit import CLASSIFIER_TOKENS, TrainedReading, complete_heads
from offramp.tracing.fitting.maps import AUTO, fitting_memory
from offramp.tracing.progress import token_bar
from offramp.tracing.request import library_versions

JUDGING_SHARE = 0.2
"""Share of the documents that the classifiers get; training does not see them."""


class ReadingJob(Job):
    """Trains how exits are read, on cached states."""

    def run(self) -> tuple[ExitHeads, TrainingRecord]:
        """Cache states, train, fit what goes with the exits, write."""
        trained_on, judged_on = self._plan()
        plan = StatesPlan.of(self.model, trained_on, self.recipe.at)
        require_enough(plan, self.recipe.batch)
        self._require_memory()
        if self.on_size is not None:
            self.on_size(plan.bytes)
        states = self._states(plan)
        objective = TrainedReadings(self.model, self.recipe, states)
        progress = self.train(objective, self.key(plan.rows, plan.layers))
        started = time.perf_counter()
        reading = objective.reading(progress)
        heads = self._heads(reading, progress, trained_on, judged_on)
        answering = sum(rows.answering for rows in (trained_on, judged_on) if rows is not None)
        seconds = Seconds(answering + states.seconds, progress.seconds, time.perf_counter() - started)
        record = self._record(objective, progress, reading, plan, heads, seconds)
        self.write(heads, record)
        return heads, record

    @property
    def _mapped(self) -> list[int]:
        """The exits that get K,V maps."""
        last = self.model.layers - 1
        return [exit for exit in self.recipe.at if exit < last] if self.request.kv_maps else []

    def _require_memory(self) -> None:
        """Refuse maps that will not fit before anything is trained. Raises InputError."""
        shape, model = self.model.shape, self.model
        needed = fitting_memory(shape.hidden_size, model.layers, 0, self._mapped, AUTO)
        try:
            needed.require(model.name, model.stack.head_device)
        except InputError as error:
            fix = "leave the K,V maps out (--no-kv-maps), or train fewer exits"
            raise InputError(error.what, where=error.where, fix=fix) from error

    def _plan(self) -> tuple[FittingRows, FittingRows | None]:
        """Rows to train on, and rows of other documents for the classifiers, which share no text."""
        recipe = self.recipe
        shares = [JUDGING_SHARE, 1.0 - JUDGING_SHARE] if self.request.classifiers else [1.0]
        trained_on = self.plan(shares)
        if not self.request.classifiers:
            return trained_on, None
        apart = [
            (work, without_text_of(work, split_documents(work, shares, recipe.seed)[0], trained_on.texts))
            for work in self.workloads
        ]
        count = min(CLASSIFIER_TOKENS, recipe.tokens // 4)
        judged_on = plan_rows(
            self.model, apart, count, context=recipe.context, shown=self.shown, folder=self.folder
        )
        return trained_on, judged_on

    def _states(self, plan: StatesPlan) -> CachedStates:
        key, folder = self.key(plan.rows, plan.layers), self.folder / STATES
        states = read_states(folder, key)
        if states is None:
            plan.require_room(folder)
            with token_bar(
                f"{self.model.name}: hidden states", plan.rows.tokens, shown=self.shown
            ) as advance:
                states = write_states(self.model, plan, folder, key, advance)
        return states

    def _heads(
        self,
        reading: Reading,
        progress: Progress,
        trained_on: FittingRows,
        judged_on: FittingRows | None,
    ) -> ExitHeads:
        """The exits with all that goes with them. Nothing in them says how long anything took."""
        return complete_heads(
            self.model,
            self.workloads,
            TrainedReading(
                reading.lens,
                reading.mlp,
                self.provenance(progress),
            ),
            trained_on,
            judged_on,
            exits=self.recipe.at,
            kv_maps=self._mapped,
            short_list=self.request.short_list,
            context=self.recipe.context,
            seed=self.recipe.seed,
            progress=self.shown,
        )

    def _record(
        self,
        objective: TrainedReadings,
        progress: Progress,
        reading: Reading,
        plan: StatesPlan,
        heads: ExitHeads,
        seconds: Seconds,
    ) -> TrainingRecord:
        states, rows = objective.states, plan.rows
        as_it_is = Evaluator(self.model, states.held_out).evaluate([_unchanged] * len(self.recipe.at))
        return TrainingRecord(
            request=self.request,
            settings=progress.settings,
            rows=Rows.of(rows, len(states.fit), len(states.held_out), plan.bytes),
            steps=progress.step,
            stopped=progress.stopped,
            seconds=seconds,
            floors=FLOORS,
            logit_lens=tuple(as_it_is),
            before=tuple(objective.evaluate_all(Reading(objective.ridge))),
            trained=tuple(objective.evaluate_all(reading)),
            history=tuple(progress.history),
            heads=heads.fingerprint,
            versions=library_versions(),
            earlier=self.earlier,
        )


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
