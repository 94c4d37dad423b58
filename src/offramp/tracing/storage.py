"""A trace on disk: parts, and a manifest with their SHA-256 that is written last."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DamagedFileError, InputError
from offramp.files import NO_FILE, is_irregular, sha256_of_file
from offramp.models.shape import ModelShape
from offramp.records.typed import from_json, to_json
from offramp.tracing.described_heads import DocumentText
from offramp.tracing.facts import DOCUMENT_FACTS, FACT_BY_NAME
from offramp.tracing.part import FILE_KINDS, TOKEN_COLUMNS, Part, part_path, read_columns
from offramp.tracing.request import SCHEMA_VERSION, TraceRequest
from offramp.tracing.sealed import TIMESTAMPS, damaged, read_sealed_json, write_sealed_json
from offramp.tracing.trace import (
    MARGINAL_BLOCKS,
    REFERENCE_TOP1,
    DocumentRecord,
    FactArray,
    Marginal,
    Trace,
)

MANIFEST = "manifest.json"
KIND = "offramp trace"
REQUEST = "request.json"


def write_manifest(
    folder: Path,
    request: TraceRequest,
    parts: Sequence[Part],
    document_ids: Sequence[str],
    shape: ModelShape,
    notes: Sequence[str],
    seconds: float,
    texts: Sequence[DocumentText] = (),
) -> None:
    """Describe the whole parts of a trace; from now on the folder is a trace.

    texts: what is kept of the documents' texts, one each, or nothing.
    """
    documents = [
        {
            **record_json(document_ids, document),
            "block": block_of(document.index, len(document_ids)),
            **(_text_json(texts[document.index]) if texts else {}),
        }
        for part in parts
        for document in part.documents
    ]
    recording = request.recording
    write_sealed_json(
        folder / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "request": request.to_json(),
            "request_fingerprint": request.fingerprint,
            "exits": list(request.exits),
            "shape": to_json(shape),
            "facts": [
                {"name": fact.name, "dtype": fact.dtype, "unit": fact.unit} for fact in recording.facts
            ],
            "document_facts": [fact.name for fact in recording.document_facts],
            "documents": documents,
            "tokens": sum(part.rows for part in parts),
            "notes": list(notes),
            "parts": [_part_json(folder, part) for part in parts],
            TIMESTAMPS: {
                "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
            },
        },
    )


def record_json(document_ids: Sequence[str], document: Any) -> dict[str, Any]:
    """One document of the manifest."""
    return {
        "index": document.index,
        "id": document_ids[document.index],
        "tokens": document.rows,
        "valid": document.valid,
        "reason": document.reason,
    }


def _text_json(text: DocumentText) -> dict[str, Any]:
    return {"text": text.sketch, "heads_saw": text.heads_saw}


def block_of(document: int, documents: int) -> int:
    """The block of the marginal that a document belongs to: consecutive documents share one."""
    return document * MARGINAL_BLOCKS // documents


def _part_json(folder: Path, part: Part) -> dict[str, Any]:
    files = {}
    for kind in FILE_KINDS:
        path = part_path(folder, kind, part.index)
        files[kind] = {"name": path.name, "sha256": sha256_of_file(path), "bytes": path.stat().st_size}
    marginal_rows = {str(block): rows for block, rows in sorted(part.marginal_rows.items())}
    return {"index": part.index, "rows": part.rows, "marginal_rows": marginal_rows, "files": files}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished trace.

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
    manifest = read_sealed_json(path)
    if manifest.get("kind") != KIND:
        raise damaged(path, "it is not that of a trace")
    return manifest


def _schema_version(path: Path) -> int:
    """The manifest's version, looked at before anything else of a file that may be of a later form."""
    try:
        return int(json.loads(path.read_bytes())["schema_version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"it is not a manifest ({type(error).__name__})") from error


def verify_parts(folder: Path, manifest: dict[str, Any]) -> list[tuple[int, DamagedFileError]]:
    """The parts whose files are missing or whose bytes changed: (part, error) pairs."""

    def check(entry: tuple[int, dict[str, Any]]) -> tuple[int, DamagedFileError] | None:
        index, file = entry
        path = folder / file["name"]
        if not path.is_file():
            return index, damaged(path, "the file is missing")
        if sha256_of_file(path) != file["sha256"]:
            return index, damaged(path, "its bytes changed since it was written (SHA-256 differs)")
        return None

    entries = [(part["index"], file) for part in manifest["parts"] for file in part["files"].values()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [found for found in pool.map(check, entries) if found is not None]


def read_trace(folder: Path) -> Trace:
    """A finished trace, every file checked against the manifest (see `open_trace`).

    Raises InputError if there is none, DamagedFileError naming the part whose bytes changed.
    """
    manifest = read_manifest(folder)
    problems = verify_parts(folder, manifest)
    if problems:
        raise problems[0][1]
    return open_trace(folder, manifest)


def open_trace(folder: Path, manifest: dict[str, Any]) -> Trace:
    """The trace of a manifest whose parts were verified; facts are read when first asked for."""
    indices = [part["index"] for part in manifest["parts"] if part["rows"]]
    exits = np.array(manifest["exits"], dtype=np.int64)
    tokens = [read_columns(part_path(folder, "tokens", index)) for index in indices]

    rows = sum(part["rows"] for part in manifest["parts"])

    def fact(name: str) -> FactArray:
        found = np.empty((rows, len(exits)), dtype=FACT_BY_NAME[name].dtype)
        start = 0
        for part in manifest["parts"]:
            if part["rows"]:
                column = read_columns(part_path(folder, "facts", part["index"]), [name])[name]
                found[start : start + part["rows"]] = column.reshape(-1, len(exits))
                start += part["rows"]
        return found

    return Trace(
        exits=exits,
        tokens=_token_columns(tokens),
        facts=fact,
        fact_names=[fact["name"] for fact in manifest["facts"]],
        document_facts=_document_facts(tokens),
        documents=_records(manifest),
        marginal=functools.partial(_read_marginal, folder, manifest),
        shape=from_json(ModelShape, manifest["shape"]),
        provenance={
            "request": manifest["request"],
            "request_fingerprint": manifest["request_fingerprint"],
            "notes": manifest["notes"],
        },
        folder=folder,
    )


def _token_columns(tokens: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The columns of a trace's tokens from those of its parts, [tokens] by name."""
    names = [*TOKEN_COLUMNS, *([REFERENCE_TOP1] if REFERENCE_TOP1 in tokens[0] else [])]
    return {name: np.concatenate([columns[name] for columns in tokens]) for name in names}


def _document_facts(tokens: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[np.float64]]:
    """Facts of documents among the token columns of the parts: float64 [tokens] by name."""
    names = [name for name in DOCUMENT_FACTS if name in tokens[0]]
    return {name: np.concatenate([columns[name] for columns in tokens]).astype(np.float64) for name in names}


def _records(manifest: dict[str, Any]) -> tuple[DocumentRecord, ...]:
    return tuple(
        DocumentRecord(
            entry["id"],
            entry["tokens"],
            entry["valid"],
            entry["reason"],
            entry.get("text"),
            entry.get("heads_saw", False),
        )
        for entry in manifest["documents"]
    )


def _read_marginal(folder: Path, manifest: dict[str, Any]) -> Marginal:
    sums: NDArray[np.float64] = np.zeros((MARGINAL_BLOCKS, manifest["shape"]["vocabulary_size"]))
    tokens = np.zeros(MARGINAL_BLOCKS, dtype=np.int64)
    for part in manifest["parts"]:
        for name, column in read_columns(part_path(folder, "marginal", part["index"])).items():
            sums[int(name.removeprefix("block_"))] += column
        for block, rows in part["marginal_rows"].items():
            tokens[int(block)] += rows
    blocks = np.array([entry["block"] for entry in manifest["documents"]], dtype=np.int64)
    return Marginal(sums, tokens, blocks)


def trace_from_parts(
    parts: Sequence[Part],
    request: TraceRequest,
    document_ids: Sequence[str],
    shape: ModelShape,
    notes: Sequence[str],
    texts: Sequence[DocumentText],
) -> Trace:
    """A trace held in memory."""
    sums: NDArray[np.float64] = np.zeros((MARGINAL_BLOCKS, shape.vocabulary_size))
    tokens = np.zeros(MARGINAL_BLOCKS, dtype=np.int64)
    for part in parts:
        for block, column in part.marginal.items():
            sums[block] += column
            tokens[block] += part.marginal_rows[block]
    documents = [document for part in parts for document in part.documents]
    blocks = [block_of(document.index, len(document_ids)) for document in documents]
    marginal = Marginal(sums, tokens, np.array(blocks, dtype=np.int64))
    return Trace(
        exits=np.array(request.exits, dtype=np.int64),
        tokens=_token_columns([part.tokens for part in parts]),
        facts=lambda name: np.concatenate([part.facts[name] for part in parts]),
        fact_names=[fact.name for fact in request.recording.facts],
        document_facts=_document_facts([part.tokens for part in parts]),
        documents=tuple(
            DocumentRecord(
                document_ids[d.index],
                d.rows,
                d.valid,
                d.reason,
                texts[d.index].sketch,
                texts[d.index].heads_saw,
            )
            for d in documents
        ),
        marginal=lambda: marginal,
        shape=shape,
        provenance={
            "request": request.to_json(),
            "request_fingerprint": request.fingerprint,
            "notes": list(notes),
        },
    )
