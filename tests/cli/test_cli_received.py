"""Folders that somebody sent: whatever they hold, commands write and remove nothing outside of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command_line import run_arguments, run_offramp, tree
from offramp.files import sha256_of_text
from offramp.kit.output_folder import NEW, RECORD_FILE, WHOLE, WRITTEN, OwnFiles, files_below
from offramp.kit.sealed_file import SealedFile

MINE = {"notes.txt": b"mine", "below/notes.txt": b"mine"}
"""What lies outside."""

ANY_NAMES = SealedFile(dict, "{name}", "", WRITTEN.version)  # type: ignore[type-arg]
"""A record that an adversary wrote, whose seal holds."""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's beside those that were received, which is as it was in the end."""
    folder = tmp_path / "outside"
    for name, content in MINE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    yield folder
    assert tree(folder) == MINE
    assert sorted(path.name for path in folder.iterdir()) == ["below", "notes.txt"]  # no lock, no folder


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run that was received."""
    return Path(shutil.copytree(finished_run, tmp_path / "received"))


def names_of(outside: Path) -> dict[str, str | None]:
    """The user's files and a new one, as an adversary would name them in a record of the folder beside."""
    seal = sha256_of_text("mine")
    near = {f"../{outside.name}/{name}": seal for name in (*MINE, "new.txt")}
    return {**near, str(outside / "notes.txt"): None, f"a/../../{outside.name}/other.txt": None}


def listing(folder: Path, names: dict[str, str | None]) -> None:
    """Let a folder's record list further names."""
    listed = OwnFiles(folder).listed()
    ANY_NAMES.write(folder / RECORD_FILE, {"files": {**listed, **names}})


def replacing(folder: Path, names: dict[str, str | None]) -> None:
    """Let a whole replacement lie in a folder, with files at other places."""
    listing(folder, {NEW: None})
    made = OwnFiles(folder).made
    for name in names:
        place = Path(os.path.normpath(made / name))
        if folder in place.parents:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("theirs")
    (made / "report.html").parent.mkdir(parents=True, exist_ok=True)
    (made / "report.html").write_text("theirs")
    ANY_NAMES.write(made / WHOLE, {"files": names})


def another_run(model: Path, documents: Path) -> list[object]:
    return ["run", model, "-w", f"jsonl:{documents}#text", "--tokens", 64, "--no-decode", "--overwrite"]


@pytest.mark.usefixtures("forgotten_load", "remembered_answers")
@pytest.mark.parametrize("spoil", [listing, replacing])
@pytest.mark.parametrize("command", ["run", "another", "report"])
def test_a_run_whose_records_name_files_elsewhere(
    run: Path,
    outside: Path,
    tiny_model: Path,
    documents: Path,
    spoil: Callable[[Path, dict[str, str | None]], None],
    command: str,
) -> None:
    spoil(run, names_of(outside))
    commands = {
        "run": [*run_arguments(tiny_model, documents), "-o", run],
        "another": [*another_run(tiny_model, documents), "-o", run],
        "report": ["report", run],
    }
    assert run_offramp(*commands[command]).code in (0, 1, 2)


@pytest.mark.parametrize("spoil", [listing, replacing])
def test_a_trace_whose_records_name_files_elsewhere(
    run: Path,
    outside: Path,
    tiny_model: Path,
    documents: Path,
    spoil: Callable[[Path, dict[str, str | None]], None],
) -> None:
    (trace, *_) = sorted(run.glob("traces/*/*"))
    received = Path(shutil.copytree(trace, outside.parent / "trace"))
    spoil(received, names_of(outside))
    command = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 64, "-o", received]
    run_offramp(*command).require(2)
    run_offramp(*command, "--overwrite").require(0)


@pytest.mark.parametrize("spoil", [listing, replacing])
def test_a_comparison_whose_records_name_files_elsewhere(
    finished_run: Path, outside: Path, spoil: Callable[[Path, dict[str, str | None]], None]
) -> None:
    received = outside.parent / "comparison"
    run_offramp("compare", finished_run, "-o", received).require(0)
    spoil(received, names_of(outside))
    assert run_offramp("compare", finished_run, "-o", received).code in (0, 2)


def linked(path: Path, outside: Path) -> None:
    """Let a link stand in the place of what lies there, or of nothing, that leads to the user's."""
    target = outside / "below" if path.is_dir() or not path.suffix else outside / "notes.txt"
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


PLACES = (
    *(".lock", RECORD_FILE, NEW, "report.html", "run.json", "plan.json", "journal.jsonl", "policies"),
    *("traces", "tasks", "tasks/trace", "locks", "logs", "executions", "elsewhere"),
    *("locks/report", "locks/alive-x"),
)


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_holds_a_link(
    run: Path, outside: Path, tiny_model: Path, documents: Path, place: str
) -> None:
    linked(run / place, outside)
    for command in (
        [*run_arguments(tiny_model, documents), "-o", run],
        [*another_run(tiny_model, documents), "-o", run],
        ["report", run],
        ["compare", run, "-o", outside.parent / "comparison"],
        ["study", "status", run, "--verify"],
    ):
        said = run_offramp(*command).require(2).err
        assert "the folder holds a link, which may lead out of it" in said, command


@pytest.mark.parametrize("spoil", ["hard link", "the user's text"])
def test_what_is_written_in_place_is_written_into_no_file_of_the_users(
    run: Path, outside: Path, tiny_model: Path, documents: Path, spoil: str
) -> None:
    """Locks, the journal and logs are, as nothing else is: a second name of theirs may lie elsewhere."""
    inside = [run / ".lock", run / "journal.jsonl", *(run / "locks").iterdir()]
    assert len(inside) > 5
    for path in inside:
        path.unlink()
        if spoil == "hard link":
            path.hardlink_to(outside / "notes.txt")
        elif path.name != ".lock":  # to which nothing is written
            path.write_bytes(b"mine")
    before = {path: path.read_bytes() for path in inside if path.exists()}
    for command in (
        [*run_arguments(tiny_model, documents), "-o", run],
        [*another_run(tiny_model, documents), "-o", run],
        ["report", run],
    ):
        run_offramp(*command).require(2)
        assert {path: path.read_bytes() for path in before} == before, command


def test_links_at_every_place_of_a_received_folder_are_found(run: Path, outside: Path) -> None:
    from offramp.errors import InputError
    from offramp.runs.folder import RUN_FOLDER

    names = files_below(run)
    below = {parent.as_posix() for name in names for parent in Path(name).parents} - {"."}
    for name in (*names, *sorted(below)):
        kept = (run / name).rename(outside.parent / "kept")
        (run / name).symlink_to(kept)
        with pytest.raises(InputError, match="holds a link"):
            RUN_FOLDER.require(run, overwrite=True)
        (run / name).unlink()
        kept.rename(run / name)
    RUN_FOLDER.require(run, overwrite=True)
