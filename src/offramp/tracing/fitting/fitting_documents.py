"""Which documents fitting reads: the later half of a workload, so that the first half is left for tuning."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.plan import plan_with_answers
from offramp.workloads.packing import Context
from offramp.workloads.shared_text import Sketch, Sketcher, sketches_of, text_groups, without_shared_text
from offramp.workloads.workload import Document, Workload

HELD_OUT_EVERY = 3
"""One document of so many is held out, with those that share text with it."""

FEWEST = 2
"""Documents of a part: one to fit and one held out."""

CLASSIFIER_SHARE = 0.5
"""Share of the documents that the classifiers get where a lens is fitted too. The lens does not see them, so
that it is as good there as on new text and no better."""


@dataclass(frozen=True)
class FittingRows:
    """Contexts of several workloads; their documents are numbered through."""

    contexts: tuple[Context, ...]
    held_out: NDArray[np.bool_]
    """[documents]"""
    ids: dict[str, tuple[str, ...]]
    """Of the documents, by workload fingerprint."""
    texts: tuple[Sketch, ...]
    """Sketches of the documents' texts."""
    answering: float = 0.0
    """Seconds in which the model wrote what is read of it, beside given text."""

    @property
    def tokens(self) -> int:
        """Rows of all contexts."""
        return sum(context.rows for context in self.contexts)


def split_documents(
    workload: Workload, shares: Sequence[float], seed: int
) -> tuple[tuple[Document, ...], ...]:
    """Documents of the workload's later half, in random order, in disjoint parts of these shares.

    More than half is taken where the half is too small for FEWEST documents each.

    Raises InputError if the whole workload is.
    """
    needed = FEWEST * len(shares)
    count = len(workload.documents)
    if count < needed:
        raise InputError(
            f"the workload {workload.name} has {count} document{'' if count == 1 else 's'}; fitting needs "
            f"{needed}, since what is fitted on some is judged on others",
            fix="give more documents; a text file is split at its blank lines",
        )
    later = workload.documents[-max(count // 2, needed) :]
    order = [later[place] for place in np.random.default_rng(seed).permutation(len(later))]
    sizes = [max(FEWEST, round(share * len(order))) for share in shares[:-1]]
    ends = np.minimum(np.cumsum([0, *sizes]), len(order) - FEWEST)[1:]
    bounds = [0, *ends.tolist(), len(order)]
    return tuple(tuple(order[a:b]) for a, b in itertools.pairwise(bounds))


MANY = 1_000
"""Documents of which so many are left that some which share text make no difference."""


def left_for_tuning(workload: Workload) -> tuple[Document, ...]:
    """The documents that fitting never reads, and that share no text with those which it may read.

    Of `MANY` documents or more, text that is shared is not looked for.
    """
    half = max(len(workload.documents) // 2, FEWEST)
    left, later = workload.documents[:-half], workload.documents[-half:]
    if len(left) >= MANY:
        return left
    sketches = sketches_of(workload, [document.id for document in later])
    return tuple(without_shared_text(left, sketches, Sketcher.of(workload.documents)))


def without_text_of(
    workload: Workload, documents: Sequence[Document], others: Sequence[Sketch]
) -> tuple[Document, ...]:
    """Those of a workload's documents that share no text with others.

    Raises InputError if fewer than FEWEST are left.
    """
    kept = without_shared_text(documents, others, Sketcher.of(workload.documents))
    if len(kept) < FEWEST:
        raise InputError(
            f"all but {len(kept)} of {len(documents)} documents of {workload.name} for the classifiers share "
            "text with documents for the lens",
            fix="give more documents, or such as do not repeat each other",
        )
    return kept


def plan_rows(
    model: Model,
    parts: Sequence[tuple[Workload, tuple[Document, ...]]],
    tokens: int,
    *,
    context: int | None,
    shown: bool,
    held_out_every: int = HELD_OUT_EVERY,
    folder: Path | None = None,
) -> FittingRows:
    """Up to `tokens` rows, from every workload equally many.

    parts: each workload with those of its documents that may be read. shown: show bars. Documents
    that share text are held out together or not at all, one group of so many. folder: of this request alone,
    where what the model writes is kept, and read from there again.

    Raises InputError if so few tokens are asked for that they are all of one document, or if all of them
    share text.
    """
    contexts: list[Context] = []
    counts: list[int] = []
    ids: dict[str, tuple[str, ...]] = {}
    texts: list[Sketch] = []
    answering = 0.0
    for workload, documents in parts:
        share = max(1, tokens // len(parts))
        work = replace(workload, documents=documents)
        plan = plan_with_answers(
            model, work, tokens=share, context=context, shown=shown, folder=folder, timed=True
        )
        names = plan.document_ids
        if len(names) < FEWEST:
            raise InputError(
                f"{share:,} tokens of {workload.name} are all of one document, so none is left to judge on",
                where="tokens= (--tokens)",
                fix="raise tokens= (--tokens)",
            )
        answering += plan.answering
        contexts += [replace(context, document=context.document + sum(counts)) for context in plan.contexts]
        counts.append(len(names))
        ids[workload.fingerprint] = names
        texts += sketches_of(workload, names)
    held_out = _held_out(counts, texts, held_out_every)
    return FittingRows(tuple(contexts), held_out, ids, tuple(texts), answering)


def _held_out(counts: Sequence[int], texts: Sequence[Sketch], every: int) -> NDArray[np.bool_]:
    """One group of documents that share text of so many: bool [documents].

    counts: documents of each workload, which is counted by itself.
    """
    groups = text_groups(texts)
    held_out = np.zeros(len(texts), dtype=np.bool_)
    for start, count in zip(np.cumsum([0, *counts]), counts, strict=False):
        own = np.arange(start, start + count)
        held_out[own[groups[own] == own][1::every]] = True
    found: NDArray[np.bool_] = held_out[groups]
    if not found.any() or found.all():
        raise InputError(
            f"the {len(texts)} documents share text with each other, so none can be judged on that is not "
            "also fitted on",
            fix="give more documents, or such as do not repeat each other",
        )
    return found


Seen = tuple[Mapping[str, tuple[str, ...]], Sequence[Sketch] | None]
"""Ids of documents by workload, and sketches of their texts in the same order, None where not known."""


def seen_by_all(*several: Seen) -> tuple[dict[str, tuple[str, ...]], tuple[Sketch, ...] | None]:
    """Documents that any has seen, each once and in this order; no texts if one is not known.

    Workloads are in the order of their fingerprints, as files have them.
    """
    sketches: dict[tuple[str, str], Sketch | None] = {}
    for documents, texts in several:
        places = [(workload, id) for workload, ids in documents.items() for id in ids]
        of_places: Sequence[Sketch | None] = [None] * len(places) if texts is None else texts
        for place, sketch in zip(places, of_places, strict=True):
            sketches.setdefault(place, sketch)
    workloads = sorted({name for documents, _ in several for name in documents})
    ids = {name: tuple(id for workload, id in sketches if workload == name) for name in workloads}
    ordered = [sketches[workload, id] for workload, some in ids.items() for id in some]
    known = [sketch for sketch in ordered if sketch is not None]
    return ids, tuple(known) if len(known) == len(ordered) else None
