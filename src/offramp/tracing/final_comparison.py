"""Statistics between the logits z of an exit and the final logits z_L: expected logit and cosines.

For a linear head they need no pass over the vocabulary. With z = W x (the bias as one more feature):
sum_v p_L(v) z(v) = (W^T p_L) . x and z . z_L = x^T (W^T W) x_L, so one vector per token and one small matrix
per model replace four sums per logit. The matrix is taken of W less its mean over the vocabulary, so that
centred cosines lose no digits.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from offramp.heads.output_head import Head, LinearHead
from offramp.heads.precision import exact_sums
from offramp.heads.statistics import cosine
from offramp.models.devices import float64_device

_GRAM_ROWS = 8192


class FinalComparison(NamedTuple):
    """Between z of an exit and z_L, float32 [rows].

    expected: sum_v p_L(v) z(v). cosine, centred_cosine: z and z_L. shuffled_cosine: z and a partner's z_L.
    """

    expected: Tensor
    cosine: Tensor
    centred_cosine: Tensor
    shuffled_cosine: Tensor


class Comparer(Protocol):
    """Holds the final exit of a group of tokens, and compares other exits of the same tokens with it."""

    def compare(self, states: Tensor, output: Tensor | None, rows: slice, head: Head) -> FinalComparison:
        """Statistics of some rows of the group at an exit: their states [rows, features] and head output.

        output: None at the final exit, where it is not at hand; it is computed again if it is needed. head:
        which gives that output of these states.
        """


@dataclass(frozen=True)
class Gram:
    """W^T W of a linear head, its scale included and its bias as one more feature.

    centred: float32 [features + 1, features + 1], of W less its mean over the vocabulary.
    mean: float32 [features + 1], that mean.
    """

    centred: Tensor
    mean: Tensor
    vocabulary_size: int

    @classmethod
    def of(cls, head: LinearHead) -> Gram:
        """The matrix of one head, kept as long as its weights live and are what they were.

        It costs as much as the head products of `features` tokens, in float32: on an accelerator that is some
        thousand tokens' trace, and a model is traced on several workloads.
        """
        if head.weight.is_inference():  # which do not count their changes
            return cls.computed(head)
        # Changes through `.data` are not counted either, but show in the sum.
        state = (
            head.weight._version,
            float(head.weight.sum(dtype=torch.float32)),
            None if head.bias is None else float(head.bias.sum(dtype=torch.float32)),
            head.transform,
        )
        known = _KNOWN.get(head.weight)
        if known is None or known[0] != state:
            known = _KNOWN[head.weight] = (state, cls.computed(head))
        return known[1]

    @classmethod
    @exact_sums()
    def computed(cls, head: LinearHead) -> Gram:
        """The matrix of one head, computed now."""
        features = head.weight.shape[1] + 1
        where = float64_device(head.device)
        sums = torch.zeros(features, dtype=torch.float64, device=where)
        for block in _weight_blocks(head):
            sums += block.to(where).sum(0, dtype=torch.float64)
        mean = (sums / head.vocabulary_size).float().to(head.device)
        centred = torch.zeros(features, features, dtype=torch.float64, device=where)
        for block in _weight_blocks(head):
            block -= mean
            centred += (block.t() @ block).to(where, torch.float64)
        return cls(centred.float().to(head.device), mean, head.vocabulary_size)


_KNOWN: MutableMapping[Tensor, tuple[object, Gram]] = WeakTensorKeyDictionary()
"""By the weights of a head: what these were when it was computed, and the matrix."""


def forget_gram_matrices() -> None:
    """Let every head's matrix be computed again, for those who time a trace."""
    _KNOWN.clear()


def _weight_blocks(head: LinearHead) -> Iterator[Tensor]:
    """The scaled weights with the bias as last column, some thousand rows at a time, in float32."""
    for start in range(0, head.vocabulary_size, _GRAM_ROWS):
        weight = head.weight[start : start + _GRAM_ROWS].float()
        last = weight.new_zeros(len(weight), 1)
        if head.bias is not None:
            last = head.bias[start : start + _GRAM_ROWS].float().unsqueeze(1)
        yield torch.cat([weight, last], dim=1) * head.transform.scale


def with_bias_feature(states: Tensor) -> Tensor:
    """States [rows, features] in float32 with a last feature of 1."""
    wide = states.new_ones(len(states), states.shape[1] + 1, dtype=torch.float32)
    wide[:, :-1] = states
    return wide


class LinearComparer:
    """Comparisons of a linear head, from states alone.

    final_states: [tokens, features] of exit L. expected_weight: float32 [tokens, features + 1], W^T p_L.
    partner: int64 [tokens], another token of the group.
    """

    def __init__(self, gram: Gram, final_states: Tensor, expected_weight: Tensor, partner: Tensor) -> None:
        self.gram = gram
        self.expected_weight = expected_weight
        final = with_bias_feature(final_states)
        self._final = final @ gram.centred
        self._final_square = torch.linalg.vecdot(self._final, final)
        self._final_mean = final @ gram.mean
        self._partner = partner

    def compare(self, states: Tensor, output: Tensor | None, rows: slice, head: Head) -> FinalComparison:
        """Statistics of some rows; neither `output` nor `head` is needed."""
        wide = with_bias_feature(states)
        size = self.gram.vocabulary_size
        square = torch.linalg.vecdot(wide @ self.gram.centred, wide)
        mean = wide @ self.gram.mean
        centred_dot = torch.linalg.vecdot(wide, self._final[rows])
        raw_square = square + size * mean.square()

        def raw_cosine(tokens: slice | Tensor) -> Tensor:
            dot = torch.linalg.vecdot(wide, self._final[tokens]) + size * mean * self._final_mean[tokens]
            other_square = self._final_square[tokens] + size * self._final_mean[tokens].square()
            return cosine(dot, raw_square, other_square)

        return FinalComparison(
            expected=torch.linalg.vecdot(self.expected_weight[rows], wide),
            cosine=raw_cosine(rows),
            centred_cosine=cosine(centred_dot, square, self._final_square[rows]),
            shuffled_cosine=raw_cosine(self._partner[rows]),
        )


class DirectComparer:
    """Comparisons by sums over the vocabulary, for soft-capped, masked and indirect heads, and for
    exits whose heads are their own.

    A column that is -inf at the final exit is a masked part of the vocabulary: its probability is 0 at every
    exit and it takes no part in the cosines.
    """

    def __init__(self, head: Head, final_states: Tensor, partner: Tensor) -> None:
        self.head = head
        self.final_states = final_states
        self._partner = partner
        # Exits of the same rows come one after another, so that exit L is read once for all of them.
        self._rows: slice | None = None
        self._final = self._partners_final = final_states.new_empty(0)

    def compare(self, states: Tensor, output: Tensor | None, rows: slice, head: Head) -> FinalComparison:
        """Statistics of some rows, from their head output [rows, padded vocabulary]."""
        output = head.exact_output(states) if output is None else output
        z = head.transform(output[:, : head.vocabulary_size]).clone()
        final, partners_final = self._final_of(rows)
        log_probability = final.log_softmax(-1)
        known = torch.isfinite(final)
        expected = torch.where(known, log_probability.exp() * z, 0.0).sum(-1)
        raw = _masked_cosine(z, final)
        del log_probability
        count = known.sum(-1, keepdim=True)
        centred_z = z - torch.where(known, z, 0.0).sum(-1, keepdim=True) / count
        centred_final = final - torch.where(known, final, 0.0).sum(-1, keepdim=True) / count
        centred = _masked_cosine(centred_z, centred_final)
        shuffled = _masked_cosine(z, partners_final)
        return FinalComparison(expected, raw, centred, shuffled)

    def _final_of(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Logits at exit L of some rows and of their partners."""
        if rows != self._rows:
            self._rows = rows
            self._final = self._final_logits(self.final_states[rows])
            self._partners_final = self._final_logits(self.final_states[self._partner[rows]])
        return self._final, self._partners_final

    def _final_logits(self, states: Tensor) -> Tensor:
        output = self.head.exact_output(states)[:, : self.head.vocabulary_size]
        return self.head.transform(output).clone()


def _masked_cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine over the columns that are finite in `right`: float32 [rows]."""
    known = torch.isfinite(right)
    left, right = torch.where(known, left, 0.0), torch.where(known, right, 0.0)
    return cosine(
        torch.linalg.vecdot(left, right), torch.linalg.vecdot(left, left), torch.linalg.vecdot(right, right)
    )
