"""How studies are shown: states, names, stretches of time, counts, progress; on made-up plans."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as some
from rich.console import Console

from offramp.cli import study_shown
from offramp.cli.study_shown import (
    MOST_CELLS_SHOWN,
    Picture,
    StudyLines,
    count_cells,
    counts_text,
    lasting,
    left_text,
    plan_json,
    show_outcome,
    show_plan,
    show_status,
    state_shown,
    task_names,
)
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import holding
from offramp.studies.status import Status, TimeLeft, status_of
from offramp.studies.study import Study, StudyPlan
from offramp.studies.task import Failure, StudyCell, StudyJob, Task, TaskCost

FAILURE = Failure("no document has a token", where="notes.txt", fix="give a longer text")


def task(kind: str, name: str = "", *, blocked: str | None = None, **needs: Task) -> Task:
    """A task of 90 seconds and 2 GB, told from others by a name."""
    estimate = TaskCost(seconds=90.0, memory_bytes=2 * 10**9, disk_bytes=10**6)
    keys = {role: needed.key for role, needed in needs.items()}
    return Task(kind, {"name": name}, keys, blocked=blocked, estimate=estimate)


def plan_of(models: int = 1, *, missing: str | None = None) -> StudyPlan:
    """For every model a trace, a score of it, and a league; the last model may be one that is missing."""
    cells, jobs = [], []
    for number in range(models):
        name = f"m{number}"
        blocked = missing if number == models - 1 else None
        trace = task("trace", name, blocked=blocked)
        score, league = task("score", name, trace=trace), task("league", name, trace=trace)
        members = (trace, score, league)
        cells.append(StudyCell("score", score.key, name, workload="prose"))
        cells.append(StudyCell("league", league.key, name, "int8", "prose", policy="league", machine="h100"))
        jobs.append(StudyJob(name, members, memory_bytes=3 * 10**9))
    unavailable = {} if missing is None else {f"m{models - 1}": missing}
    facts = [{"name": f"m{number}", "parameters": 7e9} for number in range(models)]
    settings = {"name": "made-up", "title": "A made-up study"}
    study = Study.model_validate({"study": settings, "models": facts, "workloads": ["prose"]})
    return StudyPlan(study, tuple(cells), tuple(jobs), unavailable)


def by_kind(plan: StudyPlan, kind: str, number: int = 0) -> Task:
    return [one for one in plan.tasks.values() if one.kind == kind][number]


def do(folder: StudyFolder, done: Task) -> None:
    (folder.start(done) / "result.json").write_text("{}")
    folder.finish(done, 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


def shown_by(show: Callable[[Console], None]) -> str:
    """What is printed on a console of 80 columns."""
    out = io.StringIO()
    show(Console(file=out, width=80, highlight=False, emoji=False))
    return out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "1 s"),
        (61.0, "1 min 1 s"),
        (612.0, "10 min"),
        (7_519.0, "2 h 5 min"),
        (2 * 86_400.0 + 3_700.0, "2 days 1 h"),
    ],
)
def test_a_stretch_of_time_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert lasting(seconds) == words


@given(some.floats(min_value=1, max_value=1e7))
def test_a_stretch_of_time_is_right_but_for_its_last_unit(seconds: float) -> None:
    sizes = {"day": 86_400, "days": 86_400, "h": 3_600, "min": 60, "s": 1}
    words = lasting(seconds).split()
    read = sum(int(count) * sizes[unit] for count, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(read - seconds) <= max(1.0, sizes[words[-1]], 60.0 if seconds >= 595 else 0.0)


def test_states_in_words_and_counted_in_order(folder: StudyFolder) -> None:
    plan = plan_of(4, missing="it is not on this machine")
    do(folder, by_kind(plan, "trace", 0))
    do(folder, by_kind(plan, "score", 0))
    folder.start(by_kind(plan, "trace", 1))
    folder.fail(by_kind(plan, "trace", 1), FAILURE)
    with holding(folder.lock_path(by_kind(plan, "league", 0))):
        status = status_of(plan, folder)
    states = [state_shown(cell.task, status) for cell in plan.cells]
    assert states == [
        *("done", "running"),
        *("waiting for a failed one", "waiting for a failed one"),
        *("to do", "to do"),
        *("not to be had here", "not to be had here"),
    ]
    counts = count_cells(plan, status)
    assert sum(counts.values()) == len(plan.cells)
    assert counts_text(counts) == (
        "1 done, 1 running, 2 to do, 2 waiting for a failed one, 2 not to be had here"
    )
    assert counts_text({}) == "no cells"


def test_time_left_in_words(folder: StudyFolder) -> None:
    plan = plan_of()
    status = status_of(plan, folder)
    assert left_text(status) == "about 4 min 30 s left"
    assert left_text(replace(status, left=TimeLeft(60.0, 2))) == "at least 1 min left"
    assert left_text(replace(status, left=TimeLeft(0.0, 2))) == "time left not known yet"
    assert left_text(replace(status, left=TimeLeft(0.0, 0))) == "longer than expected"
    for one in plan.tasks.values():
        do(folder, one)
    assert left_text(status_of(plan, folder)) == "nothing left to do"


def test_a_plan_shows_cells_and_shared_tasks_and_what_the_rest_takes(folder: StudyFolder) -> None:
    plan = plan_of(2, missing="it is not on this machine")
    do(folder, by_kind(plan, "trace"))
    shown = shown_by(lambda out: show_plan(out, plan, status_of(plan, folder), folder.path))
    assert shown.startswith("made-up: A made-up study\n4 cells of 6 tasks, in ")
    names = task_names(plan)
    assert [names[key] for key in plan.tasks][:3] == [
        "trace of m0 · prose",
        "m0 · prose · score",
        "m0 + int8 · prose · league · h100",
    ]
    for words in ("m0 · prose · score", "trace of m1 · prose", "2 to do, 2 not to be had here."):
        assert words in shown
    said = " ".join(shown.split())
    assert "Left to run: 2 tasks: 3 min of work, 2.0 GB of memory for the largest, 2.0 MB of disk" in said
    assert "3 tasks: 4 min 30 s of work" in said.partition("Not to be had here, at this machine's pace: ")[2]
    assert "some 14.0 GB of models to fetch" in said
    assert "not to be had here: m1: it is not on this machine" in shown
    assert max(map(len, shown[: shown.index("not to be had here: m1")].splitlines()[2:])) <= 80


def test_a_large_plan_is_shown_by_model(folder: StudyFolder) -> None:
    plan = plan_of(MOST_CELLS_SHOWN)
    do(folder, by_kind(plan, "trace", 3))
    do(folder, by_kind(plan, "score", 3))
    shown = shown_by(lambda out: show_plan(out, plan, status_of(plan, folder), folder.path))
    row = next(line for line in shown.splitlines() if line.startswith("m3  "))
    assert row.split() == ["m3", "1", "1", "0", "0", "0"]
    assert "prose" not in shown


def test_a_plan_with_nothing_left(folder: StudyFolder) -> None:
    plan = plan_of()
    for one in plan.tasks.values():
        do(folder, one)
    status = status_of(plan, folder)
    shown = shown_by(lambda out: show_plan(out, plan, status, folder.path))
    assert "2 done.\nThere is nothing left to run here." in shown
    value = plan_json(plan, status, folder.path)
    assert value["counts"] == {"done": 2}
    nothing = {"tasks": 0, "seconds": 0, "unknown": 0, "memory_bytes": 0, "disk_bytes": 0}
    assert value["work"] == {**nothing, "seconds_here": 0.0}
    assert value["elsewhere"] == {**nothing, "bytes_to_fetch": 0}


def test_a_failure_is_said_in_three_parts_wherever_it_matters(folder: StudyFolder) -> None:
    plan = plan_of()
    folder.start(by_kind(plan, "trace"))
    folder.fail(by_kind(plan, "trace"), FAILURE)
    status = status_of(plan, folder)
    parts = (
        "failed: trace of m0 · prose: no document has a token\n"
        "  where: notes.txt\n"
        "  what to do: give a longer text\n"
        "2 cells waiting for what failed\n"
    )
    assert parts in shown_by(lambda out: show_status(out, plan, status, folder.path))
    ended = shown_by(lambda out: show_outcome(out, plan, status, folder.path, 5.0))
    assert parts in ended
    assert "--retry" in ended


def test_lines_say_the_start_each_failure_once_and_nothing_in_between(
    folder: StudyFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    clock = iter([100.0, 100.0, 110.0, 140.0, 175.0])
    monkeypatch.setattr(study_shown, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    read: list[Status] = []
    lines = StudyLines(plan, lambda: read[-1] if read else status_of(plan, folder))
    lines.changed()
    folder.start(by_kind(plan, "trace"))
    folder.fail(by_kind(plan, "trace"), FAILURE)
    read.append(status_of(plan, folder))
    lines.changed()
    lines.changed()
    lines.changed()
    assert capsys.readouterr().err.splitlines() == [
        "after 1 s: 2 to do; 0 of 3 tasks done, about 4 min 30 s left",
        "failed: trace of m0 · prose: no document has a token",
        "after 40 s: 2 waiting for a failed one; 0 of 3 tasks done, nothing left to do",
        "after 1 min 15 s: 2 waiting for a failed one; 0 of 3 tasks done, nothing left to do",
    ]


def test_the_picture_shows_counts_and_what_runs(folder: StudyFolder) -> None:
    plan = plan_of(2)
    pictures = Picture(plan, lambda: status_of(plan, folder), lambda shown: None)
    with holding(folder.lock_path(by_kind(plan, "trace"))):
        first = pictures.picture(status_of(plan, folder), 5.0)
        status = status_of(plan, folder)
        later = pictures.picture(status, 70.0)
    assert "trace of m0 · prose  (1 s)" in shown_by(lambda out: out.print(first))
    shown = shown_by(lambda out: out.print(later))
    assert shown.startswith("4 to do")
    assert "trace of m0 · prose  (1 min 5 s)" in shown
    do(folder, by_kind(plan, "trace"))
    assert "trace of" not in shown_by(lambda out: out.print(pictures.picture(status_of(plan, folder), 80.0)))


class Terminal(io.StringIO):
    """Standard error of a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_picture_is_drawn_and_taken_back(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    plan = plan_of()
    with study_shown.study_progress(plan, lambda: status_of(plan, folder)) as changed:
        changed()
        assert "2 to do" in terminal.getvalue()
        changed()
    assert terminal.getvalue().count("2 to do") <= 2  # drawn once by us, and once by the end
    assert "\x1b[2K" in terminal.getvalue()  # its lines are erased


def test_pictures_take_a_small_share_of_the_time(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    clock = [0.0]
    drawn: list[float] = []

    def read() -> Status:
        drawn.append(clock[0])
        clock[0] += 2.0  # a study so large that reading where it stands takes two seconds
        return status_of(plan, folder)

    monkeypatch.setattr(study_shown, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    pictures = Picture(plan, read, lambda shown: None)
    while clock[0] < 1_000.0:
        pictures.changed()
        clock[0] += 0.25
    assert 2.0 * len(drawn) / clock[0] < 1.5 * study_shown.SHARE_OF_TIME
