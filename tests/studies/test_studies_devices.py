"""Studies on a device, and models at a revision: what is refused, and what changes a task's key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_files import plan_of, small_world, study_of, write_model, write_study

from offramp.costs.machine_registry import machine_facts
from offramp.errors import InputError
from offramp.models.source import name_object
from offramp.studies.study import StudyPlan
from offramp.studies.study_checks import read_study
from offramp.tracing.loading import load_model

TEXT = 'models = ["a"]\nworkloads = ["txt:one.txt"]\nmachines = ["local"]\n'
SETTINGS = 'name = "small"\nthreads = 1\ntokens = 64\n'


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with two accelerators, which nothing computes on here."""
    from offramp.models import devices

    monkeypatch.setattr(devices, "device_count", lambda kind: 2 if kind == "cuda" else 0)
    monkeypatch.setattr(devices, "device_memory", lambda device: 2**36)
    monkeypatch.setattr("offramp.costs.machine_registry.device_name", lambda device: f"card {device}")
    monkeypatch.setattr("offramp.studies.named_inputs.device_memory", lambda device: 2**36)


def plan_on(folder: Path, device: str | None) -> StudyPlan:
    stated = "" if device is None else f'device = "{device}"\n'
    return plan_of(small_world(folder), TEXT, SETTINGS + stated)


def recipes_of(plan: StudyPlan) -> dict[str, dict[str, Any]]:
    return {task.kind: dict(task.recipe) for task in plan.tasks.values()}


def test_on_the_processor_keys_say_nothing_of_devices(tmp_path: Path) -> None:
    plain, stated = plan_on(tmp_path, None), plan_on(tmp_path, "cpu")
    assert set(plain.tasks) == set(stated.tasks)
    assert not any("device" in recipe for recipe in recipes_of(plain).values())


@pytest.mark.usefixtures("two_cards")
def test_an_accelerator_stands_in_the_keys_of_what_is_computed_there(tmp_path: Path) -> None:
    found = {device: plan_on(tmp_path, device) for device in ("auto", "cuda", "cuda:1", "cpu")}
    assert set(found["auto"].tasks) == set(found["cuda"].tasks)
    on_card, on_other, on_cpu = (recipes_of(found[device]) for device in ("cuda", "cuda:1", "cpu"))
    assert (on_card["trace"]["device"], on_other["trace"]["device"]) == ("cuda:0", "cuda:1")
    assert "device" not in on_card["score"]  # which reads the trace alone
    assert on_card["profile"]["machine"]["processor"] == "card cuda:0"
    assert on_card["profile"]["machine"]["host"] == on_cpu["profile"]["machine"]["processor"]
    assert all(task.exclusive for task in found["cuda"].tasks.values() if "device" in task.recipe)


def test_attention_that_an_object_was_loaded_with_stands_in_its_keys(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_model)
    recipes = {}
    for attention in (None, "eager"):
        named = replace(model, attention=attention)
        of_object = TEXT.replace('["a"]', f'[{{name = "mine", source = "{name_object(named)}"}}]')
        recipes[attention] = recipes_of(plan_of(small_world(tmp_path / "world"), of_object, SETTINGS))
    for kind in ("trace", "profile"):
        own = recipes[None][kind]["model"]
        assert "attention" not in own
        assert recipes["eager"][kind]["model"] == {**own, "attention": "eager"}


@pytest.mark.usefixtures("two_cards")
def test_the_facts_of_a_machine_name_its_device() -> None:
    on_card, on_cpu = machine_facts(3, "cuda:1"), machine_facts(3)
    assert on_card == {**on_cpu, "processor": "card cuda:1", "host": on_cpu["processor"]}


@pytest.mark.parametrize(
    ("setting", "key", "what"),
    [
        ('device = "gpu"', "device", "unknown device 'gpu'"),
        ('device = "cuda:63"', "device", "there is no device cuda:63 here"),
        ('dtype = "auto"', "dtype", "the dtype of a study is the same for all of its models"),
    ],
)
def test_a_setting_that_cannot_be_had_is_refused_with_its_line(
    tmp_path: Path, setting: str, key: str, what: str
) -> None:
    path = write_study(small_world(tmp_path), TEXT, f"{SETTINGS}{setting}\n")
    with pytest.raises(InputError) as caught:
        read_study(path)
    assert caught.value.what == what
    assert f"line 9, study.{key}" in caught.value.where


def test_a_model_at_a_revision_is_found_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    snapshots = {
        None: write_model(tmp_path / "snapshots" / "0123", layers=3, seed=5),
        "step-100": write_model(tmp_path / "snapshots" / "4567", layers=3, seed=6),
    }

    def here(name: str, revision: str | None = None, **_: object) -> str:
        asked.append((name, revision))
        return str(snapshots[revision])

    monkeypatch.setattr("huggingface_hub.snapshot_download", here)
    text = 'models = ["org/name", "org/name@step-100"]\nworkloads = ["txt:one.txt"]\nmachines = ["h100"]\n'
    plan = plan_of(small_world(tmp_path), text)
    assert set(asked) == {("org/name", None), ("org/name", "step-100")}
    assert not plan.unavailable
    traces = [task for task in plan.tasks.values() if task.kind == "trace"]
    assert {task.sources["model"] for task in traces} == {"org/name", "org/name@step-100"}
    assert len({task.recipe["model"]["fingerprint"] for task in traces}) == 2
    # Checkpoints of one training are not independent of each other.
    assert {model.base for model in study_of(tmp_path, text).models} == {"org/name"}
