"""The kind `regularised`: the model's own weights, trained so that exits say early what it says at the end.

LayerSkip's early-exit loss and layer dropout (arXiv 2404.16710, section 4.1), through the model's own norm
and head; tokens further ahead, as multi-token prediction has it (arXiv 2404.19737, section 2); and
KL(original model || trained one) at full depth, which keeps what it says (arXiv 1503.02531, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.models.model import Model
from offramp.training.changed_weights import ChangedWeights
from offramp.training.divergence import MeanDivergence, Precision, Target, TrainingHead
from offramp.training.evaluation import SHOWN_FLOOR, Evaluation
from offramp.training.kinds import Parameters
from offramp.training.layer_pass import read_out, run_layers
from offramp.training.layer_skip import dropout_probabilities, enabled_exits, exit_weights
from offramp.training.recipe import Recipe
from offramp.training.regularised_evaluation import HeldOutModel
from offramp.training.regularised_text import OriginalStates, cross_entropy, first_row, row_count
from offramp.training.steps import LossOf
from offramp.workloads.packing import Context

EVALUATED_TOKENS = 1024
"""Held-out tokens that figures are taken from while it trains."""

AHEAD_SHARE = 0.3
"""Of tokens behind the next in the loss of an exit, as in arXiv 2412.19437 (section 4.2)."""

AHEAD = "ahead"


@dataclass(frozen=True)
class Batch:
    """What a step reads. places: of sequences to train on. left_out: layers of each. exits: below L."""

    places: tuple[int, ...]
    left_out: tuple[frozenset[int], ...]
    exits: tuple[int, ...]


class RegularisedModel:
    """A model as it is trained to exit: an `offramp.training.steps.Objective` of one part, its weights.

    fit, held_out: contexts. Sequences are run one by one, so that a layer is left out for each by itself, and
    nothing is filled up.
    """

    def __init__(
        self, model: Model, recipe: Recipe, fit: Sequence[Context], held_out: Sequence[Context]
    ) -> None:
        assert recipe.regularisation is not None, "a recipe of this kind"
        self.model, self.recipe, self.asked = model, recipe, recipe.regularisation
        self.weights = ChangedWeights.of(model, self.asked.lora)
        self.fit = fit
        self.held_out = HeldOutModel(self.weights, recipe.at, held_out)
        self._original = OriginalStates(model, fit)
        self._rows = np.array([row_count(one) for one in fit])

    def initial(self) -> list[dict[str, Tensor]]:
        """Parameters that leave the model as it is, and layers that look further ahead: the identity."""
        size = self.model.shape.hidden_size
        further = {
            f"{AHEAD}.{exit}.{tokens}": torch.zeros(size, size)
            for exit in self.recipe.at
            for tokens in range(2, self.asked.ahead + 1)
        }
        return [self.weights.initial(self.recipe.seed) | further]

    def vocabulary(self, precision: Precision) -> None:
        """All tokens: one that the loss does not look at might come to be likely."""
        return None

    def batch(self, step: int, steps: int) -> Batch:
        """Sequences of the recipe's positions at most, or one; which layers each goes without; exits."""
        generator = np.random.default_rng((self.recipe.seed, step))
        order = generator.permutation(len(self.fit))
        count = max(1, int((np.cumsum(self._rows[order]) <= self.recipe.batch).sum()))
        places = tuple(order[:count].tolist())
        layers = self.model.layers
        chances = dropout_probabilities(layers, step, steps, self.asked.layer_dropout)
        dropped = generator.random((len(places), layers)) < chances
        return Batch(
            places,
            tuple(frozenset((np.flatnonzero(row) + 1).tolist()) for row in dropped),
            enabled_exits(self.recipe.at, layers, step, steps, self.asked.curriculum),
        )

    def losses(self, step: int, steps: int, head: TrainingHead) -> LossOf:
        """The loss of a step's sequences. head: of the original model."""
        batch = self.batch(step, steps)
        final = torch.cat([self._original.of(place) for place in batch.places])
        target = head.target(final.to(head.weight.device).float())
        halved = head.precision == torch.bfloat16

        def loss_of(place: int, parameters: Parameters) -> Tensor:
            values = self.weights.values(parameters)
            with torch.autocast(self.model.stack.device.type, torch.bfloat16, enabled=halved):
                return self.weights.run(values, lambda: self._loss(batch, target, parameters))

        return loss_of

    def _loss(self, batch: Batch, target: Target, parameters: Parameters) -> Tensor:
        """With the trained weights in their places."""
        stack, layers = self.model.stack, self.model.layers
        contexts = [self.fit[place] for place in batch.places]
        states = self._states(batch, contexts)
        total = torch.zeros((), device=stack.head_device)
        for exit, weight in exit_weights(batch.exits, layers, self.asked.exit_scale).items():
            logits = read_out(stack, states[exit])
            of_text = self.asked.targets == "text"
            loss = cross_entropy(logits, contexts, 1) if of_text else divergence(logits, target)
            if exit < layers and self.asked.ahead > 1:
                loss = loss + AHEAD_SHARE * self._further(exit, states[exit], contexts, parameters)
            total = total + weight * loss
            if exit == layers and self.asked.keep:
                total = total + self.asked.keep * divergence(logits, target)
        return total

    def _states(self, batch: Batch, contexts: Sequence[Context]) -> dict[int, Tensor]:
        """States [rows of all sequences, hidden] at the step's exits and at L."""
        wanted = (*batch.exits, self.model.layers)
        found = [
            run_layers(self.model.stack, torch.tensor(one.ids), wanted, left_out)
            for one, left_out in zip(contexts, batch.left_out, strict=True)
        ]
        return {
            exit: torch.cat([part[exit][first_row(one) :] for part, one in zip(found, contexts, strict=True)])
            for exit in wanted
        }

    def _further(
        self, exit: int, states: Tensor, contexts: Sequence[Context], parameters: Parameters
    ) -> Tensor:
        """Mean cross entropy of the tokens behind the next, each through a linear layer of its own."""
        found = []
        for tokens in range(2, self.asked.ahead + 1):
            change = parameters[f"{AHEAD}.{exit}.{tokens}"]
            moved = states + F.linear(states, change.to(states.dtype))
            found.append(cross_entropy(read_out(self.model.stack, moved), contexts, tokens))
        return torch.stack(found).mean()

    # -- held-out text

    @torch.no_grad()
    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """Every exit and L as trained, on some of the held-out text."""
        return self.held_out.evaluate(self.weights.values(parts[0]), EVALUATED_TOKENS)

    def judged(self, found: Sequence[Evaluation]) -> list[float]:
        """The loss of held-out text, of every exit at once and without layers ahead, no layer left out."""
        weights = exit_weights(self.recipe.at, self.model.layers, self.asked.exit_scale).values()
        of_text = self.asked.targets == "text"
        terms = [
            weight * (one.nll or 0.0 if of_text else one.loss)
            for weight, one in zip(weights, found, strict=True)
        ]
        return [sum(terms) + self.asked.keep * found[-1].loss]

    def in_words(self, parts: Sequence[Evaluation]) -> str:
        """Of the exits one after the other, and of the full depth."""
        agreements = " / ".join(f"{one.reference_agreement:.2f}" for one in parts[:-1])
        leaving = " / ".join(f"{100 * one.leaving[SHOWN_FLOOR]:.0f}" for one in parts[:-1])
        last = parts[-1]
        return (
            f"exits say what the original says: {agreements}; full depth {last.reference_agreement:.3f} "
            f"(KL {last.loss:.3f}); {leaving} % leave at 95 %"
        )


def divergence(logits: Tensor, target: Target) -> Tensor:
    """Mean KL(original || what these logits say), nats, a scalar."""
    mean: Any = MeanDivergence.apply
    found: Tensor = mean(logits, target.probability, target.negative_entropy)
    return found
