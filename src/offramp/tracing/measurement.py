"""Measuring one part of a trace: a request's measurer, and the facts and columns of some whole documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from offramp.models.calls import first_tensor
from offramp.models.model import Model
from offramp.tracing.capture import Capture
from offramp.tracing.fitted import FittedHeads
from offramp.tracing.group import GroupFacts, GroupMeasurer
from offramp.tracing.head import make_head
from offramp.tracing.part import Part, PartDocument, Reference
from offramp.tracing.request import TraceRequest
from offramp.tracing.rows import groups_of
from offramp.tracing.states import StateShape
from offramp.tracing.storage import block_of
from offramp.tracing.trace import REFERENCE_TOP1
from offramp.workloads.packing import Context


def state_shape_of(model: Model) -> StateShape:
    """The shape of a layer's output, as in the short forward that the stack of exits was found by."""
    return StateShape.of(first_tensor(model.stack.layer_outputs[0]), model.stack.position_axis)


def make_measurer(
    model: Model, request: TraceRequest, fitted: FittedHeads | None, capture: Capture | None = None
) -> GroupMeasurer:
    """The measurer of a request. capture: where layers' outputs come from, by default a forward pass."""
    shape = state_shape_of(model)
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
            capture,
        )


def measure_part(
    measurer: GroupMeasurer,
    index: int,
    contexts: Sequence[Context],
    documents: int,
    advance: Callable[[int], None],
    reference: Reference | None = None,
) -> Part:
    """Measure the contexts of one part, group by group, and leave out documents with a non-finite number.

    reference: of a transformed model, what the untransformed one says on the same contexts.
    """
    groups: list[GroupFacts] = []
    for group in groups_of(contexts):
        groups.append(measurer.measure(group))
        advance(sum(context.rows for context in group))
    reasons = _reasons(groups) if reference is None else {**reference.reasons, **_reasons(groups)}
    kept = ~np.isin(np.concatenate([group.document for group in groups]), list(reasons))
    columns = {name: column[kept] for name, column in _token_columns(contexts, groups).items()}
    if reference is not None:
        columns[REFERENCE_TOP1] = reference.top1[~np.isin(reference.document, list(reasons))]
    marginal: dict[int, np.ndarray] = {}
    marginal_rows: dict[int, int] = {}
    records = []
    for document in dict.fromkeys(context.document for context in contexts):
        rows = sum(context.rows for context in contexts if context.document == document)
        if document in reasons:
            records.append(PartDocument(document, 0, valid=False, reason=reasons[document]))
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
        tokens=columns,
        facts={
            name: np.concatenate([group.facts[name] for group in groups])[kept] for name in groups[0].facts
        },
        marginal=marginal,
        marginal_rows=marginal_rows,
        documents=tuple(records),
    )


def _reasons(groups: Sequence[GroupFacts]) -> dict[int, str]:
    """Why documents are left out: where the first of their non-finite numbers is."""
    defects = {document: defect for group in reversed(groups) for document, defect in group.defects.items()}
    return {
        document: f"a non-finite number at layer {defect.layer}, position {defect.position}"
        for document, defect in defects.items()
    }


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
