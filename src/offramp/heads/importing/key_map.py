"""Files of others: their tensors, and key maps, which rename them to the parts of exits.

A key map is a layout's, or as people write it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from offramp.errors import InputError
from offramp.files import open_given, sha256_of_file
from offramp.heads.exit_heads import useless
from offramp.heads.file import is_pickle
from offramp.models.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    PICKLE_PATTERNS,
    SINGLE_FILE,
    StoredTensor,
    find_weight_files,
    stored_in,
)

if TYPE_CHECKING:
    from torch import Tensor

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property, reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from offramp.heads.parts import NORM_ARRAYS, GatedNetwork, Lens, NormKind, OwnHead
from offramp.kit.given_file import FINITE, Count, Source, TomlTable, Truth, checked, read_toml

EXIT, PLACE = "{exit}", "{place}"
"""What stands for an exit in a key: its number in the file, or its place among the map's exits, from 0."""
FIX = "correct the key map; docs/bring-your-own-exits.md describes it"

AXES = {
    f"{part.PREFIX}.{name.replace('norm_', 'norm.')}": axes
    for part in (Lens, GatedNetwork, OwnHead)
    for name, axes in part.AXES.items()
}
"""Of one exit's tensor of every part that files of others may have (see `HeadPart.AXES`)."""

Epsilon = Annotated[float, FINITE, Field(ge=0, lt=1)]
Key = Annotated[str, Field(pattern=r"\{(exit|place)\}")]


class PartKeys(TomlTable):
    """What exits are read through."""

    hints: ClassVar[Mapping[str, str]] = {
        **{part.split(".")[-1]: f"write {EXIT} where the exit's number stands" for part in AXES},
        "epsilon": "write the small number that is added under the norm's root",
    }


class LensKeys(PartKeys):
    """An affine map per exit. residual: it is h + A h + b. transposed: A is [inputs, outputs]."""

    weight: Key
    bias: Key | None = None
    residual: Truth
    transposed: Truth = False


class NetworkKeys(PartKeys):
    """A residual gated network per exit behind an RMS norm.

    epsilon: added under the norm's root. adds_to_normed: its output is added to the state behind the norm.
    """

    norm: Key
    gate: Key
    up: Key
    down: Key
    epsilon: Epsilon
    adds_to_normed: Truth = False


class NormKeys(PartKeys):
    """The norm before an output head: "model" is the model's own final one."""

    kind: NormKind
    weight: Key | None = None
    bias: Key | None = None
    epsilon: Epsilon | None = None


class OutputKeys(PartKeys):
    """An output head per exit, and the norm before it. transposed: it is [hidden, vocabulary].

    weight: None where exits are read by the model's own output head. rows: of the stored head, where those
    beyond the vocabulary are padding.
    """

    weight: Key | None = None
    bias: Key | None = None
    transposed: Truth = False
    norm: NormKeys = NormKeys(kind="model")
    rows: Count | None = None


class KeyMap(TomlTable):
    """Where a file holds its exits' parts, each with EXIT or PLACE in its keys.

    exits: those that the file has, in the order of their places. first: the number in a key that stands for
    exit 1, the state after the first layer; 0 in files that count layers from 0.
    """

    exits: Literal["all"] | tuple[Count, ...] = "all"
    first: Literal[0, 1] = 1
    lens: LensKeys | None = None
    mlp: NetworkKeys | None = None
    output: OutputKeys | None = None

    @classmethod
    def of_exits(cls, exits: Iterable[int], **parts: object) -> KeyMap:
        """A map with the exits of a config, any numbers: they are held against the model later."""
        return cls.model_construct(None, exits=tuple(exits), **parts)

    @cached_property
    def patterns(self) -> dict[str, str]:
        """The key of every part that is there, by part; the first says which exits."""

        def given(part: str) -> Any:
            return reduce(lambda table, entry: getattr(table, entry, None), part.split("."), cast(Any, self))

        return {part: given(part) for part in AXES if given(part) is not None}

    def is_transposed(self, part: str) -> bool:
        """Whether a part is a matrix that is stored as [inputs, outputs]."""
        table = getattr(self, part.removesuffix(".weight"), None)
        return part.endswith(".weight") and getattr(table, "transposed", False)

    def key(self, part: str, exit: int) -> str:
        """The key of a part of one exit."""
        place = "" if self.exits == "all" else str(self.exits.index(exit))
        return self.patterns[part].replace(EXIT, str(exit - 1 + self.first)).replace(PLACE, place)

    def keys(self, exits: tuple[int, ...]) -> list[str]:
        """Every key of some exits."""
        return [self.key(part, exit) for exit in exits for part in self.patterns]

    def exits_among(self, names: Collection[str]) -> tuple[int, ...]:
        """The exits whose weights are among these keys, ascending; 0 is the state before the first layer.

        Numbers in keys have no leading zeros.
        """
        if self.exits != "all":
            return tuple(sorted(self.exits))
        pattern = re.escape(next(iter(self.patterns.values())))
        pattern = pattern.replace(re.escape(EXIT), r"(?P<exit>0|[1-9][0-9]{0,599})", 1)
        matches = (re.fullmatch(pattern.replace(re.escape(EXIT), "(?P=exit)"), name) for name in names)
        return tuple(sorted(int(match["exit"]) - self.first + 1 for match in matches if match))


def read_key_map(path: Path) -> KeyMap:
    """The key map of a TOML file.

    Raises InputError for a file that is absent or no TOML, and, with the line, for an entry that is unknown,
    missing or wrong.
    """
    values, source = read_toml(path, "key map")
    given = checked(KeyMap, values, source)
    if given.exits != "all" and (not given.exits or list(given.exits) != sorted(set(given.exits))):
        fix = 'write "all" or ascending layers from 1, as in [8, 16, 24]'
        raise source.refused(f"exits is {list(given.exits)}", fix, "exits")
    if given.output is not None:
        _require_norm(given.output, source)
    if not given.patterns and (given.exits == "all" or given.output is None):
        raise source.refused(
            "the key map must have one of the tables [lens], [mlp] and [output] with the key of a tensor; "
            f"it has: {', '.join(values) or 'nothing'}",
            FIX,
        )
    for part, key in given.patterns.items():
        if PLACE in key and given.exits == "all":
            *_, entry = location = part.split(".")
            raise source.refused(
                f"{entry} holds {PLACE}", "list the exits, as in exits = [8, 16, 24]", *location
            )
    return given


def _require_norm(given: OutputKeys, source: Source) -> None:
    """Refuse what a norm of this kind has not or lacks, and an output head that is the model's own."""
    norm, arrays = given.norm, NORM_ARRAYS[given.norm.kind]
    entries = {"weight": "norm_weight" in arrays, "bias": "norm_bias" in arrays, "epsilon": bool(arrays)}
    for name, known in entries.items():
        if getattr(norm, name) is not None and not known:
            raise source.refused(f"a norm of the kind {norm.kind} has no {name}", FIX, "output", "norm", name)
        if getattr(norm, name) is None and known and name != "bias":
            raise source.refused(f"{name!r} is missing", FIX, "output", "norm")
    if given.weight is None and (norm.kind == "model" or given.bias is not None):
        raise source.refused(
            "without a weight, [output] must have a norm of its own and no bias: the model's own norm and "
            "head read exits without any map",
            FIX,
            "output",
        )


FLOATS = ("F64", "F32", "F16", "BF16")
LISTED = 30
"""Lines of a listing at most."""
NUMBER = r"\d{1,15}"
"""Of a layer, in a key: Python reads no number of any length."""


@dataclass(frozen=True)
class Tensors:
    """All tensors of some files, by key. where: what the user named."""

    where: Path
    stored: Mapping[str, StoredTensor]

    @classmethod
    def find(cls, path: Path) -> Tensors:
        """The tensors of a safetensors file, or of a folder with such files; only their headers are read.

        Raises InputError for a file that is absent, a pickle, damaged or no safetensors, and for a key that
        two files have; ModelError for a folder whose index names a file that is absent.
        """
        return cls(path, stored_in(_files(path), path, "name the file that is meant instead of the folder"))

    @property
    def config(self) -> Path:
        """The config.json that belongs to the tensors."""
        return (self.where if self.where.is_dir() else self.where.parent) / CONFIG_FILE

    def require(self, key: str, shape: Sequence[int] | None = None) -> StoredTensor:
        """What is stored under a key; nothing but its header is read.

        Raises InputError, with a listing, for a tensor that is missing, of another shape, or of no
        floating-point numbers.
        """
        stored = self.stored.get(key)
        if stored is None:
            raise self.refused(f"the file has no tensor {key!r}")
        if shape is not None and stored.shape != tuple(shape):
            raise self.refused(f"{key} has the shape {list(stored.shape)}, not {list(shape)}")
        if stored.dtype not in FLOATS:
            raise self.refused(f"{key} is of the type {stored.dtype}; it must be one of {', '.join(FLOATS)}")
        return stored

    def take(self, key: str, shape: Sequence[int]) -> NDArray[np.float32]:
        """A tensor of this shape as float32.

        Raises InputError as `require` does, and for numbers that nothing can be computed with.
        """
        stored = self.require(key, shape)
        with safe_open(stored.file, framework="pt") as file:
            array: NDArray[np.float32] = file.get_tensor(key).float().numpy()
        if why := useless(array):
            raise InputError(
                f"{key} {why}",
                where=str(stored.file),
                fix="the file is damaged or its training failed: use another copy",
            )
        return array

    def first_row(self, key: str) -> Tensor:
        """The first row of a tensor that is there; all of one without dimensions."""
        stored = self.stored[key]
        with safe_open(stored.file, framework="pt") as file:
            row: Tensor = file.get_slice(key)[:1] if stored.shape else file.get_tensor(key)
        return row

    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        """SHA-256 of every file that holds one of these tensors, by name."""
        paths = sorted({self.stored[key].file for key in keys})
        return {path.name: sha256_of_file(path) for path in paths}

    def refused(self, what: str) -> InputError:
        """The error for tensors that do not fit the map, which lists what there is."""
        fix = f"correct the key map (or --format); the tensors are:\n{self.listing()}"
        return InputError(what, where=str(self.where), fix=fix)

    def listing(self) -> str:
        """Every key with its type and shape; keys that differ in a number alone share a line."""
        alike: dict[tuple[str, str, tuple[int, ...]], list[tuple[int, ...]]] = defaultdict(list)
        for key, stored in self.stored.items():
            numbers = tuple(int(number) for number in re.findall(NUMBER, key))
            pattern = re.sub(NUMBER, "{}", key.replace("{", "{{").replace("}", "}}"))
            alike[pattern, stored.dtype, stored.shape].append(numbers)
        lines = [
            f"  {_spelled(pattern, numbers)}: {dtype} {list(shape)}"
            for (pattern, dtype, shape), numbers in sorted(alike.items())
        ]
        rest = [f"  and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        return "\n".join([*lines[:LISTED], *rest])


def _spelled(pattern: str, numbers: list[tuple[int, ...]]) -> str:
    """The pattern with its numbers filled in: each as it is, or the least and the largest of several."""
    columns = zip(*numbers, strict=True)
    return pattern.format(*(f"{min(c)}..{max(c)}" if len({*c}) > 1 else str(c[0]) for c in columns))


def _files(path: Path) -> list[Path]:
    """The safetensors files that a path means."""
    files = [path]
    if path.is_dir():
        whole = (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file()
        files = find_weight_files(path) if whole else sorted(path.glob("*.safetensors"))
        pickles = sorted(file for pattern in PICKLE_PATTERNS for file in path.glob(pattern))
        if not files and pickles:
            raise _pickle(pickles[0])
        if not files:
            what, fix = "the folder holds no .safetensors file", "name the file with the heads"
            raise InputError(what, where=str(path), fix=fix)
    elif not path.is_file():
        what, fix = "there is no such file or folder", "name the safetensors file with the heads"
        raise InputError(what, where=str(path), fix=fix)
    for file in files:
        with open_given(file, "file of tensors") as opened:
            if is_pickle(opened.read(9)):
                raise _pickle(file)
    return files


def _pickle(path: Path) -> InputError:
    new = f"{path.stem.replace('pytorch_model', 'model')}.safetensors"
    return InputError(
        "the file is a pickle, which can run code when it is read; exit heads are read from safetensors",
        where=str(path),
        fix="convert it once; weights_only lets it run no code:\n"
        'python -c "import torch; from safetensors.torch import save_file; '
        f"state = torch.load('{path.name}', map_location='cpu', weights_only=True); "
        f"save_file({{key: value.contiguous().clone() for key, value in state.items()}}, '{new}', "
        "{'format': 'pt'})\"",
    )
