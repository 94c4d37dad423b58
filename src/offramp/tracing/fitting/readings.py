"""What fitting reads: hidden states of many sequences, and for classifiers what every exit's head says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import ModelError
from offramp.models.model import Model
from offramp.tracing.exit_heads import LinearLens
from offramp.tracing.fitted_heads import CANDIDATES, apply_lens
from offramp.tracing.fitting.documents import FittingRows
from offramp.tracing.fitting.ridge import ExitSums
from offramp.tracing.head import Head, LinearHead, make_head
from offramp.tracing.measurement import FORWARD_TOKENS, ids_of, traced_rows
from offramp.tracing.rows import Rows, equal_length_batches, slices
from offramp.tracing.states import StateShape, StateStore, open_store
from offramp.tracing.statistics import choose_reductions
from offramp.workloads.packing import Context


def require_one_stream(model: Model) -> None:
    """Refuse a model whose layers pass on more than one hidden state per token, or have no weights in memory.

    Raises ModelError.
    """
    if model.streamed is not None:
        raise ModelError(
            "exit heads are fitted on models whose weights are all in memory; this one's stay on disk",
            where=model.name,
            fix="trace the model without fitted heads, or fit them on a machine with more memory",
        )
    shapes: list[StateShape] = []

    def on_layer(layer: int, before: Tensor, after: Tensor) -> None:
        if not shapes:
            shapes.append(StateShape.of(after, model.stack.position_axis))

    model.stack.capture(torch.zeros(1, 2, dtype=torch.long), on_layer)
    if shapes[0].other_axes is not None or shapes[0].features != model.shape.hidden_size:
        raise ModelError(
            f"the layers pass on {shapes[0].features:,} numbers per token, not one hidden state of "
            f"{model.shape.hidden_size:,}; exit heads are fitted for the usual shape only",
            where=model.name,
            fix="trace the model without fitted heads",
        )


def require_both_sides(model: Model, fit_rows: float, held_out_rows: float) -> None:
    """Refuse to go on if no row, or none to judge on, had finite numbers only.

    Raises ModelError.
    """
    if not fit_rows or not held_out_rows:
        raise ModelError(
            "every document to fit on, or every held-out one, met a number that is not finite",
            where=model.name,
            fix="try --dtype float32, or give more documents",
        )


def captured_states(
    model: Model, contexts: Sequence[Context], exits: Sequence[int]
) -> Iterator[tuple[Rows, list[Tensor]]]:
    """The rows of some contexts at a time, and their states [rows, hidden] per exit, in the model's dtype.

    Rows of a context with a number that is not finite are left out: nothing can be learned from them.
    """
    for batch in equal_length_batches(contexts, FORWARD_TOKENS):
        states = _forward(model, batch, exits)
        rows = Rows.of(batch)
        fine = torch.stack([torch.isfinite(layer).all(-1) for layer in states]).all(0)
        if not bool(fine.all()):
            sequence = torch.tensor(
                [number for number, context in enumerate(batch) for _ in range(context.rows)]
            )
            fine = ~torch.isin(sequence, sequence[~fine])
            rows = Rows(rows.document[fine], rows.position[fine], rows.next_token[fine])
            states = [layer[fine] for layer in states]
        if len(rows):
            yield rows, states


def add_up(
    model: Model, fitted_on: FittingRows, sums: Sequence[ExitSums], advance: Callable[[int], None]
) -> None:
    """Add all rows to several sums in one pass.

    Raises ModelError as `require_both_sides` does.
    """
    layers = sorted({layer for one in sums for layer in one.captured})
    of_document = torch.from_numpy(fitted_on.held_out)
    for rows, states in captured_states(model, fitted_on.contexts, layers):
        held_out = of_document[rows.document]
        for one in sums:
            one.add(dict(zip(layers, states, strict=True)), held_out)
        advance(len(rows))
    require_both_sides(model, sums[0].rows(held_out=False), sums[0].rows(held_out=True))


def _forward(model: Model, batch: Sequence[Context], exits: Sequence[int]) -> list[Tensor]:
    """States of a batch's rows at every exit, [rows, hidden] each."""
    found: dict[int, Tensor] = {}
    wanted = set(exits)

    def on_layer(layer: int, before: Tensor, after: Tensor) -> None:
        if layer + 1 in wanted:
            found[layer + 1] = traced_rows(after, batch)

    model.stack.capture(ids_of(batch), on_layer)
    return [found[exit] for exit in exits]


@dataclass(frozen=True)
class Readings:
    """One row per token, one column per exit below L.

    states: the layers' outputs [exits, rows, hidden], L's last. document: int64 [rows]. agrees: bool [rows,
    exits], whether the exit's best token is the full model's; short_agrees: the same of its best token on the
    short list. max_prob, margin, cosine (to L's hidden state):
    float32 [rows, exits]. candidates: float32 [rows, exits, candidates], logits of the candidate exit's best
    tokens, None without a candidate exit; candidate_index: its place among the exits.
    """

    states: StateStore
    document: NDArray[np.int64]
    agrees: NDArray[np.bool_]
    short_agrees: NDArray[np.bool_]
    max_prob: Tensor
    margin: Tensor
    cosine: Tensor
    candidates: Tensor | None
    candidate_index: int | None

    def hidden(self, exit_index: int) -> Tensor:
        """An exit's hidden states, float32 [rows, hidden]."""
        return self.states.read(exit_index, slice(0, len(self.document))).float()


@torch.no_grad()
def take_readings(
    model: Model,
    contexts: Sequence[Context],
    exits: Sequence[int],
    lens: LinearLens | None,
    candidate_index: int | None,
    shortlist: Tensor,
    advance: Callable[[int], None],
) -> Readings:
    """Run the model on some contexts and read every exit out, through the lens if there is one.

    exits: below L. lens: its first axis is the exits. candidate_index: place of the candidate exit in
    `exits`. shortlist: int64 ids of the restricted vocabulary, ascending.

    Raises ModelError if an exit's logits are not finite.
    """
    states, document = _kept_states(model, contexts, (*exits, model.layers))
    rows = len(document)
    shape = StateShape(-2, None, model.shape.hidden_size)
    reductions = choose_reductions(rows * (len(exits) + 1) * model.shape.vocabulary_size)
    reader = _Reader(
        model, make_head(model.stack, model.shape.vocabulary_size, shape, reductions), lens, shortlist
    )
    max_prob, margin, cosine = (torch.zeros(rows, len(exits)) for _ in range(3))
    agrees, short_agrees = (torch.zeros(rows, len(exits), dtype=torch.bool) for _ in range(2))
    candidates = torch.zeros(rows, len(exits), CANDIDATES) if candidate_index is not None else None
    for part in slices(0, rows, reader.head.rows):
        last = states.read(len(exits), part)
        final = reader.final_top1(last)
        tokens = None
        if candidate_index is not None:
            tokens = reader.best_tokens(candidate_index, states.read(candidate_index, part))
        for index in range(len(exits)):
            here = states.read(index, part)
            top1, short, best, margin[part, index] = reader.confidence(index, here, final)
            max_prob[part, index] = best
            agrees[part, index], short_agrees[part, index] = top1 == final, short == final
            cosine[part, index] = torch.cosine_similarity(here.float(), last.float(), dim=-1)
            if candidates is not None and tokens is not None:
                candidates[part, index] = reader.logits(index, here, tokens)
        advance(part.stop - part.start)
    if not bool(torch.isfinite(max_prob + margin + cosine).all()):
        raise ModelError(
            "an exit gives logits that are not finite", where=model.name, fix="try --dtype float32"
        )
    return Readings(
        states=states,
        document=document,
        agrees=agrees.numpy(),
        short_agrees=short_agrees.numpy(),
        max_prob=max_prob,
        margin=margin,
        cosine=cosine,
        candidates=candidates,
        candidate_index=candidate_index,
    )


def _kept_states(
    model: Model, contexts: Sequence[Context], exits: Sequence[int]
) -> tuple[StateStore, NDArray[np.int64]]:
    """States of all rows in a store, and each row's document."""
    total = sum(context.rows for context in contexts)
    store = open_store(len(exits), total, model.shape.hidden_size, getattr(torch, model.dtype))
    documents: list[Tensor] = []
    start = 0
    for rows, states in captured_states(model, contexts, exits):
        for index, layer in enumerate(states):
            store.write(index, start, layer)
        documents.append(rows.document)
        start += len(rows)
    return store, torch.cat([torch.empty(0, dtype=torch.long), *documents]).numpy()


class _Reader:
    """Reads exits out with the model's own tail and head, through the lens below L."""

    def __init__(self, model: Model, head: Head, lens: LinearLens | None, shortlist: Tensor) -> None:
        self.stack = model.stack
        self.dtype = getattr(torch, model.dtype)
        self.head = head
        self.lens = lens
        self.shortlist = shortlist
        self._restricted = head.restricted(shortlist)

    def confidence(self, index: int, hidden: Tensor, final: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best token and best on the short list (int64), p1 and p1 - p2 of an exit: [rows] each.

        p1 is NaN where logits are not finite.
        """
        states = self._states(index, hidden)
        output = self.head.output(states)
        short = self.shortlist[self._restricted(states, output).argmax(-1)]
        statistics, _ = self.head.statistics(states, output, _wanted(final))
        fine = torch.isfinite(statistics.maximum) & torch.isfinite(statistics.log_sum)
        best = torch.where(fine, torch.exp(-statistics.log_sum), torch.nan)
        second = torch.exp(statistics.second - statistics.maximum - statistics.log_sum)
        return statistics.top1, short, best, best - second

    def final_top1(self, hidden: Tensor) -> Tensor:
        """The full model's best token: int64 [rows]."""
        states = self._tail(hidden)
        found = []
        for rows in slices(0, len(states), self.head.exact_rows):
            output = self.head.exact_output(states[rows])
            wanted = torch.zeros(len(output), 2, dtype=torch.long)
            found.append(self.head.statistics(states[rows], output, wanted)[0].top1)
        return torch.cat(found)

    def best_tokens(self, index: int, hidden: Tensor) -> Tensor:
        """The best tokens of an exit, best first: int64 [rows, candidates]."""
        states = self._states(index, hidden)
        return self.head.best_columns(states, self.head.output(states), CANDIDATES)[0]

    def logits(self, index: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits of some tokens [rows, candidates] at an exit."""
        states = self._states(index, hidden)
        if isinstance(self.head, LinearHead):
            return self.head.exact_logits(states, tokens)
        return self.head.output(states).gather(1, tokens)

    def _states(self, index: int, hidden: Tensor) -> Tensor:
        """States of an exit as the head takes them."""
        if self.lens is not None:
            hidden = apply_lens(self.lens, index, hidden).to(self.dtype)
        return self._tail(hidden)

    def _tail(self, hidden: Tensor) -> Tensor:
        return self.stack.tail_forward(hidden) if isinstance(self.head, LinearHead) else hidden


def _wanted(final: Tensor) -> Tensor:
    return final[:, None].expand(-1, 2)
