"""Sealed files: what is refused of one that is of another version, or whose version is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import DamagedFileError
from offramp.files import write_sealed_json
from offramp.kit.given_file import Line, TomlTable, checked, read_toml
from offramp.kit.numbers import Whole
from offramp.kit.sealed_file import SealedFile


@dataclass(frozen=True)
class Size:
    """A record."""

    rows: Whole


FILE = SealedFile(Size, "{name} is damaged", "write it again", version=1)


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("1", "its schema version is '1', not a number"),
        (True, "its schema version is True, not a number"),
        (None, "its schema version is None, not a number"),
        (2, "another version of offramp: its schema version is 2, and this one reads 1"),
    ],
)
def test_a_version_that_is_none_is_said_to_be(tmp_path: Path, version: Any, why: str) -> None:
    path = tmp_path / "size.json"
    FILE.write(path, Size(3))
    assert FILE.read(path) == Size(3)
    write_sealed_json(path, {"schema_version": version, "rows": 3})
    with pytest.raises(DamagedFileError, match=why):
        FILE.read(path)


SIZES = SealedFile(tuple[Size, ...], "{name} is damaged", "write them again", kind="sizes", under="sizes")


def test_a_record_may_be_one_entry_beside_the_header(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    SIZES.write(path, (Size(3), Size(4)))
    assert SIZES.read(path) == (Size(3), Size(4))
    value = json.loads(path.read_text())
    assert SIZES.wrote(value)
    assert value["sizes"] == [{"rows": 3}, {"rows": 4}]
    write_sealed_json(path, {"kind": "sizes", "rows": 3})
    with pytest.raises(DamagedFileError, match="not what offramp writes"):
        SIZES.read(path)


class Named(TomlTable):
    """A file with a name."""

    name: Line


def test_a_name_that_is_no_line_says_why(tmp_path: Path) -> None:
    for text, fix in (("a\\u0007b", "without control characters"), (" ", "that is not empty")):
        path = tmp_path / "named.toml"
        path.write_text(f'name = "{text}"')
        with pytest.raises(Exception, match=fix) as refused:
            checked(Named, *read_toml(path, "file"))
        assert "line 1, name" in str(refused.value)
