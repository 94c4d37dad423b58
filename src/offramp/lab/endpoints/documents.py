"""Works of one part of a text as workloads, and the prompts that begin them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import get_args

from offramp.decoding.openings import Opening
from offramp.errors import InputError
from offramp.files import sha256_of_text
from offramp.lab.text.folder import LabText, documents_file
from offramp.lab.text.work import NaturalKind, Part
from offramp.models.model import Model
from offramp.workloads.packing import encode_document
from offramp.workloads.text_files import load_json_lines
from offramp.workloads.workload import Document, Workload

CHARACTERS = 1 << 14
"""Of a document: nothing reads further, and to encode whole books would take longer than to measure."""

NATURAL: tuple[NaturalKind, ...] = get_args(NaturalKind)
"""Kinds of works that were not made here."""


def kinds_of(text: LabText, part: Part) -> tuple[NaturalKind, ...]:
    """The kinds of natural works that a part has."""
    return tuple(kind for kind in NATURAL if documents_file(part, kind) in text.record.files)


def works_of(text: LabText, part: Part, kinds: Sequence[NaturalKind]) -> Workload:
    """Documents of some kinds, one of each in turn as long as it has any; those of a kind ordered by a hash.

    The order depends on their ids alone: the same for every model, and of all sources of a kind.
    Raises InputError for a kind that the part has not.
    """
    by_kind = [_documents(text, part, kind) for kind in kinds]
    in_turn = chain.from_iterable(zip_longest(*by_kind))
    sources = [one for one in text.record.sources if one.kind in kinds]
    return Workload(
        name=f"{part} works: {', '.join(kinds)}",
        mode="text",
        documents=tuple(one for one in in_turn if one is not None),
        licence=", ".join(sorted({one.licence for one in sources})),
        source=", ".join(one.name for one in sources),
    )


def _documents(text: LabText, part: Part, kind: NaturalKind) -> list[Document]:
    name = documents_file(part, kind)
    if name not in text.record.files:
        raise InputError(
            f"the text has no {kind} in its {part} part",
            where=str(text.folder),
            fix=f"make one with more {kind}: offramp lab text",
        )
    found = load_json_lines(f"{text.folder / name}#text").documents
    begun = [replace(one, text=one.text[:CHARACTERS]) for one in found]
    return sorted(begun, key=lambda one: sha256_of_text(f"offramp lab endpoint {one.id}"))


def openings_of(model: Model, works: Workload, tokens: int, most: int) -> tuple[Opening, ...]:
    """The first tokens, the beginning of a text among them, of the first documents that have so many."""
    found: list[Opening] = []
    for document in works.documents:
        ids = encode_document(model.encode, document, tokens)
        if len(ids) >= tokens:
            found.append(Opening(document.id, ids[:tokens], traced=False))
        if len(found) == most:
            break
    return tuple(found)
