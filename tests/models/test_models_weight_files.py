"""Headers and indexes of weight files, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import write_llama
from safetensors.torch import load_file, save_file
from streaming_cases import INDEX, shards

from offramp.errors import ModelError
from offramp.models.checkpoint import SINGLE_FILE, StoredTensor, check_checkpoint, read_headers
from offramp.models.process import quiet_transformers
from offramp.models.source import find_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama in several shards."""
    from transformers import AutoModelForCausalLM

    write_llama(tmp_path)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        model.save_pretrained(tmp_path, max_shard_size="40KB")
    (tmp_path / "model.safetensors").unlink()
    assert len(shards(tmp_path)) > 2
    return tmp_path


def test_headers_name_every_tensor_and_its_file(folder: Path) -> None:
    stored = read_headers(folder)
    expected = {name: (path, tensor) for path in shards(folder) for name, tensor in load_file(path).items()}
    assert stored == {
        name: StoredTensor(name, path, "F32", tuple(tensor.shape))
        for name, (path, tensor) in expected.items()
    }
    assert all(stored[name].elements == tensor.numel() for name, (_, tensor) in expected.items())
    assert check_checkpoint(folder)["model_type"] == "llama"


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def strange_name(folder: Path) -> None:
    edit_index(folder, lambda names: names.update({"model.extra": shards(folder)[1].name}))


def shard_of_another_model(folder: Path) -> None:
    save_file({"transformer.wte.weight": torch.zeros(2, 2)}, shards(folder)[1], metadata={"format": "pt"})


def twice_the_same_tensor(folder: Path) -> None:
    first, second = shards(folder)[:2]
    tensors = load_file(first)
    save_file(load_file(second) | dict([tensors.popitem()]), second, metadata={"format": "pt"})


def index_without_metadata(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))


def metadata_in_a_list(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "metadata": [1]}))


def index_of_numbers(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": 3}}))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (strange_name, "index names 1 tensors that no weight file holds, the first is model.extra"),
        (shard_of_another_model, r"index names \d+ tensors that no weight file holds"),
        (twice_the_same_tensor, "lies in two weight files"),
        (index_of_numbers, "index of the weight files is damaged"),
        (index_without_metadata, "metadata: Field required"),
        (metadata_in_a_list, "metadata: Input should be"),
    ],
)
def test_files_that_do_not_fit_their_index_are_refused(
    damage: Callable[[Path], None], what: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(ModelError, match=what) as caught:
        find_source(str(folder))
    assert caught.value.where
    assert caught.value.fix


def test_a_single_file_comes_before_an_index_as_in_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_file({"lm_head.weight": torch.zeros(64, 32)}, folder / SINGLE_FILE, metadata={"format": "pt"})
    assert [tensor.file.name for tensor in read_headers(folder).values()] == [SINGLE_FILE]
    with quiet_transformers():
        _, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert "model.norm.weight" in found["missing_keys"]
