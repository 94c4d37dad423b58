"""Key maps: under which keys a file holds the heads of each exit, read from TOML or known (a tuned lens)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from offramp.errors import InputError
from offramp.models.model import Model
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


TUNED_LENS = "tuned-lens"
TUNED_LENS_KEYS = LensKeys(f"{EXIT}.weight", f"{EXIT}.bias", residual=True, transposed=False)
"""Translator k reads hidden_states[k] of transformers, the state after layer k: exit k. Translator 0 reads
the embedding, which is no exit."""

LENS_TYPE = "linear_tuned_lens"


@dataclass(frozen=True)
class TunedLensConfig:
    """What a tuned lens, as the package tuned-lens saves it (arXiv 2303.08112), says of its model.

    None where it says nothing. where: its config.json. Its output is added to the state, h + A h + b, where
    the paper (section 3) writes A h + b.
    """

    where: str
    name: str | None
    hidden_size: int | None
    layers: int | None
    head_hash: str | None
    bias: bool

    def key_map(self) -> KeyMap:
        """The keys of its tensors."""
        keys = TUNED_LENS_KEYS if self.bias else replace(TUNED_LENS_KEYS, bias=None)
        return KeyMap(keys, None, 1, TUNED_LENS)

    def check_base(self, model: Model) -> str:
        """Refuse a lens of another model: its size, the hash of its output head or, without one, its name.

        Returns by what the model was recognised. Raises InputError.
        """
        for what, said, found in (
            ("hidden size", self.hidden_size, model.shape.hidden_size),
            ("number of layers", self.layers, model.layers),
        ):
            if said is not None and said != found:
                raise self._refused(f"for a {what} of {said:,}; {model.name} has {found:,}")
        if self.head_hash is not None:
            if self.head_hash != head_hash(model):
                raise self._refused(f"for another output head than that of {model.name}", "unembed_hash")
            return "unembed_hash"
        if self.name is not None and _last_part(self.name) != _last_part(model.name):
            raise self._refused(f"for {self.name}, not for {model.name}", "base_model_name_or_path")
        return "nothing but its size" if self.name is None else "base_model_name_or_path"

    def _refused(self, why: str, entry: str = "") -> InputError:
        known = f"; if you know that it is the same model, take {entry} out of the file" if entry else ""
        return InputError(
            f"the lens was trained {why}",
            where=self.where,
            fix=f"give the model that it was trained for with --model{known}",
        )


def read_tuned_lens_config(path: Path) -> TunedLensConfig:
    """The config.json beside a lens's tensors, which may be missing.

    path: the folder, or the file of tensors. Raises InputError for a config that is damaged or of another
    lens.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    content: Any = {}
    if file.is_file():
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                f"config.json is not valid JSON: {error}", where=str(file), fix="copy the file again"
            ) from error
    kind = content.get("lens_type", LENS_TYPE) if isinstance(content, dict) else type(content).__name__
    if kind != LENS_TYPE:
        raise InputError(
            f"the lens is of the type {kind!r}; offramp reads {LENS_TYPE!r}",
            where=str(file),
            fix="write a key map for it: --map MAP.toml",
        )
    return TunedLensConfig(
        where=str(file),
        name=_entry(content, "base_model_name_or_path", str, file),
        hidden_size=_entry(content, "d_model", int, file),
        layers=_entry(content, "num_hidden_layers", int, file),
        head_hash=_entry(content, "unembed_hash", str, file),
        bias=_entry(content, "bias", bool, file) is not False,
    )


def head_hash(model: Model) -> str:
    """tuned-lens' hash of the output head: SHA-256 of how numpy prints its corners with one digit.

    It is made to be the same in any floating-point type. Raises InputError if the head is not one linear
    layer.
    """
    if model.stack.head_weight is None:
        raise InputError(
            "a tuned lens belongs to a model whose output head is one linear layer",
            where=model.name,
            fix="give the model that it was trained for with --model",
        )
    weight = model.stack.head_weight.detach().float().cpu().numpy()
    return hashlib.sha256(np.array_str(weight, precision=1).encode()).hexdigest()


def _entry(content: dict[str, Any], key: str, kind: type, file: Path) -> Any:
    value = content.get(key)
    if value is not None and type(value) is not kind:
        raise InputError(f"{key} is {value!r}, which it cannot be", where=str(file), fix="correct the entry")
    return value


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
