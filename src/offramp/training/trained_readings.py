"""Exits whose reading is trained, on cached states: the kinds that `offramp.training.kinds` names."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offramp.heads.parts import ExitReading, Lens, Weights
from offramp.models.model import Model
from offramp.tracing.fitting.ridge import ExitSums, lens_sums, solve_lens
from offramp.tracing.rows import slices
from offramp.training.checkpoint import Progress
from offramp.training.divergence import Precision, TrainingHead, frequent_targets
from offramp.training.evaluation import SHOWN_FLOOR, Evaluation, Evaluator
from offramp.training.kinds import (
    Parameters,
    RidgeStart,
    exits_of,
    initial_lens,
    initial_network,
    joined,
    prepared,
    reading_of,
)
from offramp.training.recipe import Recipe
from offramp.training.states import CachedStates
from offramp.training.steps import LossOf, batch_rows

EVALUATED_ROWS = 1024
"""Held-out rows that are looked at while it trains."""

SAMPLED_TARGETS = 4096
"""Rows that the vocabulary of the loss is chosen by."""


class TrainedReadings:
    """The exits of one model as they are trained on cached states: an `offramp.training.steps.Objective`.

    Its parts are the exits, all trained on the same rows; or one part, where exits share a network.
    """

    def __init__(self, model: Model, recipe: Recipe, states: CachedStates) -> None:
        self.model, self.recipe, self.states = model, recipe, states
        self.device = model.stack.head_device
        stride = -(-len(states.held_out) // EVALUATED_ROWS)
        self._evaluator = Evaluator(model, states.held_out[::stride])

    def initial(self) -> list[dict[str, Tensor]]:
        """Of each exit, from its ridge lens."""
        recipe, hidden = self.recipe, self.states.fit.shape[-1]
        lenses = [initial_lens(start, recipe.rank) for start in self._starts()]

        def network(exit: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + exit)
            return initial_network(hidden, recipe.units, generator) if recipe.units else {}

        if recipe.shared:
            return [joined(lenses, network(recipe.at[0]))]
        return [{**lens, **network(exit)} for lens, exit in zip(lenses, recipe.at, strict=True)]

    def _starts(self) -> list[RidgeStart]:
        """Where each exit begins."""
        weight, bias = self.ridge.weight, self.ridge.bias
        assert weight is not None, "the closed form is whole"
        sums = [self._sums.fit[exit] for exit in self.recipe.at]  # now of all rows
        return [
            RidgeStart(weight[place], bias[place], of_exit.mean_x, of_exit.moments_xx(of_exit.mean_x))
            for place, of_exit in enumerate(sums)
        ]

    def _exits(self, parts: Sequence[Parameters]) -> list[Parameters]:
        """The parameters of every exit."""
        return [*exits_of(parts[0], len(self.recipe.at))] if self.recipe.shared else list(parts)

    @functools.cached_property
    def ridge(self) -> Lens[Weights]:
        """The lens in closed form of every exit, from the same states."""
        return solve_lens(self._sums)

    @functools.cached_property
    def _sums(self) -> ExitSums:
        hidden, last = self.states.fit.shape[-1], self.states.layers[-1]
        sums = lens_sums(hidden, last, self.states.exits, self.device)
        for side, held_out in ((self.states.fit, False), (self.states.held_out, True)):
            for rows in slices(0, len(side), 4096):
                by_layer = {
                    layer: side[rows, place].float() for place, layer in enumerate(self.states.layers)
                }
                sums.add(by_layer, np.full(len(by_layer[last]), held_out))
        return sums

    def vocabulary(self, precision: Precision) -> Tensor | None:
        """The tokens of the loss: those that the full model thinks likely most often."""
        if not self.recipe.loss_vocabulary:
            return None
        stride = -(-len(self.states.fit) // SAMPLED_TARGETS)
        head = TrainingHead(self.model, precision)
        return frequent_targets(head, self.states.fit[::stride, -1], self.recipe.loss_vocabulary)

    def losses(self, step: int, steps: int, head: TrainingHead) -> LossOf:
        """Mean KL(p_L || p_exit) of a step's rows, of exits that share a network their mean.

        p_L is computed once for all exits.
        """
        places = batch_rows(len(self.states.fit), self.recipe.batch, self.recipe.seed, step)
        batch = self.states.fit[places].to(self.device).float()
        target = head.target(batch[:, -1])

        def divergence(place: int, parameters: Parameters) -> Tensor:
            return head.divergence(prepared(parameters)(batch[:, place]), target)

        def mean_divergence(part: int, parameters: Parameters) -> Tensor:
            exits = enumerate(self._exits([parameters]))
            return torch.stack([divergence(place, one) for place, one in exits]).mean()

        return mean_divergence if self.recipe.shared else divergence

    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """Every exit on some of the held-out rows."""
        return self._evaluator.evaluate([prepared(one) for one in self._exits(parts)])

    def judged(self, found: Sequence[Evaluation]) -> list[float]:
        """Each one's own loss; of exits that share a network their mean."""
        losses = [one.loss for one in found]
        return [float(np.mean(losses))] if self.recipe.shared else losses

    def in_words(self, parts: Sequence[Evaluation]) -> str:
        """Of several exits, one after the other."""

        def of(values: Sequence[float], form: str) -> str:
            return " / ".join(format(value, form) for value in values)

        loss, agreement = of([one.loss for one in parts], ".2f"), of([one.agreement for one in parts], ".2f")
        leaving = of([100 * one.leaving[SHOWN_FLOOR] for one in parts], ".0f")
        return f"loss {loss}, agreement {agreement}, {leaving} % leave at 95 %"

    def reading(self, progress: Progress) -> ExitReading[Weights]:
        """The exits at their best."""
        exits = self._exits([weights.best for weights in progress.weights])
        return reading_of(exits, shared=self.recipe.shared)

    def evaluate_all(self, reading: ExitReading[Weights]) -> list[Evaluation]:
        """Some reading on all held-out rows."""
        reads = [reading.at(place, self.device) for place in range(len(self.recipe.at))]
        return Evaluator(self.model, self.states.held_out).evaluate(list(reads))
