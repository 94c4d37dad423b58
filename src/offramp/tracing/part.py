"""One part of a trace: the facts of some whole documents, as arrays, three Parquet files and their seal."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from offramp.files import canonical_json, sha256_of_file, write_atomically
from offramp.tracing.sealed import damaged, read_sealed_json, write_sealed_json

TOKEN_COLUMNS = {
    "token": "int32",
    "next_token": "int32",
    "document": "int32",
    "position": "int32",
    "generated": "bool",
}

FILE_KINDS = ("facts", "marginal", "tokens")
"""In the order of writing. A part is whole once the seal over all three is there too."""

ArrayOf = NDArray[Any]


@dataclass(frozen=True)
class PartDocument:
    """What became of one document: its index in the selection, traced rows, and a defect if any."""

    index: int
    rows: int
    valid: bool = True
    reason: str | None = None


@dataclass(frozen=True)
class Part:
    """Facts of some whole documents.

    tokens: columns [rows] as in TOKEN_COLUMNS; facts of documents (float32) and REFERENCE_TOP1 (int32) where
    there are any. facts: [rows, exits] by name.
    marginal: sums of p_L over the rows of each block of documents, float64 [vocabulary]; marginal_rows: rows
    of each block.
    """

    index: int
    tokens: Mapping[str, ArrayOf]
    facts: Mapping[str, ArrayOf]
    marginal: Mapping[int, NDArray[np.float64]]
    marginal_rows: Mapping[int, int]
    documents: tuple[PartDocument, ...]

    @property
    def rows(self) -> int:
        """Rows of valid documents."""
        return len(self.tokens["token"])


@dataclass(frozen=True)
class Reference:
    """What the untransformed full model said in the place of a transformed one, on one part's contexts.

    document: int64 [rows] and top1: int32 [rows], of the documents on which all its numbers were finite, in
    the part's order. reasons: why any other document is left out, by its index in the selection.
    """

    document: NDArray[np.int64]
    top1: NDArray[np.int32]
    reasons: Mapping[int, str]


def part_path(folder: Path, kind: str, index: int) -> Path:
    """The file of one kind of one part."""
    return folder / f"{kind}-{index:05d}.parquet"


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
            {"offramp.request": request, "offramp.part": canonical_json(details)}
        )
        write_atomically(part_path(folder, kind, part.index), functools.partial(_write, table))
    write_sealed_json(
        seal_path(folder, part.index), {"request": request, "files": _digests(folder, part.index)}
    )


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


def read_part(folder: Path, index: int, exits: int, request: str, facts: Sequence[str]) -> Part:
    """A whole part with facts of these names, every byte of its files held against its seal.

    Raises DamagedFileError if a file is missing, changed or answers another request.
    """
    seal = read_sealed_json(seal_path(folder, index))
    if seal["request"] != request:
        raise damaged(seal_path(folder, index), "it belongs to another trace")
    for kind, digest in _digests(folder, index).items():
        if seal["files"][kind] != digest:
            path = part_path(folder, kind, index)
            raise damaged(path, "its bytes changed since it was written (SHA-256 differs)")
    columns = {kind: read_columns(part_path(folder, kind, index)) for kind in FILE_KINDS}
    details = json.loads(
        pq.read_schema(part_path(folder, "tokens", index).absolute()).metadata[b"offramp.part"]
    )
    return Part(
        index=index,
        tokens=columns["tokens"],
        facts={name: columns["facts"][name].reshape(-1, exits) for name in facts},
        marginal={int(name.removeprefix("block_")): sums for name, sums in columns["marginal"].items()},
        marginal_rows={int(block): rows for block, rows in details["marginal_rows"].items()},
        documents=tuple(PartDocument(**document) for document in details["documents"]),
    )
