"""The folder of a text: its documents by part and kind, its tokenizer, its tokens, and what it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DamagedFileError, InputError
from offramp.files import canonical_json, parse_json, sha256_of_file, sha256_of_text
from offramp.lab.text.generated import Answer, Problem
from offramp.lab.text.tokenizer import Tokens, load_tokenizer
from offramp.lab.text.work import GENERATED, Kind, Part
from offramp.records.sealed_file import SealedFile
from offramp.workloads.workload import Document

RECORD_FILE, TOKENS_FILE, TOKENIZER = "text.json", "tokens.safetensors", "tokenizer"
NATURAL_TOKENS, GENERATED_TOKENS, STEPS = "natural", "generated", "steps"
MAKE = "offramp lab text"


@dataclass(frozen=True)
class Gathered:
    """What was taken of one source. sha256: of the documents that were taken. characters, works: by part."""

    name: str
    kind: Kind
    licence: str
    version: str
    sha256: str
    works: dict[Part, int]
    characters: dict[Part, int]
    limits: str = ""


@dataclass(frozen=True)
class Absent:
    """A source that is not here, and how it is had."""

    name: str
    fix: str


@dataclass(frozen=True)
class TextRecord:
    """What a text is. tokens: by part, natural and generated. files: SHA-256 by path in the folder.

    seen: ids of documents of offramp's own workloads that share text with what is trained on, by the
    workload's fingerprint.
    """

    seed: int
    vocabulary: int
    sources: tuple[Gathered, ...]
    absent: tuple[Absent, ...]
    tokens: dict[Part, dict[str, int]]
    files: dict[str, str]
    seen: dict[str, tuple[str, ...]]
    versions: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens and of the tokenizer."""
        kept = {name: self.files[name] for name in sorted(self.files) if _decides(name)}
        return sha256_of_text(canonical_json(kept))


def _decides(name: str) -> bool:
    return name == TOKENS_FILE or name.startswith(f"{TOKENIZER}/")


RECORD = SealedFile(
    TextRecord,
    what="{name}, which says what a text is made of, is damaged",
    fix=f"make the text again: {MAKE} --overwrite",
    version=1,
    kind="lab text",
)


@dataclass(frozen=True)
class LabText:
    """A text that was made, in its folder."""

    folder: Path
    record: TextRecord

    @property
    def fingerprint(self) -> str:
        """Of the tokens and the tokenizer."""
        return self.record.fingerprint

    @property
    def tokenizer_folder(self) -> Path:
        """An ordinary tokenizer of transformers."""
        return self.folder / TOKENIZER

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return load_tokenizer(self.tokenizer_folder)

    def tokens(self, part: Part, which: str) -> Tokens:
        """All tokens of a part in a row, documents one after the other: uint16 [tokens].

        which: NATURAL_TOKENS or GENERATED_TOKENS.
        """
        return self._array(f"{part}.{which}").astype(np.uint16, copy=False)

    def steps(self, part: Part) -> NDArray[np.uint8]:
        """Of every generated token the steps that it takes to know it, 0 where that is not known."""
        return self._array(f"{part}.{STEPS}").astype(np.uint8, copy=False)

    def problems(self, part: Part) -> tuple[Problem, ...]:
        """The generated documents of a part, with their answers."""
        lines = (self.folder / documents_file(part, GENERATED)).read_text(encoding="utf-8").splitlines()
        found = map(parse_json, lines)
        return tuple(
            Problem(Document(one["id"], one["text"]), tuple(Answer(*answer) for answer in one["answers"]))
            for one in found
        )

    def _array(self, name: str) -> NDArray[Any]:
        from safetensors import safe_open

        with safe_open(self.folder / TOKENS_FILE, framework="numpy") as file:
            found: NDArray[Any] = file.get_tensor(name)
        return found


def documents_file(part: Part, kind: Kind) -> str:
    """Where documents lie, one a line: a workload, as in `jsonl:FOLDER/report-prose.jsonl#text`."""
    return f"{part}-{kind}.jsonl"


def lines_of(documents: Iterable[Document], answers: Mapping[str, tuple[Answer, ...]]) -> str:
    """The lines of such a file; answers by the document's id."""
    entries = (
        {"id": one.id, "text": one.text}
        | (
            {"answers": [[each.start, each.end, each.steps] for each in answers[one.id]]}
            if one.id in answers
            else {}
        )
        for one in documents
    )
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def read_text_folder(folder: str | Path) -> LabText:
    """The text in a folder, every byte of it looked at.

    Raises InputError where none is, DamagedFileError if it changed since it was made.
    """
    folder = Path(folder)
    if not (folder / RECORD_FILE).is_file():
        raise InputError(
            f"the folder holds no text of a lab: {RECORD_FILE} is missing",
            where=str(folder),
            fix=f"make one: {MAKE} -o {folder}",
        )
    record = RECORD.read(folder / RECORD_FILE)
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file() or sha256_of_file(path) != expected:
            raise DamagedFileError(
                f"a file of the text {'is missing' if not path.is_file() else 'was changed'}: {name}",
                where=str(path),
                fix=f"make the text again: {MAKE} --overwrite",
            )
    return LabText(folder, record)
