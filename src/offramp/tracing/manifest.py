"""The manifest of a trace: what was measured, its documents and parts, with their SHA-256; written last."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, InputError, shortened
from offramp.files import (
    NO_FILE,
    is_irregular,
    sha256_of_file,
    write_sealed_json,
)
from offramp.kit.rules import near_paths
from offramp.kit.typed import read_record, to_json
from offramp.models.devices import CPU
from offramp.models.shape import ModelShape
from offramp.tracing.request import SCHEMA_VERSION, TraceRequest
from offramp.tracing.sealed_parts import FILE_KINDS, FileKind, Part, block_of, damaged, part_path, trace_file

MANIFEST = "manifest.json"


KIND = "offramp trace"


REQUEST = "request.json"


TIMESTAMPS = "timestamps"
"""Left out of the seal, so that two runs that measure the same write the same seal."""


@dataclass(frozen=True)
class DocumentRecord:
    """One traced document: its id, traced tokens, and why it was left out if it was."""

    id: str
    tokens: int
    valid: bool = True
    reason: str | None = None
    text: str | None = None
    """The sketch of its whole text (`offramp.workloads.shared_text.read_sketch`), None in a trace from before
    schema version 4."""
    heads_saw: bool = False
    """It shares text with one that the trace's exit heads were fitted on, or the model itself as far as that
    is known."""
    index: int = 0
    """Its place in the selection."""
    block: int = 0
    """Of the marginal (`offramp.tracing.sealed_parts.block_of`)."""


@dataclass(frozen=True)
class DocumentText:
    """What is kept of a document's text: its sketch, and whether it shares text with one that heads saw."""

    sketch: str
    heads_saw: bool


@dataclass(frozen=True)
class RecordedFact:
    """One column of the facts."""

    name: str
    dtype: str
    unit: str


@dataclass(frozen=True)
class FileRecord:
    """One file of a part."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class PartRecord:
    """One part of a trace."""

    index: int
    rows: int
    marginal_rows: dict[int, int]
    """Rows of each block."""
    files: dict[FileKind, FileRecord] = field(default_factory=dict)
    """By kind, none for a part in memory."""


@dataclass(frozen=True)
class Manifest:
    """What a trace answers and holds."""

    request: dict[str, Any]
    """As its own file has it."""
    request_fingerprint: str
    exits: tuple[int, ...]
    shape: ModelShape
    facts: tuple[RecordedFact, ...]
    documents: tuple[DocumentRecord, ...]
    tokens: int
    notes: tuple[str, ...]
    parts: tuple[PartRecord, ...]
    document_facts: tuple[str, ...] = ()
    timestamps: dict[str, Any] | None = None
    """Of the run that ended."""
    device: str = CPU
    """What computed, by name; the processor's is left out of the file."""
    schema_version: int = SCHEMA_VERSION
    kind: str = KIND


_FILE = trace_file(Manifest, apart=(TIMESTAMPS,))


def describe_trace(
    request: TraceRequest,
    parts: Sequence[Part],
    document_ids: Sequence[str],
    shape: ModelShape,
    notes: Sequence[str],
    texts: Sequence[DocumentText] = (),
    device: str = CPU,
) -> Manifest:
    """The manifest of whole parts, without their files.

    texts: of the documents, one each, or nothing. device: the name of what computed.
    """
    recording = request.recording
    return Manifest(
        request=request.to_json(),
        request_fingerprint=request.fingerprint,
        exits=request.exits,
        shape=shape,
        facts=tuple(RecordedFact(fact.name, fact.dtype, fact.unit) for fact in recording.facts),
        documents=tuple(
            DocumentRecord(
                id=document_ids[document.index],
                tokens=document.rows,
                valid=document.valid,
                reason=document.reason,
                text=texts[document.index].sketch if texts else None,
                heads_saw=bool(texts) and texts[document.index].heads_saw,
                index=document.index,
                block=block_of(document.index, len(document_ids)),
            )
            for part in parts
            for document in part.documents
        ),
        tokens=sum(part.rows for part in parts),
        notes=tuple(notes),
        parts=tuple(PartRecord(part.index, part.rows, dict(part.marginal_rows)) for part in parts),
        document_facts=tuple(fact.name for fact in recording.document_facts),
        device=device,
    )


def write_manifest(folder: Path, manifest: Manifest, seconds: float | None) -> None:
    """Describe the files of a trace; from now on the folder is a trace.

    seconds: that the last run took; None leaves out the clock, so that equal traces are equal bytes.
    """
    parts = tuple(
        part if part.files else replace(part, files=_files(folder, part.index)) for part in manifest.parts
    )
    value = to_json(replace(manifest, parts=parts))
    if manifest.device == CPU:
        del value["device"]
    if seconds is None:
        del value[TIMESTAMPS]
    else:
        finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        value[TIMESTAMPS] = {"finished": finished, "seconds": round(seconds, 3)}
    write_sealed_json(folder / MANIFEST, value, apart=(TIMESTAMPS,))


def _files(folder: Path, index: int) -> dict[FileKind, FileRecord]:
    paths = {kind: part_path(folder, kind, index) for kind in FILE_KINDS}
    return {
        kind: FileRecord(path.name, sha256_of_file(path), path.stat().st_size) for kind, path in paths.items()
    }


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished trace, of this version or an older one.

    Raises InputError if there is none or if a newer offramp wrote it; DamagedFileError if it is unreadable.
    """
    path = folder / MANIFEST
    if is_irregular(path):
        raise damaged(path, NO_FILE)
    if not path.is_file():
        unfinished = (folder / REQUEST).is_file()
        near = [] if folder.exists() else near_paths(folder)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            "the trace is not finished" if unfinished else "there is no trace here",
            where=str(folder),
            fix="run the same offramp trace command again; it resumes after the last whole part"
            if unfinished
            else f"{meant}give the folder that offramp trace -o wrote (it holds a manifest.json)",
        )
    version = _schema_version(path)
    if version > SCHEMA_VERSION:
        raise InputError(
            f"the trace has schema version {version}; this offramp reads up to {SCHEMA_VERSION}",
            where=str(path),
            fix="upgrade offramp: pip install --upgrade offramp",
        )
    manifest = _FILE.read(path)
    if manifest.kind != KIND:
        raise damaged(path, "it is not that of a trace")
    return manifest


def _schema_version(path: Path) -> int:
    """The manifest's version, looked at before anything else of a file that may be of a later form."""
    version = read_record(path, dict[str, Any], _FILE.refused).get("schema_version")
    if type(version) is not int:
        raise damaged(path, f"its schema version is {shortened(repr(version))}, not a number")
    return version


def damaged_parts(folder: Path, manifest: Manifest) -> list[tuple[int, DamagedFileError]]:
    """The parts whose files are missing or whose bytes changed: (part, error) pairs."""

    def check(entry: tuple[int, FileRecord]) -> tuple[int, DamagedFileError] | None:
        index, file = entry
        path = folder / file.name
        if not path.is_file():
            return index, damaged(path, "the file is missing")
        if sha256_of_file(path) != file.sha256:
            return index, damaged(path, "its bytes changed since it was written (SHA-256 differs)")
        return None

    entries = [(part.index, file) for part in manifest.parts for file in part.files.values()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [error for error in pool.map(check, entries) if error is not None]
