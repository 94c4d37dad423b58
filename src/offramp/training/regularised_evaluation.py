"""A trained model on held-out text: how its exits agree with itself, and all of it with the original."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from offramp.heads.precision import exact_sums
from offramp.models.model import Model
from offramp.models.stack import ExitStack
from offramp.scoring.documents import observed_size
from offramp.tracing.rows import slices
from offramp.training.changed_weights import ChangedWeights
from offramp.training.evaluation import Evaluation, leaving_shares
from offramp.training.layer_pass import read_out, run_layers
from offramp.training.regularised_text import OriginalStates, first_row, row_count, tokens_ahead
from offramp.workloads.packing import Context

READ_ROWS = 128
"""Rows read out at a time."""


class _Read(NamedTuple):
    """Of some rows, by exit, L last: [exits, rows]. divergence: KL(original || exit), nats. nll: of the
    observed token. confidence: the largest probability. original: the original model's best token, in each
    row the same."""

    divergence: Tensor
    top1: Tensor
    nll: Tensor
    confidence: Tensor
    original: Tensor


class HeldOutModel:
    """Held-out sequences, read by the exits of a model with its trained weights, and by the original."""

    def __init__(self, weights: ChangedWeights, exits: Sequence[int], contexts: Sequence[Context]) -> None:
        self.weights, self.contexts = weights, contexts
        self.model: Model = weights.model
        self.exits = (*exits, self.model.layers)
        self._original = OriginalStates(self.model, contexts)

    @property
    def tokens(self) -> int:
        """Rows of all sequences."""
        return sum(map(row_count, self.contexts))

    @torch.no_grad()
    @exact_sums()
    def evaluate(self, values: Mapping[str, Tensor], tokens: int) -> list[Evaluation]:
        """Every exit and L on so many rows at least, if there are, no layer left out.

        values: the trained weights.
        """
        places = self._places(tokens)
        read = [one for place in places for one in self._read(values, place)]
        together = _Read(*(torch.cat(column, 1) for column in zip(*read, strict=True)))
        return _evaluations(together, sum(self._bytes[place] for place in places))

    def _places(self, tokens: int) -> list[int]:
        """Sequences of all documents, always the same ones, until they have so many rows."""
        order = np.random.default_rng(0).permutation(len(self.contexts))
        before = np.cumsum([0, *(row_count(self.contexts[place]) for place in order)])[:-1]
        return sorted(order[before < tokens].tolist())

    @functools.cached_property
    def _bytes(self) -> list[int]:
        """Of the text that each sequence's rows predict."""
        decode = functools.partial(self.model.decode, special=False)
        return [
            observed_size(decode, one.ids[first_row(one)], tokens_ahead(one, 1)).bytes
            for one in self.contexts
        ]

    def _read(self, values: Mapping[str, Tensor], place: int) -> list[_Read]:
        """One sequence, some rows at a time."""
        stack, context = self.model.stack, self.contexts[place]
        first, original = first_row(context), self._original.of(place)
        observed = torch.tensor(tokens_ahead(context, 1), device=stack.head_device)
        ids = torch.tensor(context.ids)
        states = self.weights.run(values, lambda: run_layers(stack, ids, self.exits))
        found = []
        for rows in slices(0, len(original), READ_ROWS):
            log_p = read_out(stack, original[rows]).log_softmax(-1)
            some = [states[exit][first:][rows] for exit in self.exits]
            log_q = self.weights.run(values, functools.partial(_read_all, stack, some))
            found.append(_compared(log_p, log_q, observed[rows]))
        return found


def _read_all(stack: ExitStack, states: Sequence[Tensor]) -> list[Tensor]:
    return [read_out(stack, one).log_softmax(-1) for one in states]


def _compared(log_p: Tensor, by_exit: Sequence[Tensor], observed: Tensor) -> _Read:
    """log_p, by_exit: [rows, vocabulary], the original's and each exit's. observed: int64 [rows]."""
    p, best = log_p.exp(), log_p.argmax(-1)
    columns: list[tuple[Tensor, ...]] = []
    for log_q in by_exit:
        largest, top1 = log_q.max(-1)
        divergence = torch.linalg.vecdot(p, log_p - log_q)
        nll = -log_q.gather(1, observed[:, None])[:, 0]
        columns.append((divergence, top1, nll, largest.exp(), best))
    return _Read(*(torch.stack(column).cpu() for column in zip(*columns, strict=True)))


def _evaluations(read: _Read, size: int) -> list[Evaluation]:
    """Of each exit, L last. size: bytes of the observed text."""
    divergence, nll = (one.double().numpy() for one in (read.divergence, read.nll))
    right = (read.top1 == read.original).numpy()
    own = (read.top1 == read.top1[-1]).numpy()
    last = len(right) - 1
    return [
        Evaluation(
            loss=float(divergence[place].mean()),
            agreement=float(own[place].mean()),
            leaving=()
            if place == last
            else leaving_shares(read.confidence[place].numpy(), right[place], stays=right[last]),
            reference_agreement=float(right[place].mean()),
            nll=float(nll[place].mean()),
            bits_per_byte=float(nll[place].sum()) / math.log(2.0) / size if size else None,
        )
        for place in range(len(right))
    ]
