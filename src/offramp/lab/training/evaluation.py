"""How a model in training does on held-out text: its loss, and answers right by the steps they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.lab.text.folder import GENERATED_TOKENS, NATURAL_TOKENS, LabText
from offramp.lab.text.generated import MOST_STEPS
from offramp.lab.training.batches import HeldOut
from offramp.lab.training.record import Evaluated

VALIDATION_TOKENS = 65_536
GENERATED_VALIDATION_TOKENS = 16_384
AT_ONCE = 16
"""Sequences."""


class Evaluation:
    """Held-out sequences of a text. Figures are in float32, whatever it is trained in."""

    def __init__(self, text: LabText, context: int) -> None:
        self.natural = HeldOut.of(text, "validation", NATURAL_TOKENS, context, VALIDATION_TOKENS)
        self.generated = HeldOut.of(
            text, "validation", GENERATED_TOKENS, context, GENERATED_VALIDATION_TOKENS
        )

    @torch.no_grad()
    def evaluate(self, model: Any, *, step: int, tokens: int, seconds: float, trained: float) -> Evaluated:
        """Of a model as it is; its mode is left as it was."""
        was_training = model.training
        model.eval()
        natural, _ = _read(model, self.natural)
        generated, accuracy = _read(model, self.generated)
        model.train(was_training)
        return Evaluated(step, tokens, seconds, trained, natural, generated, accuracy)


def _read(model: Any, held_out: HeldOut) -> tuple[float, tuple[float | None, ...]]:
    """Mean loss in nats a token, and the share of answers that are right for each number of steps."""
    total, rows = 0.0, 0
    right, asked = np.zeros(MOST_STEPS + 1), np.zeros(MOST_STEPS + 1)
    for first in range(0, len(held_out.sequences), AT_ONCE):
        sequences = torch.from_numpy(held_out.sequences[first : first + AT_ONCE])
        logits = model(input_ids=sequences[:, :-1].to(model.device), use_cache=False).logits.float()
        targets = sequences[:, 1:].to(logits.device)
        total += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        rows += targets.numel()
        if held_out.steps is not None:
            steps = held_out.steps[first : first + AT_ONCE, 1:].ravel()
            hit = (logits.argmax(-1) == targets).flatten().cpu().numpy()
            right += np.bincount(steps, weights=hit, minlength=MOST_STEPS + 1)
            asked += np.bincount(steps, minlength=MOST_STEPS + 1)
    shares = [float(one / of) if of else None for one, of in zip(right[1:], asked[1:], strict=True)]
    return total / rows, tuple(shares)


def next_token_loss(model: Any, sequences: Tensor) -> Tensor:
    """Mean over all positions, nats, a differentiable scalar. sequences: int64 [batch, context + 1]."""
    logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), sequences[:, 1:].flatten())
