"""A checkpoint folder on disk: everything that can be refused before a weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from offramp.errors import ModelError

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CONVERT_TO_SAFETENSORS = (
    "convert it once, on a machine where you trust the file: load it with "
    "AutoModelForCausalLM.from_pretrained(folder) and save it as safetensors with save_pretrained(new_folder)"
)


def check_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Check a model folder and return its config.json.

    Raises ModelError for a folder without config.json, with code to run, with only pickle weights, or with
    safetensors files that are missing, truncated or whose header is damaged.
    """
    config = read_config(folder)
    check_no_remote_code(config, folder, trust_remote_code=trust_remote_code)
    for path in find_weight_files(folder):
        check_safetensors(path)
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            "the folder has no config.json, so it is not a model",
            where=str(folder),
            fix="give the folder that holds config.json, the tokenizer and the .safetensors files",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"config.json is not valid JSON: {error}", where=str(path), fix="download the file again"
        ) from error
    if not isinstance(config, dict):
        raise ModelError("config.json holds no JSON object", where=str(path), fix="download the file again")
    return config


def check_no_remote_code(config: dict[str, Any], folder: Path, *, trust_remote_code: bool) -> None:
    """Refuse a config that names Python code to run (`auto_map`), at any depth, unless asked for."""
    if not trust_remote_code and _holds_key(config, "auto_map"):
        raise ModelError(
            "config.json asks to run Python code that comes with the model (auto_map)",
            where=str(folder / "config.json"),
            fix="read that code; if you trust it, pass trust_remote_code=True (--trust-remote-code)",
        )


def _holds_key(value: Any, key: str) -> bool:
    if isinstance(value, dict):
        return bool(value.get(key)) or any(_holds_key(item, key) for item in value.values())
    return isinstance(value, list) and any(_holds_key(item, key) for item in value)


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model: those an index names, or model.safetensors."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _files_of_index(index)
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"the weights are pickle files ({', '.join(pickles[:3])}), which can run code on loading",
            where=str(folder),
            fix=CONVERT_TO_SAFETENSORS,
        )
    raise ModelError(
        "the folder has no weights: neither model.safetensors nor model.safetensors.index.json",
        where=str(folder),
        fix="download the model's .safetensors files into this folder",
    )


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "the index of the weight files is damaged", where=str(index), fix="download it again"
        ) from error
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} weight files are missing, the first is {missing[0]}",
            where=str(index.parent),
            fix="download the missing files; the index names them",
        )
    return [index.parent / name for name in sorted(names)]


def check_safetensors(path: Path) -> None:
    """Check one safetensors file: the shapes, types and offsets of its header must fill it exactly."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise ModelError(
            f"the weight file is damaged or truncated: {error}",
            where=f"{path} ({path.stat().st_size:,} bytes)",
            fix="download the file again",
        ) from error
    if not names:
        raise ModelError("the weight file holds no tensors", where=str(path), fix="download the file again")


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
