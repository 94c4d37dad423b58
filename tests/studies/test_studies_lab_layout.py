"""What a study of the lab makes of the results that it has: pilot, gate, second tries, what is measured."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from lab_studies import Pretended, lab_study, names_of

from offramp.errors import InputError
from offramp.lab.effects.factors import half_fraction
from offramp.lab.effects.matching import at_loss, left_out
from offramp.lab.effects.runs import runs_of
from offramp.studies.lab_layout import lay_out
from offramp.studies.lab_rows import lab_rows, lab_table
from offramp.studies.lab_runs import compared_with, designed, matched_places, second_try
from offramp.studies.status import time_left
from offramp.studies.task import Task

FIXED = 'rate = 0.002\ntokens = 40_000\ncheckpoints = 3\nsize = "smoke"\n'


def declining(last: float) -> list[float]:
    return [last + 1.0, last + 0.4, last]


def losses_of(name: str) -> list[float]:
    """Depth is used, and run-05 diverges both times."""
    if name.startswith("gate"):
        return declining(3.5)
    if name.startswith("run-05"):
        return [5.0, math.nan]
    number = int(name.removeprefix("run-")[:2])
    return declining(3.0 + number / 100)


def test_all_is_laid_out_stage_by_stage(tmp_path: Path) -> None:
    study = lab_study(tmp_path, FIXED + 'blocks = ["gate", 1, 2]')
    pretended = Pretended(study, tmp_path / "study")
    assert list(pretended.plan().cells) == [cell for cell in pretended.plan().cells if cell.kind == "text"]
    first = pretended.end(losses_of, rounds=1)
    assert sorted(names_of(first, "train")) == [
        "gate-run-01",
        "gate-run-16",
        "gate-wide-run-01",
        "gate-wide-run-16",
        "run-01",
        "run-16",
    ]
    assert names_of(first, "measure") == []
    assert {task.kind for task in first.to_come} == {"train", "measure"}
    plan = pretended.end(losses_of)
    assert len(names_of(plan, "train")) == 4 + 20 + 1
    assert plan.to_come == ()
    assert plan.study["told"]["gate"]["passed"]
    assert plan.study["told"]["diverged"] == ["run-05", "run-05-again"]
    again = plan.study["runs"]["run-05-again"]
    assert (again["seed"], again["again"]) == (505, "run-05")
    assert {key: again[key] for key in half_fraction()[4]} == half_fraction()[4]


def test_what_is_dear_is_measured_on_both_sides_of_the_matched_loss(tmp_path: Path) -> None:
    study = lab_study(
        tmp_path, FIXED + 'blocks = [1]\nruns = ["run-01", "run-16"]\ndear = ["skipped", "required_depth"]'
    )
    plan = Pretended(study, tmp_path / "study").end(
        lambda name: [4.0, 3.6, 3.5] if name == "run-01" else [3.7, 3.45, 3.4]
    )
    asked: dict[str, dict[int | None, list[str]]] = {"run-01": {}, "run-16": {}}
    for cell in plan.cells:
        if cell.kind == "measure":
            recipe = plan.tasks[cell.task].recipe
            asked[cell.model].setdefault(recipe["step"], []).extend(recipe["endpoints"])
    cheap = ["representation", "calibration"]
    some, everything = [*cheap, "skipped"], [*cheap, "skipped", "required_depth"]
    # 157 steps; the loss is 3.5, which run-01 reaches at the end and run-16 between its first two models.
    assert asked["run-01"] == {39: cheap, 78: some, None: everything}
    assert asked["run-16"] == {39: some, 78: some, None: everything}


def test_how_the_text_is_made_does_not_make_a_training_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.studies import lab_tasks
    from offramp.studies.computing import code_of

    study = lab_study(tmp_path, FIXED + 'blocks = [1]\nruns = ["run-01"]')
    pretended = Pretended(study, tmp_path / "study")
    before = pretended.end(lambda name: declining(3.0))
    for kind, other in (("text", 1), ("measure", 5)):
        with monkeypatch.context() as patch:
            patch.setattr(lab_tasks, "code_of", lambda one, kind=kind: code_of(one) + "x" * (one == kind))
            after = pretended.end(lambda name: declining(3.0))
        kept = [key for key, task in after.tasks.items() if task.kind == "train"]
        assert kept == [key for key, task in before.tasks.items() if task.kind == "train"]
        assert len(after.tasks.keys() - before.tasks.keys()) == other


def test_nothing_is_made_after_idle_depth(tmp_path: Path) -> None:
    study = lab_study(tmp_path, FIXED)
    plan = Pretended(study, tmp_path / "study").end(lambda name: declining(3.0))
    assert len(names_of(plan, "train")) == 6
    assert plan.to_come == ()
    assert "depth is idle" in plan.study["notes"][0]
    assert "nothing is concluded" in plan.study["notes"][0]


def test_a_pilot_tells_tokens_and_rate(tmp_path: Path) -> None:
    study = lab_study(
        tmp_path, 'size = "smoke"\nblocks = ["gate", 1, 2, 6]\nminutes = 10_000\ncheckpoints = 2'
    )
    pretended = Pretended(study, tmp_path / "study")

    def losses(name: str) -> list[float]:
        if name.startswith("pilot"):
            return [{"0.001": 3.2, "0.002": 3.1, "0.004": 3.3}[name.rpartition("-")[2]]]
        if name == "pace-run-01":
            return [math.nan]
        return [5.0] if name.startswith("pace") else [4.0, 3.9 if name.startswith("gate") else 3.0]

    first = pretended.end(losses, rounds=1)
    assert names_of(first, "train") == ["pace-run-01", "pace-run-16"]
    plan = pretended.end(losses)
    assert (plan.study["told"]["rate"], plan.study["told"]["tokens"]) == (0.002, 20_000)
    assert plan.study["told"]["losses_by_rate"] == pytest.approx({"0.001": 6.4, "0.002": 6.2, "0.004": 6.6})
    pilots = [run for name, run in plan.study["runs"].items() if name.startswith("pilot")]
    assert {(run["seed"], run["tokens"], run["checkpoints"]) for run in pilots} == {(1000, 1000, 1)}
    assert {run["rate"] for name, run in plan.study["runs"].items() if name.startswith("run")} == {0.002}
    assert len(names_of(plan, "train")) == 2 + 6 + 4 + 20 + 4


def test_the_most_tokens_are_taken_with_which_all_fits_and_what_does_not_fit_is_left_out(
    tmp_path: Path,
) -> None:
    warned: list[bool] = []

    def planned(minutes: float, seconds: float) -> tuple[int, list[str], float]:
        """Tokens, runs, and how long all take side by side on two cores by the plan."""
        folder = tmp_path / f"{minutes}-{seconds}"
        folder.mkdir()
        study = lab_study(folder, f"rate = 0.002\nminutes = {minutes}\nblocks = [1, 2]\ncheckpoints = 2")
        pretended = Pretended(study, folder / "study")
        plan = pretended.end(lambda name: [3.5], seconds=seconds, rounds=2)
        warned.append(any("even 2,000,000 tokens" in note for note in plan.study["notes"]))
        tasks = [*plan.tasks.values(), *plan.to_come]
        nominal = sum(task.estimate.seconds or 0.0 for task in tasks if task.kind != "text")
        return plan.study["told"]["tokens"], names_of(plan, "train")[2:], nominal / 120.0

    pace = 50 * 16 * 256 / 3640.0  # seconds of a pace run on a core that is as fast as estimates say
    tokens, runs, minutes = planned(480.0, pace)
    assert (tokens, len(runs)) == (8_000_000, 20)
    assert 380.0 < minutes < 480.0
    assert planned(480.0, pace / 2)[0] == 16_000_000
    assert planned(240.0, pace)[0] == 4_000_000
    tokens, few, minutes = planned(60.0, pace)
    assert tokens == 2_000_000
    assert 0 < len(few) < 20
    assert few == runs[: len(few)]
    assert 50.0 < minutes < 60.0
    assert warned == [False, False, False, True]


def test_the_fewest_tokens_that_do_not_fit_are_said_before_anything_runs(tmp_path: Path) -> None:
    study = lab_study(tmp_path, 'size = "smoke"\nminutes = 0.5\nblocks = [1]')
    (note,) = (one for one in lay_out(study, None).study["notes"] if "do not fit" in one)
    assert "tokens a run, the fewest, do not fit into 0.5 minutes: all takes about" in note
    assert "(by estimates)" in note


def test_the_time_that_is_left_is_told_within_a_quarter(tmp_path: Path) -> None:
    longer = {"text": 3.0, "train": 1.6, "measure": 0.85}

    def took(task: Task) -> float:
        """Longer than nominal by kind, and each training a little more or less."""
        seed = task.recipe["recipe"]["seed"] if task.kind == "train" else 0
        return (task.estimate.seconds or 0.0) * longer[task.kind] * (1.0 + 0.2 * (seed % 3 - 1) * bool(seed))

    study = lab_study(tmp_path, 'rate = 0.002\ntokens = 2_000_000\nblocks = ["gate", 1, 2]')
    pretended = Pretended(study, tmp_path / "study", took)
    told, done = [], []

    def losses(name: str) -> list[float]:
        return [4.0] * 7 + [3.5 if name.startswith("gate") else 3.0]

    for _ in range(4):
        plan = pretended.end(losses, rounds=1)
        ended = {key for key, task in plan.tasks.items() if pretended.folder.is_done(task)}
        ahead = plan.tasks.keys() - ended
        told.append(time_left(plan, ahead, set(), pretended.folder.journal.read().events, 2).seconds)
        done.append(sum(took(plan.tasks[key]) for key in ended))
    # After the text, the gate, all trainings, and in the end: nothing is known but by what was done.
    left = [(done[-1] - seconds) / 2 for seconds in done]
    assert left[-1] == told[-1] == 0
    assert told[1:-1] == pytest.approx(left[1:-1], rel=0.25)


def test_the_table_has_a_line_for_each_kept_model_and_nothing_for_what_was_not_measured(
    tmp_path: Path,
) -> None:
    study = lab_study(tmp_path, FIXED + 'blocks = ["gate", 1, 2]\ndear = ["skipped"]')
    pretended = Pretended(study, tmp_path / "study")
    plan = pretended.end(losses_of)
    lines = list(csv.DictReader(lab_table(lab_rows(plan, pretended.folder)).splitlines()))
    by_run = {name: [line for line in lines if line["run"] == name] for name in plan.study["runs"]}
    assert [line["loss"] for line in by_run["run-05"]] == ["5.0", "nan"]
    assert {line["diverged"] for line in by_run["run-05"]} == {"true"}
    assert by_run["run-05"][-1]["tokens"] == str(40 * 256)
    assert {line["representation"] for line in by_run["run-05"]} == {""}
    kept = by_run["run-20"]
    assert [(line["step"], line["tokens"], line["loss"]) for line in kept] == [
        ("39", "9984", "4.2"),
        ("78", "19968", "3.6"),
        ("157", "40192", "3.2"),
    ]
    assert {line["representation"] for line in kept} == {"0.5"}
    assert [line["skipped"] for line in kept] == ["", "0.5", "0.5"]
    assert {(line["block"], line["norm"], line["kind"], line["diverged"]) for line in kept} == {
        ("2", "rmsnorm", "dense", "false")
    }
    assert [line["skipped"] for line in by_run["gate-run-01"]] == [""] * 3


def test_what_goes_on_goes_on_from_the_run_that_stands_for_its_base(tmp_path: Path) -> None:
    study = lab_study(
        tmp_path, FIXED.replace("= 3", "= 2") + 'blocks = [1, 2, 4, 5]\ndear = ["representation_lens"]'
    )
    pretended = Pretended(study, tmp_path / "study")

    def losses(name: str) -> list[float]:
        if name in ("run-16", "run-17", "run-17-again"):
            return [3.0, math.nan]
        if name == "run-18-continued":
            return [math.nan]
        return [2.9] if name.endswith(("continued", "continued-again", "loss", "tuned")) else [3.5, 3.0]

    plan = pretended.end(losses)
    bases = {run["base"] for run in plan.study["runs"].values()} - {""}
    assert bases == {"run-01", "run-18", "run-16-again", "run-19", "run-20"}
    assert "run-17-tuned is not made: run-17, from which it goes on, is not there" in plan.study["notes"]
    going_on = plan.study["runs"]["run-16-early-exit-loss"]
    task, base = (
        plan.tasks[plan.study["runs"][name]["train"]] for name in ("run-16-early-exit-loss", "run-16-again")
    )
    assert task.needs["base"] == base.key
    assert (going_on["seed"], going_on["tokens"], going_on["rate"]) == (116, 8_000, 0.0005)
    lines = {line["run"]: line for line in lab_rows(plan, pretended.folder)}
    frozen, plain, continued = (
        lines[f"run-16-again-{name}"] if name != "continued" else lines["run-16-continued"]
        for name in ("frozen-exits", "plain", "continued")
    )
    assert (frozen["block"], frozen["arm"], frozen["base"]) == ("4", "frozen_exits", "run-16-again")
    assert (frozen["step"], frozen["loss"], frozen["representation"]) == (157, 3.0, 0.5)
    assert "representation_lens" not in frozen
    assert {**plain, "run": "", "block": "", "arm": ""} == {**continued, "run": "", "block": "", "arm": ""}
    assert (plain["block"], plain["arm"], plain["norm"]) == ("5", "plain", "rmsnorm")
    table = list(csv.DictReader(lab_table(lab_rows(plan, pretended.folder)).splitlines()))
    counted = {run.name: run.seed for run in runs_of(table) if run.base == "run-18" and not run.diverged}
    assert (counted["run-18-continued-again"], counted["run-18-plain-again"]) == (618, 618)
    assert not counted.keys() & {"run-18-continued", "run-18-plain"}


def test_a_run_that_diverged_stays_out_where_the_one_in_its_place_moves_the_median(tmp_path: Path) -> None:
    study = lab_study(tmp_path, FIXED + 'blocks = [1, 2]\ndear = ["skipped"]')
    pretended = Pretended(study, tmp_path / "study")

    def losses(name: str) -> list[float]:
        if name == "run-05":
            return declining(3.32)
        return declining(3.0 if name in {f"run-{number}" for number in range(10, 20)} else 3.03)

    plan = pretended.end(losses)
    assert plan.study["told"]["diverged"] == ["run-05"]  # by 0.305 before, by 0.29 with run-05-again
    table = list(csv.DictReader(lab_table(lab_rows(plan, pretended.folder)).splitlines()))
    assert left_out(runs_of(table)) == {"run-05": "it diverged"}


def test_what_stands_for_a_llama_like_run_is_compared_with_other_kinds() -> None:
    runs = designed("design", 2048, 8, tokens=2_000_000, rate=0.002)
    mixture, first = runs["run-21"], runs["run-16"]
    there = {run.name: run for run in (first, runs["run-19"], runs["run-01"], second_try(first))}
    assert [run.name for run in compared_with([mixture], there)] == [
        "run-21",
        "run-16",
        "run-19",
        "run-16-again",
    ]


@given(some.lists(some.floats(1, 9), min_size=1, max_size=9), some.floats(0, 3))
def test_models_between_which_a_loss_is_passed_are_those_that_matching_reads(
    losses: list[float], above: float
) -> None:
    loss = losses[-1] + above
    places = matched_places(losses, loss)
    found = at_loss(np.array(losses), np.arange(len(losses), dtype=float), loss)
    assert min(places) <= found <= max(places)
    assert len(places) == 1 or losses[places[0]] > loss >= losses[places[1]]


@pytest.mark.parametrize(
    ("lab", "settings", "what", "where"),
    [
        ('runs = ["run-1"]\nrate = 0.1\ntokens = 10', "", "there is no run 'run-1'", "lab.runs[1]"),
        ('runs = ["run-29"]\nblocks = [1]', "", "run-29 is of block 6, which is not among", "lab.runs[1]"),
        ('tokens = "pilto"', "", "tokens is 'pilto'", "lab.tokens"),
        ('runs = ["run-01"]\nblocks = [3]', "", "run-01 is of block 1, which is not among", "lab.runs[1]"),
        ('size = "tiny"', "", "there is no size 'tiny'", "lab.size"),
        ('endpoints = ["skiped"]', "", "there is no endpoint 'skiped'", "lab.endpoints[1]"),
        ("blocks = [7]", "", "there is no block 7", "lab.blocks[1]"),
        ("", "tokens = 100", "tokens means nothing in a study that trains its models", "study.tokens"),
        ("", 'device = "gpu"', "unknown device 'gpu'", "study.device"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(
    tmp_path: Path, lab: str, settings: str, what: str, where: str
) -> None:
    with pytest.raises(InputError) as refused:
        Pretended(lab_study(tmp_path, lab, settings), tmp_path / "study").plan()
    assert what in refused.value.what
    assert where in refused.value.where


def test_sizes_that_do_not_match_are_refused_when_the_study_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.lab.training.architecture.TOLERANCE", 1e-6)
    study = lab_study(tmp_path, FIXED)
    with pytest.raises(InputError, match="the nearest model has") as refused:
        Pretended(study, tmp_path / "study").plan()
    assert "STUDY.toml, line" in refused.value.where


def test_axes_of_other_studies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workloads means nothing"):
        lab_study(tmp_path, 'size = "smoke"\n[[workloads]]\nname = "prose"')
    with pytest.raises(InputError, match="size means nothing where models are given"):
        lab_study(tmp_path, 'size = "smoke"\n[[models]]\nname = "smollm2"')
