"""The parts of a trace: facts of some whole documents in three Parquet files, and a seal over these."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge, Lt
from numpy.typing import NDArray

from offramp.errors import DamagedFileError
from offramp.files import (
    canonical_json,
    parse_json,
    sha256_of_file,
    write_atomically,
)
from offramp.kit.numbers import Whole
from offramp.kit.sealed_file import SealedFile
from offramp.kit.typed import from_json, to_json
from offramp.tracing.facts import ROUNDING

WHAT = "a file of the trace is damaged: {name}"
FIX = "run the command that made the trace again with --repair; it traces only the damaged parts again"


trace_file = functools.partial(SealedFile, what=WHAT, fix=FIX)
"""One kind of JSON file in a trace's folder, by its record."""


TOKEN_COLUMNS = ("token", "next_token", "document", "position", "generated")
"""Of every part's tokens; bool for `generated`, int32 for the others."""

REFERENCE_TOP1 = "reference_top1"
"""The token column that a transformed model's trace has besides."""

MARGINAL_BLOCKS = 16
Block = Annotated[int, Ge(0), Lt(MARGINAL_BLOCKS)]


def block_of(document: int, documents: int) -> int:
    """The block of the marginal that a document belongs to: consecutive documents share one."""
    return document * MARGINAL_BLOCKS // documents


FileKind = Literal["facts", "marginal", "tokens"]
FILE_KINDS: tuple[FileKind, ...] = get_args(FileKind)
"""In the order of writing. A part is whole once the seal over all three is there too."""

PARQUET = ".parquet"
REQUEST_KEY, DETAILS_KEY = b"offramp.request", b"offramp.part"
"""Of a file's metadata: the fingerprint of what the part answers, and the rest of the part."""

ArrayOf = NDArray[Any]


@dataclass(frozen=True)
class PartDocument:
    """What became of one document: its index in the selection, traced rows, and why it is left out."""

    index: Whole
    rows: Whole
    valid: bool = True
    reason: str | None = None


@dataclass(frozen=True)
class PartDetails:
    """What a part's files say beside their columns."""

    marginal_rows: dict[Block, Whole]
    """Rows of each block."""
    documents: tuple[PartDocument, ...]


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
    files: dict[FileKind, str]
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
    marginal = {_block_column(block): part.marginal[block] for block in sorted(part.marginal)}
    details = to_json(PartDetails(dict(part.marginal_rows), part.documents))
    columns = {"facts": facts, "marginal": marginal, "tokens": dict(part.tokens)}
    for kind in FILE_KINDS:
        table = pa.table(columns[kind]).replace_schema_metadata(
            {REQUEST_KEY: request, DETAILS_KEY: canonical_json(details)}
        )
        write_atomically(part_path(folder, kind, part.index), functools.partial(_write, table))
    _SEAL.write(seal_path(folder, part.index), PartSeal(request, _digests(folder, part.index)))


def _digests(folder: Path, index: int) -> dict[FileKind, str]:
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


def rows_in(path: Path) -> int:
    """How many rows the footer of a part's file says that it has. Raises DamagedFileError as read_columns."""
    try:
        return int(pq.read_metadata(path.absolute()).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def require_within(path: Path, name: str, column: ArrayOf, dtype: str, least: float, most: float) -> None:
    """Raise DamagedFileError for a part's column of another type, or with a number outside its limits."""
    if column.dtype != dtype:
        raise damaged(path, f"its column {name} is of {column.dtype}, not {dtype}")
    low, high = column.min(), column.max()
    if not least <= low <= high <= most:
        found = high if low >= least else low
        raise damaged(path, f"its column {name} holds {found:g}, and not {least:g} to {most:g}")


def read_marginal(folder: Path, index: int, rows: Mapping[int, int]) -> dict[int, NDArray[np.float64]]:
    """The sums of p_L of one part by block (see `Part`). rows: of each block, which its sums add up to.

    Raises DamagedFileError for other blocks, or sums that are not those of so many probabilities.
    """
    path = part_path(folder, "marginal", index)
    columns = read_columns(path)
    if columns.keys() != set(map(_block_column, rows)):
        raise damaged(path, "its blocks are not those of the manifest")
    found = {block: columns[_block_column(block)] for block in rows}
    for block, sums in found.items():
        most = rows[block] * (1 + ROUNDING)
        require_within(path, _block_column(block), sums, "float64", 0, most)
        if not abs(sums.sum() - rows[block]) <= rows[block] * ROUNDING:
            what = f"its column {_block_column(block)} adds up to {sums.sum():g}"
            raise damaged(path, f"{what}, not to the {rows[block]} rows of the block")
    return found


def _block_column(block: int) -> str:
    return f"block_{block:02d}"


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
    path, of_facts = part_path(folder, "tokens", index), part_path(folder, "facts", index)
    tokens, columns = read_columns(path), read_columns(of_facts, list(facts))
    try:
        metadata = pq.read_schema(path.absolute()).metadata or {}
        details = from_json(PartDetails, parse_json(metadata[DETAILS_KEY]))
        count = len(tokens["token"])
    except (ValueError, KeyError) as error:
        raise damaged(path, f"it does not say which documents it holds: {error}") from error
    if count != sum(document.rows for document in details.documents if document.valid):
        raise damaged(path, "its rows are not those of its documents")
    if any(len(column) != count * exits for column in columns.values()):
        raise damaged(of_facts, f"it has not {exits} rows for each of {count:,} tokens")
    return Part(
        index=index,
        tokens=tokens,
        facts={name: column.reshape(-1, exits) for name, column in columns.items()},
        marginal=read_marginal(folder, index, details.marginal_rows),
        marginal_rows=details.marginal_rows,
        documents=details.documents,
    )
