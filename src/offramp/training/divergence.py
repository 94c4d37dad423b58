"""What the model's head makes of an exit's state, how far that is from the full model, and how well it reads.

The loss is KL(p_L || p_exit) in nats: self-distillation of the full model's own distribution (Hinton et al.,
arXiv 1503.02531, section 2, at temperature 1), as the tuned lens is trained (arXiv 2303.08112, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import ModelError
from offramp.heads.output_head import LinearHead, StateShape, at_head, make_head
from offramp.heads.precision import exact_sums
from offramp.models.model import Model
from offramp.models.stack import LogitScaling
from offramp.tracing.rows import slices
from offramp.training.record import FLOORS, Evaluation
from offramp.training.request import Precision


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


def divergence(logits: Tensor, target: Target) -> Tensor:
    """Mean KL(p_L || what these logits say), nats, a scalar, of logits [rows, tokens]."""
    mean: Any = MeanDivergence.apply
    found: Tensor = mean(logits, target.probability, target.negative_entropy)
    return found


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
        return divergence(self.logits(states), target)


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


SHOWN_FLOOR = FLOORS.index(0.95)

Read = Callable[[Tensor], Tensor]
"""States of an exit [rows, hidden], float32, to what the model's tail is given of them."""


class Evaluator:
    """Held-out rows, read with the model's own tail and head in float32.

    states: [rows, layers, hidden], L's last, in the model's dtype.
    """

    def __init__(self, model: Model, states: Tensor) -> None:
        self.stack = model.stack
        self.head = trainable_head(model)
        self.states = states

    @torch.no_grad()
    @exact_sums()
    def evaluate(self, reads: Sequence[Read]) -> list[Evaluation]:
        """Every exit through its reading; the full model's distribution is computed once for all."""
        columns: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in reads]
        for rows in slices(0, len(self.states), self.head.exact_rows):
            states = self.states[rows].to(self.head.device)
            final = self._logits(states[:, -1])
            best, log_p = final.argmax(-1), final.log_softmax(-1)
            p = log_p.exp()
            negative = torch.linalg.vecdot(p, log_p)
            for place, read in enumerate(reads):
                logits = self._logits(read(states[:, place].float()).to(states.dtype))
                log_sum = logits.logsumexp(-1)
                loss = negative + log_sum - torch.linalg.vecdot(p, logits)
                largest, found = logits.max(-1)
                columns[place].append((loss.cpu(), (found == best).cpu(), (largest - log_sum).exp().cpu()))
        return [_evaluation(*(torch.cat(part) for part in zip(*column, strict=True))) for column in columns]

    def _logits(self, states: Tensor) -> Tensor:
        """Float32 logits [rows, vocabulary], in memory of their own."""
        normed = at_head(self.stack, self.stack.tail_forward, states)
        output = self.head.exact_output(normed)[:, : self.head.vocabulary_size]
        return self.head.transform(output).clone()


def _evaluation(loss: Tensor, agrees: Tensor, confidence: Tensor) -> Evaluation:
    return Evaluation(
        loss=float(loss.double().mean()),
        agreement=float(agrees.double().mean()),
        leaving=leaving_shares(confidence.numpy(), agrees.numpy()),
    )


def leaving_shares(
    confidence: NDArray[np.float32],
    agrees: NDArray[np.bool_],
    floors: tuple[float, ...] = FLOORS,
    stays: NDArray[np.bool_] | None = None,
) -> tuple[float, ...]:
    """Share of all tokens that a threshold on the confidence lets leave, at most, at each floor.

    stays: whether a token that stays agrees; by default it does, as in a replay. A threshold takes equal
    confidences all or none.
    """
    order = np.argsort(-confidence, kind="stable")
    ordered, lost = confidence[order], np.cumsum(~agrees[order])
    if stays is not None:
        lost = lost + (~stays).sum() - np.cumsum(~stays[order])
    ends = np.append(ordered[1:] < ordered[:-1], True)
    left = np.arange(1, len(order) + 1)[ends] / len(order)
    kept = lost[ends] / len(order)
    return tuple(float(max([0.0, *left[kept <= 1.0 - floor + 1e-12]])) for floor in floors)
