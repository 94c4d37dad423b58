"""A workload: texts or prompts with their licence, source and fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offramp.files import canonical_json, sha256_of_text

Mode = Literal["text", "generation"]


@dataclass(frozen=True)
class Document:
    """One text, or one prompt whose answer the model will write. `id` is unique within the workload."""

    id: str
    text: str


@dataclass(frozen=True)
class Workload:
    """Documents in a fixed order, and where they come from.

    name: as given on the command line ("prose", "txt:notes.txt").
    mode: "text" traces the given text teacher-forced; "generation" lets the full model answer each prompt
    greedily and traces the answer.
    chat: the prompts go through the model's chat template.
    notes: what was done to the texts that a reader of the results must know, one phrase each.
    """

    name: str
    mode: Mode
    documents: tuple[Document, ...]
    licence: str
    source: str
    chat: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Workload({self.name}, {self.mode}, {len(self.documents):,} documents)"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of mode, chat and every document: equal exactly when the traced text is equal."""
        content = [self.mode, self.chat, [[document.id, document.text] for document in self.documents]]
        return sha256_of_text(canonical_json(content))
