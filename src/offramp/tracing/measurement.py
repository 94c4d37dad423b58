"""Measuring one part of a trace: a request's measurer, and the facts and columns of some whole documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from offramp.models.model import Model
from offramp.tracing.fitted import FittedHeads
from offramp.tracing.group import GroupFacts, GroupMeasurer
from offramp.tracing.head import make_head
from offramp.tracing.part import Part, PartDocument
from offramp.tracing.request import TraceRequest
from offramp.tracing.rows import groups_of
from offramp.tracing.states import StateShape
from offramp.tracing.storage import block_of
from offramp.workloads.packing import Context


def state_shape_of(model: Model, ids: Sequence[int]) -> StateShape:
    """The shape of a layer's output, seen in a short forward."""
    shapes: list[StateShape] = []

    def on_layer(layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        if not shapes:
            shapes.append(StateShape.of(after, model.stack.position_axis))

    model.stack.capture(torch.tensor([ids]), on_layer)
    return shapes[0]


def make_measurer(
    model: Model, request: TraceRequest, first: Context, fitted: FittedHeads | None
) -> GroupMeasurer:
    """The measurer of a request, whose first context shows the shape of a layer's output."""
    shape = state_shape_of(model, first.ids[:8])
    with torch.no_grad():
        head = make_head(model.stack, model.shape.vocabulary_size, shape, request.reductions)
        return GroupMeasurer(
            model.stack,
            head,
            request.exits,
            shape,
            getattr(torch, model.dtype),
            request.recording,
            fitted,
        )


def measure_part(
    measurer: GroupMeasurer,
    index: int,
    contexts: Sequence[Context],
    documents: int,
    advance: Callable[[int], None],
) -> Part:
    """Measure the contexts of one part, group by group, and leave out documents with a non-finite number."""
    groups: list[GroupFacts] = []
    for group in groups_of(contexts):
        groups.append(measurer.measure(group))
        advance(sum(context.rows for context in group))
    defects = {document: defect for group in reversed(groups) for document, defect in group.defects.items()}
    kept = ~np.isin(np.concatenate([group.document for group in groups]), list(defects))
    marginal: dict[int, np.ndarray] = {}
    marginal_rows: dict[int, int] = {}
    records = []
    for document in dict.fromkeys(context.document for context in contexts):
        rows = sum(context.rows for context in contexts if context.document == document)
        if document in defects:
            defect = defects[document]
            reason = f"a non-finite number at layer {defect.layer}, position {defect.position}"
            records.append(PartDocument(document, 0, valid=False, reason=reason))
            continue
        records.append(PartDocument(document, rows))
        block = block_of(document, documents)
        sums = np.sum(
            [group.marginal[document].double().numpy() for group in groups if document in group.marginal], 0
        )
        marginal[block] = marginal.get(block, 0.0) + sums
        marginal_rows[block] = marginal_rows.get(block, 0) + rows
    return Part(
        index=index,
        tokens={name: column[kept] for name, column in _token_columns(contexts, groups).items()},
        facts={
            name: np.concatenate([group.facts[name] for group in groups])[kept] for name in groups[0].facts
        },
        marginal=marginal,
        marginal_rows=marginal_rows,
        documents=tuple(records),
    )


def _token_columns(contexts: Sequence[Context], groups: Sequence[GroupFacts]) -> dict[str, np.ndarray]:
    def column(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int32)

    generated = [context.generated for context in contexts for _ in range(context.rows)]
    columns = {
        "token": column([token for context in contexts for token in context.ids[context.first_row :]]),
        "next_token": column([token for context in contexts for token in context.next_tokens]),
        "document": column([context.document for context in contexts for _ in range(context.rows)]),
        "position": column([p for context in contexts for p in range(context.first_row, len(context.ids))]),
        "generated": np.array(generated, dtype=np.bool_),
    }
    of_documents = {document: value for group in groups for document, value in group.prompt_entropy.items()}
    if of_documents:
        per_row = [of_documents[context.document] for context in contexts for _ in range(context.rows)]
        columns["prompt_entropy"] = np.array(per_row, dtype=np.float32)
    return columns
