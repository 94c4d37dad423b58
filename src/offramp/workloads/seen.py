"""Which documents of offramp's own workloads a model has seen that was trained on some texts."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.workloads.registry import load_workload
from offramp.workloads.shared_text import Sketcher, shares_text, sketches_of
from offramp.workloads.workload import Document

OF_THE_LIBRARY = ("prose", "prose:short", "code", "code:short")
"""Workloads made of Python's standard library, which is what people train on, too."""


def documents_seen(trained_on: Sequence[Document]) -> dict[str, tuple[str, ...]]:
    """Ids of documents of offramp's own workloads that share text with these, by the workload's fingerprint.

    What `offramp.record_training` writes beside a model, so that tuning leaves them out.
    """
    sketches = Sketcher().sketches(trained_on)
    found: dict[str, tuple[str, ...]] = {}
    for name in OF_THE_LIBRARY:
        workload = load_workload(name)
        ids = [document.id for document in workload.documents]
        shared = shares_text(sketches_of(workload, ids), sketches)
        found[workload.fingerprint] = tuple(id for id, out in zip(ids, shared, strict=True) if out)
    return found
