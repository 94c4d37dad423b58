"""What users keep in the folders that commands write to: none of it is replaced or removed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from command_line import run_arguments, run_offramp, tree
from offramp.runs import stages


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def put(folder: Path, *names: str) -> dict[str, bytes]:
    """Files of the user, as `tree` gives them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return dict.fromkeys(names, b"mine")


def mine_in(run: Path) -> dict[str, bytes]:
    """What a user put wherever a run keeps something."""
    (trace, *_) = sorted(run.glob("traces/*/*"))
    place = trace.relative_to(run).as_posix()
    above = trace.parent.relative_to(run).as_posix()
    return put(
        run,
        "notes.md",
        "heads-mine.safetensors",
        "policies/mine.json",
        f"{above}/mine/facts-00000.parquet",
        f"{above}/notes.txt",
        f"{place}/notes.txt",
        f"{place}/.writing-notes",
        "traces/other/mine.txt",
        "tasks/notes.txt",
        "tasks/trace/mine/notes.txt",
        "tasks/trace/mine/result.json",
        "logs/notes.txt",
        "logs/mine.log",
        "executions/notes.txt",
        "executions/mine.json",
        "locks/notes.txt",
        "locks/mine",
        "locks/report",
    )


def another_run(model: Path, documents: Path, folder: Path) -> list[object]:
    """The command of a run that is another one, into a run's folder."""
    run = ["run", model, "-w", f"jsonl:{documents}#text", "--tokens", 64, "--no-decode", "-o", folder]
    return [*run, "--overwrite"]


@pytest.mark.usefixtures("remembered_answers")
def test_what_lies_beside_a_run_survives(tiny_model: Path, documents: Path, run_folder: Path) -> None:
    mine = mine_in(run_folder)
    run_offramp("report", run_folder).require(0)
    assert mine.items() <= tree(run_folder).items()
    run_offramp(*another_run(tiny_model, documents, run_folder)).require(0)
    after = tree(run_folder)
    assert mine.items() <= after.items()
    assert len(list(run_folder.glob("tasks/trace/*/manifest.json"))) == 1
    assert not [name for name in after if name.endswith(".changed") or "offramp-new" in name]
    run_offramp("report", run_folder).require(0)
    assert {**after, "report.html": b""} == {**tree(run_folder), "report.html": b""}


def test_an_overwritten_run_stays_until_the_new_one_is_whole(
    tiny_model: Path, documents: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = another_run(tiny_model, documents, run_folder)
    before = tree(run_folder)

    def killed(task: object, *arguments: object, **more: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "run_task", killed)
        assert run_offramp(*command).code != 0
    assert {name: content for name, content in tree(run_folder).items() if "-new/" not in name} == before
    run_offramp(*command).require(0)
    after = tree(run_folder)
    assert after["run.json"] != before["run.json"]
    assert not [name for name in after if "-new/" in name]
    assert b"offramp-new" not in b"".join(after.values())


@pytest.mark.parametrize("moved", [0, 20, -1])
def test_a_run_that_was_killed_while_it_took_anothers_place_is_gone_on_with(
    tiny_model: Path, documents: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    """By the command that `offramp report` names: its files are put in place, nothing is done again."""
    command = another_run(tiny_model, documents, run_folder)
    replace, done = os.replace, []

    def killed(source: Path, place: Path) -> None:
        if "/.offramp-new/" in str(source) and "/.offramp-new/" not in str(place):
            last = Path(place).name == "run.json"
            if last if moved < 0 else len(done) == moved:
                raise KeyboardInterrupt
            done.append(place)
        replace(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        assert run_offramp(*command).code != 0
    assert len(done) >= moved
    (run_folder / "notes.md").write_text("mine")
    said = run_offramp("report", run_folder)
    if said.code:
        (named,) = re.findall(r"offramp (run .*)", said.err)
        assert "--tokens 64" in named
        command = shlex.split(named)
    monkeypatch.setattr(stages, "run_task", None)
    run_offramp(*(word for word in command if word != "--overwrite")).require(0)
    after = tree(run_folder)
    assert json.loads(after["run.json"])["tokens"] == 64
    assert not [name for name in after if "-new/" in name or name.endswith(".changed")]
    assert after["notes.md"] == b"mine"
    assert len(list(run_folder.glob("tasks/trace/*/manifest.json"))) == 1


def test_a_copy_may_be_edited_and_is_kept_when_a_new_one_is_made(run_folder: Path) -> None:
    (copy, *_) = sorted(run_folder.glob("traces/*/*/facts-*.parquet"))
    (page, policy) = run_folder / "report.html", next(iter((run_folder / "policies").iterdir()))
    tasks = tree(run_folder / "tasks")
    for path in (copy, page, policy):
        path.write_bytes(b"edited")
    assert tree(run_folder / "tasks") == tasks
    run_offramp("report", run_folder).require(0)
    for path in (copy, page, policy):
        assert path.with_name(f"{path.name}.changed").read_bytes() == b"edited"
        assert path.read_bytes() != b"edited"


@pytest.mark.parametrize("left", ["", "{"])
def test_a_run_whose_record_is_gone_is_shown_again_and_only_what_differs_is_kept(
    run_folder: Path, left: str
) -> None:
    run_offramp("report", run_folder).require(0)  # the page says where it lies
    (run_folder / ".offramp.json").write_text(left)
    if not left:
        (run_folder / ".offramp.json").unlink()
    edited = next(iter((run_folder / "policies").iterdir()))
    edited.write_bytes(b"edited")
    said = run_offramp("report", run_folder).require(0).err
    assert f"{run_folder / '.offramp.json'}, which says what offramp wrote there, was missing or dam" in said
    assert said.count("was changed since") == 1
    assert [path.name for path in run_folder.rglob("*.changed*")] == [f"{edited.name}.changed"]


def test_a_run_of_an_offramp_that_kept_no_record_is_shown_again(run_folder: Path) -> None:
    """Its traces were links to the files of its tasks."""
    (run_folder / ".offramp.json").unlink()
    files = {path.read_bytes(): path for path in run_folder.glob("tasks/trace/*/trace/*.*")}
    for copy in run_folder.glob("traces/*/*/*.*"):
        task = files[copy.read_bytes()]
        copy.unlink()
        copy.hardlink_to(task)
    mine = put(run_folder, "policies/mine.json", "traces/mine.txt")
    before = tree(run_folder)
    run_offramp("report", run_folder).require(0)
    assert mine.items() <= tree(run_folder).items()
    assert tree(run_folder / "tasks") == {k[6:]: v for k, v in before.items() if k.startswith("tasks/")}
    assert all(path.stat().st_nlink == 1 for path in run_folder.glob("traces/*/*/facts*"))


@pytest.mark.parametrize("name", ["report.html", "citation.bib", "tables/cells.jsonl", "tables/mine.csv"])
def test_a_comparison_is_not_written_over_a_page_of_the_users(
    finished_run: Path, tmp_path: Path, name: str
) -> None:
    put(tmp_path / "out", name)
    refused = run_offramp("compare", finished_run, "-o", tmp_path / "out").require(2).err
    assert "holds files that are not a comparison" in refused
    assert tree(tmp_path / "out") == {name: b"mine"}


def test_a_page_of_the_users_with_all_names_of_a_comparison_is_kept(
    finished_run: Path, tmp_path: Path
) -> None:
    mine = put(tmp_path / "out", "report.html", "citation.bib", "tables/models.csv")
    refused = run_offramp("compare", finished_run, "-o", tmp_path / "out").require(2).err
    assert "holds files that are not a comparison" in refused
    assert tree(tmp_path / "out") == mine


def test_a_comparison_without_its_record_is_anybodys_and_stays(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_offramp("compare", finished_run, "-o", out).require(0)
    (out / ".offramp.json").unlink()
    left = tree(out)
    refused = run_offramp("compare", finished_run, "-o", out).require(2).err
    assert "files that are not a comparison: citation.bib, report.html, tables" in refused
    assert tree(out) == left


def test_a_comparison_is_replaced_and_what_was_edited_is_kept(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        run_offramp("compare", finished_run, "-o", out).require(0)
    (out / "citation.bib").write_text("edited")
    run_offramp("compare", finished_run, "-o", out).require(0)
    assert (out / "citation.bib.changed").read_text() == "edited"
    put(out, "tables/mine.csv")
    refused = run_offramp("compare", finished_run, "-o", out).require(2).err
    assert "not a comparison: tables/mine.csv" in refused


@pytest.mark.parametrize("name", ["run.json", "plan.json"])
def test_files_of_other_programs_with_names_of_a_run(
    tiny_model: Path, documents: Path, tmp_path: Path, name: str
) -> None:
    put(tmp_path / "out", name, "tasks/mine.txt")
    before = tree(tmp_path / "out")
    for more in ([], ["--overwrite"]):
        command = run_arguments(tiny_model, documents)
        refused = run_offramp(*command, "-o", tmp_path / "out", *more).require(2)
        assert "holds files that are not a run" in refused.err
        assert tree(tmp_path / "out") == before
