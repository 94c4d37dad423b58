"""`offramp compare` of runs: what is written, what may not be compared, bad input."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from command_line import run_offramp, tree
from offramp.errors import DamagedFileError
from offramp.files import write_sealed_json
from offramp.studies.folder import PLAN, StudyFolder
from offramp.studies.study import Study

Edit = Callable[[dict[str, Any]], None]


def edited(run: Path, folder: Path, *edits: Edit) -> Path:
    """A copy of a run, called "other", made from other recipes, with their results."""
    shutil.copytree(run, folder)
    store, keys, tasks = StudyFolder(folder), {}, {}
    plan = store.read_plan()
    for task in plan.tasks.values():
        recipe = json.loads(json.dumps(task.recipe))
        for edit in edits:
            edit(recipe)
        new = replace(task, recipe=recipe, needs={role: keys[key] for role, key in task.needs.items()})
        if new.key != task.key:
            store.task_folder(task).rename(store.task_folder(new))
        result = store.task_folder(new) / "result.json"
        if task.kind == "score":
            value = json.loads(result.read_text())
            for edit in edits:
                edit(value)
            result.write_text(json.dumps(value))
        store.finish(new, 0.0)
        keys[task.key], tasks[new.key] = new.key, new
    cells = tuple(replace(cell, task=keys[cell.task], model="other") for cell in plan.cells)
    jobs = tuple(
        replace(job, tasks=tuple(tasks[keys[one.key]] for one in job.tasks), needs=()) for job in plan.jobs
    )
    said = plan.study.to_json()
    said["models"][0]["name"] = said["models"][0]["base"] = said["study"]["title"] = "other"
    study = Study.model_validate(said)
    store.write_plan(replace(plan, study=study, cells=cells, jobs=jobs))
    return folder


def renamed(value: dict[str, Any]) -> None:
    """Another model."""
    if "model" in value:
        value["model"]["fingerprint"] = "0" * 64


def fewer_tokens(value: dict[str, Any]) -> None:
    if "card" in value:
        value["card"]["tokens"] -= 100


def another_text(value: dict[str, Any]) -> None:
    if "workload_fingerprint" in value:
        value["workload_fingerprint"] = "1" * 64


@pytest.fixture(scope="module")
def other_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same figures under the name of another model."""
    return edited(finished_run, tmp_path_factory.mktemp("other") / "other", renamed)


def test_a_page_tables_and_a_citation_are_written(
    finished_run: Path, other_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = run_offramp("compare", finished_run, other_run, "-o", out, "--json").require(0)
    assert said.json["report"] == str(out / "report.html")
    assert said.json["rows"] == 4
    assert {name.partition("/")[0] for name in tree(out)} == {"citation.bib", "report.html", "tables"}
    assert "other" in (out / "report.html").read_text()
    names = sorted(path.stem for path in (out / "tables").glob("*.csv"))
    assert names == sorted(path.stem for path in (out / "tables").glob("*.parquet"))
    with (out / "tables" / "leaderboard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    table = pyarrow.parquet.read_table(out / "tables" / "leaderboard.parquet")
    assert [line["model"] for line in lines] == table.column("model").to_pylist()
    assert "@misc" in (out / "citation.bib").read_text()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run_offramp("compare", finished_run, other_run, "-o", out).require(0)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("edit", "what"), [(fewer_tokens, "tokens"), (another_text, "not the same text everywhere")]
)
def test_what_is_not_equal_is_refused_unless_asked_for(
    finished_run: Path, tmp_path: Path, edit: Edit, what: str
) -> None:
    other = edited(finished_run, tmp_path / "other", renamed, edit)
    command = ["compare", finished_run, other, "-o", tmp_path / "out", "--json"]
    error = run_offramp(*command).require(2).json["error"]
    assert what in error["what"]
    assert "--mixed" in error["fix"]
    assert not (tmp_path / "out").exists()
    said = run_offramp(*command, "--mixed").require(0).json
    assert any(what in note for note in said["notes"])
    assert what in (tmp_path / "out" / "report.html").read_text()


def test_a_pair_is_refused_with_what_to_use_instead(finished_run: Path, tmp_path: Path) -> None:
    command = ["compare", finished_run, "-o", tmp_path / "out", "--pair", "a=b", "--json"]
    error = run_offramp(*command).require(2).json["error"]
    assert error["what"] == "--pair is no option any more"
    assert "experiments/claims" in error["fix"]
    assert not (tmp_path / "out").exists()
    assert "--pair" not in run_offramp("compare", "--help").require(0).out


def test_a_folder_that_is_neither_study_nor_run(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, what in ((tmp_path / "empty", "no study or run here"), (tmp_path / "none", "no such folder")):
        command = ["compare", finished_run, folder, "-o", tmp_path / "out", "--json"]
        error = run_offramp(*command).require(2).json["error"]
        assert what in error["what"]
        assert str(folder) in error["where"]
        assert error["fix"]
    assert not (tmp_path / "out").exists()


def test_a_run_whose_scores_are_damaged_names_its_command(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    for result in run.glob("tasks/score/*/result.json"):
        result.write_text("{")
    for command in (["compare", run, "-o", tmp_path / "out"], ["report", run]):
        error = run_offramp(*command, "--json").require(1).json["error"]
        assert "damaged" in error["what"]
        assert "offramp run " in error["fix"]
        assert f"--output {run}" in error["fix"]
    (run / "plan.json").write_text("{")
    for command in (["compare", run, "-o", tmp_path / "out"], ["report", run], ["study", "status", run]):
        error = run_offramp(*command, "--json").require(1).json["error"]
        assert error["what"].startswith("plan.json, the plan of what is done here, is damaged: ")
        assert f"--output {run}" in error["fix"]


def test_a_trace_is_no_run_and_names_what_it_is_good_for(finished_run: Path, tmp_path: Path) -> None:
    trace = next(finished_run.glob("traces/*/*"))
    for command in (["compare", trace, "-o", tmp_path / "out"], ["report", trace]):
        error = run_offramp(*command, "--json").require(2).json["error"]
        assert "this is a trace" in error["what"]
        assert f"offramp score {trace}" in error["fix"]
        assert f"offramp replay {trace}" in error["fix"]


def test_a_changed_summary_is_refused_though_nothing_of_it_is_used(
    finished_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    path = run / "summary.json"
    path.write_text(path.read_text().replace("0.", "0.1", 1))
    command = ["compare", finished_run, run, "-o", tmp_path / "out", "--json"]
    error = run_offramp(*command).require(DamagedFileError.exit_code).json["error"]
    assert "not what offramp writes" in error["what"]
    assert (error["where"], bool(error["fix"])) == (str(path), True)
    assert not (tmp_path / "out").exists()


def test_a_plan_sealed_with_a_number_for_a_name_is_refused(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    plan = json.loads((run / PLAN).read_text())
    plan["study"]["models"][0]["base"] = 7
    write_sealed_json(run / PLAN, plan)
    error = run_offramp("compare", run, "-o", tmp_path / "out", "--json").require(2).json["error"]
    assert "models[1].base" in error["what"]
    assert not (tmp_path / "out").exists()


def test_a_run_of_an_older_offramp_is_refused_with_what_makes_it_again(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished_run / "summary.json", run)
    error = run_offramp("compare", run, "-o", tmp_path / "out", "--json").require(2).json["error"]
    assert "older offramp" in error["what"]
    assert "--overwrite" in error["fix"]


def test_the_page_of_a_run_is_not_written_over(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    page = (run / "report.html").read_bytes()
    error = run_offramp("compare", run, "-o", run, "--json").require(2).json["error"]
    assert "not a comparison" in error["what"]
    assert "-o" in error["fix"]
    assert (run / "report.html").read_bytes() == page
    file = tmp_path / "file"
    file.write_text("text")
    assert "a file, not a folder" in run_offramp("compare", run, "-o", file).require(2).err
