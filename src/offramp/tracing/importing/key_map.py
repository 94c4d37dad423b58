"""Key maps: under which keys a file holds each part of every exit, read from TOML or known of a layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from offramp.records.given_file import Count, Number, Source, Table, Text, Truth, checked, read_toml
from offramp.tracing.exit_readings import NORM_ARRAYS, NormKind

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

    @property
    def patterns(self) -> tuple[str, ...]:
        """All of them, what says which exits there are first."""
        return _given(self.weight, self.bias)


@dataclass(frozen=True)
class MlpKeys:
    """Keys of a residual gated network per exit: gate, up [units, hidden] and down [hidden, units].

    norm: of the RMS norm before it. epsilon: added under its root. adds_to_normed: whether the network's
    output is added to the state behind the norm instead of that before it.
    """

    norm: str
    gate: str
    up: str
    down: str
    epsilon: float
    adds_to_normed: bool = False

    @property
    def patterns(self) -> tuple[str, ...]:
        """All of them."""
        return self.norm, self.gate, self.up, self.down


@dataclass(frozen=True)
class OutputKeys:
    """Keys of an output head per exit, and of the norm before it. transposed: as [hidden, vocabulary].

    weight: None where exits are read by the model's own output head. rows: of the stored head, where those
    beyond the vocabulary are padding; None where it is as long as the vocabulary.
    """

    weight: str | None
    bias: str | None = None
    transposed: bool = False
    norm: NormKind = "model"
    norm_weight: str | None = None
    norm_bias: str | None = None
    epsilon: float | None = None
    rows: int | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """All of them, what says which exits there are first."""
        return _given(self.weight, self.norm_weight, self.bias, self.norm_bias)


def _given(*patterns: str | None) -> tuple[str, ...]:
    return tuple(pattern for pattern in patterns if pattern is not None)


@dataclass(frozen=True)
class KeyMap:
    """Where a file holds its exits' parts, each with EXIT or PLACE in its keys; None: there is no such part.

    exits: those that the file has, in the order of their places; None for all whose keys are there. first:
    the number in a key that stands for exit 1, the state after the first layer; 0 in files that count layers
    from 0. where: the map's own place, for errors.
    """

    exits: tuple[int, ...] | None
    first: int
    where: str
    lens: LensKeys | None = None
    mlp: MlpKeys | None = None
    output: OutputKeys | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """The keys of all parts; the first says which exits there are."""
        return tuple(key for keys in (self.lens, self.mlp, self.output) if keys for key in keys.patterns)

    def key(self, pattern: str, exit: int) -> str:
        """The key of one exit."""
        place = "" if self.exits is None else str(self.exits.index(exit))
        return pattern.replace(EXIT, str(exit - 1 + self.first)).replace(PLACE, place)

    def keys(self, exits: tuple[int, ...]) -> list[str]:
        """Every key of some exits."""
        return [self.key(pattern, exit) for exit in exits for pattern in self.patterns]

    def exits_among(self, names: Mapping[str, Any]) -> tuple[int, ...]:
        """The exits whose weights are among these keys, ascending; 0 is the state before the first layer.

        Numbers in keys have no leading zeros.
        """
        if self.exits is not None:
            return tuple(sorted(self.exits))
        pattern = re.escape(self.patterns[0]).replace(re.escape(EXIT), r"(?P<exit>0|[1-9][0-9]*)", 1)
        matches = (re.fullmatch(pattern.replace(re.escape(EXIT), "(?P=exit)"), name) for name in names)
        return tuple(sorted(int(match["exit"]) - self.first + 1 for match in matches if match))


class _Lens(Table):
    weight: Text
    bias: Text | None = None
    residual: Truth
    transposed: Truth = False


class _Mlp(Table):
    norm: Text
    gate: Text
    up: Text
    down: Text
    epsilon: Number


class _Norm(Table):
    kind: NormKind
    weight: Text | None = None
    bias: Text | None = None
    epsilon: Number | None = None


class _Output(Table):
    weight: Text | None = None
    bias: Text | None = None
    transposed: Truth = False
    norm: _Norm = _Norm(kind="model")


class _MapFile(Table):
    exits: Literal["all"] | tuple[Count, ...] = "all"
    first: Literal[0, 1] = 1
    lens: _Lens | None = None
    mlp: _Mlp | None = None
    output: _Output | None = None


def read_key_map(path: Path) -> KeyMap:
    """The key map of a TOML file.

    Raises InputError for a file that is absent or no TOML, and, with the line, for an entry that is unknown,
    missing or wrong.
    """
    values, source = read_toml(path, "key map")
    given = checked(_MapFile, values, source)
    exits = None if given.exits == "all" else tuple(given.exits)
    if exits is not None and (not exits or list(exits) != sorted(set(exits))):
        raise source.refused(
            f"exits is {list(exits)}", 'write "all" or ascending layers from 1, as in [8, 16, 24]', "exits"
        )
    if given.mlp is not None:
        _require_epsilon(given.mlp.epsilon, source, "mlp")
    found = KeyMap(
        exits,
        given.first,
        str(path),
        lens=LensKeys(**given.lens.model_dump()) if given.lens else None,
        mlp=MlpKeys(**given.mlp.model_dump()) if given.mlp else None,
        output=_output_keys(given.output, source) if given.output else None,
    )
    _require_placeholders(values, exits is not None, source)
    if not found.patterns and exits is None:
        raise source.refused(
            "the key map must have one of the tables [lens], [mlp] and [output] with the key of a tensor; "
            f"it has: {', '.join(values) or 'nothing'}",
            FIX,
        )
    return found


def _output_keys(given: _Output, source: Source) -> OutputKeys:
    norm, arrays = given.norm, NORM_ARRAYS[given.norm.kind]
    entries = {"weight": "norm_weight" in arrays, "bias": "norm_bias" in arrays, "epsilon": bool(arrays)}
    for name, known in entries.items():
        if getattr(norm, name) is not None and not known:
            raise source.refused(f"a norm of the kind {norm.kind} has no {name}", FIX, "output", "norm", name)
        if getattr(norm, name) is None and known and name != "bias":
            raise source.refused(f"{name!r} is missing", FIX, "output", "norm")
    if norm.epsilon is not None:
        _require_epsilon(norm.epsilon, source, "output", "norm")
    if given.weight is None and (norm.kind == "model" or given.bias is not None):
        raise source.refused(
            "without a weight, [output] must have a norm of its own and no bias: the model's own norm and "
            "head read exits without any map",
            FIX,
            "output",
        )
    return OutputKeys(
        given.weight, given.bias, given.transposed, norm.kind, norm.weight, norm.bias, norm.epsilon
    )


def _require_epsilon(epsilon: float, source: Source, *location: str) -> None:
    if not 0 <= epsilon < 1:
        raise source.refused(
            f"epsilon is {epsilon}",
            "write the small number that is added under the norm's root",
            *(*location, "epsilon"),
        )


KEYS = ("weight", "bias", "norm", "gate", "up", "down")
"""Entries that are keys of tensors."""


def _require_placeholders(values: Mapping[str, Any], placed: bool, source: Source, *location: str) -> None:
    """Refuse a key that names no exit. placed: whether the map lists its exits, so that they have places."""
    for name, value in values.items():
        if isinstance(value, dict):
            _require_placeholders(value, placed, source, *location, name)
        elif name in KEYS and EXIT not in value and PLACE not in value:
            raise source.refused(
                f"{name} is {value!r}", f"write {EXIT} where the exit's number stands", *location, name
            )
        elif name in KEYS and PLACE in value and not placed:
            raise source.refused(
                f"{name} holds {PLACE}", "list the exits, as in exits = [8, 16, 24]", *location, name
            )
