"""LayerSkip's loss for going on with a small model: early exits learn the text, and layers are left out.

Its terms, schedules and settings are those of `offramp exits train --kind regularised`, applied in the loop
that everything else here is trained by, so that a model that is only trained on differs in the loss alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.lab.exits.layer_pass import read_out, run_layers
from offramp.lab.exits.layer_skip import dropout_probabilities, enabled_exits, exit_weights
from offramp.lab.exits.regularisation import Regularisation
from offramp.lab.training.batches import Batches
from offramp.lab.training.loop import LossOf
from offramp.lab.training.recipe import Reading
from offramp.models.discovery import find_stack

LAYER_SKIP = Regularisation(lora=0, keep=0.0, targets="text")
"""All weights, no term that keeps what the model says, and the text as what exits learn."""

FIRST_EXIT = 2
"""Exit 1 has no weight in the loss."""


def early_exit_loss(model: Any, batches: Batches, recipe: Reading) -> LossOf:
    """Weighted mean over a step's exits and the last one, nats; each sequence has its own layers left out.

    Raises ModelError for a model whose exits cannot be read out exactly.
    """
    stack = find_stack(model.eval())
    model.train()
    layers, asked = len(stack), LAYER_SKIP
    exits = range(FIRST_EXIT, layers)

    def loss_of(step: int) -> Tensor:
        sequences = torch.from_numpy(batches.sequences(step)).to(model.device)
        chances = dropout_probabilities(layers, step, recipe.steps, asked.layer_dropout)
        drawn = np.random.default_rng((recipe.seed, step)).random((len(sequences), layers))
        enabled = enabled_exits(exits, layers, step, recipe.steps, asked.curriculum)
        wanted = (*enabled, layers)
        found = [
            run_layers(stack, ids, wanted, set((np.flatnonzero(row < chances) + 1).tolist()))
            for ids, row in zip(sequences[:, :-1], drawn, strict=True)
        ]
        total = torch.zeros((), device=model.device)
        for exit, weight in exit_weights(enabled, layers, asked.exit_scale).items():
            logits = read_out(stack, torch.cat([states[exit] for states in found]))
            total = total + weight * F.cross_entropy(logits, sequences[:, 1:].flatten())
        return total

    return loss_of
