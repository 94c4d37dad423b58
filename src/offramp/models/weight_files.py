"""The weight files of a checkpoint folder: which there are, and what their headers say they hold."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import ModelError

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CONVERT_TO_SAFETENSORS = (
    "convert it once, on a machine where you trust the file: load it with "
    "AutoModelForCausalLM.from_pretrained(folder) and save it as safetensors with save_pretrained(new_folder)"
)
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file, as its header names it."""

    name: str
    file: Path
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model: model.safetensors, else those that the index names.

    That is what transformers loads if there are both.

    Raises ModelError if there are none, if one is missing or outside, or if the index is damaged.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if index.is_file():
        return _files_of_index(index)
    pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"the weights are pickle files ({', '.join(pickles[:3])}), which can run code on loading",
            where=str(folder),
            fix=CONVERT_TO_SAFETENSORS,
        )
    raise ModelError(
        f"the folder has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}",
        where=str(folder),
        fix="download the model's .safetensors files into this folder",
    )


def _files_of_index(index: Path) -> list[Path]:
    names = set(_weight_map(index).values())
    outside = sorted(name for name in names if Path(name).is_absolute() or ".." in Path(name).parts)
    if outside:
        raise ModelError(
            f"the index names a weight file outside of the model's folder: {outside[0]}",
            where=str(index),
            fix="put all weight files into the folder, and their names into the index",
        )
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} weight files are missing, the first is {missing[0]}",
            where=str(index.parent),
            fix="download the missing files; the index names them",
        )
    return [index.parent / name for name in sorted(names)]


def _weight_map(index: Path) -> dict[str, str]:
    """File names by tensor names, as an index lists them."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not listed or not all(isinstance(name, str) for name in listed.values()):
            raise ValueError("no file names in its weight_map")
        return dict(listed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            "the index of the weight files is damaged", where=str(index), fix="download it again"
        ) from error


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder, by name, from the headers of its weight files alone.

    Raises ModelError for files that are missing, damaged or truncated, for a tensor that lies in two of them,
    and for an index that names a tensor which none of them holds.
    """
    stored: dict[str, StoredTensor] = {}
    files = find_weight_files(folder)
    for path in files:
        for tensor in _read_header(path):
            twin = stored.setdefault(tensor.name, tensor)
            if twin is not tensor:
                raise ModelError(
                    f"the tensor {tensor.name} lies in two weight files, {twin.file.name} and {path.name}",
                    where=str(folder),
                    fix="the files are not of one model: download them again, into an empty folder",
                )
    if files != [folder / SINGLE_FILE]:
        _check_index(folder / INDEX_FILE, stored)
    return stored


def _read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file; the shapes, types and offsets of its header must fill it exactly."""
    from safetensors import SafetensorError, safe_open

    if not os.access(path, os.R_OK):  # which the library calls a file that is not there
        raise ModelError("the weight file may not be read", where=str(path), fix="change its permissions")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = [
                StoredTensor(name, path, tuple(file.get_slice(name).get_shape()))
                for name in file.keys()  # noqa: SIM118 (it is no dict)
            ]
    except SafetensorError as error:
        raise ModelError(
            f"the weight file is damaged or truncated: {error}",
            where=f"{path} ({path.stat().st_size:,} bytes)",
            fix="download the file again",
        ) from error
    if not tensors:
        raise ModelError("the weight file holds no tensors", where=str(path), fix="download the file again")
    return tensors


def _check_index(index: Path, stored: dict[str, StoredTensor]) -> None:
    listed = _weight_map(index)
    strayed = sorted(listed.keys() - stored.keys())
    if strayed:
        raise ModelError(
            f"the index names {len(strayed)} tensors that no weight file holds, the first is {strayed[0]}, "
            f"which should be in {listed[strayed[0]]}",
            where=str(index),
            fix="a file is of another model or another revision: download the index and all files together",
        )
