"""Forward passes without any output head: hidden states of many sequences, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from offramp.errors import ModelError
from offramp.models.model import Model
from offramp.tracing.fitting.documents import FittingRows
from offramp.tracing.fitting.sums import ExitSums
from offramp.tracing.group import FORWARD_TOKENS
from offramp.tracing.rows import Rows, equal_length_batches
from offramp.tracing.states import StateShape
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
            found[layer + 1] = torch.cat([after[i, context.first_row :] for i, context in enumerate(batch)])

    model.stack.capture(torch.tensor([context.ids for context in batch]), on_layer)
    return [found[exit] for exit in exits]
