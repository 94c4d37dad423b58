"""Profiles kept on disk: found again by model, dtype and machine; changed files refused."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from offramp.costs import hardware
from offramp.costs.hardware import (
    OTHER_LOAD,
    RECIPE,
    STEPS,
    disturbed,
    kept_notes,
    list_local_profiles,
    load_local_profile,
    machine_facts,
    save_local_profile,
    threads_in_use,
)
from offramp.costs.timings import TimingsProfile
from offramp.errors import DamagedFileError, InputError

FINGERPRINT = "ab" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    return tmp_path


def profile(
    *,
    fingerprint: str = FINGERPRINT,
    threads: int = 2,
    head: float = 1.0,
    at: str = "2026-01-01",
    other_load: float = 0.0,
    **machine: Any,
) -> TimingsProfile:
    return TimingsProfile(
        name="local",
        source="a test",
        dtype="float32",
        layers_count=1,
        batches=(1,),
        layer_seconds=[[1.0]],
        layer_seconds_per_position=[[0.0]],
        head_seconds=[head],
        probe_seconds={},
        lens_seconds=None,
        key_value_seconds=None,
        overhead_seconds=[0.0],
        details={
            "model": {"name": "m", "fingerprint": fingerprint},
            "machine": machine_facts(threads) | machine,
            "measured_at": at,
            STEPS: "decoding loop",
            OTHER_LOAD: other_load,
        },
    )


def saved(one: TimingsProfile) -> Path:
    path = save_local_profile(one)
    assert path is not None
    return path


def test_what_is_saved_is_loaded() -> None:
    path = saved(profile())
    assert path.name.startswith(f"{FINGERPRINT[:16]}-float32-")
    assert load_local_profile(FINGERPRINT, "float32", threads=2).to_json() == profile().to_json()
    assert [found.to_json() for found in list_local_profiles()] == [profile().to_json()]


def test_a_profile_of_an_older_version_notes_no_load_and_is_not_used() -> None:
    older = profile()
    details = {name: value for name, value in older.details.items() if name != OTHER_LOAD}
    save_local_profile(dataclasses.replace(older, details=details))
    with pytest.raises(InputError, match="of an older offramp"):
        load_local_profile(FINGERPRINT, "float32", threads=2)
    assert len(list_local_profiles()) == 1


CORES = machine_facts(2)["cores"]


@pytest.mark.parametrize(
    ("threads", "load", "kept"),
    [
        (CORES, 0.2, True),
        (CORES, 0.4, False),
        (CORES, 3.9, False),
        # One processor is left to others.
        (CORES - 1, 1.2, True),
        (CORES - 1, 1.4, False),
        # More threads than processors leave none, and no less than none.
        (CORES + 4, 0.2, True),
        (CORES + 4, 0.4, False),
    ],
)
def test_a_profile_timed_under_load_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, threads: int, load: float, kept: bool
) -> None:
    monkeypatch.setattr(hardware, "TOLERABLE_LOAD", 0.3)
    made = profile(threads=threads, other_load=load)
    path = save_local_profile(made)
    assert (path is not None) == kept == (disturbed(made) is None) == bool(list_local_profiles())
    if not kept:
        assert f"other work kept {load:.1f} of {CORES} processors busy" in str(disturbed(made))
        with pytest.raises(InputError, match="no timings of this model"):
            load_local_profile(FINGERPRINT, "float32", threads=threads)


def test_a_profile_timed_under_load_takes_no_other_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "TOLERABLE_LOAD", 0.3)
    save_local_profile(profile(head=5.0))
    save_local_profile(profile(head=9.0, other_load=CORES + 1.0))
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [5.0]


def test_a_kept_profile_that_was_timed_under_load_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a version, or a limit, that still kept it."""
    saved(profile(other_load=3.9 + CORES))
    monkeypatch.setattr(hardware, "TOLERABLE_LOAD", 0.3)
    with pytest.raises(InputError, match="or were timed under load"):
        load_local_profile(FINGERPRINT, "float32", threads=2)
    assert len(list_local_profiles()) == 1


@pytest.mark.parametrize(("hours", "said"), [(0.5, "under 2 hours"), (5.0, "5 hours"), (72.0, "3 days")])
def test_facts_of_kept_timings(hours: float, said: str) -> None:
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    (note,) = kept_notes(profile(at=then.isoformat(timespec="milliseconds"), other_load=0.12))
    assert f"{said} old" in note
    assert "2 threads" in note
    assert "0.1 processors busy" in note


def test_other_machines_have_no_such_facts() -> None:
    assert kept_notes(None) == ()
    assert kept_notes(dataclasses.replace(profile(), details={})) == ()


def test_measuring_again_takes_the_older_ones_place() -> None:
    assert save_local_profile(profile()) == save_local_profile(profile(head=5.0))
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [5.0]
    assert len(list_local_profiles()) == 1


def test_a_study_s_profile_is_asked_for_by_its_recipe_and_replaces_no_other() -> None:
    recipe = {"code": "c", "versions": {"numpy": "2"}, "seconds": 12.0, "texts": ("a",)}
    by_hand = profile()

    def of_study(head: float, **changes: Any) -> TimingsProfile:
        made = profile(head=head, at="2026-01-02")
        return dataclasses.replace(made, details={**made.details, RECIPE: {**recipe, **changes}})

    save_local_profile(of_study(2.0))
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [2.0]  # the only one
    save_local_profile(by_hand)
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [1.0]
    assert load_local_profile(FINGERPRINT, "float32", threads=2, recipe=recipe).head_seconds == [2.0]
    save_local_profile(of_study(3.0, code="newer"))
    assert len(list_local_profiles()) == 2
    with pytest.raises(InputError, match="no timings of this model"):
        load_local_profile(FINGERPRINT, "float32", threads=2, recipe=recipe)


def test_each_thread_count_has_its_own_profile() -> None:
    save_local_profile(profile(threads=1, head=9.0, at="2026-01-02"))
    save_local_profile(profile(threads=2))
    assert load_local_profile(FINGERPRINT, "float32", threads=1).head_seconds == [9.0]
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [1.0]
    with mock.patch.object(hardware, "threads_in_use", return_value=None):
        assert load_local_profile(FINGERPRINT, "float32").head_seconds == [9.0]  # the last one measured


def test_none_is_an_error_that_names_the_command() -> None:
    with pytest.raises(InputError, match="no timings of this model") as caught:
        load_local_profile(FINGERPRINT, "bfloat16")
    assert "offramp hardware measure MODEL --dtype bfloat16" in caught.value.fix


@pytest.mark.parametrize(
    "machine", [{"torch": "1.0"}, {"processor": "another"}, {"cores": 999}, {"threads": 3}]
)
def test_a_profile_of_another_machine_is_not_used(machine: dict[str, Any]) -> None:
    save_local_profile(profile(**machine))
    with pytest.raises(InputError, match="as it is now; those kept are of"):
        load_local_profile(FINGERPRINT, "float32", threads=2)


def test_a_profile_of_another_model_or_dtype_is_not_used() -> None:
    save_local_profile(profile())
    begins_alike = FINGERPRINT[:16] + "0" * 48
    for fingerprint, dtype in ((begins_alike, "float32"), ("cd" * 32, "float32"), (FINGERPRINT, "bfloat16")):
        with pytest.raises(InputError, match="no timings"):
            load_local_profile(fingerprint, dtype, threads=2)


@pytest.mark.parametrize("edit", ["value", "space", "no seal", "cut short", "not text"])
def test_a_changed_file_is_refused(edit: str) -> None:
    path = saved(profile())
    text = path.read_text()
    value = json.loads(text)
    if edit == "value":
        value["head_seconds"] = [0.001]
        path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    elif edit == "no seal":
        del value["sha256"]
        path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    elif edit == "not text":
        path.write_bytes(b"\xff" + text.encode())
    else:
        path.write_text(text.replace("[", "[ ", 1) if edit == "space" else text[:-9])
    for load in (lambda: load_local_profile(FINGERPRINT, "float32", threads=2), list_local_profiles):
        with pytest.raises(DamagedFileError, match="are damaged") as caught:
            load()
        assert caught.value.where == str(path)


def test_nothing_half_written_is_left(cache: Path) -> None:
    broken = dataclasses.replace(profile(), details={**profile().details, "load": object()})  # no JSON value
    with pytest.raises(TypeError):
        save_local_profile(broken)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_threads_are_torchs_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert threads_in_use() == torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    for stated, expected in (("3", 3), ("4,2", 4), ("", None), ("many", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert threads_in_use() == expected


def test_the_store_needs_no_torch() -> None:
    program = "import sys, offramp.costs.hardware as s; s.list_local_profiles(); s.machine_facts(1); "
    program += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
