"""Measuring a part of a trace: its groups of contexts one after another, then its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from offramp.tracing.measurement import GroupFacts, GroupMeasurer
from offramp.tracing.part import REFERENCE_TOP1, Part, PartDocument, Reference, block_of
from offramp.tracing.rows import Rows, groups_of
from offramp.workloads.packing import Context


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
    nonfinite = {document: first for group in reversed(groups) for document, first in group.nonfinite.items()}
    return {
        document: f"a non-finite number at layer {first.layer}, position {first.position}"
        for document, first in nonfinite.items()
    }


def _token_columns(contexts: Sequence[Context], groups: Sequence[GroupFacts]) -> dict[str, np.ndarray]:
    rows = Rows.of(contexts)
    token = [token for context in contexts for token in context.ids[context.first_row :]]
    generated = [context.generated for context in contexts for _ in range(context.rows)]
    columns = {
        "token": np.array(token, dtype=np.int32),
        "next_token": rows.next_token.astype(np.int32),
        "document": rows.document.astype(np.int32),
        "position": rows.position.astype(np.int32),
        "generated": np.array(generated, dtype=np.bool_),
    }
    of_documents = {document: value for group in groups for document, value in group.prompt_entropy.items()}
    if of_documents:
        per_row = [of_documents[context.document] for context in contexts for _ in range(context.rows)]
        columns["prompt_entropy"] = np.array(per_row, dtype=np.float32)
    return columns
