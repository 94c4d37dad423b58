"""The manifest of a trace: what was measured, its documents and parts, with their SHA-256; written last."""

from __future__ import annotations

import contextlib
import datetime
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DamagedFileError, InputError, shortened
from offramp.files import (
    NO_FILE,
    is_irregular,
    sha256_of_file,
    write_sealed_json,
)
from offramp.kit.numbers import Count, NotNegative, Whole
from offramp.kit.rules import near_paths
from offramp.kit.typed import InvalidRecordError, from_json, read_record, to_json
from offramp.models.devices import CPU
from offramp.models.shape import ModelShape
from offramp.tracing.facts import DOCUMENT_FACTS, FACT_BY_NAME
from offramp.tracing.request import SCHEMA_VERSION, TraceRequest
from offramp.tracing.sealed_parts import (
    FILE_KINDS,
    REFERENCE_TOP1,
    TOKEN_COLUMNS,
    Block,
    FileKind,
    Part,
    block_of,
    damaged,
    part_path,
    read_columns,
    require_within,
    rows_in,
    trace_file,
)
from offramp.workloads.shared_text import SketchText

MANIFEST = "manifest.json"


KIND = "offramp trace"


REQUEST = "request.json"


TIMESTAMPS = "timestamps"
"""Left out of the seal, so that two runs that measure the same write the same seal."""


@dataclass(frozen=True)
class DocumentRecord:
    """One traced document: its id, traced tokens, and why it was left out if it was."""

    id: str
    tokens: Whole
    valid: bool = True
    reason: str | None = None
    text: SketchText | None = None
    """The sketch of its whole text (`offramp.workloads.shared_text.read_sketch`), None in a trace from before
    schema version 4."""
    heads_saw: bool = False
    """It shares text with one that the trace's exit heads were fitted on, or the model itself as far as that
    is known."""
    index: Whole = 0
    """Its place in the selection."""
    block: Block = 0
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
    dtype: Literal["int32", "float32"]
    unit: str


@dataclass(frozen=True)
class FileRecord:
    """One file of a part."""

    name: str
    sha256: str
    bytes: Whole


@dataclass(frozen=True)
class PartRecord:
    """One part of a trace."""

    index: Whole
    rows: Whole
    marginal_rows: dict[Block, Whole]
    """Rows of each block."""
    files: dict[FileKind, FileRecord] = field(default_factory=dict)
    """By kind, none for a part in memory."""


@dataclass(frozen=True)
class Timestamps:
    """When a run ended, and how long it took."""

    finished: str
    """Its UTC time, as ISO 8601 has it."""
    seconds: NotNegative


@dataclass(frozen=True)
class Manifest:
    """What a trace answers and holds."""

    request: dict[str, Any]
    """As its own file has it."""
    request_fingerprint: str
    exits: tuple[Count, ...]
    shape: ModelShape
    facts: tuple[RecordedFact, ...]
    documents: tuple[DocumentRecord, ...]
    tokens: Count
    notes: tuple[str, ...]
    parts: tuple[PartRecord, ...]
    document_facts: tuple[str, ...] = ()
    timestamps: Timestamps | None = None
    """Of the run that ended."""
    device: str = CPU
    """What computed, by name; the processor's is left out of the file."""
    schema_version: Whole = SCHEMA_VERSION
    kind: str = KIND


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


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What in a manifest cannot be true beside the rest of it."""
    exits, layers = manifest.exits, len(manifest.shape.layers)
    documents, parts = manifest.documents, manifest.parts
    try:
        asked = from_json(TraceRequest, manifest.request)
    except InvalidRecordError as error:
        yield f"its request is not what offramp writes ({error})"
        return
    names = [fact.name for fact in manifest.facts]
    if len({*names} & FACT_BY_NAME.keys()) < len(names):
        yield f"its facts {shortened(str(names))} are unknown, or there twice"
    yield from _impossible_of(manifest.shape, asked.context)
    if list(exits) != sorted({*exits, layers}):
        yield f"its exits {shortened(str(list(exits)))} do not ascend to {layers}, the model's last layer"
    if asked.exits != exits:
        yield "its exits are not those of its request"
    if manifest.schema_version == SCHEMA_VERSION and asked.fingerprint != manifest.request_fingerprint:
        yield "its request is not the one of its fingerprint"
    if [document.index for document in documents] != list(range(len(documents))):
        yield "its documents are not numbered 0, 1, 2 and so on"
    if len({document.id for document in documents}) < len(documents):
        yield "two of its documents have the same id"
    for document in documents:
        if document.valid != (document.tokens > 0):
            left = "valid" if document.valid else "left out"
            yield f"its document {shortened(document.id)} is {left}, and has {document.tokens} tokens"
    for place, part in enumerate(parts):
        files = {kind: part_path(Path(), kind, place).name for kind in FILE_KINDS}
        if part.index != place or {kind: file.name for kind, file in part.files.items()} != files:
            yield f"its part {place} has another number, or files of other names"
        if part.rows != (rows := sum(part.marginal_rows.values())):
            yield f"its part {place} has {part.rows} rows, and {rows} in its blocks"
    of_documents, of_parts = Counter[int](), Counter[int]()
    for document in documents:
        of_documents[document.block] += document.tokens
    for part in parts:
        of_parts.update(part.marginal_rows)
    if of_documents != of_parts or of_parts.total() != manifest.tokens:
        yield f"its documents, its parts and its {manifest.tokens} tokens do not belong together"


def _impossible_of(shape: ModelShape, context: int) -> Iterator[str]:
    """What of a shape cannot be true beside the rest of it, and beside the traced context."""
    for number, layer in enumerate(shape.layers, start=1):
        if layer.active_parameters > layer.parameters:
            yield f"its layer {number} uses more parameters than the {layer.parameters} that it has"
        if layer.experts_per_token > layer.experts:
            yield f"its layer {number} uses {layer.experts_per_token} of {layer.experts} experts"
    if shape.context_length is not None and shape.context_length < context:
        yield f"its context of {context} tokens is beyond the {shape.context_length} of the model"


_FILE = trace_file(Manifest, apart=(TIMESTAMPS,), contradictions=_contradictions)


def _schema_version(path: Path) -> int:
    """The manifest's version, looked at before anything else of a file that may be of a later form."""
    version = read_record(path, dict[str, Any], _FILE.refused).get("schema_version")
    if type(version) is not int:
        raise damaged(path, f"its schema version is {shortened(repr(version))}, not a number")
    return version


def _follow(columns: Mapping[str, NDArray[Any]], context: int) -> bool:
    """Whether documents come in order, and in each the rows of one full context after the other."""
    same, position, next_token = np.diff(columns["document"]), columns["position"], columns["next_token"]
    rises = (np.diff(position) == 1) | (position[:-1] == context - 1)
    return bool(np.all((same > 0) | ((same == 0) & rises & (next_token[:-1] == columns["token"][1:]))))


Stamps = Mapping[str, tuple[int, int, int] | None]
"""Inode, size and time of change of a trace's files by name, None for one that is missing."""


def stamps_of(folder: Path, manifest: Manifest) -> Stamps:
    """What tells later whether a file was replaced. Taken before the files are verified."""
    names = [file.name for part in manifest.parts for file in part.files.values()]
    return {name: _stamp(folder / name) for name in names}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def as_verified(folder: Path, stamps: Stamps, part: PartRecord, kind: FileKind) -> Iterator[Path]:
    """The file of a part, while it is read. Raises DamagedFileError if it is not the one that was verified.

    Its bytes are only read for that if its stamp is another: a folder may be copied back.
    """
    file = part.files[kind]
    path = folder / file.name

    def require() -> None:
        stamp = _stamp(path)
        if stamp == stamps[file.name]:
            return
        if stamp is None or is_irregular(path) or sha256_of_file(path) != file.sha256:
            error = damaged(path, "it changed since the trace was opened")
            error.fix = "load the trace again, or run the same command again"
            raise error

    require()
    try:
        yield path
    finally:
        require()


def damaged_parts(folder: Path, manifest: Manifest) -> list[tuple[int, DamagedFileError]]:
    """The parts whose files are missing, changed, or not those of the manifest's documents.

    As (part, error) pairs.
    """

    documents, exits = np.array([document.tokens for document in manifest.documents]), manifest.exits
    vocabulary, context = manifest.shape.vocabulary_size, manifest.request["context"]
    limits: dict[str, tuple[str, float, float]] = {
        "document": ("int32", 0, len(documents) - 1),
        "position": ("int32", 0, context - 1),
        **dict.fromkeys(("token", "next_token", REFERENCE_TOP1), ("int32", 0, vocabulary - 1)),
        "generated": ("bool", 0, 1),
        **{fact.name: (fact.dtype, *fact.limits(vocabulary)) for fact in DOCUMENT_FACTS.values()},
    }
    needed = (*TOKEN_COLUMNS, *manifest.document_facts)

    def require(part: PartRecord, kind: FileKind, file: FileRecord) -> None:
        path = folder / file.name
        if not path.is_file():
            raise damaged(path, "the file is missing")
        if sha256_of_file(path) != file.sha256:
            raise damaged(path, "its bytes changed since it was written (SHA-256 differs)")
        if not part.rows:
            return
        rows = {
            "tokens": part.rows,
            "facts": part.rows * len(manifest.exits),
            "marginal": manifest.shape.vocabulary_size,
        }[kind]
        if (found := rows_in(path)) != rows:
            raise damaged(path, f"it has {found} rows, and by the {MANIFEST} {rows}")
        if kind == "facts" and np.any(read_columns(path, ["exit"])["exit"].reshape(-1, len(exits)) != exits):
            raise damaged(path, f"its exits are not those of the {MANIFEST}")
        if kind == "tokens":
            columns = read_columns(path)
            for name in dict.fromkeys((*needed, *limits)):
                if name in columns:
                    require_within(path, name, columns[name], *limits[name])
                elif name in needed:
                    raise damaged(path, f"it is without the column {name}")
            places, counts = np.unique(columns["document"], return_counts=True)
            if np.any(documents[places] != counts):  # documents are whole within a part
                raise damaged(path, f"its documents are not those of the {MANIFEST}")
            if not _follow(columns, context):
                raise damaged(path, "within a document its positions and tokens do not follow each other")

    def check(entry: tuple[PartRecord, FileKind, FileRecord]) -> tuple[int, DamagedFileError] | None:
        try:
            require(*entry)
        except DamagedFileError as error:
            return entry[0].index, error
        return None

    entries = [(part, kind, file) for part in manifest.parts for kind, file in part.files.items()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [error for error in pool.map(check, entries) if error is not None]
