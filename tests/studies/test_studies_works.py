"""A kind of work that a plug-in adds with one file: planned, run, read and held to its contract."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from repeats import RepeatsWork
from study_files import plan_of

from offramp.errors import InputError
from offramp.studies.folder import StudyFolder
from offramp.studies.runner import run_job
from offramp.studies.work.score import ScoreWork
from offramp.studies.work.work import ENTRY_POINTS, Work, WorkContext, works
from offramp.testing import check_work
from offramp.tracing.trace import Trace


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kind is known by its entry point."""
    point = EntryPoint("repeats", "repeats:RepeatsWork", ENTRY_POINTS)
    monkeypatch.setattr(
        "offramp.plug_ins.entry_points", lambda group: [point] if group == point.group else []
    )
    works.cache_clear()
    yield
    works.cache_clear()


def study_text(model: Path, documents: Path, work: str) -> str:
    return (
        f'models = [{{ name = "m", source = "{model}" }}]\nmachines = ["h100"]\npolicies = ["league"]\n'
        f'workloads = [{{ name = "w", source = "jsonl:{documents}#text" }}]\n'
        f'exclude = [{{ kind = "league" }}]\n{work}'
    )


WORK = '[[works]]\nname = "repeats"\nsettings = { within = 3 }\n'


def test_a_plug_in_adds_a_kind_of_work_with_one_file(
    installed: None, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, study_text(tiny_model, documents, WORK))
    folder = StudyFolder(tmp_path / "folder")
    folder.write_plan(plan)
    (cell,) = [cell for cell in plan.cells if cell.kind == "repeats"]
    task = plan.tasks[cell.task]
    assert (cell.model, cell.workload, cell.name) == ("m", "w", "m · w · repeats")
    assert {task.needs["trace"], task.needs["score"]} < plan.tasks.keys()
    assert task.recipe["within"] == 3
    for job in plan.jobs:
        assert run_job(job, folder).done == tuple(task.key for task in job.tasks)
    found = folder.result(RepeatsWork, task)
    trace = Trace.load(folder.task_folder(plan.tasks[task.needs["trace"]]) / "trace")
    score = folder.result(ScoreWork, plan.tasks[task.needs["score"]])
    assert found.tokens == trace.token_count
    assert 0.0 < found.share < 1.0
    assert found.card.composite == score.card.composite
    assert folder.verify(task) == []
    inputs = {key: folder.task_folder(plan.tasks[key]) for key in task.needs.values()}
    work = RepeatsWork.of(task)
    assert check_work(work, inputs) is work


def test_its_settings_and_its_code_are_part_of_its_key(
    installed: None, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    keys = set()
    for within in (3, 4):
        work = WORK.replace("3", str(within))
        plan = plan_of(tmp_path, study_text(tiny_model, documents, work))
        (task,) = [task for task in plan.tasks.values() if task.kind == "repeats"]
        keys.add(task.key)
    assert len(keys) == 2
    assert task.recipe["code"] != plan.tasks[task.needs["score"]].recipe["code"]


@pytest.mark.parametrize(
    ("work", "why"),
    [
        ('[[works]]\nname = "repeat"\n', "no plug-in brings work of the kind 'repeat'"),
        ('[[works]]\nname = "score"\n', "score is offramp's own"),
        (WORK + WORK, "repeats is given twice"),
        ('[[works]]\nname = "repeats"\nsettings = { wihtin = 3 }\n', "repeats has no setting 'wihtin'"),
        ('[[works]]\nname = "repeats"\nsettings = { within = "x" }\n', "within: .*valid integer"),
        ('[[works]]\nname = "repeats"\n', "cannot be asked for so: .*'within'"),
        ('[[works]]\nname = "repeats"\nsettings = { dtype = "float32" }\n', "has no setting 'dtype'"),
    ],
)
def test_what_is_wrong_with_a_work_is_said_where_it_stands(
    installed: None, tiny_model: Path, documents: Path, tmp_path: Path, work: str, why: str
) -> None:
    with pytest.raises(InputError, match=why) as refused:
        plan_of(tmp_path, study_text(tiny_model, documents, work))
    assert "STUDY.toml, line" in refused.value.where
    assert refused.value.fix


@dataclass(frozen=True)
class Said:
    """A result."""

    words: str


@dataclass(frozen=True, kw_only=True)
class Sound(Work[Said]):
    """One that keeps its contract."""

    kind = "sound"

    def run(self, context: WorkContext) -> Said:
        return Said("the same")


@dataclass(frozen=True, kw_only=True)
class Dated(Sound):
    """Its result depends on where it is run."""

    kind = "dated"

    def run(self, context: WorkContext) -> Said:
        return Said(str(context.folder))


@dataclass(frozen=True, kw_only=True)
class Spread(Sound):
    """It leaves a file of a name that no task leaves."""

    kind = "spread"

    def run(self, context: WorkContext) -> Said:
        (context.folder / "mine.txt").write_text("x")
        return Said("the same")


class Bare(Sound):
    """It is no dataclass of its own."""


@dataclass(frozen=True, kw_only=True)
class Silent(Sound):
    """It says that it has a result, and leaves none."""

    kind = "silent"

    def run(self, context: WorkContext) -> Any:
        return None


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Bare, "not a frozen dataclass"),
        (Dated, "run twice it leaves other bytes"),
        (Spread, "it leaves mine.txt"),
        (Silent, "it leaves no result"),
    ],
)
def test_a_work_that_breaks_its_contract_is_told_which_rule(kind: type[Sound], why: str) -> None:
    with pytest.raises(InputError, match=why):
        check_work(kind())


def test_a_sound_work_passes() -> None:
    work = Sound()
    assert check_work(work) is work
    assert Sound.roles() == ()
    assert RepeatsWork.roles() == ("trace", "score")
