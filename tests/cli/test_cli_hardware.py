"""`offramp hardware measure` on a tiny model, and which timings a command predicts with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import offramp
from command_line import run_offramp
from offramp.costs.machine_registry import list_local_profiles, load_local_profile, save_local_profile
from offramp.costs.timings import TimingsProfile, busy_machine
from offramp.errors import InputError
from offramp.kit.typed import from_json
from offramp.models.model import Model
from offramp.scoring.estimate import Estimate
from offramp.timing import local_profile
from offramp.timing.local_profile import StepCheck, kept_profile


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("OFFRAMP_CACHE", str(folder))
    monkeypatch.setattr(local_profile, "MOST_ROUNDS", 4)
    return folder


def test_measure_prints_and_keeps_a_profile(tiny_model: Path, cache: Path) -> None:
    outcome = run_offramp("hardware", "measure", tiny_model, "--batches", "1,2", "--json").require(0)
    answer = outcome.json
    profile = from_json(TimingsProfile, answer["profile"])
    assert profile.batches == (1, 2)
    assert Path(answer["file"]).parent == cache / "hardware"
    kept = load_local_profile(profile.details["model"]["fingerprint"], "float32")
    assert kept.to_json() == answer["profile"]
    for text in ("of a plain step", "restricted head", "batch 2", "kept as the hardware profile local"):
        assert text in outcome.err


def test_hardware_alone_shows_how_it_is_used() -> None:
    assert "measure" in run_offramp("hardware").require(2).out


HOLDS = StepCheck(Estimate(1.0, 0.99, 1.01), 0.1, 12)
OFF = StepCheck(Estimate(0.8, 0.79, 0.81), 0.1, 12)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Model:
    return offramp.load_model(str(tiny_model))


@pytest.fixture(scope="module")
def profile(loaded: Model) -> TimingsProfile:
    return offramp.measure_hardware(loaded, budget_seconds=0.1, batches=(1, 2, 3))


@pytest.fixture
def measuring(profile: TimingsProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """An empty store, and measuring that takes no time and gives a dearer head."""
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    dearer = dataclasses.replace(profile, head_seconds=profile.head_seconds * 2)
    made = mock.Mock(return_value=dearer)
    monkeypatch.setattr(local_profile, "measure_hardware", made)
    return made


def checked(monkeypatch: pytest.MonkeyPatch, answer: StepCheck | None) -> None:
    def check(model: Model, profile: TimingsProfile) -> StepCheck:
        assert answer is not None, "nothing is kept that could be checked"
        return answer

    monkeypatch.setattr(local_profile, "check_profile", check)


def head_seconds(found: TimingsProfile) -> Any:
    return found.head_seconds.tolist()


def test_kept_timings_that_hold_are_used(
    monkeypatch: pytest.MonkeyPatch, loaded: Model, profile: TimingsProfile, measuring: mock.Mock
) -> None:
    save_local_profile(profile)
    checked(monkeypatch, HOLDS)
    found = kept_profile(loaded)
    assert head_seconds(found.profile) == head_seconds(profile)
    assert found.note == HOLDS.sentence
    assert measuring.call_count == 0


def test_kept_timings_that_are_off_are_measured_again_and_replaced(
    monkeypatch: pytest.MonkeyPatch, loaded: Model, profile: TimingsProfile, measuring: mock.Mock
) -> None:
    save_local_profile(profile)
    checked(monkeypatch, OFF)
    found = kept_profile(loaded)
    assert head_seconds(found.profile) == head_seconds(measuring.return_value)
    assert found.note == f"{OFF.sentence}; timed just now"
    assert measuring.call_args.kwargs["batches"] == (1, 2, 3)  # those that were kept
    assert [head_seconds(kept) for kept in list_local_profiles()] == [head_seconds(measuring.return_value)]


def test_none_kept_is_an_error(monkeypatch: pytest.MonkeyPatch, loaded: Model, measuring: mock.Mock) -> None:
    checked(monkeypatch, None)
    with pytest.raises(InputError, match="no timings of this model"):
        kept_profile(loaded)
    assert measuring.call_count == 0


def test_timings_with_another_attention_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, loaded: Model, measuring: mock.Mock
) -> None:
    eager = offramp.load_model(tiny_model, attn_implementation="eager")
    timed = offramp.measure_hardware(eager, budget_seconds=0.1, batches=(1, 2))
    assert timed.details["model"]["fingerprint"] == loaded.identity.fingerprint
    save_local_profile(timed)
    checked(monkeypatch, HOLDS)
    assert head_seconds(kept_profile(eager).profile) == head_seconds(timed)
    with pytest.raises(InputError, match="with eager attention"):
        kept_profile(loaded)


def test_on_a_busy_machine_the_kept_timings_of_a_quieter_time_stay(
    monkeypatch: pytest.MonkeyPatch, loaded: Model, profile: TimingsProfile, measuring: mock.Mock
) -> None:
    save_local_profile(profile)
    checked(monkeypatch, OFF)
    measuring.side_effect = busy_machine("other work kept 1.7 of 2 processors busy")
    found = kept_profile(loaded)
    assert head_seconds(found.profile) == head_seconds(profile)
    assert "the machine is busy: other work kept 1.7 of 2" in found.note
    assert [head_seconds(kept) for kept in list_local_profiles()] == [head_seconds(profile)]


def test_on_a_busy_machine_measuring_keeps_nothing_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, cache: Path
) -> None:
    monkeypatch.setattr("offramp.costs.timings.TOLERABLE_LOAD", -2.0 * 1024)
    monkeypatch.setattr(local_profile, "PATIENCE", 0.1)
    outcome = run_offramp("hardware", "measure", tiny_model, "--seconds", "1", "--json").require(1)
    assert outcome.json["error"]["what"].startswith("the machine is busy: other work kept")
    assert "OMP_NUM_THREADS=1" in outcome.json["error"]["fix"]
    assert list_local_profiles() == []
