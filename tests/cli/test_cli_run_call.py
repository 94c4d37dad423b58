"""`offramp.run`: the same run as the command's, of a name or of a model object."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import offramp
from offramp.errors import InputError, WorkloadError
from offramp.studies.folder import StudyFolder
from tiny_models import LINES

TEXTS = [f"{line} {number}" for number in range(12) for line in LINES]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> offramp.Model:
    loaded = offramp.load_model(str(tiny_model))
    return offramp.wrap(loaded.hf, loaded.tokenizer, name="mine")


@pytest.fixture(scope="module")
def found(model: offramp.Model, tmp_path_factory: pytest.TempPathFactory) -> offramp.Findings:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    texts = offramp.workload_of(TEXTS, name="lines")
    return offramp.run(model, texts, tokens=160, decode=False, output=folder)


def test_findings_are_those_of_the_summary(found: offramp.Findings) -> None:
    said = json.loads((found.folder / "summary.json").read_text())["verdict"]
    verdicts = said["by_workload"]
    dicts = found.to_dicts()
    assert len(found) == len(verdicts) == len(dicts) == 3
    for one, verdict in zip(dicts, verdicts, strict=True):
        assert one["floor"] == f"agreement={verdict['floor']:g}"
        assert (one["decision"], one["policy"]) == (verdict["decision"], verdict["policy"])
        assert all(isinstance(value, (str, float, list, type(None))) for value in one.values())
    assert found.headline == said["headline"]
    assert found.decision == found.main[0].decision


def test_it_is_quiet_unless_asked_and_does_nothing_twice(
    model: offramp.Model, found: offramp.Findings, capfd: pytest.CaptureFixture[str]
) -> None:
    before = StudyFolder(found.folder).journal.read().events
    for progress in (False, True):
        again = offramp.run(
            model,
            offramp.workload_of(TEXTS, name="lines"),
            tokens=160,
            decode=False,
            output=found.folder,
            progress=progress,
        )
        said = capfd.readouterr()
        assert said.out == ""
        assert bool(said.err) == progress
    assert again.to_dicts() == found.to_dicts()
    done = [event for event in StudyFolder(found.folder).journal.read().events if event.event == "finished"]
    assert len(done) == sum(event.event == "finished" for event in before)


def test_a_run_of_an_object_that_changed_is_another_one(tiny_model: Path, tmp_path: Path) -> None:
    loaded = offramp.load_model(str(tiny_model))
    model = offramp.wrap(loaded.hf, loaded.tokenizer, name="changing")
    options: dict[str, Any] = {"tokens": 96, "decode": False, "output": tmp_path / "run", "hardware": "h100"}
    texts = offramp.workload_of(TEXTS, name="lines")
    offramp.run(model, texts, **options)
    eager = offramp.load_model(tiny_model, attn_implementation="eager")
    with pytest.raises(InputError, match="another run"):
        offramp.run(offramp.wrap(eager.hf, eager.tokenizer, name="changing"), texts, **options)
    with torch.no_grad():
        model.hf.lm_head.weight[3] += 0.5
    with pytest.raises(InputError, match="another run"):
        offramp.run(model, texts, **options)


def test_it_shows_itself_and_its_parts_without_the_network(found: offramp.Findings) -> None:
    row = found.result.workloads[0]
    for value in (found, row.card, row.trace):
        page = value._repr_html_()
        assert page.startswith("<iframe")
        assert "&lt;!doctype html&gt;" in page
        assert "http://" not in page.replace("http://www.w3.org", "")
    finding = next(iter(found))
    assert finding.place in finding._repr_html_().replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "does not pay" in next(iter(found))._repr_html_()
        or "close to call" in next(iter(found))._repr_html_()
    )


def cut_to_size() -> offramp.Workload:
    """A workload of another content than its name means."""
    whole = offramp.load_workload("chat")
    return replace(whole, documents=whole.documents[:60])


def renamed() -> offramp.Workload:
    """A workload whose name was given to another one since."""
    first = offramp.workload_of(TEXTS, name="taken")
    KEPT.append(offramp.workload_of(TEXTS[1:], name="taken"))
    return first


KEPT: list[offramp.Workload] = []


def test_a_model_object_that_is_not_wrapped_is_told_how(model: offramp.Model) -> None:
    for call in (offramp.run, offramp.trace, offramp.generate):
        with pytest.raises(InputError, match="cannot be a LlamaForCausalLM") as refused:
            call(model.hf, "prose")
        assert "offramp.wrap" in refused.value.fix


def test_a_model_that_offramp_transformed_is_named_and_not_given(tiny_model: Path, tmp_path: Path) -> None:
    pruned = offramp.load_model(str(tiny_model), transforms="prune:drop=2")
    with pytest.raises(InputError, match="transformed by offramp"):
        offramp.run(pruned, offramp.workload_of(TEXTS), tokens=96, output=tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"worth": -1.0}, InputError),
        ({"minutes": 5.0, "decode": False}, InputError),
        ({"minutes": 0.0}, InputError),
        ({"floors": 95.0}, InputError),
        ({"floors": []}, InputError),
        ({"tokens": 0}, InputError),
        ({"exits": "9"}, InputError),
        ({"transforms": ["int8"]}, InputError),
        ({"hardware": "no such machine"}, InputError),
        ({"workloads": "no such text"}, WorkloadError),
        ({"workloads": offramp.workload_of(TEXTS[:5])}, InputError),
        ({"workloads": []}, InputError),
        ({"workloads": cut_to_size()}, InputError),
        ({"workloads": renamed()}, InputError),
        ({"workloads": [renamed(), KEPT[-1]]}, InputError),
        ({"workloads": TEXTS}, WorkloadError),
    ],
)
def test_bad_input_is_refused_before_a_folder_is_made(
    model: offramp.Model, tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    given = {"workloads": offramp.workload_of(TEXTS), "tokens": 96, **options}
    with pytest.raises(error):
        offramp.run(model, output=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
