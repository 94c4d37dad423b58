"""Which documents several fittings or trainings have seen, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from offramp.workloads.shared_text import Sketch

Seen = tuple[Mapping[str, tuple[str, ...]], Sequence[Sketch] | None]
"""Ids of documents by workload, and sketches of their texts in the same order, None where not known."""


def seen_by_all(*several: Seen) -> tuple[dict[str, tuple[str, ...]], tuple[Sketch, ...] | None]:
    """Documents that any has seen, each once and in this order; no texts if one is not known.

    Workloads are in the order of their fingerprints, as files have them.
    """
    sketches: dict[tuple[str, str], Sketch | None] = {}
    for documents, texts in several:
        places = [(workload, id) for workload, ids in documents.items() for id in ids]
        known: Sequence[Sketch | None] = [None] * len(places) if texts is None else texts
        for place, sketch in zip(places, known, strict=True):
            sketches.setdefault(place, sketch)
    workloads = sorted({name for documents, _ in several for name in documents})
    ids = {name: tuple(id for workload, id in sketches if workload == name) for name in workloads}
    ordered = [sketches[workload, id] for workload, some in ids.items() for id in some]
    found = [one for one in ordered if one is not None]
    return ids, tuple(found) if len(found) == len(ordered) else None
