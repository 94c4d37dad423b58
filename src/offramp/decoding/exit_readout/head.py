"""An output head, lens and classifiers as a decoder reads them: one position of every sequence at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.decoding.engine.products import MOST_ROWS, SMALLEST, head_logits, transposed_product
from offramp.heads.statistics import BLOCK, HeadTransform, best_columns
from offramp.models.calls import first_tensor
from offramp.models.stack import ExitStack


def rows_of(hidden: Tensor, position_axis: int) -> Tensor:
    """Rows [batch, features] of a layer's output for one position.

    position_axis: counted from the end; the axis before it counts sequences. Any other axes are flattened in
    their order, as the tracer does.
    """
    if hidden.dim() == 3 and position_axis == -2:
        return hidden[:, -1]
    return hidden.movedim((position_axis - 1, position_axis), (0, 1))[:, -1].flatten(1)


def hidden_of(rows: Tensor, like: Tensor, position_axis: int) -> Tensor:
    """The layer's output again, of rows [batch, features]; `like` is one of the same shape."""
    if like.dim() == 3 and position_axis == -2:
        return rows.unsqueeze(1)
    moved = like.movedim((position_axis - 1, position_axis), (0, 1))
    return rows.view(moved.shape).movedim((0, 1), (position_axis - 1, position_axis))


CORRECTED = 32
"""Best columns of a rounded product whose logits are computed again in float32."""

PADDING = -1e30
"""Finite and far below any logit, as the tracer pads its vocabulary."""


@dataclass(frozen=True)
class OutputHead:
    """Reads logits out of hidden states.

    linear: whether logits of a few tokens can be computed alone, because the head is one linear layer.
    normed: states behind the tail [rows, 1, features of the head]; with the axis of positions, as in the
    model's own forward, since a product of another shape rounds differently. transposed: as of the engine.
    """

    stack: ExitStack
    transposed: bool = False

    @property
    def linear(self) -> bool:
        """Whether the head is one linear layer behind the tail, and so gives some columns alone."""
        return self.stack.readout_kind == "fast" and self.stack.head_weight is not None

    @property
    def rounds(self) -> bool:
        """Whether its product is rounded, and the best logits can be had in float32."""
        weight = self.stack.head_weight
        return self.linear and weight is not None and weight.dtype != torch.float32

    def vocabulary_size(self) -> int:
        """Tokens that it gives logits of."""
        if self.stack.head_weight is not None:
            return len(self.stack.head_weight)
        return int(self.stack.readout(first_tensor(self.stack.layer_outputs[-1])).shape[-1])

    def output_of_normed(self, normed: Tensor) -> Tensor:
        """The model's own logits in its own dtype, of states behind the tail of a linear head."""
        return head_logits(self.stack, normed, self.transposed)[:, -1]

    def output(self, hidden: Tensor) -> Tensor:
        """The same of one position's hidden states, through the model's own readout: [rows, vocabulary]."""
        logits = self.stack.readout(hidden)
        return logits.reshape(-1, logits.shape[-1])

    def columns(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of some tokens, float32, in one block of memory of their own."""
        weight, bias = self.stack.head_weight, self.stack.head_bias
        assert weight is not None, "only a linear head has columns"
        return weight[tokens].float().contiguous(), None if bias is None else bias[tokens].float()

    def from_block(self, normed: Tensor, block: tuple[Tensor, Tensor | None]) -> Tensor:
        """Logits, float32 [rows, tokens], of the tokens whose `columns` these are."""
        states, (weight, bias) = normed[:, -1].float(), block
        if self.transposed and len(states) <= MOST_ROWS and weight.numel() >= SMALLEST // 2:
            return self._transformed(transposed_product(weight, bias, states))
        return self._transformed(F.linear(states, weight, bias))

    def at(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """Logits, float32, of each row's own tokens, int64 [rows, tokens]."""
        weight, bias = self.stack.head_weight, self.stack.head_bias
        assert weight is not None, "only a linear head has columns"
        some = F.embedding(tokens, weight).float()  # far quicker than indexing
        logits = torch.bmm(some, normed[:, -1].float().unsqueeze(-1)).squeeze(-1)
        return self._transformed(logits if bias is None else logits + bias[tokens].float())

    def corrected(self, output: Tensor, normed: Tensor) -> Tensor:
        """Logits in float32, the best ones of a rounded product taken again: a step of 0.125 breaks ties."""
        logits = output.float()
        best = logits.topk(min(CORRECTED, logits.shape[-1]), dim=-1).indices
        return logits.scatter(1, best, self.at(normed, best))

    def _transformed(self, logits: Tensor) -> Tensor:
        transform = self.stack.logit_scaling
        assert transform is not None, "a fast readout knows its transform"
        return transform.apply(logits)


def best_of(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Tokens of the largest logits, best first, of equals the lower id, and these logits: [rows, count]."""
    vocabulary = logits.shape[-1]
    padded = F.pad(logits, (0, -vocabulary % BLOCK), value=PADDING)
    return best_columns(padded, HeadTransform(), min(count, vocabulary))
