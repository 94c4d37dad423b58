"""A checkpoint folder on disk: everything that can be refused before a weight is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from offramp.errors import ModelError
from offramp.models.weight_files import StoredTensor, read_headers

CONFIG_FILE = "config.json"
DEEPEST_CONFIG = 40
"""Objects and lists within each other that a config.json may have: real ones have four or five."""
# Layers that share weights are stored once: how many a stored one may stand for.
LAYERS_PER_STORED = 100
AXIS_KEYS = ("hidden_size", "n_embd", "d_model", "vocab_size")
"""Sizes that are an axis of a weight, whatever the family."""

# Names under which configs and modules state how many layers there are.
CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "context_length",
    "n_ctx",
)
LAYER_COUNT_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")
# Constants that GPT-Neo and its kin once stored with their weights.
OBSOLETE_CONSTANTS = (".masked_bias",)


def check_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Check a model folder and return its config.json.

    Raises ModelError for a folder without config.json, with code to run, with only pickle weights, with
    safetensors files that are missing, truncated, whose header is damaged or that are not of one model, or
    with a config that states sizes which the weights cannot have.
    """
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(
                f"{path.name} in the model's folder is a device, a pipe or a socket",
                where=str(path),
                fix="put the file itself there",
            )
    config = read_config(folder)
    check_no_remote_code(config, folder, trust_remote_code=trust_remote_code)
    check_sizes(config, read_headers(folder), folder / CONFIG_FILE)
    return config


def check_sizes(config: Mapping[str, Any], stored: Mapping[str, StoredTensor], path: Path) -> None:
    """Hold the sizes that a config.json states against the stored tensors, before anything is built of them.

    Raises ModelError for many times more layers than are stored, or a size that is longer than any axis.
    """
    parts = [part for name in stored for part in name.split(".")]
    last = max((int(part) for part in parts if part.isdecimal() and len(part) < 10), default=0)
    longest = max((axis for tensor in stored.values() for axis in tensor.shape), default=0)
    for part in (config, config.get("text_config") or {}):
        for key, value in part.items():
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            stated = f"{key} = {value:,}"
            if key in (*LAYER_COUNT_KEYS, *AXIS_KEYS) and value < 1:
                raise _other_size(stated, f"{len(stored):,} tensors", path)
            if re.search(r"layers?$", key) and value > LAYERS_PER_STORED * (1 + last):
                raise _other_size(stated, f"{len(stored):,} tensors, numbered up to {last:,}", path)
            if key in AXIS_KEYS and value > longest:
                raise _other_size(stated, f"no tensor with an axis longer than {longest:,}", path)


def _other_size(stated: str, held: str, path: Path) -> ModelError:
    return ModelError(
        f"config.json states {stated}, but the weight files hold {held}",
        where=str(path),
        fix="put the config.json and the weight files of one and the same model into the folder",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelError(
            "the folder has no config.json, so it is not a model",
            where=str(folder),
            fix="give the folder that holds config.json, the tokenizer and the .safetensors files",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"config.json is not valid JSON: {error}", where=str(path), fix="download the file again"
        ) from error
    if _depth(config) > DEEPEST_CONFIG:
        raise ModelError(
            f"config.json is nested more than {DEEPEST_CONFIG} deep, as no model's is",
            where=str(path),
            fix="download the file again",
        )
    if not isinstance(config, dict) or not isinstance(config.get("text_config") or {}, dict):
        raise ModelError("config.json holds no JSON object", where=str(path), fix="download the file again")
    return config


def _depth(value: Any) -> int:
    """Objects and lists within each other, counted without recursion, DEEPEST_CONFIG + 1 at most."""
    depth, inner = 0, [value]
    while inner and depth <= DEEPEST_CONFIG:
        inner = [
            item
            for outer in inner
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += bool(inner)
    return depth


def stated_layers(config: Mapping[str, Any]) -> int | None:
    """How many layers a config.json states, None if it does not say."""
    return stated_count(config, LAYER_COUNT_KEYS)


def stated_count(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """The first whole number that a config.json states under one of some keys, its text part first."""
    keys, text = tuple(keys), config.get("text_config")
    stated = [part[key] for part in (text or {}, config) for key in keys if part.get(key)]
    return next((count for count in stated if isinstance(count, int)), None)


def check_no_remote_code(config: dict[str, Any], folder: Path, *, trust_remote_code: bool) -> None:
    """Refuse a config that names Python code to run (`auto_map`), at any depth, unless asked for."""
    if not trust_remote_code and _holds_key(config, "auto_map"):
        raise ModelError(
            "config.json asks to run Python code that comes with the model (auto_map)",
            where=str(folder / CONFIG_FILE),
            fix="read that code; if you trust it, pass trust_remote_code=True (--trust-remote-code)",
        )


def _holds_key(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return bool(value.get(key)) or any(_holds_key(item, key) for item in value.values())
    return isinstance(value, list) and any(_holds_key(item, key) for item in value)


def find_strangers(hf: Any, prefix: str, layers: int, unexpected: Iterable[str]) -> list[str]:
    """Tensors of a checkpoint that belong to its layers and have no place in the model's, sorted.

    prefix: what the names of the layers' tensors begin with, before the layer's number. layers: how many the
    model has. unexpected: all stored tensors that the model lacks, by the model's names for them.

    Left out are announced layers that predict tokens further ahead, which are numbered after the model's own
    and which transformers does not build, and constants that the model computes itself.
    """
    ahead = getattr(hf.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    announced = tuple(f"{prefix}{layers + number}." for number in range(ahead))
    computed = {name for name, _ in hf.named_buffers()}
    return sorted(
        name
        for name in unexpected
        if name.startswith(prefix) and not name.startswith(announced)
        if name not in computed and not name.endswith(OBSOLETE_CONSTANTS)
    )


def refuse_strangers(strangers: list[str], where: str) -> None:
    """Raise ModelError if there are any of `find_strangers`: without them the model is another one."""
    if strangers:
        raise ModelError(
            f"the weight files hold {len(strangers)} tensors of layers that the model in config.json "
            f"does not have, the first is {strangers[0]}",
            where=where,
            fix="put the config.json and the weight files of one and the same model into the folder; heads "
            "for exits belong into a file of their own",
        )


def check_vocabulary(tokenizer: Any, config: Any, folder: Path) -> None:
    """Refuse a tokenizer whose vocabulary is larger than the model's embedding.

    Special tokens beyond it do not count: many checkpoints, and transformers itself for a GGUF file,
    add an unused padding or unknown token. `Model.encode` refuses a text that needs one.
    """
    rows = config.get_text_config().vocab_size
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    largest = max(set(tokenizer.get_vocab().values()) - special, default=-1)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer knows token ids up to {largest:,}, the model's embedding has {rows:,} rows: "
            "they are not of the same model",
            where=str(folder),
            fix="put the tokenizer files that belong to this model into the folder",
        )
