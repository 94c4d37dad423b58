"""How well an exit reads held-out tokens: its divergence, its agreement, and how many could leave there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.heads.output_head import at_head
from offramp.heads.precision import exact_sums
from offramp.models.model import Model
from offramp.tracing.rows import slices
from offramp.training.divergence import trainable_head

FLOORS = (0.99, 0.97, 0.95, 0.90)
"""Agreement over all tokens, those that stay included."""

SHOWN_FLOOR = FLOORS.index(0.95)

Read = Callable[[Tensor], Tensor]
"""States of an exit [rows, hidden], float32, to what the model's tail is given of them."""


@dataclass(frozen=True)
class Evaluation:
    """One exit on held-out tokens.

    loss: mean KL(p_L || p_exit), nats. agreement: share of tokens whose best token is the full model's.
    leaving: share of all tokens that could leave there at each of FLOORS, the surest first, by the exit's
    own largest probability.

    Where the model itself is trained, loss is KL(p_L of the original || p_exit), agreement that with the
    trained model's own full depth, and leaving is at floors of reference_agreement, the share of tokens whose
    best token is the original full model's; nll: of the text's own tokens, nats. None elsewhere.
    """

    loss: float
    agreement: float
    leaving: tuple[float, ...]
    reference_agreement: float | None = None
    nll: float | None = None
    bits_per_byte: float | None = None


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
    def evaluate(self, reads: list[Read]) -> list[Evaluation]:
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
