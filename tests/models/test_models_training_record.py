"""What a training left, held against the record beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import edit_json

from offramp.errors import DamagedFileError, InputError, ModelError
from offramp.files import write_json_atomically, write_sealed_json
from offramp.models.source import find_source
from offramp.models.training_record import OWN_ENTRIES, TRAINING_FILE, read_training, record_training

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


def test_where_a_training_stands_is_no_part_of_the_model_that_it_left(llama_folder: Path) -> None:
    """Killed after its last file and before it cleared away, it leaves both."""
    left = find_source(str(llama_folder)).identity.fingerprint
    (llama_folder / "checkpoint.safetensors").write_bytes(b"weights and moments")
    assert find_source(str(llama_folder)).identity.fingerprint == left
    (llama_folder / "model.safetensors").rename(llama_folder / "checkpoint.safetensors")
    with pytest.raises(ModelError, match="no weights"):
        find_source(str(llama_folder))


def test_what_other_code_trained_is_recorded_again_and_read_back(llama_folder: Path) -> None:
    for step in (1, 2):
        record_training(
            str(llama_folder), {"w": ["a", "b"]}, step=np.int64(step), loss=np.float32(0.5), tags=("x",)
        )
    found = read_training(llama_folder)
    assert found is not None
    assert (found["step"], found["loss"], found["tags"], found["documents"]) == (
        2,
        0.5,
        ["x"],
        {"w": ["a", "b"]},
    )
    assert find_source(str(llama_folder)).identity.fingerprint == found["model"]


@pytest.mark.parametrize(
    "content", ['{"my": "own notes"}', "[]", "mine", '{"kind": "training", "heads": "1f"}']
)
def test_a_record_is_not_written_over_one_of_others(llama_folder: Path, content: str) -> None:
    path = llama_folder / TRAINING_FILE
    path.write_text(content)
    if "training" in content:
        write_sealed_json(path, {"kind": "training", "heads": "1f"})
    before = path.read_bytes()
    with pytest.raises((InputError, DamagedFileError), match=r"stands where|is damaged"):
        record_training(llama_folder, {})
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", OWN_ENTRIES)
def test_a_record_has_entries_of_its_own(llama_folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"the entry '{name}'"):
        record_training(llama_folder, {}, **{name: "mine"})
    assert not (llama_folder / TRAINING_FILE).exists()


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), nested(100), 10**40, "\ud800"])
def test_what_json_cannot_hold_is_not_recorded(llama_folder: Path, value: Any) -> None:
    with pytest.raises(InputError, match="JSON cannot hold notes"):
        record_training(llama_folder, {}, notes={"x": value})
    assert not (llama_folder / TRAINING_FILE).exists()
