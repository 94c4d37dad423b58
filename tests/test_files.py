"""Files are written whole, and never in place of a folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from offramp.errors import DiskFullError, InputError
from offramp.files import write_atomically, write_text_atomically


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    place = tmp_path / "plan.json"
    (place / "of the user").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a folder stands where the file plan\.json is written") as refused:
        write_text_atomically(place, "{}")
    assert refused.value.where == str(place)
    assert [path.name for path in tmp_path.rglob("*")] == ["plan.json", "of the user"]


def test_what_a_library_makes_for_one_user_is_as_readable_as_other_files(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("secret")
        path.chmod(0o600)

    write_atomically(tmp_path / "file", write)
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("number", "what"), [(errno.ENOSPC, "the disk is full: 4 bytes"), (errno.EFBIG, "a limit on the size")]
)
@pytest.mark.parametrize("by_safetensors", [False, True])
def test_what_finds_no_room_is_said_and_leaves_nothing(
    tmp_path: Path, number: int, what: str, by_safetensors: bool
) -> None:
    """safetensors raises no OSError: it is written as its release 0.8 says it on a full tmpfs."""
    said = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError(said) if by_safetensors else OSError(number, os.strerror(number))

    with pytest.raises(DiskFullError, match=what):
        write_atomically(tmp_path / "checkpoint", write)
    assert not list(tmp_path.iterdir())
