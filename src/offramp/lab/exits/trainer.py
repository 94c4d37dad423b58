"""One loop for all exits that are trained on states: deterministic, resumable, ended when it is of no use."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import InputError, ModelError
from offramp.lab.exits.checkpoint import (
    Evaluated,
    Progress,
    Settings,
    Weights,
    read_checkpoint,
    write_checkpoint,
)
from offramp.lab.exits.divergence import Precision, TrainingHead, faster_precision, frequent_targets
from offramp.lab.exits.evaluation import SHOWN_FLOOR, Evaluation, Evaluator
from offramp.lab.exits.kinds import Reading, find_kind
from offramp.lab.exits.recipe import Recipe
from offramp.lab.exits.states import CachedStates
from offramp.lab.exits.steps import Steps
from offramp.models.devices import synchronise
from offramp.models.model import Model
from offramp.tracing.exit_heads import LinearLens
from offramp.tracing.fitting.ridge import lens_sums, solve_lens
from offramp.tracing.rows import slices

CHECKPOINT_SECONDS = 30.0
WRITING_SHARE = 0.05
"""Of the time, that checkpoints may take."""

EVALUATIONS = 20
EVALUATION_SHARE = 0.2
"""Of the minutes asked for, that evaluations may take."""
EVALUATED_ROWS = 1024
"""Held-out rows that are looked at while it trains."""
PATIENCE = 8
"""Evaluations without a better one, at any exit, after which it stops."""

PILOT_STEPS = 6
SAMPLED_TARGETS = 4096
"""Rows that the vocabulary of the loss is chosen by."""

OnStep = Callable[[int, str], None]
"""Told the steps done, and how the last evaluation was in words."""


class Trainer:
    """Trains the exits of one model on cached states.

    checkpoint: the file it goes on from. key: of the training; a checkpoint of another is not read. Exits are
    trained on the same rows and do not touch each other: each has the weights that it would have alone.
    """

    def __init__(
        self, model: Model, recipe: Recipe, states: CachedStates, checkpoint: Path, key: str
    ) -> None:
        self.model, self.recipe, self.states = model, recipe, states
        self.kind = find_kind(recipe.kind)
        self.device = model.stack.head_device
        self.checkpoint, self.key = checkpoint, key
        stride = -(-len(states.held_out) // EVALUATED_ROWS)
        self._evaluator = Evaluator(model, states.held_out[::stride])

    def run(self, on_start: Callable[[Progress], OnStep]) -> Progress:
        """Train to the end, or go on to it. on_start: given where it begins, gives what hears of the steps.

        Raises InputError for minutes that do not suffice, ModelError if nothing can be computed at all.
        """
        with _frozen(self.model.hf):
            progress = read_checkpoint(self.checkpoint, self.key, self.device) or self._begin()
            threads = torch.get_num_threads()
            torch.set_num_threads(progress.settings.threads)
            try:
                self._train(progress, on_start(progress))
            finally:
                torch.set_num_threads(threads)
        return progress

    def reading(self, progress: Progress) -> Reading:
        """The exits at their best."""
        return self.kind.reading([weights.best for weights in progress.weights])

    def evaluate_all(self, reading: Reading) -> list[Evaluation]:
        """Some reading on all held-out rows."""
        reads = [reading.of(place, self.device) for place in range(len(self.recipe.at))]
        return Evaluator(self.model, self.states.held_out).evaluate(list(reads))

    def _begin(self) -> Progress:
        """The start: ridge lenses, evaluated; what is to be timed is timed now and never again."""
        lens = ridge_lens(self.states, self.device)
        weights = []
        for place, exit in enumerate(self.recipe.at):
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + exit)
            initial = self.kind.initial(
                torch.from_numpy(lens.weight[place]),
                torch.from_numpy(lens.bias[place]),
                self.recipe.units,
                generator,
            )
            weights.append(Weights.of({name: one.to(self.device) for name, one in sorted(initial.items())}))
        precision: Any = self.recipe.precision
        if precision == "auto":
            precision = faster_precision(self.model)
        vocabulary = self._vocabulary(precision)
        settings = Settings(
            steps=1, every=1, precision=precision, threads=torch.get_num_threads(), device=self.device.type
        )
        progress = Progress(settings, weights, vocabulary)
        started = time.perf_counter()
        self._evaluate(progress)
        seconds = time.perf_counter() - started
        if not all(math.isfinite(one.loss) for one in progress.history[0].exits):
            raise ModelError(
                "the exits' logits are not finite before any training",
                where=self.model.name,
                fix="try --dtype float32",
            )
        progress.settings = self._settings(progress, seconds)
        write_checkpoint(self.checkpoint, progress, self.key)
        return progress

    def _vocabulary(self, precision: Precision) -> Tensor | None:
        """The tokens of the loss: those that the full model thinks likely most often."""
        if not self.recipe.loss_vocabulary:
            return None
        stride = -(-len(self.states.fit) // SAMPLED_TARGETS)
        head = TrainingHead(self.model, precision)
        return frequent_targets(head, self.states.fit[::stride, -1], self.recipe.loss_vocabulary)

    def _settings(self, progress: Progress, evaluation: float) -> Settings:
        """Steps, and how often to evaluate. evaluation: seconds of one."""
        found = vars(progress.settings)
        if self.recipe.steps is not None:
            steps = self.recipe.steps
            return Settings(**{**found, "steps": steps, "every": -(-steps // EVALUATIONS)})
        assert self.recipe.minutes is not None, "a recipe has steps or minutes"
        step = self._pilot(progress)
        budget = 60.0 * self.recipe.minutes
        evaluations = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * budget / evaluation)))
        steps = int((budget - evaluations * evaluation) / step)
        if steps < 1:
            raise InputError(
                f"{self.recipe.minutes:g} minutes are too few: a step takes {step:.2g} s, an evaluation "
                f"{evaluation:.2g} s",
                where="minutes= (--minutes)",
                fix=f"give {(evaluation + 20 * step) / 60 + 0.01:.2f} minutes or more, or fewer exits",
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
        return Steps(self.model, self.recipe, self.states, progress)

    def _train(self, progress: Progress, on_step: OnStep) -> None:
        loop = self._steps(progress)
        settings, written, pause = progress.settings, time.monotonic(), CHECKPOINT_SECONDS
        on_step(progress.step, in_words(progress.history[-1]))
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
            on_step(progress.step, in_words(progress.history[-1]))
            if progress.stopped or time.monotonic() - written > pause:
                began = time.monotonic()
                loop.keep_moments()
                write_checkpoint(self.checkpoint, progress, self.key)
                written = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, (written - began) / WRITING_SHARE)

    def _evaluate(self, progress: Progress) -> None:
        """Add an evaluation to the history, and keep the weights of exits that were never better."""
        found = self._evaluator.evaluate([self.kind.prepared(weights.now) for weights in progress.weights])
        better = False
        for weights, one in zip(progress.weights, found, strict=True):
            if one.loss < weights.best_loss:
                weights.best_loss, better = one.loss, True
                weights.best = {name: tensor.detach().clone() for name, tensor in weights.now.items()}
        progress.stale = 0 if better else progress.stale + 1
        progress.history.append(Evaluated(progress.step, progress.seconds, tuple(found)))


def ridge_lens(states: CachedStates, device: torch.device) -> LinearLens:
    """The lens in closed form of every exit, from the same states."""
    hidden, last = states.fit.shape[-1], states.layers[-1]
    sums = lens_sums(hidden, last, states.exits, device)
    for side, held_out in ((states.fit, False), (states.held_out, True)):
        for rows in slices(0, len(side), 4096):
            by_layer = {layer: side[rows, place].float() for place, layer in enumerate(states.layers)}
            sums.add(by_layer, np.full(len(by_layer[last]), held_out))
    return solve_lens(sums)


def in_words(evaluated: Evaluated) -> str:
    """An evaluation for a progress bar; of several exits, one after the other."""

    def of(values: Sequence[float], form: str) -> str:
        return " / ".join(format(value, form) for value in values)

    exits = evaluated.exits
    loss, agreement = of([one.loss for one in exits], ".2f"), of([one.agreement for one in exits], ".2f")
    leaving = of([100 * one.leaving[SHOWN_FLOOR] for one in exits], ".0f")
    return f"loss {loss}, agreement {agreement}, {leaving} % leave at 95 %"


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
