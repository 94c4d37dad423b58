"""A training of exits' readings in its folder: states on disk, the steps, and what goes with the exits."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.parts import ExitReading, Weights
from offramp.tracing.fitting.documents import FittingRows, plan_rows, split_documents, without_text_of
from offramp.tracing.fitting.fit import CLASSIFIER_TOKENS, TrainedReading, complete_heads
from offramp.tracing.fitting.maps import AUTO, fitting_memory
from offramp.tracing.progress import say, token_bar
from offramp.tracing.request import library_versions
from offramp.training.checkpoint import Progress
from offramp.training.evaluation import FLOORS, Evaluator
from offramp.training.folder import STATES
from offramp.training.job import Job
from offramp.training.reading_time import ReadingTime, pace_of
from offramp.training.record import Rows, Seconds, TrainingRecord
from offramp.training.states import (
    CachedStates,
    StatesPlan,
    read_states,
    require_enough,
    tokens_read,
    write_states,
)
from offramp.training.trained_readings import EVALUATED_ROWS, TrainedReadings
from offramp.training.trainer import Beside

JUDGING_SHARE = 0.2
"""Share of the documents that the classifiers get; training does not see them."""

PILOT_ANSWERS = 2048
"""Tokens of texts that the model writes itself, whose pace is learned on the first of them."""

FIGURES = 3
"""Evaluations of all held-out rows at the end: without heads, as training started, as it ended."""


class ReadingJob(Job):
    """Trains how exits are read, on cached states."""

    def run(self) -> tuple[ExitHeads, TrainingRecord]:
        """Cache states, train, fit what goes with the exits, write."""
        tokens = self._tokens()
        trained_on, judged_on = self._plan(tokens)
        plan = StatesPlan.of(self.model, trained_on, self.recipe.at, tokens)
        require_enough(plan, self.recipe.batch)
        self._require_memory()
        if self.on_size is not None:
            self.on_size(plan.bytes)
        states = self._states(plan)
        objective = TrainedReadings(self.model, self.recipe, states)
        answering = sum(one.answering for one in (trained_on, judged_on) if one is not None)
        rows, read = Rows.of(trained_on, len(states.fit), len(states.held_out), plan.bytes), trained_on.tokens
        beside = Beside(
            answering + states.seconds + self._reading_time(states.seconds / read).afterwards(read),
            evaluations=FIGURES * max(1.0, len(states.held_out) / EVALUATED_ROWS),
        )
        progress = self.train(objective, self.key(plan.rows, plan.layers), beside)
        started = time.perf_counter()
        reading = objective.reading(progress)
        heads = self._heads(reading, progress, trained_on, judged_on)
        as_it_is = Evaluator(self.model, states.held_out).evaluate([_unchanged] * len(self.recipe.at))
        before, after = (objective.evaluate_all(one) for one in (ExitReading(objective.ridge), reading))
        ended = time.perf_counter() - started
        record = TrainingRecord(
            request=self.request,
            settings=progress.settings,
            rows=replace(rows, allowed=None if tokens >= self.recipe.tokens else tokens),
            steps=progress.step,
            stopped=progress.stopped,
            seconds=Seconds(answering + states.seconds, progress.seconds, ended),
            floors=FLOORS,
            logit_lens=tuple(as_it_is),
            before=tuple(before),
            trained=tuple(after),
            history=tuple(progress.history),
            heads=heads.fingerprint,
            versions=library_versions(),
            earlier=self.earlier,
        )
        self.write(heads, record)
        return heads, record

    def _tokens(self) -> int:
        """The tokens to read: those that are asked for, or as many as the minutes allow on this machine.

        What an earlier process read stays. Raises InputError for minutes that allow too few.
        """
        asked, minutes = self.recipe.tokens, self.recipe.minutes
        if minutes is None:
            return asked
        before = tokens_read(self.folder / STATES)
        if before is not None:
            return before
        writes = any(work.mode == "generation" for work in self.workloads)
        rows = self.plan(self._shares, min(asked, PILOT_ANSWERS) if writes else asked)
        layers = (*self.recipe.at, self.model.layers)
        pace = rows.answering / rows.tokens + pace_of(self.model, rows.contexts, layers)
        reading, most = self._reading_time(pace), asked if writes else rows.tokens
        tokens = reading.affordable(most, minutes)
        if self.shown:
            read = f"{tokens:,}" if tokens == most else f"{tokens:,} of {most:,}"
            first, last = reading.pace * tokens, reading.afterwards(tokens)
            say(
                f"{self.title}, {minutes:g} minutes in all: about {first:,.0f} s to read {read} tokens, "
                f"{last:,.0f} s for what goes with the exits, the rest for steps"
            )
        return asked if tokens == most else tokens

    def _reading_time(self, pace: float) -> ReadingTime:
        maps, exits = bool(self._mapped), len(self.recipe.at)
        return ReadingTime.of(self.model, pace, exits, maps=maps, classifiers=self.request.classifiers)

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

    @property
    def _shares(self) -> list[float]:
        """Of the documents: for the classifiers, if there are any, and to train on."""
        return [JUDGING_SHARE, 1.0 - JUDGING_SHARE] if self.request.classifiers else [1.0]

    def _plan(self, tokens: int) -> tuple[FittingRows, FittingRows | None]:
        """Rows to train on, and rows of other documents for the classifiers, which share no text."""
        recipe, shares = self.recipe, self._shares
        trained_on = self.plan(shares, tokens)
        if not self.request.classifiers:
            return trained_on, None
        apart = [
            (work, without_text_of(work, split_documents(work, shares, recipe.seed)[0], trained_on.texts))
            for work in self.workloads
        ]
        count = min(CLASSIFIER_TOKENS, tokens // 4)
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
        reading: ExitReading[Weights],
        progress: Progress,
        trained_on: FittingRows,
        judged_on: FittingRows | None,
    ) -> ExitHeads:
        """The exits with all that goes with them. Nothing in them says how long anything took."""
        return complete_heads(
            self.model,
            self.workloads,
            TrainedReading(reading, self.provenance(progress)),
            trained_on,
            judged_on,
            exits=self.recipe.at,
            kv_maps=self._mapped,
            short_list=self.request.short_list,
            context=self.recipe.context,
            seed=self.recipe.seed,
            progress=self.shown,
        )


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
