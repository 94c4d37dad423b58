"""Key maps: under which key a file holds each part of every exit, as people write them in TOML."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from offramp.kit.given_file import Count, Number, Source, Table, Text, Truth, checked, read_toml
from offramp.tracing.exit_readings import NORM_ARRAYS, NormKind

EXIT, PLACE = "{exit}", "{place}"
"""What stands for an exit in a key: its number in the file, or its place among the map's exits, from 0."""

FIX = "correct the key map; docs/bring-your-own-exits.md describes it"


class Lens(Table):
    """An affine map per exit. residual: it is h + A h + b. transposed: A is [inputs, outputs]."""

    weight: Text
    bias: Text | None = None
    residual: Truth
    transposed: Truth = False


class Mlp(Table):
    """A residual gated network per exit behind an RMS norm.

    epsilon: added under the norm's root. adds_to_normed: its output is added to the state behind the norm.
    """

    norm: Text
    gate: Text
    up: Text
    down: Text
    epsilon: Number
    adds_to_normed: Truth = False


class Norm(Table):
    """The norm before an output head: "model" is the model's own final one."""

    kind: NormKind
    weight: Text | None = None
    bias: Text | None = None
    epsilon: Number | None = None


class Output(Table):
    """An output head per exit, and the norm before it. transposed: as [hidden, vocabulary].

    weight: None where exits are read by the model's own output head. rows: of the stored head, where those
    beyond the vocabulary are padding.
    """

    weight: Text | None = None
    bias: Text | None = None
    transposed: Truth = False
    norm: Norm = Norm(kind="model")
    rows: Count | None = None


class KeyMap(Table):
    """Where a file holds its exits' parts, each with EXIT or PLACE in its keys.

    exits: those that the file has, in the order of their places. first: the number in a key that stands for
    exit 1, the state after the first layer; 0 in files that count layers from 0.
    """

    exits: Literal["all"] | tuple[Count, ...] = "all"
    first: Literal[0, 1] = 1
    lens: Lens | None = None
    mlp: Mlp | None = None
    output: Output | None = None

    @cached_property
    def patterns(self) -> dict[str, str]:
        """The key of every part that is there, by part ("output.norm.weight"); the first says which exits."""
        norm = self.output and self.output.norm
        tables = {"lens": self.lens, "mlp": self.mlp, "output": self.output, "output.norm": norm}
        return {
            f"{table}.{entry}": key
            for table, given in tables.items()
            for entry, key in (given or ())
            if entry in KEYS and isinstance(key, str)
        }

    def key(self, pattern: str, exit: int) -> str:
        """The key of one exit."""
        place = "" if self.exits == "all" else str(self.exits.index(exit))
        return pattern.replace(EXIT, str(exit - 1 + self.first)).replace(PLACE, place)

    def keys(self, exits: tuple[int, ...]) -> list[str]:
        """Every key of some exits."""
        return [self.key(pattern, exit) for exit in exits for pattern in self.patterns.values()]

    def exits_among(self, names: Collection[str]) -> tuple[int, ...]:
        """The exits whose weights are among these keys, ascending; 0 is the state before the first layer.

        Numbers in keys have no leading zeros.
        """
        if self.exits != "all":
            return tuple(sorted(self.exits))
        pattern = re.escape(next(iter(self.patterns.values())))
        pattern = pattern.replace(re.escape(EXIT), r"(?P<exit>0|[1-9][0-9]{0,14})", 1)
        matches = (re.fullmatch(pattern.replace(re.escape(EXIT), "(?P=exit)"), name) for name in names)
        return tuple(sorted(int(match["exit"]) - self.first + 1 for match in matches if match))


KEYS = ("weight", "bias", "norm", "gate", "up", "down")
"""Entries that are keys of tensors, where they are texts."""


def read_key_map(path: Path) -> KeyMap:
    """The key map of a TOML file.

    Raises InputError for a file that is absent or no TOML, and, with the line, for an entry that is unknown,
    missing or wrong.
    """
    values, source = read_toml(path, "key map")
    given = checked(KeyMap, values, source)
    if given.exits != "all" and (not given.exits or list(given.exits) != sorted(set(given.exits))):
        raise source.refused(
            f"exits is {list(given.exits)}",
            'write "all" or ascending layers from 1, as in [8, 16, 24]',
            "exits",
        )
    if given.mlp is not None:
        _require_epsilon(given.mlp.epsilon, source, "mlp")
    if given.output is not None:
        _require_norm(given.output, source)
    _require_placeholders(values, given.exits != "all", source)
    if not given.patterns and given.exits == "all":
        raise source.refused(
            "the key map must have one of the tables [lens], [mlp] and [output] with the key of a tensor; "
            f"it has: {', '.join(values) or 'nothing'}",
            FIX,
        )
    return given


def _require_norm(given: Output, source: Source) -> None:
    """Refuse what a norm of this kind has not or lacks, and an output head that is the model's own."""
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


def _require_epsilon(epsilon: float, source: Source, *location: str) -> None:
    if not 0 <= epsilon < 1:
        fix = "write the small number that is added under the norm's root"
        raise source.refused(f"epsilon is {epsilon}", fix, *location, "epsilon")


def _require_placeholders(values: Mapping[str, Any], placed: bool, source: Source, *location: str) -> None:
    """Refuse a key that names no exit. placed: whether the map lists its exits, so that they have places."""
    for name, value in values.items():
        if isinstance(value, dict):
            _require_placeholders(value, placed, source, *location, name)
        elif name in KEYS and EXIT not in value and PLACE not in value:
            fix = f"write {EXIT} where the exit's number stands"
            raise source.refused(f"{name} is {value!r}", fix, *location, name)
        elif name in KEYS and PLACE in value and not placed:
            fix = "list the exits, as in exits = [8, 16, 24]"
            raise source.refused(f"{name} holds {PLACE}", fix, *location, name)
