"""Key maps: under which keys a file holds the heads of each exit, read from TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offramp.records.given_file import Count, Number, Source, Table, Text, Truth, checked, read_toml
from offramp.tracing.exit_heads import NormKind
from offramp.tracing.heads_build import NORM_ARRAYS

EXIT, PLACE = "{exit}", "{place}"
"""What stands for an exit in a key: its number in the file, or its place among the map's exits, from 0."""

FIX = "correct the key map; docs/bring-your-own-exits.md describes it"


@dataclass(frozen=True)
class LensKeys:
    """Keys of an affine map per exit. residual: it is h + A h + b. transposed: A is [inputs, outputs]."""

    weight: str
    bias: str | None
    residual: bool
    transposed: bool


@dataclass(frozen=True)
class OutputKeys:
    """Keys of an output head per exit, and of the norm before it. transposed: as [hidden, vocabulary]."""

    weight: str
    bias: str | None
    transposed: bool
    norm: NormKind = "model"
    norm_weight: str | None = None
    norm_bias: str | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class KeyMap:
    """Where a file holds its heads. keys: with EXIT or PLACE in each. where: the map's own place, for errors.

    exits: those that the file has heads of, None for all whose keys are there. first: the number in a key
    that stands for exit 1, the state after the first layer; 0 in files that count layers from 0.
    """

    keys: LensKeys | OutputKeys
    exits: tuple[int, ...] | None
    first: int
    where: str

    def key(self, pattern: str, exit: int) -> str:
        """The key of one exit."""
        place = "" if self.exits is None else str(self.exits.index(exit))
        return pattern.replace(EXIT, str(exit - 1 + self.first)).replace(PLACE, place)

    def exits_among(self, names: Mapping[str, Any]) -> tuple[int, ...]:
        """The exits whose weights are among these keys, ascending; 0 is the state before the first layer.

        Numbers in keys have no leading zeros.
        """
        if self.exits is not None:
            return self.exits
        pattern = re.escape(self.keys.weight).replace(re.escape(EXIT), r"(?P<exit>0|[1-9][0-9]*)", 1)
        matches = (re.fullmatch(pattern.replace(re.escape(EXIT), "(?P=exit)"), name) for name in names)
        return tuple(sorted(int(match["exit"]) - self.first + 1 for match in matches if match))


class _Lens(Table):
    weight: Text
    bias: Text | None = None
    residual: Truth
    transposed: Truth = False


class _Norm(Table):
    kind: NormKind
    weight: Text | None = None
    bias: Text | None = None
    epsilon: Number | None = None


class _Output(Table):
    weight: Text
    bias: Text | None = None
    transposed: Truth = False
    norm: _Norm = _Norm(kind="model")


class _MapFile(Table):
    exits: Literal["all"] | tuple[Count, ...] = "all"
    first: Literal[0, 1] = 1
    lens: _Lens | None = None
    output: _Output | None = None


def read_key_map(path: Path) -> KeyMap:
    """The key map of a TOML file.

    Raises InputError for a file that is absent or no TOML, and, with the line, for an entry that is unknown,
    missing or wrong.
    """
    values, source = read_toml(path, "key map")
    given = checked(_MapFile, values, source)
    if (given.lens is None) == (given.output is None):
        also = f"; it has: {', '.join(values) or 'nothing'}" if given.lens is None else ", not both"
        raise source.refused(f"the key map must have one of the tables [lens] and [output]{also}", FIX)
    exits = None if given.exits == "all" else tuple(given.exits)
    if exits is not None and (not exits or list(exits) != sorted(set(exits))):
        raise source.refused(
            f"exits is {list(exits)}", 'write "all" or ascending layers from 1, as in [8, 16, 24]', "exits"
        )
    keys = _lens_keys(given.lens) if given.lens else _output_keys(given.output, source)
    _require_placeholders(values, exits is not None, source)
    return KeyMap(keys, exits, given.first, str(path))


def _lens_keys(given: _Lens) -> LensKeys:
    return LensKeys(given.weight, given.bias, given.residual, given.transposed)


def _output_keys(given: _Output | None, source: Source) -> OutputKeys:
    assert given is not None, "one of the two is there"
    norm, arrays = given.norm, NORM_ARRAYS[given.norm.kind]
    entries = {"weight": "norm_weight" in arrays, "bias": "norm_bias" in arrays, "epsilon": bool(arrays)}
    for name, known in entries.items():
        if getattr(norm, name) is not None and not known:
            raise source.refused(f"a norm of the kind {norm.kind} has no {name}", FIX, "output", "norm", name)
        if getattr(norm, name) is None and known and name != "bias":
            raise source.refused(f"{name!r} is missing", FIX, "output", "norm")
    if norm.epsilon is not None and not 0 <= norm.epsilon < 1:
        raise source.refused(
            f"epsilon is {norm.epsilon}",
            "write the small number that is added under the norm's root",
            *("output", "norm", "epsilon"),
        )
    return OutputKeys(
        given.weight, given.bias, given.transposed, norm.kind, norm.weight, norm.bias, norm.epsilon
    )


def _require_placeholders(values: Mapping[str, Any], placed: bool, source: Source, *location: str) -> None:
    """Refuse a key that names no exit. placed: whether the map lists its exits, so that they have places."""
    for name, value in values.items():
        if isinstance(value, dict):
            _require_placeholders(value, placed, source, *location, name)
        elif name in ("weight", "bias") and EXIT not in value and PLACE not in value:
            raise source.refused(
                f"{name} is {value!r}", f"write {EXIT} where the exit's number stands", *location, name
            )
        elif name in ("weight", "bias") and PLACE in value and not placed:
            raise source.refused(
                f"{name} holds {PLACE}", "list the exits, as in exits = [8, 16, 24]", *location, name
            )
