"""One name for different machines: studies of several computers, and of profiles that share a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study_cases import MACHINE, StudyCase

from offramp.costs.hardware import find_machine
from offramp.costs.machine import machine_fingerprint
from offramp.studies.comparison.reading import read_comparison
from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.study_rows import read_study_folder
from offramp.studies.task import Cell

FAST = {"processor": "fast", "cores": 4, "threads": 2, "torch": "2.0"}
SLOW = {**FAST, "processor": "slow"}
OWN_PROFILE = "f" * 64


def league_entry(speedup: float) -> dict[str, Any]:
    """What a league chose at one floor."""
    nothing = {"value": None, "undefined": "not looked at"}
    return {
        "family": "static",
        "policy": "static:exit=4",
        "floor": 0.95,
        "agreement": nothing,
        "skip_ratio": nothing,
        "net_speedup": {"value": speedup},
        "probe_share": 0.0,
        "gain": None,
        "seconds_per_token": 0.01 / speedup,
        "reachable": True,
        "chosen": True,
    }


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
        cell = Cell("league", "", "alpha", workload="prose", policy="league", machine=name)
        case.finish(case.add(cell, league), {"entries": [league_entry(speedup)]})
        return case.write()


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studies:
    return Studies(tmp_path, monkeypatch)


def speedups_of(comparison: Comparison) -> dict[str, float]:
    """Speedups of the only row, which both folders have."""
    (row,) = comparison.rows
    return dict(row.exit_speedup)


def test_computers_that_two_studies_call_alike_stay_apart(studies: Studies) -> None:
    folders = [studies.study("a", "lap", FAST, 1.2), studies.study("b", "lap", SLOW, 1.5)]
    comparison = read_comparison(folders)
    assert speedups_of(comparison) == {
        "agreement=0.95 | lap (fast, 2 threads)": 1.2,
        "agreement=0.95 | lap (slow, 2 threads)": 1.5,
    }
    assert [one.machine for one in comparison.strategies] == [
        "lap (fast, 2 threads)",
        "lap (slow, 2 threads)",
    ]
    assert [note for note in comparison.notes if "machine" in note] == [
        "The machine lap of made-up is not the lap of another folder, and is shown as "
        f"lap ({processor}, 2 threads)."
        for processor in ("fast", "slow")
    ]


def test_profiles_that_two_studies_call_alike_stay_apart(studies: Studies) -> None:
    built_in = machine_fingerprint(find_machine(MACHINE))
    folders = [studies.study("a", MACHINE, built_in, 1.2), studies.study("b", MACHINE, OWN_PROFILE, 1.5)]
    comparison = read_comparison(folders)
    assert speedups_of(comparison) == {
        f"agreement=0.95 | h100 (profile {built_in[:12]})": 1.2,
        f"agreement=0.95 | h100 (profile {OWN_PROFILE[:12]})": 1.5,
    }
    assert sum("The machine h100 of" in note for note in comparison.notes) == 2


def test_a_profile_is_not_the_computer_of_its_name(studies: Studies) -> None:
    folders = [studies.study("a", "lap", FAST, 1.2), studies.study("b", "lap", OWN_PROFILE, 1.5)]
    assert list(speedups_of(read_comparison(folders))) == [
        "agreement=0.95 | lap (profile ffffffffffff)",
        "agreement=0.95 | lap (fast, 2 threads)",
    ]


@pytest.mark.parametrize("machine", [FAST, OWN_PROFILE])
def test_one_machine_keeps_its_name(studies: Studies, machine: str | dict[str, Any]) -> None:
    other = studies.study("other", "other", SLOW, 1.1)
    folders = [studies.study(title, "lap", machine, 1.2) for title in ("a", "b")]
    comparison = read_comparison([*folders, other])
    assert speedups_of(comparison) == {"agreement=0.95 | lap": 1.2, "agreement=0.95 | other": 1.1}
    assert not any("The machine" in note for note in comparison.notes)
    assert {one.machine for one in comparison.strategies} == {"lap", "other"}


def test_a_study_says_what_its_machines_are(studies: Studies, case: StudyCase) -> None:
    timed = read_study_folder(studies.study("a", "lap", FAST, 1.2))
    assert timed.machines == {"lap": "fast, 2 threads"}
    fingerprint = machine_fingerprint(find_machine(MACHINE))
    assert read_study_folder(case.folder.path).machines == {MACHINE: f"profile {fingerprint[:12]}"}
