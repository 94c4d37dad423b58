"""The layout tuned-lens: a linear lens as the package of that name saves it (arXiv 2303.08112)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.importing.key_map import EXIT, KeyMap, LensKeys
from offramp.tracing.importing.layout import Described, Layout, config_path, read_config_json
from offramp.tracing.importing.tensors import Tensors

NAME = "tuned-lens"
KEYS = LensKeys(f"{EXIT}.weight", f"{EXIT}.bias", residual=True, transposed=False)
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
        keys = KEYS if self.bias else replace(KEYS, bias=None)
        return KeyMap(None, 1, NAME, lens=keys)

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
    file = config_path(path)
    content: dict[str, Any] = read_config_json(file) if file.is_file() else {}
    kind = content.get("lens_type", LENS_TYPE)
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


def _describe(path: Path, tensors: Tensors) -> Described:
    config = read_tuned_lens_config(path)
    return Described(config.key_map(), config.check_base)


TUNED_LENS = Layout(NAME, _describe, of_exits=r"\d+\.(weight|bias)")
