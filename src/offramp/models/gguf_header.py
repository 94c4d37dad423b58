"""The header of a GGUF file: what it states and which tensors it holds, checked without reading a weight.

It is walked here, since the gguf package takes counts as they are stated, whatever the file's length.
"""

from __future__ import annotations

import importlib.util
import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import ModelError
from offramp.files import open_given
from offramp.kit.rules import shown
from offramp.models.checkpoint import AGAIN, StoredTensor
from offramp.models.gguf_metadata import OTHER_FILE, check_tokenizer, check_values

MAGIC = b"GGUF"
VERSIONS = (2, 3)
TRUTH, STRING, ARRAY = 7, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats of `struct` by the numbers of GGUF's value types."""
LONGEST_TEXT = 1_000_000
"""Bytes of one text of a header: a key, a name, a token or a chat template."""
MOST_VALUES = 2_000_000
"""In all lists of a header together: those of Gemma have 1,300,000."""
MOST_ENTRIES = 100_000
"""Keys or tensors."""
ALL_TEXTS = 20_000_000
"""Bytes of them together: those of Gemma have some 8,000,000."""
MOST_AXES = 4
ALIGNMENT_KEY, ALIGNMENT = "general.alignment", 32
SIZE_KEYS = (
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "expert_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
)
"""Sizes that are an axis of a weight or a part of one, below the architecture's name."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file states of itself."""

    values: Mapping[str, Any]
    """By key; arrays are tuples."""
    tensors: Mapping[str, StoredTensor]
    """By GGUF's names, with the axes in torch's order."""

    @property
    def architecture(self) -> str:
        """As llama.cpp names it."""
        return str(self.values["general.architecture"])

    @property
    def licence(self) -> str | None:
        """As it is stated, None if none is."""
        stated = self.values.get("general.license")
        return None if stated is None else str(stated)


def check_magic(path: Path) -> None:
    """Refuse a file that does not begin as a GGUF file does."""
    with open_given(path, "GGUF file", ModelError) as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise ModelError(
            f"the file does not begin with the letters GGUF (but with {start!r}), so it is not a GGUF file",
            where=str(path),
            fix="download the file again, and check that it is the model, not a pointer to it",
        )


def require_gguf_package() -> None:
    """Refuse with the name of the extra if a package that transformers reads GGUF files with is missing."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"reading a GGUF file needs the {missing[0]} package",
            where="offramp[gguf]",
            fix="pip install 'offramp[gguf]'",
        )


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file; its tensors fill the file, and its sizes are those of the tensors.

    Raises ModelError without the gguf package, for a file that is truncated, damaged or one part of several,
    and for a header that states other layers or larger sizes than the file holds.
    """
    require_gguf_package()
    check_magic(path)
    try:
        with (
            open_given(path, "GGUF file", ModelError) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            header = _walk(content, path)
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise ModelError(
            f"the GGUF file is truncated or damaged ({error})", where=str(path), fix=AGAIN
        ) from error
    parts = header.values.get("split.count", 1)
    if parts not in (0, 1):
        raise ModelError(
            f"the GGUF file is one of {shown(parts)} parts of a model",
            where=str(path),
            fix="merge them: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
        )
    check_values(header.values, header.architecture, path)
    _check_sizes(header, path)
    embedding = header.tensors.get("token_embd.weight")
    check_tokenizer(header.values, None if embedding is None else embedding.shape[0], path)
    return header


def _walk(content: mmap.mmap, path: Path) -> GgufHeader:
    """Read keys and tensor table. Raises ValueError and struct.error for what cannot be."""
    at = len(MAGIC)
    texts = listed = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        taken = struct.unpack_from(f"<{form}", content, at)
        at += struct.calcsize(f"<{form}")
        return taken

    def allow(count: int, most: int, what: str, before: int = 0) -> None:
        # Whatever is counted takes a byte or more.
        if count > len(content) - at or before + count > most:
            said = what.replace("#", f"{before + count:,}", 1)
            if count > len(content) - at:
                raise ValueError(f"{said}, and it ends before")
            raise _unreadable(f"{said}, and at most {most:,} are read", path)

    def text(place: str) -> str:
        nonlocal at, texts
        (length,) = take("Q")
        allow(length, LONGEST_TEXT, f"there are # bytes in the text of {place}")
        allow(length, ALL_TEXTS, f"there are # bytes in the texts up to that of {place}", texts)
        texts += length
        at += length
        return str(content[at - length : at], "utf-8")

    def scalars(kind: int, count: int, key: str) -> tuple[Any, ...]:
        taken = take(f"{count}{_format(kind)}")
        if kind == TRUTH and content[at - count : at].strip(b"\0\1"):
            raise ValueError(f"{key} is neither true nor false")
        return taken

    def value(kind: int, key: str) -> Any:
        nonlocal listed
        if kind == STRING:
            return text(key)
        if kind != ARRAY:
            return scalars(kind, 1, key)[0]
        item, count = take("IQ")
        allow(count, MOST_VALUES, f"there are # values in the lists up to {key}", listed)
        listed += count
        return tuple(text(key) for _ in range(count)) if item == STRING else scalars(item, count, key)

    version, tensor_count, key_count = take("IQQ")
    if version not in VERSIONS:
        known = f"GGUF of the version {version}, and {' and '.join(map(str, VERSIONS))} are read"
        raise _unreadable("it is big-endian" if version & 0xFFFF == 0 else f"it is {known}", path)
    allow(key_count, MOST_ENTRIES, "there are # keys")
    allow(tensor_count, MOST_ENTRIES, "there are # tensors")
    values: dict[str, Any] = {}
    for _ in range(key_count):
        key, (kind,) = text("key"), take("I")
        if key in values:
            raise ValueError(f"the key {key} stands there twice")
        values[key] = value(kind, key)
    table = []
    for _ in range(tensor_count):
        name, (axes,) = text("tensor"), take("I")
        allow(axes, MOST_AXES, f"there are # axes of {name}")
        table.append((name, take(f"{axes}Q")[::-1], *take("IQ")))
    if not isinstance(values.get("general.architecture"), str):
        raise ValueError("it states no architecture")
    alignment = values.get(ALIGNMENT_KEY, ALIGNMENT)
    tensors = _placed(table, path, alignment, size=len(content) - _padded(at, alignment))
    return GgufHeader(values, tensors)


def _unreadable(what: str, path: Path) -> ModelError:
    return ModelError(f"the GGUF file cannot be read: {what}", where=str(path), fix=OTHER_FILE)


def _format(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"it has a value of the unknown type {kind}")
    return SCALARS[kind]


def _padded(position: int, alignment: Any) -> int:
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"it states {ALIGNMENT_KEY} = {alignment!r}")
    return -(-position // alignment) * alignment


def _placed(
    table: list[tuple[str, tuple[int, ...], int, int]], path: Path, alignment: int, size: int
) -> dict[str, StoredTensor]:
    """The tensors of a table of names, shapes, types and offsets: as llama.cpp demands, one begins where the
    one before ends, and the last ends where `size` bytes of tensors do. Raises ValueError."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    types = {int(kind): kind for kind in GGMLQuantizationType}
    tensors: dict[str, StoredTensor] = {}
    end = 0
    for name, shape, kind, offset in table:
        if name in tensors:
            raise ValueError(f"the tensor {name} stands there twice")
        if kind not in types:
            raise ValueError(f"the tensor {name} is of the unknown type {kind}")
        if re.fullmatch(r"I\d+", types[kind].name):
            raise _unreadable(f"the tensor {name} is {types[kind].name}, whole numbers, not weights", path)
        block, block_bytes = GGML_QUANT_SIZES[types[kind]]
        if not shape or 0 in shape or shape[-1] % block:
            raise ValueError(f"the tensor {name} has the shape {list(shape)}, in blocks of {block}")
        begin = _padded(end, alignment)
        if offset != begin:
            raise ValueError(
                f"the tensor {name} begins at byte {offset:,} of the tensors' bytes, not at {begin:,}"
            )
        end = offset + math.prod(shape) // block * block_bytes
        tensors[name] = StoredTensor(name, path, types[kind].name, shape)
    if not tensors:
        raise ValueError("it holds no tensors")
    if not end <= size <= _padded(end, alignment):
        raise ValueError(f"its tensors take {end:,} bytes, and it has {max(size, 0):,}")
    return tensors


def _check_sizes(header: GgufHeader, path: Path) -> None:
    """Refuse other layers than the tensors are of, and sizes beyond every axis. Raises ModelError."""
    architecture = header.architecture
    numbers = {
        int(found[1])
        for found in (re.match(r"(?:\w+\.)?blk\.(\d{1,9})\.", name) for name in header.tensors)
        if found
    }
    stated = header.values.get(f"{architecture}.block_count")
    if stated != len(numbers) or numbers != set(range(len(numbers))):
        held = f"{len(numbers)} layers" + (f", numbered up to {max(numbers)}" if numbers else "")
        raise _other_size(f"{architecture}.block_count = {stated}", f"tensors of {held}", path)
    longest = max(max(tensor.shape) for tensor in header.tensors.values())
    for key in SIZE_KEYS:
        stated = header.values.get(f"{architecture}.{key}", ())
        for size in stated if isinstance(stated, tuple) else (stated,):
            if not isinstance(size, int) or not 0 <= size <= longest:
                said = f"{architecture}.{key} = {size}"
                raise _other_size(said, f"no tensor with an axis longer than {longest:,}", path)


def _other_size(stated: str, held: str, path: Path) -> ModelError:
    return ModelError(
        f"the GGUF header states {stated}, but the file holds {held}", where=str(path), fix=AGAIN
    )
