"""A work: documents that belong together, and so to one part of the text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from offramp.files import canonical_json, sha256_of_text
from offramp.workloads.workload import Document

NaturalKind = Literal["prose", "manual", "code", "reasoning"]
"""Of text: what is written to be read, to be looked up, to be run; puzzles of a package."""

Kind = Literal[NaturalKind, "generated"]
"""Also that which is made here."""

KINDS: tuple[Kind, ...] = get_args(Kind)
GENERATED: Kind = "generated"

Part = Literal["train", "validation", "report"]
"""What weights are fitted on; what tells how training goes; what nothing is looked at before the end."""

PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Work:
    """A package of a library, a chapter of a book, a manual page.

    name: unique within its source. documents: their ids are unique within the text. part: where it must go,
    None if that is dealt.
    """

    source: str
    name: str
    kind: Kind
    documents: tuple[Document, ...]
    part: Part | None = None

    @property
    def id(self) -> str:
        """Unique within the text: standard-library:email."""
        return f"{self.source}:{self.name}"

    @property
    def characters(self) -> int:
        """Of all its documents."""
        return sum(len(document.text) for document in self.documents)


def sha256_of_works(works: Iterable[Work]) -> str:
    """SHA-256 of ids and texts of all documents."""
    content = [[document.id, document.text] for work in works for document in work.documents]
    return sha256_of_text(canonical_json(content))
