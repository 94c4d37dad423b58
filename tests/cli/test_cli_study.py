"""`offramp study` on a tiny model, end to end: plan, run, status, report; kills, failures, damage."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_study import PRUNED, results, write_study

import offramp
from command_line import Here, finish, run_offramp, start_offramp, tree
from offramp.errors import InputError
from offramp.report.pages import STUDY_FOLDER
from offramp.studies.engines import registry
from offramp.studies.engines.engine import EngineOptions
from offramp.studies.folder import StudyFolder
from offramp.studies.task import MANIFEST, StudyJob


@dataclass(frozen=True)
class Ran:
    """A study that was run: its file, its folder, what the command said."""

    file: Path
    folder: Path
    said: Any
    out: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Ran:
    """A study of the tiny model as it is and pruned. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("studies")
    file = write_study(folder, tiny_model, documents, PRUNED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ENGINES, "local", Here())
        outcome = run_offramp("study", "run", file, "-o", folder / "out", "--json").require(0)
    return Ran(file, folder / "out", outcome.json, outcome.err)


@pytest.fixture
def small(tmp_path: Path, tiny_model: Path, documents: Path) -> Path:
    """The file of a study of one trace."""
    return write_study(tmp_path / "small", tiny_model, documents)


def study(command: str, file: Path, *options: object) -> list[object]:
    return ["study", command, file, "-o", file.parent / "out", *options]


def test_a_damaged_model_stops_only_its_own_cells(
    tmp_path: Path, tiny_model: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = Path(shutil.copytree(tiny_model, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    more = f'[[models]]\nname = "damaged"\nsource = {json.dumps(str(damaged))}\n'
    file = write_study(tmp_path / "two", tiny_model, documents, more)
    monkeypatch.setitem(registry.ENGINES, "local", Here())
    said = run_offramp(*study("run", file, "--json")).require(1).json
    assert said["damaged_models"] == ["damaged"]
    assert "the weight file is damaged or truncated" in said["unavailable"]["damaged"]
    assert said["counts"]["done"] > 0
    assert said["counts"]["done"] == sum(said["counts"].values()) / 2
    assert Path(said["report"]).is_file()
    shown = run_offramp(*study("status", file)).require(0)
    assert "not to be had here: damaged: the weight file is damaged or truncated" in " ".join(
        shown.out.split()
    )


@dataclass(frozen=True)
class Idle:
    """An engine that does nothing but what a test asks of it."""

    deed: Any = lambda: None
    name: str = "local"

    def run(
        self, jobs: Sequence[StudyJob], folder: StudyFolder, options: EngineOptions, on_change: Any
    ) -> None:
        """Call the deed."""
        self.deed()
        on_change()


def test_a_plan_says_which_floors_the_documents_could_certify(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    file = write_study(tmp_path, tiny_model, documents, '[[policies]]\nname = "tuned"\n')
    shown = " ".join(run_offramp(*study("plan", file)).require(0).out.split())
    assert "48 documents of notes can at best certify 50 % (6 needed) and 90 % (25)" in shown


def test_a_plan_shows_every_cell_and_makes_no_result(small: Path) -> None:
    shown = run_offramp(*study("plan", small)).require(0).out
    assert "tiny: Is a tiny model worth leaving early?" in shown
    for cell in ("tiny · notes · score", "tiny · notes · league · h100", "tiny · notes · shallow · h100"):
        assert cell in shown
    assert "3 to do. Left to run: 4 tasks" in " ".join(shown.split())
    left = [path.name for path in (small.parent / "out").rglob("*")]
    assert left in ([], ["fingerprints.json"])
    planned = run_offramp(*study("plan", small, "--json")).require(0).json
    assert [cell["state"] for cell in planned["cells"]] == ["to do"] * 3
    assert planned["work"]["seconds"] > 0
    assert planned["work"]["memory_bytes"] > 10**8


@pytest.mark.slow
def test_a_run_does_everything_and_says_where_the_report_lies(ran: Ran) -> None:
    assert ran.said["counts"] == {"done": 6}
    assert ran.said["failures"] == []
    assert ran.said["report"] == str(ran.folder / "report.html")
    assert "6 done; it took" in ran.out
    assert f"Report: {ran.folder / 'report.html'}" in ran.out
    page = (ran.folder / "report.html").read_text()
    assert "Is a tiny model worth leaving early?" in page
    assert (ran.folder / "citation.bib").read_text().startswith("@")
    names = {path.name for path in (ran.folder / "tables").iterdir()}
    assert {name.removesuffix(".csv") for name in names if name.endswith(".csv")} == {
        name.removesuffix(".parquet") for name in names if name.endswith(".parquet")
    }
    assert names


def test_a_finished_study_is_not_run_again_and_its_page_kept_until_something_changes(ran: Ran) -> None:
    page = ran.folder / "report.html"
    again = ("study", "run", ran.file, "-o", ran.folder)
    before = {path: path.stat().st_mtime_ns for path in (ran.folder / "tasks").rglob("*")}
    assert "6 done" in run_offramp(*again).require(0).out
    assert {path: path.stat().st_mtime_ns for path in (ran.folder / "tasks").rglob("*")} == before
    planned = run_offramp("study", "plan", ran.file, "-o", ran.folder).require(0)
    assert "6 done.\nThere is nothing left to run here." in planned.out
    written, content = page.stat().st_mtime_ns, page.read_bytes()
    assert f"Report: {page}" in run_offramp(*again).require(0).out
    assert page.stat().st_mtime_ns == written
    (ran.folder / "report.json").write_text("{")  # not what it was written from
    run_offramp(*again).require(0)
    assert page.stat().st_mtime_ns != written
    page.unlink()
    run_offramp(*again).require(0)
    assert page.read_bytes() == content


def test_status_and_report_of_a_finished_study(ran: Ran) -> None:
    status = run_offramp("study", "status", ran.file, "-o", ran.folder, "--verify", "--json").require(0)
    assert status.json["counts"] == {"done": 6}
    assert status.json["damaged"] == []
    page = (ran.folder / "report.html").read_bytes()
    report = run_offramp("study", "report", ran.file, "-o", ran.folder, "--json").require(0)
    assert report.json["report"] == str(ran.folder / "report.html")
    assert (ran.folder / "report.html").read_bytes() == page


def test_a_report_of_a_study_that_never_ran_is_refused(small: Path) -> None:
    error = run_offramp(*study("report", small, "--json")).require(2).json["error"]
    assert "no such folder" in error["what"]
    shown = run_offramp(*study("plan", small)).require(0).out
    assert max(map(len, shown.splitlines()[2:])) <= 80  # below the study's title and folder
    error = run_offramp(*study("report", small, "--json")).require(2).json["error"]
    assert error["what"] == "nothing has run here yet, it was only planned"
    assert error["fix"] == f"run it: offramp study run {small} --output {small.parent / 'out'}"


@pytest.mark.slow
def test_a_failed_study_is_tried_again_on_request_and_a_killed_one_goes_on_to_the_same_bytes(
    ran: Ran, tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One story, since each process that loads a model takes seconds."""
    folder = tmp_path / "out"
    # Elsewhere than the undisturbed one, and of a model in another folder: paths are no part of a result.
    moved = shutil.copytree(tiny_model, tmp_path / "moved model")
    file = write_study(tmp_path / "moved", moved, documents, name="small.toml")
    command = ["study", "run", file, "-o", folder, "--json"]
    failed = run_offramp(*command, "--memory", "1MB").require(1)
    (failure,) = failed.json["failures"]
    assert failure["name"] == "trace of tiny · notes"
    assert failure["what"].endswith(" of memory; --memory allows 1.0 MB")
    assert failure["where"] == "--memory"
    assert "logs:" not in failed.err  # no process was started that could have left any
    assert failed.json["counts"] == {"waiting for a failed one": 3}
    assert failed.json["report"] is None
    assert "--retry" in failed.err
    still = run_offramp(*command).require(1)
    assert still.json["failures"] == [failure]
    status = run_offramp("study", "status", file, "-o", folder).require(0).out
    assert "failed: trace of tiny · notes" in status
    assert "3 cells waiting for what failed" in status

    process = start_offramp(*command, "--retry")
    deadline = time.monotonic() + 300
    while not list(folder.glob(f"tasks/trace/*/{MANIFEST}")):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "report.html").exists()

    monkeypatch.setitem(registry.ENGINES, "local", Here())
    done = run_offramp(*command).require(0).json
    assert done["counts"] == {"done": 3}
    assert done["failures"] == []
    whole, resumed = results(ran.folder), results(folder)
    # A trace says what its model and text were called where it was made; what is made of it does not.
    figures = {
        name: content
        for name, content in resumed.items()
        if name.endswith("result.json") and not name.startswith("tasks/trace/")
    }
    assert figures.items() <= whole.items()
    assert len(figures) == 3
    assert len({path.split("/")[1] for path in resumed}) == 4  # trace, score, replay, league


def test_a_study_beside_a_run(ran: Ran, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run_offramp("compare", ran.folder, finished_run, "-o", out, "--json").require(0)
    assert said.json["report"] == str(out / "report.html")
    assert "Report: " in said.err
    with (out / "tables" / "leaderboard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert said.json["rows"] == len(lines) == 4  # two of the study, two workloads of the run
    assert {line["tokens"] for line in lines} == {"960"}
    comparison = offramp.compare([ran.folder, finished_run])
    for row, line in zip(comparison.rows, lines, strict=True):
        assert (row.workload, row.card.representation.value) == (
            line["workload"],
            float(line["representation"]),
        )


def test_damage_is_found_named_and_mended(ran: Ran, small: Path) -> None:
    folder = small.parent / "out"
    shutil.copytree(ran.folder / "tasks", folder / "tasks")
    (score,) = [
        path for path in folder.glob("tasks/score/*/result.json") if _names_cell(small, path.parent.name)
    ]
    content = bytearray(score.read_bytes())
    content[len(content) // 2] ^= 1
    score.write_bytes(content)
    found = run_offramp(*study("status", small, "--verify", "--json")).require(1)
    assert found.json["damaged"] == [score.parent.name]
    assert "damaged: tiny · notes · score" in found.err
    run_offramp(*study("run", small)).require(0)
    whole = results(ran.folder)
    assert score.read_bytes() == whole[str(score.relative_to(folder))]
    decoded = folder / "executions" / "0123" / f"{'a' * 64}.json"
    decoded.parent.mkdir(parents=True)
    decoded.touch()
    problems = run_offramp(*study("status", small, "--verify", "--json")).require(1).json["problems"]
    assert problems[0].startswith(f"executions/0123/{decoded.name} is damaged: it is not JSON")
    assert run_offramp(*study("status", small, "--verify", "--json")).require(0).json["damaged"] == []


def _names_cell(file: Path, key: str) -> bool:
    cells = run_offramp(*study("plan", file, "--json")).require(0).json["cells"]
    return key in [cell["task"] for cell in cells]


def test_what_cannot_be_had_here_is_said_and_no_failure(
    ran: Ran, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.ENGINES, "local", Idle())
    missing = '[[models]]\nname = "far"\nsource = "owner/far-away"\nlayers = 12\n'
    small.write_text(small.read_text() + missing)
    nothing = run_offramp(*study("run", small, "--json")).require(1)
    assert nothing.json["report"] is None
    shutil.copytree(ran.folder / "tasks", small.parent / "out" / "tasks")
    outcome = run_offramp(*study("run", small, "--json")).require(0)
    assert outcome.json["counts"] == {"done": 3, "not to be had here": 3}
    assert set(outcome.json["unavailable"]) == {"far"}
    assert "not to be had here: far: " in outcome.err
    failures = offramp.compare([small.parent / "out"]).failures
    assert sum(cell.startswith("far · notes") for cell in failures) == 3
    assert "far · notes" in (small.parent / "out" / "report.html").read_text()


def test_a_run_whose_report_is_refused_says_why(
    ran: Ran, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.ENGINES, "local", Idle())
    unscored = shutil.ignore_patterns("score")
    shutil.copytree(ran.folder / "tasks", small.parent / "out" / "tasks", ignore=unscored)
    outcome = run_offramp(*study("run", small, "--json")).require(1)
    assert outcome.json["counts"] == {"done": 2, "to do": 1}
    assert outcome.json["report"] is None
    assert "no report: there is nothing to compare: no score is finished" in outcome.err


def test_a_study_file_that_changes_while_it_runs_is_said(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change() -> None:
        small.write_text(small.read_text().replace("static:exit=2", "static:exit=3"))

    monkeypatch.setitem(registry.ENGINES, "local", Idle(change))
    outcome = run_offramp(*study("run", small, "--json")).require(1)
    (problem,) = outcome.json["problems"]
    assert "study.toml changed" in problem
    assert problem in outcome.err


@pytest.mark.parametrize(
    ("engine", "options", "wanted"),
    [
        ("local", ["--memory", "8GB", "--workers", 3], EngineOptions(3, 8 * 10**9)),
        ("ray", ["--retry", "--address", "here:6379"], EngineOptions(None, None, True, "here:6379")),
    ],
)
def test_options_reach_the_engine(
    small: Path, monkeypatch: pytest.MonkeyPatch, engine: str, options: list[Any], wanted: EngineOptions
) -> None:
    given: list[EngineOptions] = []

    class Noting(Idle):
        def run(self, jobs: Any, folder: Any, options: EngineOptions, on_change: Any) -> None:
            given.append(options)

    monkeypatch.setitem(registry.ENGINES, engine, Noting())
    run_offramp(*study("run", small, "--engine", engine, *options)).require(1)
    assert given == [wanted]


def test_ctrl_c_says_how_to_go_on(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(registry.ENGINES, "local", Idle(interrupt))
    error = run_offramp(*study("run", small, "--json")).require(130).json["error"]
    assert "offramp study run" in error["fix"]


@pytest.mark.parametrize(
    ("options", "what", "where"),
    [
        (["--engine", "slurm"], "no engine named 'slurm'", "--engine"),
        (["--workers", "0"], "workers must be at least 1", "workers= (--workers)"),
        (["--memory", "much"], "'much' is not an amount of memory", "--memory"),
        (["--address", "here:6379"], "means nothing with the local engine", "--address"),
        (["--engine", "ray", "--memory", "8GB"], "--memory means nothing with --engine ray", "--memory"),
    ],
)
def test_bad_options_are_refused_before_anything_is_planned(
    small: Path, options: list[str], what: str, where: str
) -> None:
    error = run_offramp(*study("run", small, *options, "--json")).require(2).json["error"]
    assert what in error["what"]
    assert error["where"] == where
    assert error["fix"]
    assert not (small.parent / "out").exists()


def test_a_folder_that_cannot_be_one(small: Path) -> None:
    (small.parent / "out").write_text("a file")
    for command in ("plan", "run", "status", "report"):
        error = run_offramp(*study(command, small, "--json")).require(2).json["error"]
        assert str(small.parent / "out") in error["where"]


def test_what_was_decoded_for_certificates_belongs_to_a_studys_folder(tmp_path: Path) -> None:
    """Else no study with certificates could go on, or be reported."""
    StudyFolder(tmp_path).executions.mkdir()
    STUDY_FOLDER.require(tmp_path, {"name": "small"})
    (tmp_path / "something").write_text("mine")
    with pytest.raises(InputError, match="files that are not a study"):
        STUDY_FOLDER.require(tmp_path, {"name": "small"})
    StudyFolder(tmp_path).journal.append("started")
    with pytest.raises(InputError, match="move them away, or"):
        STUDY_FOLDER.require(tmp_path, {"name": "small"})


@pytest.mark.parametrize(
    "names",
    [
        ("tasks/todo/a.txt", "logs/a.log", "tables/models.csv", "report.html", "citation.bib"),
        ("locks/mine", "executions/mine.json"),
        ("plan.json", "journal.jsonl", "fingerprints.json"),
        ("report.json",),
    ],
)
def test_a_project_whose_files_are_called_as_those_of_a_study(small: Path, names: tuple[str, ...]) -> None:
    folder = small.parent / "out"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"sha256": "mine"}')
    for command in ("plan", "run"):
        error = run_offramp(*study(command, small, "--json")).require(2).json["error"]
        assert "files that are not a study" in error["what"]
        assert tree(folder) == dict.fromkeys(names, b'{"sha256": "mine"}')


def test_a_folder_of_something_else(ran: Ran, finished_run: Path, small: Path) -> None:
    small.write_text(small.read_text().replace('name = "tiny"', 'name = "other"', 1))
    page = (finished_run / "report.html").read_bytes()
    for command in ("plan", "run", "status", "report"):
        error = run_offramp("study", command, small, "-o", ran.folder, "--json").require(2).json["error"]
        assert "another study (it differs in: name (tiny there, other here))" in error["what"]
        error = run_offramp("study", command, small, "-o", finished_run, "--json").require(2).json["error"]
        assert "files that are not a study" in error["what"]
        assert "-o" in error["fix"]
    assert (finished_run / "report.html").read_bytes() == page


def line_of(text: str, needle: str) -> int:
    """The line, from 1, in which something stands first."""
    return text[: text.index(needle)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "what", "at"),
    [
        ("[[machines]]", "[[machnies]]", "has no entry 'machnies'", "[[machnies]]"),
        ("static:exit=2", "static:exit=9", "exit", "static"),
        ("documents.jsonl#text", "missing.jsonl#text", "does not exist", "missing"),
        ("prune:drop=2", "prune:drop=7", "7", "prune:drop=7"),
        ("[study]", "[study", "not TOML", "[study"),
    ],
)
def test_a_bad_study_file_is_refused_with_its_line(
    tmp_path: Path, tiny_model: Path, documents: Path, old: str, new: str, what: str, at: str
) -> None:
    file = write_study(tmp_path, tiny_model, documents, PRUNED)
    text = file.read_text()
    assert old in text
    text = text.replace(old, new, 1)
    file.write_text(text)
    for command in ("plan", "run", "status"):
        outcome = run_offramp(*study(command, file, "--json")).require(2)
        error = outcome.json["error"]
        assert what in error["what"]
        assert str(file) in error["where"]
        assert ", line " in error["where"]
        assert error["fix"]
        assert not list((tmp_path / "out").glob("tasks/*"))
    if at:
        line = int(error["where"].split(", line ")[1].split(",")[0].split(":")[0])
        near = line_of(text, at)
        assert near - 3 <= line <= near + 1
    error = run_offramp(*study("plan", tmp_path / "no.toml", "--json")).require(2).json["error"]
    assert "cannot be read" in error["what"]
