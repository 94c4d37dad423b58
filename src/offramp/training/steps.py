"""The steps of a training: what is trained, its loss, and what AdamW makes of it.

AdamW: "Decoupled Weight Decay Regularization" (arXiv 1711.05101), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from offramp.models.model import Model
from offramp.training.checkpoint import Progress
from offramp.training.divergence import Precision, TrainingHead
from offramp.training.evaluation import Evaluation
from offramp.training.kinds import Parameters
from offramp.training.recipe import Recipe

WARM_UP = 20
LAST_RATE = 0.05
"""The learning rate rises over WARM_UP steps and falls to this share of it, along a line."""
MOMENTS, WEIGHT_DECAY = (0.9, 0.95), 0.01
CLIPPED_NORM = 1.0


LossOf = Callable[[int, Parameters], Tensor]
"""Of a part's place and its parameters: its loss, a differentiable scalar."""


class Objective(Protocol):
    """What is trained. Parts do not touch each other: each has the weights that it would have alone.

    A part is an exit, or several that share a network.
    """

    def initial(self) -> list[dict[str, Tensor]]:
        """The parameters of each part before the first step, float32, by name."""

    def vocabulary(self, precision: Precision) -> Tensor | None:
        """The tokens of the loss, int64, ascending; None for all."""

    def losses(self, step: int, steps: int, head: TrainingHead) -> LossOf:
        """Of a step of so many, whose data are drawn by seed and step alone."""

    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """What was trained, on held-out text."""

    def judged(self, found: Sequence[Evaluation]) -> list[float]:
        """What each part's best weights are chosen by, of an evaluation: the less, the better."""

    def in_words(self, parts: Sequence[Evaluation]) -> str:
        """An evaluation for a progress bar."""


class Steps:
    """The steps of a training, one part's weights after the other's: loss, gradients, AdamW.

    What a step does follows from its number and the weights and moments before it, and from nothing else.
    """

    def __init__(self, model: Model, recipe: Recipe, objective: Objective, progress: Progress) -> None:
        self.recipe, self.objective, self.progress = recipe, objective, progress
        self.head = TrainingHead(model, progress.settings.precision, progress.vocabulary)
        for weights in progress.weights:
            weights.now = {name: one.detach().requires_grad_() for name, one in weights.now.items()}
        parameters = [one for weights in progress.weights for one in weights.now.values()]
        self.optimiser = torch.optim.AdamW(
            parameters,
            betas=MOMENTS,
            weight_decay=WEIGHT_DECAY,
            fused=model.stack.head_device.type in ("cpu", "cuda"),
        )
        for weights in progress.weights:
            for name, one in weights.now.items():
                self.optimiser.state[one] = {
                    "step": torch.tensor(float(progress.step), device=one.device),
                    "exp_avg": weights.first[name],
                    "exp_avg_sq": weights.second[name],
                }

    def step(self, step: int) -> bool:
        """Take one step; False, and nothing is changed, if a loss is not finite."""
        loss_of = self.objective.losses(step, self.progress.settings.steps, self.head)
        self.optimiser.zero_grad()
        finite = True
        for place, weights in enumerate(self.progress.weights):
            with torch.enable_grad():
                loss = loss_of(place, weights.now)
                if loss.requires_grad:  # nothing depends on maps where no token of the step leaves
                    loss.backward()  # type: ignore[no-untyped-call]
            for one in weights.now.values():
                if one.grad is None:  # AdamW would not count the step for it, and a checkpoint does
                    one.grad = torch.zeros_like(one)
            norm = torch.nn.utils.clip_grad_norm_(weights.now.values(), CLIPPED_NORM)
            finite = finite and bool(torch.isfinite(loss.detach() + norm))
        if finite:
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.recipe.rate, step, self.progress.settings.steps)
            self.optimiser.step()
        return finite

    def keep_moments(self) -> None:
        """Put the optimiser's moments where the checkpoint finds them."""
        for weights in self.progress.weights:
            for name, one in weights.now.items():
                state = self.optimiser.state[one]
                weights.first[name], weights.second[name] = state["exp_avg"], state["exp_avg_sq"]


def batch_rows(rows: int, batch: int, seed: int, step: int) -> Tensor:
    """The rows of one step, int64 [batch], drawn by a generator of their own."""
    generator = np.random.default_rng((seed, step))
    return torch.from_numpy(generator.choice(rows, size=batch, replace=False, shuffle=False))


def learning_rate(rate: float, step: int, steps: int) -> float:
    """Of a step from 0: up a line over WARM_UP steps, down another to LAST_RATE of it."""
    return rate * min(1.0, (step + 1) / WARM_UP) * max(LAST_RATE, 1.0 - step / steps)
