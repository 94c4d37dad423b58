"""The folders that offramp writes to: what is not its own is never replaced, removed or followed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from offramp.errors import InputError
from offramp.kit.output_folder import CHANGED, NEW, RECORD_FILE, OwnFiles

LAST = "done.json"


def write(folder: Path, names: str = "a.txt below/b.txt done.json", content: str = "old") -> None:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def files(folder: Path) -> dict[str, str]:
    """What people see in a folder."""
    apart = (RECORD_FILE, NEW)
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in paths}
    return {name: content for name, content in found.items() if name.partition("/")[0] not in apart}


@pytest.fixture
def owned(tmp_path: Path) -> OwnFiles:
    """A folder with a result."""
    folder = OwnFiles(tmp_path / "out")
    folder.path.mkdir()
    with folder.replaced(LAST) as made:
        write(made)
    return folder


def replace(folder: OwnFiles, names: str = "a.txt c.txt done.json") -> None:
    with folder.replaced(LAST, goes_on=lambda made: (made / LAST).is_file()) as made:
        if not (made / LAST).is_file():
            write(made, names, "new")


def test_a_new_result_takes_the_place_of_the_old_one(owned: OwnFiles) -> None:
    replace(owned)
    assert files(owned.path) == {"done.json": "new", "a.txt": "new", "c.txt": "new"}
    assert not (owned.path / "below").exists()
    assert not owned.foreign()


@pytest.mark.parametrize("name", ["notes.txt", "below/notes.txt", "a.txt.changed-x", "done.json~"])
def test_what_somebody_else_put_there_survives(owned: OwnFiles, name: str) -> None:
    write(owned.path, name, "mine")
    assert owned.foreign() == [name]
    replace(owned)
    assert files(owned.path)[name] == "mine"


def link(path: Path) -> None:
    write(path.parent.parent, "elsewhere.txt", "mine")
    path.symlink_to(path.parent.parent / "elsewhere.txt")


@pytest.mark.parametrize("put", [Path.mkdir, link, lambda path: path.write_text("mine")])
def test_what_stands_in_the_way_is_not_written_over(owned: OwnFiles, put: Callable[[Path], None]) -> None:
    put(owned.path / "c.txt")
    before = files(owned.path)
    for _ in range(2):  # the new result stays whole beside it
        with pytest.raises(InputError, match=r"did not write stands where c\.txt is written"):
            replace(owned)
        assert files(owned.path) == before
    (owned.path / "c.txt").rename(owned.path / "moved")
    assert owned.finish_replacing(LAST)
    assert files(owned.path)["c.txt"] == "new"


def test_a_link_in_the_place_of_a_folder_is_not_followed(owned: OwnFiles) -> None:
    write(owned.path.parent, "mine/b.txt", "mine")
    (owned.path / "below" / "b.txt").unlink()
    (owned.path / "below").rmdir()
    (owned.path / "below").symlink_to(owned.path.parent / "mine")
    with pytest.raises(InputError, match="did not write stands where below/b"):
        replace(owned, "a.txt below/b.txt done.json")
    assert (owned.path.parent / "mine" / "b.txt").read_text() == "mine"


def test_what_was_changed_is_kept_under_another_name(owned: OwnFiles) -> None:
    for number in ("", "-2"):
        (owned.path / "a.txt").write_text("edited" + number)
        replace(owned)
        assert files(owned.path)[f"a.txt{CHANGED}{number}"] == "edited" + number
    (owned.path / "a.txt").unlink()
    link(owned.path / "a.txt")
    replace(owned)
    assert (owned.path.parent / "elsewhere.txt").read_text() == "mine"
    assert not owned.foreign()


def test_the_old_result_stays_where_the_new_one_fails(owned: OwnFiles) -> None:
    before = files(owned.path)

    def fails() -> None:
        with owned.replaced(LAST) as made:
            write(made, content="new")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert files(owned.path) == before
    assert not (owned.path / NEW).exists()


def test_a_folder_of_the_name_in_which_the_new_one_is_made(tmp_path: Path) -> None:
    write(tmp_path, f"{NEW}/mine.txt", "mine")
    with pytest.raises(InputError, match="stands where the new result is made"):
        replace(OwnFiles(tmp_path))
    assert (tmp_path / NEW / "mine.txt").read_text() == "mine"


def test_a_record_that_is_damaged_lists_nothing(owned: OwnFiles) -> None:
    (owned.path / RECORD_FILE).write_text("{}")
    assert len(owned.foreign()) == 3
    with pytest.raises(InputError, match="did not write"):
        replace(owned)
    assert files(owned.path)["a.txt"] == "old"
