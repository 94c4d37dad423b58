"""What the model's head makes of an exit's state, differentiable, and how far that is from the full model.

The loss is KL(p_L || p_exit) in nats: self-distillation of the full model's own distribution (Hinton et al.,
arXiv 1503.02531, section 2, at temperature 1), as the tuned lens is trained (arXiv 2303.08112, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import ModelError
from offramp.heads.output_head import LinearHead, StateShape, at_head, make_head
from offramp.models.model import Model
from offramp.models.stack import LogitScaling
from offramp.tracing.rows import slices

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Target:
    """The full model's distribution of some rows: float32 [rows, tokens], and mean sum of p ln p in nats."""

    probability: Tensor
    negative_entropy: Tensor


class MeanDivergence(torch.autograd.Function):
    """Mean over rows of sum p (ln p - z) + ln sum exp z, of logits z [rows, tokens] and probabilities p.

    Its gradient by z is (softmax(z) - p) / rows, which takes two passes less than differentiating its parts.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probability: Tensor, negative_entropy: Tensor) -> Tensor:
        """The mean, a scalar. negative_entropy: mean over rows of sum p ln p."""
        log_sum = logits.logsumexp(-1)
        ctx.save_for_backward(logits, probability, log_sum)
        found: Tensor = negative_entropy + (log_sum - torch.linalg.vecdot(probability, logits)).mean()
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        """By the logits alone."""
        logits, probability, log_sum = ctx.saved_tensors
        softmax = logits.sub(log_sum[:, None]).exp_()
        return softmax.sub_(probability).mul_(gradients[0] / len(logits)), None, None


class TrainingHead:
    """The model's tail and head over all tokens or some of them, with products in one precision.

    stack's own modules are used, and nothing of them is changed: their weights take no gradients. tokens:
    int64 ids of the vocabulary of the loss, over which softmax is taken; None for all.
    """

    def __init__(self, model: Model, precision: Precision, tokens: Tensor | None = None) -> None:
        self.stack = model.stack
        head = trainable_head(model)
        scaling = model.stack.logit_scaling
        self.scaling = LogitScaling() if scaling is None else scaling
        self.precision = getattr(torch, precision)
        self.states_dtype = getattr(torch, model.dtype)
        weight, bias = head.weight, head.bias
        if tokens is not None:
            weight, bias = weight[tokens], None if bias is None else bias[tokens]
        self.weight = weight.to(self.precision)
        self.bias = None if bias is None else bias.to(self.precision)

    def logits(self, states: Tensor) -> Tensor:
        """Logits, float32 [rows, tokens], of states [rows, hidden] in the place of the last layer's."""
        normed = at_head(self.stack, self.stack.tail_forward, states.to(self.states_dtype))
        return self.scaling.apply(F.linear(normed.to(self.precision), self.weight, self.bias).float())

    def target(self, states: Tensor) -> Target:
        """What the full model says, of states of L [rows, hidden]; no gradient is taken."""
        with torch.no_grad():
            logits = self.logits(states)
            log_sum = logits.logsumexp(-1, keepdim=True)
            probability = (logits - log_sum).exp_()
            negative = torch.linalg.vecdot(probability, logits) - log_sum[:, 0]
        return Target(probability, negative.mean())

    def divergence(self, states: Tensor, target: Target) -> Tensor:
        """Mean KL(p_L || p_exit) in nats, a scalar, of an exit's states [rows, hidden]."""
        mean: Any = MeanDivergence.apply
        found: Tensor = mean(self.logits(states), target.probability, target.negative_entropy)
        return found


def trainable_head(model: Model) -> LinearHead:
    """The head of a model whose exits can be trained: a tail, one linear layer, a scale or soft-cap.

    Raises ModelError for another.
    """
    shape = StateShape(-2, None, model.shape.hidden_size)
    head = make_head(model.stack, model.shape.vocabulary_size, shape, "eager")
    if not isinstance(head, LinearHead):
        raise ModelError(
            "exits cannot be trained for a model whose logits are more than a norm, one linear output head "
            "and a scale or a soft-cap",
            where=model.name,
            fix="fit a lens in closed form instead: offramp heads fit; of a quantised model, train the "
            "unquantised one",
        )
    return head


def frequent_targets(head: TrainingHead, states: Tensor, count: int) -> Tensor:
    """The tokens of largest mean probability of the full model: int64 [count], ascending.

    head: over all tokens. states: of L [rows, hidden].
    """
    device, total = head.weight.device, torch.zeros(len(head.weight), device=head.weight.device)
    for rows in slices(0, len(states), 256):
        total += head.target(states[rows].to(device).float()).probability.sum(0)
    return total.argsort(descending=True, stable=True)[:count].sort().values


def usual_precision(device: str) -> Precision:
    """In which precision products with the output head are trained on a device, "cpu" or another.

    A rule and not a timing: another precision gives other weights, which must not depend on how busy a
    machine is. Processors differ in what bfloat16 costs them, from a third of the time to many times as long;
    accelerators are made for it.
    """
    return "float32" if device == "cpu" else "bfloat16"
