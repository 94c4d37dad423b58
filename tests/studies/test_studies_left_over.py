"""What killed tries of a training left: gone on with, made anew, or in the hands of another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.errors import DamagedFileError, InputError
from offramp.files import locked_folder
from offramp.studies.work.training import gone_on_with


def trained(folder: Path) -> str:
    """A training that is refused where a file says that it is damaged, and leaves a folder beside its own."""
    with locked_folder(folder):
        if (folder / "damaged").exists():
            raise DamagedFileError("its bytes changed")
        folder.with_name(f"{folder.name}@4").mkdir(exist_ok=True)
        return ", ".join(sorted(path.name for path in folder.parent.iterdir()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a task, in which an earlier try left a folder that is damaged, and one beside it."""
    for name in ("model/damaged", "model@9/config.json", "other/config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    return tmp_path / "model"


def test_what_is_whole_is_gone_on_with(folder: Path) -> None:
    (folder / "damaged").unlink()
    assert gone_on_with(folder, lambda: trained(folder)) == "model, model@4, model@9, other"


def test_what_is_not_is_made_anew_with_all_that_lies_beside_it(folder: Path) -> None:
    assert gone_on_with(folder, lambda: trained(folder)) == "model, model@4, other"


def test_a_file_in_the_place_of_the_folder_is_made_anew_too(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    assert gone_on_with(tmp_path / "model", lambda: trained(tmp_path / "model")) == "model, model@4"


def test_what_another_process_writes_into_is_left_to_it(folder: Path) -> None:
    with locked_folder(folder), pytest.raises(InputError, match="another offramp process"):
        gone_on_with(folder, lambda: trained(folder))
    assert (folder / "damaged").exists()
    assert folder.with_name("model@9").exists()


def test_what_is_wrong_without_anything_left_is_said_as_it_is(tmp_path: Path) -> None:
    def refused() -> str:
        raise InputError("there is too little text")

    with pytest.raises(InputError, match="too little text"):
        gone_on_with(tmp_path / "model", refused)
