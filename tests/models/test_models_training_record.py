"""What a training left, held against the record beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from model_folders import edit_json

from offramp.errors import DamagedFileError, ModelError
from offramp.files import write_json_atomically, write_sealed_json
from offramp.models.source import find_source
from offramp.models.training_record import TRAINING_FILE

OF_A_MODEL: list[Callable[[str], dict[str, Any]]] = [
    lambda left: {"kind": "lab training", "model": left},
    lambda left: {"kind": "training", "heads": left, "request": {"recipe": {"kind": "regularised"}}},
]


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("record_of", OF_A_MODEL)
@pytest.mark.parametrize(
    "change",
    [
        flip_a_bit,
        lambda folder: edit_json(folder / "config.json", rms_norm_eps=1e-3),
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id=5),
        lambda folder: edit_json(folder / "tokenizer_config.json", unk_token="w3"),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
)
def test_a_trained_model_that_was_changed_is_refused(
    llama_folder: Path, record_of: Callable[[str], dict[str, Any]], change: Callable[[Path], object]
) -> None:
    left = find_source(str(llama_folder)).identity.fingerprint
    write_sealed_json(llama_folder / TRAINING_FILE, record_of(left))
    assert find_source(str(llama_folder)).identity.fingerprint == left
    change(llama_folder)
    with pytest.raises(ModelError) as refused:
        find_source(str(llama_folder))
    assert refused.value.fix


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "training", "heads": "0" * 64, "request": {"recipe": {"kind": "block"}}},
        {"kind": "gate training", "heads": "0" * 64},
        {"kind": "training", "heads": "0" * 64, "request": ["of another layout"]},
    ],
)
def test_a_record_of_exits_says_nothing_of_a_model(llama_folder: Path, record: dict[str, Any]) -> None:
    write_sealed_json(llama_folder / TRAINING_FILE, record)
    assert find_source(str(llama_folder)).folder == llama_folder


@pytest.mark.parametrize(
    "content", ['{"kind": "lab training", "model": 1}', "[" * 100_000, '{"kind": "training", "x": NaN}']
)
def test_a_damaged_record_is_refused(llama_folder: Path, content: str) -> None:
    (llama_folder / TRAINING_FILE).write_text(content)
    with pytest.raises(DamagedFileError, match="is damaged"):
        find_source(str(llama_folder))


@pytest.mark.parametrize(
    ("kind", "refused"), [("lab request", True), ("training request", True), ("mine", False)]
)
def test_a_record_that_is_gone_is_missed(llama_folder: Path, kind: str, refused: bool) -> None:
    write_sealed_json(llama_folder / "request.json", {"kind": kind})
    with pytest.raises(ModelError, match="its record is gone") if refused else nullcontext():
        find_source(str(llama_folder))


def test_the_record_of_another_program_says_nothing(llama_folder: Path) -> None:
    write_json_atomically(llama_folder / TRAINING_FILE, {"kind": "fine-tuning", "model": "mine"})
    assert find_source(str(llama_folder)).folder == llama_folder
