"""The files of a trace: its parts, three Parquet files and a seal each, and the manifest, written last."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from offramp.errors import DamagedFileError, InputError, shortened
from offramp.files import (
    NO_FILE,
    canonical_json,
    is_irregular,
    parse_json,
    sha256_of_file,
    write_atomically,
    write_sealed_json,
)
from offramp.kit.sealed_file import SealedFile
from offramp.kit.typed import Record, read_record, to_json
from offramp.models.devices import CPU
from offramp.models.shape import ModelShape
from offramp.tracing.request import SCHEMA_VERSION, TraceRequest

WHAT = "a file of the trace is damaged: {name}"
FIX = "run the command that made the trace again with --repair; it traces only the damaged parts again"


def trace_file(record: type[Record], apart: Collection[str] = ()) -> SealedFile[Record]:
    """One kind of JSON file in a trace's folder (see `SealedFile`)."""
    return SealedFile(record, WHAT, FIX, apart=apart)


TOKEN_COLUMNS = ("token", "next_token", "document", "position", "generated")
"""Of every part's tokens; bool for `generated`, int32 for the others."""

REFERENCE_TOP1 = "reference_top1"
"""The token column that a transformed model's trace has besides."""

MARGINAL_BLOCKS = 16


def block_of(document: int, documents: int) -> int:
    """The block of the marginal that a document belongs to: consecutive documents share one."""
    return document * MARGINAL_BLOCKS // documents


FILE_KINDS = ("facts", "marginal", "tokens")
"""In the order of writing. A part is whole once the seal over all three is there too."""

PARQUET = ".parquet"
REQUEST_KEY, DETAILS_KEY = b"offramp.request", b"offramp.part"
"""Of a file's metadata: the fingerprint of what the part answers, and the rest of the part."""

ArrayOf = NDArray[Any]


@dataclass(frozen=True)
class PartDocument:
    """What became of one document: its index in the selection, traced rows, and why it is left out."""

    index: int
    rows: int
    valid: bool = True
    reason: str | None = None


@dataclass(frozen=True)
class Part:
    """Facts of some whole documents."""

    index: int
    tokens: Mapping[str, ArrayOf]
    """Columns [rows] as in TOKEN_COLUMNS; facts of documents (float32) and REFERENCE_TOP1 (int32) where there
    are any."""
    facts: Mapping[str, ArrayOf]
    """[rows, exits] by name."""
    marginal: Mapping[int, NDArray[np.float64]]
    """Sums of p_L over the rows of each block of documents, float64 [vocabulary]."""
    marginal_rows: Mapping[int, int]
    """Rows of each block."""
    documents: tuple[PartDocument, ...]

    @property
    def rows(self) -> int:
        """Rows of valid documents."""
        return len(self.tokens["token"])


@dataclass(frozen=True)
class Reference:
    """What the untransformed full model said in the place of a transformed one, on one part's contexts."""

    document: NDArray[np.int64]
    """int64 [rows], of the documents on which all its numbers were finite, in the part's order."""
    top1: NDArray[np.int32]
    """int32 [rows]."""
    reasons: Mapping[int, str]
    """Why any other document is left out, by its index in the selection."""


@dataclass(frozen=True)
class PartSeal:
    """What vouches for a part."""

    request: str
    """The fingerprint of what it answers."""
    files: dict[str, str]
    """SHA-256 by kind."""


_SEAL = trace_file(PartSeal)
damaged = _SEAL.damaged
"""The error for a file of a trace, by its path and why it is not what was written."""


def sealed_files(folder: Path) -> dict[str, str | None]:
    """SHA-256 of the files of parts in a folder, by name, as the seals say; None for the seals themselves."""
    digests: dict[str, str | None] = {}
    for path in folder.glob("part-*.json"):
        try:
            seal = _SEAL.read(path)
        except DamagedFileError:
            continue
        index = path.stem.removeprefix("part-")
        digests |= {path.name: None, **{f"{kind}-{index}{PARQUET}": sha for kind, sha in seal.files.items()}}
    return digests


def is_unsealed(path: Path) -> bool:
    """Whether a file is one of a part that was killed before its seal was written, by what the file says."""
    if path.suffix != PARQUET or seal_path(path.parent, int(path.stem.rpartition("-")[2])).exists():
        return False
    try:
        return REQUEST_KEY in (pq.read_schema(path.absolute()).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def part_path(folder: Path, kind: str, index: int) -> Path:
    """The file of one kind of one part."""
    return folder / f"{kind}-{index:05d}{PARQUET}"


def seal_path(folder: Path, index: int) -> Path:
    """The file that vouches for every byte of a part's files: page checksums leave out Parquet's footers."""
    return folder / f"part-{index:05d}.json"


def write_part(folder: Path, part: Part, exits: ArrayOf, request: str) -> None:
    """Write the files of a part, its seal last. request: the fingerprint of the request that it answers."""
    rows = part.rows
    facts: dict[str, Any] = {"exit": np.tile(exits.astype(np.int16), rows)}
    facts.update({name: np.ravel(column) for name, column in part.facts.items()})
    marginal = {f"block_{block:02d}": part.marginal[block] for block in sorted(part.marginal)}
    details = {
        "marginal_rows": {str(block): rows for block, rows in sorted(part.marginal_rows.items())},
        "documents": [asdict(document) for document in part.documents],
    }
    columns = {"facts": facts, "marginal": marginal, "tokens": dict(part.tokens)}
    for kind in FILE_KINDS:
        table = pa.table(columns[kind]).replace_schema_metadata(
            {REQUEST_KEY: request, DETAILS_KEY: canonical_json(details)}
        )
        write_atomically(part_path(folder, kind, part.index), functools.partial(_write, table))
    _SEAL.write(seal_path(folder, part.index), PartSeal(request, _digests(folder, part.index)))


def _digests(folder: Path, index: int) -> dict[str, str]:
    """SHA-256 of each file of a part, by kind. Raises DamagedFileError for one that cannot be read."""
    try:
        return {kind: sha256_of_file(part_path(folder, kind, index)) for kind in FILE_KINDS}
    except OSError as error:
        why = "the file is missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise damaged(Path(error.filename or folder), why) from error


def _write(table: pa.Table, path: Path) -> None:
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    others = [field.name for field in table.schema if field.name not in floats]
    pq.write_table(
        table,
        path.absolute(),  # pyarrow takes a relative "a:b" for a URI, and "~" for a home
        compression={name: "none" if name in floats else "zstd" for name in table.column_names},
        use_dictionary=others,
        write_page_checksum=True,
    )


def read_columns(path: Path, columns: list[str] | None = None) -> dict[str, ArrayOf]:
    """Columns of a part's file as numpy arrays; every page is checked against its checksum.

    Raises DamagedFileError, naming the file, if it cannot be read whole.
    """
    try:
        with pq.ParquetFile(path.absolute(), page_checksum_verification=True) as file:
            table = file.read(columns, use_threads=False)
        return {name: table.column(name).to_numpy() for name in columns or table.column_names}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def read_marginal(folder: Path, index: int) -> dict[int, NDArray[np.float64]]:
    """The sums of p_L of one part by block (see `Part`)."""
    columns = read_columns(part_path(folder, "marginal", index))
    return {int(name.removeprefix("block_")): sums for name, sums in columns.items()}


def read_part(folder: Path, index: int, exits: int, request: str, facts: Sequence[str]) -> Part:
    """A whole part with facts of these names, every byte of its files held against its seal.

    Raises DamagedFileError if a file is missing, changed or answers another request.
    """
    seal = _SEAL.read(seal_path(folder, index))
    if seal.request != request:
        raise damaged(seal_path(folder, index), "it belongs to another trace")
    for kind, digest in _digests(folder, index).items():
        if seal.files.get(kind) != digest:
            path = part_path(folder, kind, index)
            raise damaged(path, "its bytes changed since it was written (SHA-256 differs)")
    columns = {kind: read_columns(part_path(folder, kind, index)) for kind in ("facts", "tokens")}
    schema = pq.read_schema(part_path(folder, "tokens", index).absolute())
    details = parse_json(schema.metadata[DETAILS_KEY])
    return Part(
        index=index,
        tokens=columns["tokens"],
        facts={name: columns["facts"][name].reshape(-1, exits) for name in facts},
        marginal=read_marginal(folder, index),
        marginal_rows={int(block): rows for block, rows in details["marginal_rows"].items()},
        documents=tuple(PartDocument(**document) for document in details["documents"]),
    )


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
    """Of the marginal (`offramp.tracing.trace_files.block_of`)."""


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
    files: dict[str, FileRecord] = field(default_factory=dict)
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


def _files(folder: Path, index: int) -> dict[str, FileRecord]:
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
        raise InputError(
            "the trace is not finished" if unfinished else "there is no trace here",
            where=str(folder),
            fix="run the same offramp trace command again; it resumes after the last whole part"
            if unfinished
            else "give the folder that offramp trace -o wrote (it holds a manifest.json)",
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
