"""One loop for all that is trained beside a frozen model: deterministic, resumable, ended in time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp.errors import InputError, ModelError
from offramp.models.devices import synchronise
from offramp.models.model import Model
from offramp.models.process import with_threads
from offramp.training.checkpoint import (
    Evaluated,
    Progress,
    Settings,
    Weights,
    read_checkpoint,
    write_checkpoint,
)
from offramp.training.divergence import usual_precision
from offramp.training.recipe import Recipe
from offramp.training.steps import Objective, Steps

CHECKPOINT_SECONDS = 30.0
WRITING_SHARE = 0.05
"""Of the time, that checkpoints may take."""

EVALUATIONS = 20
EVALUATION_SHARE = 0.2
"""Of the minutes of steps, that evaluations may take."""
PATIENCE = 8
"""Evaluations without a better one, at any exit, after which it stops."""

PILOT_STEPS = 6
OnStep = Callable[[int, str], None]
"""Told the steps done, and how the last evaluation was in words."""


@dataclass(frozen=True)
class Beside:
    """What the minutes of a training go to beside its steps and their evaluations.

    seconds: of reading text, before, and of what goes with the exits, afterwards. evaluations: afterwards, in
    the size of those in training.
    """

    seconds: float
    evaluations: float


class Trainer:
    """Trains what an objective says, beside a model that is left as it is.

    checkpoint: the file it goes on from. key: of the training; a checkpoint of another is not read. beside:
    what its minutes go to beside steps.
    """

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        objective: Objective,
        checkpoint: Path,
        key: str,
        beside: Beside,
    ) -> None:
        self.model, self.recipe, self.objective = model, recipe, objective
        self.beside = beside
        self.device = model.stack.head_device
        self.checkpoint, self.key = checkpoint, key

    def run(self, on_start: Callable[[Progress], OnStep]) -> Progress:
        """Train to the end, or go on to it. on_start: given where it begins, gives what hears of the steps.

        Raises InputError for minutes that do not suffice, ModelError if nothing can be computed at all.
        """
        with _frozen(self.model.hf):
            progress = read_checkpoint(self.checkpoint, self.key, self.device) or self._begin()
            with with_threads(progress.settings.threads):
                self._train(progress, on_start(progress))
        return progress

    def _begin(self) -> Progress:
        """The start, evaluated; minutes become steps now and never again."""
        started = time.perf_counter()
        weights = [
            Weights.of({name: one.to(self.device) for name, one in sorted(initial.items())})
            for initial in self.objective.initial()
        ]
        precision: Any = self.recipe.precision
        if precision == "auto":
            precision = usual_precision(self.device.type)
        vocabulary = self.objective.vocabulary(precision)
        settings = Settings(
            steps=1, every=1, precision=precision, threads=torch.get_num_threads(), device=self.device.type
        )
        progress = Progress(settings, weights, vocabulary, seconds=time.perf_counter() - started)
        self._evaluate(progress)
        seconds = time.perf_counter() - started - progress.seconds
        if not all(math.isfinite(one.loss) for one in progress.history[0].exits):
            raise ModelError(
                "the exits' logits are not finite before any training",
                where=self.model.name,
                fix="try --dtype float32",
            )
        progress.settings = self._settings(progress, seconds, started)
        progress.seconds = time.perf_counter() - started
        write_checkpoint(self.checkpoint, progress, self.key)
        return progress

    def _settings(self, progress: Progress, evaluation: float, started: float) -> Settings:
        """Steps, and how often to evaluate. evaluation: seconds of one. started: when training began."""
        found = vars(progress.settings)
        if self.recipe.steps is not None:
            steps = self.recipe.steps
            return Settings(**{**found, "steps": steps, "every": -(-steps // EVALUATIONS)})
        assert self.recipe.minutes is not None, "a recipe has steps or minutes"
        step = self._pilot(progress)
        others = self.beside.seconds + self.beside.evaluations * evaluation + time.perf_counter() - started
        budget = max(0.0, 60.0 * self.recipe.minutes - others)
        evaluations = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * budget / evaluation)))
        steps = int((budget - evaluations * evaluation) / step)
        if steps < self.recipe.fewest_steps:
            enough = others + (evaluation + max(20, self.recipe.fewest_steps) * step) / (1 - EVALUATION_SHARE)
            raise InputError(
                f"{self.recipe.minutes:g} minutes are too few: reading the text, and what goes with the "
                f"exits, takes {others:.2g} s, a step {step:.2g} s, an evaluation {evaluation:.2g} s",
                where="minutes= (--minutes)",
                fix=f"give {enough / 60 + 0.01:.2f} minutes or more, or fewer exits",
            )
        return Settings(**{**found, "steps": steps, "every": -(-steps // evaluations)})

    def _pilot(self, progress: Progress) -> float:
        """Seconds of one step, on copies of the weights: the median of a few."""
        copies = [Weights.of(weights.now) for weights in progress.weights]
        loop = self._steps(Progress(progress.settings, copies, progress.vocabulary))
        times = []
        for step in range(PILOT_STEPS):
            started = time.perf_counter()
            loop.step(step)
            synchronise(self.device)
            times.append(time.perf_counter() - started)
        return float(np.median(times[1:]))

    def _steps(self, progress: Progress) -> Steps:
        return Steps(self.model, self.recipe, self.objective, progress)

    def _train(self, progress: Progress, on_step: OnStep) -> None:
        loop = self._steps(progress)
        settings, written, pause = progress.settings, time.monotonic(), CHECKPOINT_SECONDS
        on_step(progress.step, self._in_words(progress))
        while not progress.stopped:
            started = time.perf_counter()
            if loop.step(progress.step):
                progress.step += 1
                if progress.step % settings.every == 0 or progress.step == settings.steps:
                    progress.seconds += time.perf_counter() - started
                    started = time.perf_counter()
                    self._evaluate(progress)
                if progress.step == settings.steps:
                    progress.stopped = "the steps are done"
                elif progress.stale >= PATIENCE:
                    progress.stopped = f"no exit was better on held-out text in {PATIENCE} evaluations"
            else:
                progress.stopped = f"the loss was not finite at step {progress.step + 1}"
            progress.seconds += time.perf_counter() - started
            on_step(progress.step, self._in_words(progress))
            if progress.stopped or time.monotonic() - written > pause:
                began = time.monotonic()
                loop.keep_moments()
                write_checkpoint(self.checkpoint, progress, self.key)
                written = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, (written - began) / WRITING_SHARE)

    def _in_words(self, progress: Progress) -> str:
        return self.objective.in_words(progress.history[-1].exits)

    def _evaluate(self, progress: Progress) -> None:
        """Add an evaluation to the history, and keep the weights of parts that were never better."""
        found = self.objective.evaluate([weights.now for weights in progress.weights])
        better = False
        for weights, loss in zip(progress.weights, self.objective.judged(found), strict=True):
            if loss < weights.best_loss:
                weights.best_loss, better = loss, True
                weights.best = {name: tensor.detach().clone() for name, tensor in weights.now.items()}
        progress.stale = 0 if better else progress.stale + 1
        progress.history.append(Evaluated(progress.step, progress.seconds, tuple(found)))


@contextmanager
def _frozen(hf: Any) -> Iterator[None]:
    """No weight of the model takes a gradient for a while."""
    trained = [weight for weight in hf.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
