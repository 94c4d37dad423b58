"""Key maps: under which keys a file holds the heads of each exit, read from TOML."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import read_given_text
from offramp.tracing.exit_heads import NormKind
from offramp.tracing.heads_build import NORM_ARRAYS

EXIT, PLACE = "{exit}", "{place}"
"""What stands for an exit in a key: its number in the file, or its place among the map's exits, from 0."""


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


def read_key_map(path: Path) -> KeyMap:
    """The key map of a TOML file.

    Raises InputError for a file that is absent or no TOML, and for an entry that is unknown, missing or
    wrong.
    """
    try:
        content = tomllib.loads(read_given_text(path))
    except OSError as error:
        raise InputError(
            f"the key map cannot be read: {error.strerror}", where=str(path), fix="name a TOML file"
        ) from error
    except ValueError as error:  # no TOML, or not UTF-8
        raise InputError(
            f"the key map is not TOML: {error}", where=str(path), fix="correct the file"
        ) from error
    return parse_key_map(content, str(path))


def parse_key_map(content: Mapping[str, Any], where: str) -> KeyMap:
    """The key map that a TOML document describes. Raises InputError as `read_key_map` does."""
    top = _Table(content, "", where)
    kinds = [name for name in ("lens", "output") if name in content]
    if len(kinds) != 1:
        raise top.refused(
            "the key map must have one of the tables [lens] and [output]"
            + (", not both" if kinds else f"; it has: {', '.join(content) or 'nothing'}")
        )
    exits = _exits(top)
    first = top.take("first", int, 1)
    if first not in (0, 1):
        raise top.refused(f"first is {first}; it is 1 where keys count layers from 1, and 0 from 0")
    table = _Table(top.take(kinds[0], dict), kinds[0], where)
    reader = _lens if kinds[0] == "lens" else _output
    found = KeyMap(reader(table, placed=exits is not None), exits, first, where)
    table.done()
    top.done()
    return found


def _exits(top: _Table) -> tuple[int, ...] | None:
    given = top.take("exits", (str, list), "all")
    if given == "all":
        return None
    whole = isinstance(given, list) and all(type(exit) is int and exit >= 1 for exit in given)
    if not whole or not given or given != sorted(set(given)):
        raise top.refused(f'exits is {given!r}; write "all" or ascending layers from 1, as in [8, 16, 24]')
    return tuple(given)


def _lens(table: _Table, *, placed: bool) -> LensKeys:
    return LensKeys(
        weight=table.key("weight", placed),
        bias=table.key_if_there("bias", placed),
        residual=table.take("residual", bool),
        transposed=table.take("transposed", bool, False),
    )


def _output(table: _Table, *, placed: bool) -> OutputKeys:
    norm = _Table(table.take("norm", dict, {"kind": "model"}), "output.norm", table.where)
    kind = norm.take("kind", str)
    if kind not in NORM_ARRAYS:
        raise norm.refused(f"no kind of norm {kind!r}; there are: {', '.join(NORM_ARRAYS)}")
    arrays = NORM_ARRAYS[kind]
    epsilon = norm.take("epsilon", float) if arrays else None
    if epsilon is not None and not 0 <= epsilon < 1:
        raise norm.refused(f"epsilon is {epsilon!r}; it is the small number added under the norm's root")
    found = OutputKeys(
        weight=table.key("weight", placed),
        bias=table.key_if_there("bias", placed),
        transposed=table.take("transposed", bool, False),
        norm=kind,
        norm_weight=norm.key("weight", placed) if "norm_weight" in arrays else None,
        norm_bias=norm.key_if_there("bias", placed) if "norm_bias" in arrays else None,
        epsilon=epsilon,
    )
    norm.done()
    return found


_REQUIRED: Any = object()


class _Table:
    """The entries of one table, read one by one; what is left over is refused."""

    def __init__(self, content: Mapping[str, Any], name: str, where: str) -> None:
        self.left = dict(content)
        self.name = name
        self.where = where
        self.known: list[str] = []

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
        """One entry of this type."""
        self.known.append(key)
        if key not in self.left:
            if default is _REQUIRED:
                raise self.refused(f"{self._full(key)} is missing")
            return default
        value = self.left.pop(key)
        if kind is float and type(value) is int:
            return float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.refused(f"{self._full(key)} is {value!r}, which it cannot be")
        return value

    def key(self, key: str, placed: bool) -> str:
        """A key with a placeholder; `placed`: whether the map lists its exits, so that they have places."""
        return self._placeheld(key, self.take(key, str), placed)

    def key_if_there(self, key: str, placed: bool) -> str | None:
        """The same, None if it is not given."""
        value = self.take(key, str, None)
        return None if value is None else self._placeheld(key, value, placed)

    def done(self) -> None:
        """Refuse what nobody read."""
        for key in self.left:
            near = difflib.get_close_matches(key, self.known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise self.refused(
                f"there is no entry {self._full(key)}: {hint}known are {', '.join(self.known)}"
            )

    def refused(self, what: str) -> InputError:
        """The error for an entry."""
        return InputError(
            what, where=self.where, fix="correct the key map; docs/bring-your-own-exits.md describes it"
        )

    def _placeheld(self, key: str, value: str, placed: bool) -> str:
        if EXIT not in value and PLACE not in value:
            raise self.refused(f"{self._full(key)} is {value!r}: write {EXIT} where the exit's number stands")
        if PLACE in value and not placed:
            raise self.refused(f"{self._full(key)} holds {PLACE}: list the exits, as in exits = [8, 16, 24]")
        return value

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key
