"""What fitting reads: hidden states of many sequences, and for classifiers what every exit's head says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.defaults import CANDIDATES
from offramp.errors import ModelError
from offramp.heads.output_head import Head, LinearHead, StateShape, at_head, make_head
from offramp.heads.parts import ExitReading, Weights
from offramp.heads.precision import exact_sums
from offramp.heads.statistics import choose_reductions
from offramp.models.conditioned import probing
from offramp.models.devices import to_host
from offramp.models.model import Model
from offramp.tracing.fitting.fitting_documents import FittingRows
from offramp.tracing.fitting.ridge import ExitSums
from offramp.tracing.group_measurer import FORWARD_TOKENS, ids_of, traced_rows
from offramp.tracing.rows import Rows, equal_length_batches, slices
from offramp.tracing.states import StateStore
from offramp.workloads.packing import Context

FIRST_POSITION = 1
"""Position 0 is left out where it is asked which tokens may leave: decoding never lets a sequence's first
position leave, and its state, which attention rests on, is often hundreds of times larger than all others."""


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

    with probing(model.hf):
        model.stack.capture(torch.zeros(1, 2, dtype=torch.long, device="cpu"), on_layer)
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
            fix="load the model in float32 (--dtype float32), or give more documents",
        )


def captured_states(
    model: Model, contexts: Sequence[Context], exits: Sequence[int]
) -> Iterator[tuple[Rows, list[Tensor]]]:
    """The rows of some contexts at a time, and their states [rows, hidden] per exit, in the model's dtype.

    The states are on the output head's device. Rows of a context with a number that is not finite are left
    out: nothing can be learned from them.
    """
    for batch in equal_length_batches(contexts, FORWARD_TOKENS):
        states = _forward(model, batch, exits)
        rows = Rows.of(batch)
        finite = torch.stack([torch.isfinite(layer).all(-1) for layer in states]).all(0)
        fine = to_host([finite])[0].numpy()  # looked at once a batch: what is not fine must not be added up
        if not fine.all():
            sequence = np.repeat(np.arange(len(batch)), [context.rows for context in batch])
            fine = ~np.isin(sequence, sequence[~fine])
            rows = rows[fine]
            kept = torch.from_numpy(np.flatnonzero(fine)).to(finite.device)
            states = [layer[kept] for layer in states]
        if len(rows):
            yield rows, states


def add_up(
    model: Model, fitted_on: FittingRows, sums: Sequence[ExitSums], advance: Callable[[int], None]
) -> None:
    """Add all rows to several sums in one pass.

    Raises ModelError as `require_both_sides` does.
    """
    layers = sorted({layer for of_part in sums for layer in of_part.captured})
    for rows, states in captured_states(model, fitted_on.contexts, layers):
        held_out = fitted_on.held_out[rows.document]
        for of_part in sums:
            of_part.add(dict(zip(layers, states, strict=True)), held_out)
        advance(len(rows))
    require_both_sides(model, sums[0].rows(held_out=False), sums[0].rows(held_out=True))


def _forward(model: Model, batch: Sequence[Context], exits: Sequence[int]) -> list[Tensor]:
    """States of a batch's rows at every exit, [rows, hidden] each."""
    found: dict[int, Tensor] = {}
    wanted = set(exits)

    def on_layer(layer: int, before: Tensor, after: Tensor) -> None:
        if layer + 1 in wanted:
            found[layer + 1] = traced_rows(after, batch).to(model.stack.head_device)

    with model.given(batch):
        model.stack.capture(ids_of(batch), on_layer)
    return [found[exit] for exit in exits]


@dataclass(frozen=True)
class Readings:
    """One row per token, one column per exit below L; all but the states is in the processor's memory."""

    states: StateStore
    """The layers' outputs [exits, rows, hidden], L's last."""
    document: NDArray[np.int64]
    """[rows]"""
    position: NDArray[np.int64]
    """[rows]"""
    agrees: NDArray[np.bool_]
    """[rows, exits], whether the exit's best token is the full model's."""
    short_agrees: NDArray[np.bool_]
    """The same of its best token on the short list."""
    max_prob: Tensor
    """Float32 [rows, exits], as margin and cosine."""
    margin: Tensor
    cosine: Tensor
    """To L's hidden state."""
    candidates: Tensor | None
    """Float32 [rows, exits, candidates], logits of the candidate exit's best tokens, None without one."""
    candidate_index: int | None
    """Its place among the exits."""

    def hidden(self, exit_index: int) -> Tensor:
        """An exit's hidden states, float32 [rows, hidden], in the processor's memory."""
        return self.states.read(exit_index, slice(0, len(self.document))).cpu().float()


@torch.no_grad()
def take_readings(
    model: Model,
    contexts: Sequence[Context],
    exits: Sequence[int],
    reading: ExitReading[Weights],
    candidate_index: int | None,
    shortlist: Tensor,
    advance: Callable[[int], None],
) -> Readings:
    """Run the model on some contexts and read every exit out.

    exits: below L. reading: what they are read through, its first axis the exits. candidate_index: place of
    the candidate exit in `exits`. shortlist: int64 ids of the restricted vocabulary, ascending.

    Raises ModelError if an exit's logits are not finite.
    """
    states, document, position = _kept_states(model, contexts, (*exits, model.layers))
    rows = len(document)
    shape = StateShape(-2, None, model.shape.hidden_size)
    elements = rows * (len(exits) + 1) * model.shape.vocabulary_size
    reductions = choose_reductions(elements, model.stack.head_device.type)
    head = make_head(model.stack, model.shape.vocabulary_size, shape, reductions)
    readings = [reading.at(place, head.device) for place in range(len(exits))]
    reader = _Reader(model, head, readings, shortlist)
    device = head.device
    max_prob, margin, cosine = (
        torch.zeros(rows, len(exits), dtype=torch.float32, device=device) for _ in range(3)
    )
    agrees, short_agrees = (torch.zeros(rows, len(exits), dtype=torch.bool, device=device) for _ in range(2))
    columns = 0 if candidate_index is None else CANDIDATES
    candidates = torch.zeros(rows, len(exits), columns, dtype=torch.float32, device=device)
    with exact_sums():
        for part in slices(0, rows, head.rows):
            # 1. What the full model says of some rows.
            last = states.read(len(exits), part)
            final = reader.final_top1(reader.seen(len(exits), last))
            # 2. The best tokens of the candidate exit.
            tokens = None
            if candidate_index is not None:
                chosen_at = reader.seen(candidate_index, states.read(candidate_index, part))
                tokens = head.best_columns(chosen_at, head.output(chosen_at), CANDIDATES)[0]
            # 3. Each exit beside both.
            for index in range(len(exits)):
                here = states.read(index, part)
                seen = reader.seen(index, here)
                top1, short, best, margin[part, index] = reader.confidence(seen, final)
                max_prob[part, index] = best
                agrees[part, index], short_agrees[part, index] = top1 == final, short == final
                cosine[part, index] = torch.cosine_similarity(here.float(), last.float(), dim=-1)
                if tokens is not None:
                    candidates[part, index] = reader.logits(seen, tokens)
            advance(part.stop - part.start)
    max_prob, margin, cosine, agrees, short_agrees, candidates = to_host(
        [max_prob, margin, cosine, agrees, short_agrees, candidates]
    )
    if not bool(torch.isfinite(max_prob + margin + cosine).all()):
        raise ModelError(
            "an exit gives logits that are not finite",
            where=model.name,
            fix="load the model in float32 (--dtype float32)",
        )
    return Readings(
        states=states,
        document=document,
        position=position,
        agrees=agrees.numpy(),
        short_agrees=short_agrees.numpy(),
        max_prob=max_prob,
        margin=margin,
        cosine=cosine,
        candidates=None if candidate_index is None else candidates,
        candidate_index=candidate_index,
    )


def _kept_states(
    model: Model, contexts: Sequence[Context], exits: Sequence[int]
) -> tuple[StateStore, NDArray[np.int64], NDArray[np.int64]]:
    """States of all rows in a store, and each row's document and position."""
    total = sum(context.rows for context in contexts)
    store = StateStore(
        len(exits), total, model.shape.hidden_size, getattr(torch, model.dtype), model.stack.head_device
    )
    nothing = np.empty(0, dtype=np.int64)
    documents, positions = [nothing], [nothing]
    start = 0
    for rows, states in captured_states(model, contexts, exits):
        for index, layer in enumerate(states):
            store.write(index, start, layer)
        documents.append(rows.document)
        positions.append(rows.position)
        start += len(rows)
    return store, np.concatenate(documents), np.concatenate(positions)


class _Reader:
    """Reads exits out with the model's own tail and head, through lens and network below L.

    states: of an exit [rows, hidden], as `seen` makes them. Products are those of `exact_sums`.
    """

    def __init__(
        self, model: Model, head: Head, readings: Sequence[ExitReading[Tensor]], shortlist: Tensor
    ) -> None:
        self.stack = model.stack
        self.head = head
        self.readings = readings
        self.shortlist = shortlist.to(head.device)
        self._restricted = head.restricted(self.shortlist)

    def seen(self, index: int, hidden: Tensor) -> Tensor:
        """States of an exit by its place, or of L behind these, as the head takes them."""
        states = self.readings[index](hidden) if index < len(self.readings) else hidden
        linear = isinstance(self.head, LinearHead)
        return at_head(self.stack, self.stack.tail_forward, states) if linear else states

    def confidence(self, states: Tensor, final: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best token and best on the short list (int64), p1 and p1 - p2 of an exit: [rows] each.

        p1 is NaN where logits are not finite.
        """
        output = self.head.output(states)
        short = self.shortlist[self._restricted(states, output).argmax(-1)]
        statistics, _ = self.head.statistics(states, output, final[:, None].expand(-1, 2))
        fine = torch.isfinite(statistics.maximum) & torch.isfinite(statistics.log_sum)
        best = torch.where(fine, torch.exp(-statistics.log_sum), torch.nan)
        second = torch.exp(statistics.second - statistics.maximum - statistics.log_sum)
        return statistics.top1, short, best, best - second

    def final_top1(self, states: Tensor) -> Tensor:
        """The full model's best token: int64 [rows]."""
        found = []
        for rows in slices(0, len(states), self.head.exact_rows):
            output = self.head.exact_output(states[rows])
            wanted = torch.zeros(len(output), 2, dtype=torch.long, device=output.device)
            found.append(self.head.statistics(states[rows], output, wanted)[0].top1)
        return torch.cat(found)

    def logits(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Logits of some tokens [rows, candidates] at an exit."""
        if isinstance(self.head, LinearHead):
            return self.head.exact_logits(states, tokens)
        return self.head.output(states).gather(1, tokens)
