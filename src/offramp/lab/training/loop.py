"""The loop that trains a small model from scratch: its steps, and nothing of files.

AdamW (arXiv 1711.05101, algorithm 2), a learning rate that rises along a line and falls along a cosine (arXiv
1608.03983, equation 5), gradients clipped by their norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from offramp.lab.training.batches import Batches
from offramp.lab.training.evaluation import next_token_loss
from offramp.lab.training.recipe import Reading

WARM_UP, LAST_RATE = 0.02, 0.1
"""Shares of the steps in which the rate rises, and of the largest rate that it falls to."""
BETAS, WEIGHT_DECAY, CLIPPED_NORM = (0.9, 0.95), 0.1, 1.0


def learning_rate(recipe: Reading, step: int) -> float:
    """Of a step from 0."""
    rising = max(1, round(WARM_UP * recipe.steps))
    if step < rising:
        return recipe.rate * (step + 1) / rising
    along = (step - rising) / max(1, recipe.steps - rising)
    return recipe.rate * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * along)) / 2)


def make_optimiser(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that lets matrices decay, and no norms."""
    weights = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [one for one in weights if one.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in weights if one.dim() < 2], "weight_decay": 0.0},
    ]
    fused = weights[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, betas=BETAS, fused=fused)


LossOf = Callable[[int], Tensor]
"""Of a step from 0: its loss, a differentiable scalar."""


def text_loss(model: Any, batches: Batches) -> LossOf:
    """Mean over all tokens of a step's sequences, nats."""
    return lambda step: next_token_loss(model, torch.from_numpy(batches.sequences(step)).to(model.device))


def take_step(
    model: Any, optimiser: torch.optim.Optimizer, loss_of: LossOf, recipe: Reading, step: int
) -> float | None:
    """The loss of one step, which changes the weights; None, and nothing is changed, if it is not finite."""
    halved = recipe.precision == "bfloat16"
    with torch.autocast(model.device.type, torch.bfloat16, enabled=halved):
        loss = loss_of(step)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPED_NORM)
    found = float(loss.detach())
    if not math.isfinite(found + float(norm)):
        return None
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(recipe, step)
    optimiser.step()
    return found
