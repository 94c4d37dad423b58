"""Files are written whole, and never in place of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.errors import InputError
from offramp.files import write_text_atomically


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    place = tmp_path / "plan.json"
    (place / "of the user").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a folder stands where the file plan\.json is written") as refused:
        write_text_atomically(place, "{}")
    assert refused.value.where == str(place)
    assert [path.name for path in tmp_path.rglob("*")] == ["plan.json", "of the user"]
