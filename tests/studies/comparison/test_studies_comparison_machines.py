"""One name for different machines: studies of several computers, and of profiles that share a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comparison_traces import floor
from study_cases import MACHINE, StudyCase, league_entry, league_result

from offramp.costs.machine import machine_fingerprint
from offramp.costs.machine_registry import find_machine
from offramp.studies.comparison.reading import read_comparison
from offramp.studies.comparison.results import Comparison, FloorOn
from offramp.studies.comparison.study_reading import StudyReader, read_study_folder
from offramp.studies.folder import StudyFolder
from offramp.studies.task import StudyCell

FAST = {"processor": "fast", "cores": 4, "threads": 2, "torch": "2.0"}
SLOW = {**FAST, "processor": "slow"}
OWN_PROFILE = "f" * 64


class Studies:
    """Makes studies of one model on one text, each with a league on one machine."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch

    def study(self, title: str, name: str, machine: str | dict[str, Any], speedup: float) -> Path:
        """A study's folder. machine: a profile's fingerprint, or the facts of one that was timed."""
        case = StudyCase(self.folder / title, self.patch)
        trace = case.trace_task("alpha", "prose", 0.45, bytes_per_token=4)
        case.add_row("alpha", "prose", trace, ("score",))
        recipe, needs = {"floors": [0.95]}, {"trace": trace}
        if isinstance(machine, str):
            recipe["machine"] = machine
        else:
            needs["profile"] = case.add(None, case.task("profile", {"machine": machine}))
            case.finish(needs["profile"], {})
        league = case.task("league", recipe, needs=needs)
        cell = StudyCell("league", "", "alpha", workload="prose", policy="league", machine=name)
        case.finish(
            case.add(cell, league), league_result(league_entry(0.95, "static:exit=4", speedup=speedup))
        )
        return case.write()


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studies:
    return Studies(tmp_path, monkeypatch)


def speedups_of(comparison: Comparison) -> dict[FloorOn, float]:
    """Speedups of the only row, which both folders have."""
    (row,) = comparison.rows
    return dict(row.exit_speedup)


BUILT_IN = machine_fingerprint(find_machine(MACHINE))


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        (FAST, SLOW, ("fast, 2 threads", "slow, 2 threads")),
        (BUILT_IN, OWN_PROFILE, (f"profile {BUILT_IN[:12]}", "profile ffffffffffff")),
        (FAST, OWN_PROFILE, ("fast, 2 threads", "profile ffffffffffff")),
    ],
    ids=["computers", "profiles", "a computer and a profile"],
)
def test_machines_that_two_studies_call_alike_stay_apart(
    studies: Studies, first: str | dict[str, Any], second: str | dict[str, Any], shown: tuple[str, str]
) -> None:
    folders = [studies.study("a", "lap", first, 1.2), studies.study("b", "lap", second, 1.5)]
    comparison = read_comparison(folders)
    assert speedups_of(comparison) == {
        floor(0.95, f"lap ({words})"): speedup for words, speedup in zip(shown, (1.2, 1.5), strict=True)
    }
    assert [one.place.machine for one in comparison.strategies] == [f"lap ({words})" for words in shown]
    assert [note for note in comparison.notes if "machine" in note] == [
        f"The machine lap of made-up is not the lap of another folder, and is shown as lap ({words})."
        for words in shown
    ]


@pytest.mark.parametrize("machine", [FAST, OWN_PROFILE])
def test_one_machine_keeps_its_name(studies: Studies, machine: str | dict[str, Any]) -> None:
    other = studies.study("other", "other", SLOW, 1.1)
    folders = [studies.study(title, "lap", machine, 1.2) for title in ("a", "b")]
    comparison = read_comparison([*folders, other])
    assert speedups_of(comparison) == {floor(0.95, "lap"): 1.2, floor(0.95, "other"): 1.1}
    assert not any("The machine" in note for note in comparison.notes)
    assert {one.place.machine for one in comparison.strategies} == {"lap", "other"}


def test_a_study_says_what_its_machines_are(studies: Studies, case: StudyCase) -> None:
    timed = read_study_folder(studies.study("a", "lap", FAST, 1.2))
    assert timed.machines == {"lap": "fast, 2 threads"}
    assert read_study_folder(case.folder.path).machines == {MACHINE: f"profile {BUILT_IN[:12]}"}


def test_a_machine_that_only_decoded_is_told_by_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So in every run on a profile: nothing was timed on this machine but what was decoded."""
    case = StudyCase(tmp_path / "study", monkeypatch)
    decode = case.task("decode", {"machine": FAST})
    case.finish(case.add(StudyCell("decode", "", "alpha", workload="prose", machine="local"), decode), {})
    assert StudyReader(StudyFolder(case.write())).machines() == {"local": "fast, 2 threads"}
