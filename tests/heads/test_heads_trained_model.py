from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from offramp.errors import DamagedFileError, InputError
from offramp.files import SEAL, write_json_atomically, write_sealed_json
from offramp.heads.file import TRAINING_FILE, UNDER_WAY
from offramp.heads.trained_model import TrainedOn, trained_on

RECORD = {"kind": "training", "documents": {"work": ["a", "b"]}, "texts": []}


def model_in(folder: Path) -> Any:
    return SimpleNamespace(source=SimpleNamespace(folder=folder))


def test_a_record_says_what_was_trained_on(tmp_path: Path) -> None:
    assert trained_on(model_in(tmp_path)) == TrainedOn()
    write_sealed_json(tmp_path / TRAINING_FILE, RECORD)
    found = trained_on(model_in(tmp_path))
    assert (found.documents, found.notes) == ({"work": ("a", "b")}, ())
    write_sealed_json(tmp_path / TRAINING_FILE, {**RECORD, "request": {"model": {"name": "early"}}})
    (note,) = trained_on(model_in(tmp_path)).notes
    assert "traced with --reference early, and tuned with --floor reference_agreement=0.95" in note


@pytest.mark.parametrize("other", [{"documents": {"x": ["a"]}, "loss": 1.0}, {"kind": "other"}])
def test_a_file_of_another_program_says_nothing(other: dict[str, Any], tmp_path: Path) -> None:
    write_json_atomically(tmp_path / TRAINING_FILE, other)
    assert trained_on(model_in(tmp_path)) == TrainedOn()


def test_a_record_that_was_changed_or_is_not_there_yet_is_no_licence(tmp_path: Path) -> None:
    (tmp_path / UNDER_WAY[0]).write_bytes(b"")
    with pytest.raises(InputError, match="has not ended"):
        trained_on(model_in(tmp_path))
    file = tmp_path / TRAINING_FILE
    for entry, changed in (
        ('"b"', '"c"'),
        ('"training"', '"trainiNg"'),
        ('"kind"', '"kinD"'),
        (SEAL, "sha255"),
    ):
        write_sealed_json(file, RECORD)
        whole = file.read_text(encoding="utf-8")
        assert entry in whole
        file.write_text(whole.replace(entry, changed), encoding="utf-8")
        with pytest.raises(DamagedFileError, match="what was trained here, and on what, is damaged"):
            trained_on(model_in(tmp_path))
    file.write_text("{", encoding="utf-8")
    with pytest.raises(DamagedFileError, match="damaged"):
        trained_on(model_in(tmp_path))
