"""`--transform`: refused before a model is looked at, shown, kept apart from the untransformed model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp
from command_line import run_offramp
from offramp.costs.machine_registry import list_local_profiles
from offramp.models import source
from offramp.policies.figures import PLAIN_DECODING
from offramp.studies import named_inputs
from offramp.tracing import loading
from offramp.tuning.tuned import read_tuned
from tiny_models import LAYERS

PRUNE = ("--transform", "prune:drop=2")
NAME = "tiny + prune:drop=2"


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Path:
    """A trace of the tiny model without its second layer."""
    folder = tmp_path_factory.mktemp("traces") / "pruned"
    work = f"jsonl:{documents}#text"
    run_offramp("trace", tiny_model, "-w", work, "--tokens", 700, *PRUNE, "-o", folder).require(0)
    return folder


COMMANDS: dict[str, tuple[object, ...]] = {
    "trace": ("trace", "smollm2", "-w", "prose", "-o", "OUT"),
    "run": ("run", "smollm2", "-o", "OUT"),
    "heads fit": ("heads", "fit", "smollm2", "-w", "prose", "-o", "OUT/heads.safetensors"),
    "hardware measure": ("hardware", "measure", "smollm2"),
    "generate": ("generate", "smollm2", "--prompt", "x"),
    "bench": ("bench", "smollm2", "--policy", "never"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_texts_are_refused_before_a_model_is_looked_at(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (source, named_inputs):  # imported here: a module that is imported later keeps the fake
        monkeypatch.setattr(module, "find_source", lambda *_, **__: pytest.fail("looked at"))
    words = [str(word).replace("OUT", str(tmp_path / "out")) for word in COMMANDS[command]]
    shown = run_offramp(*words, "--transform", "int8", "--transform", "intt8").require(2)
    assert "unknown transform 'intt8'" in shown.err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_deep_enough_is_refused(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    command = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "-o", tmp_path / "out"]
    shown = run_offramp(*command, "--transform", f"prune:drop={LAYERS + 1}").require(2)
    assert f"but the model has {LAYERS} layers" in shown.err
    assert not (tmp_path / "out").exists()


def test_a_trace_holds_the_untransformed_models_answers(
    traced: Path, tiny_model: Path, documents: Path
) -> None:
    trace = offramp.Trace.load(traced)
    assert trace.exits.tolist() == list(range(1, LAYERS))
    assert trace.request["model"]["name"] == NAME
    assert trace.request["model"]["transforms"] == ["prune:drop=2"]
    plain = offramp.load_model(str(tiny_model))
    own = offramp.trace(plain, f"jsonl:{documents}#text", tokens=700)
    assert np.array_equal(trace.token, own.token)
    assert np.array_equal(trace.reference_top1, own.top1[:, -1])
    assert trace.request["model"]["base_fingerprint"] == plain.identity.fingerprint


def test_the_same_folder_is_not_another_models(traced: Path, tiny_model: Path, documents: Path) -> None:
    command = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 700, "-o", traced]
    assert "holds another trace (it differs in: model" in run_offramp(*command).require(2).err
    run_offramp(*command, *PRUNE).require(0)


def test_score_replay_and_tune_show_it(traced: Path, tmp_path: Path) -> None:
    trace = offramp.Trace.load(traced)
    shown = run_offramp("score", traced).require(0)
    assert NAME in shown.out
    assert "original" in shown.out
    value = run_offramp("score", traced, "--json").json["scores"][0]
    last = np.mean(trace.top1[:, -1] == trace.reference_top1)
    assert value["reference_agreement"]["value"] == pytest.approx(last)
    shown = run_offramp("replay", traced, "--policy", "static:exit=2").require(0)
    assert "agreement with the original one" in shown.out
    value = run_offramp("replay", traced, "--policy", "static:exit=2", "--json").json
    assert value["reference_agreement"] == pytest.approx(np.mean(trace.top1[:, 1] == trace.reference_top1))
    tuning = ["tune", traced, "--hardware", "h100", "-o", tmp_path / "policy.json"]
    shown = run_offramp(*tuning, "--floor", "reference_agreement=0.5").require(0)
    assert "agreement with the original model" in shown.out
    tuned = read_tuned(tmp_path / "policy.json")
    assert tuned.certificate.executed
    assert tuned.candidates[0].policy == PLAIN_DECODING
    value = run_offramp(*tuning, "--floor", "agreement=0.9", "--json").json
    assert value["reference_agreement"]["value"] is not None
    predicted = ["predict", tmp_path / "policy.json", "--trace", traced, "--unseen"]
    assert run_offramp(*predicted, "--json").require(0).json["reference_agreement"]["value"] is not None


def test_timings_are_of_the_transformed_model_only(tiny_model: Path, traced: Path) -> None:
    replay = ["replay", traced, "--policy", "static:exit=2", "--hardware", "local"]
    run_offramp("hardware", "measure", tiny_model, "--seconds", 1, "--batches", "1").require(0)
    missing = run_offramp(*replay).require(2)
    assert f"offramp hardware measure {tiny_model} --transform prune:drop=2, or choose" in missing.err
    measure = ["hardware", "measure", tiny_model, "--seconds", 1, "--batches", "1", *PRUNE]
    profile = run_offramp(*measure, "--json").require(0).json["profile"]
    assert profile["details"]["model"]["name"] == NAME
    assert len({one.details["model"]["fingerprint"] for one in list_local_profiles()}) >= 2
    run_offramp(*replay).require(0)


def test_heads_belong_to_the_model_as_it_was_transformed(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, heads = f"jsonl:{documents}#text", tmp_path / "heads.safetensors"
    fit = ["heads", "fit", tiny_model, "-w", work, "--tokens", 300, "--no-classifiers", "-o", heads]
    run_offramp(*fit, *PRUNE).require(0)
    trace = ["trace", tiny_model, "-w", work, "--tokens", 100, "--heads", heads, "-o", tmp_path / "trace"]
    refused = run_offramp(*trace).require(2)
    assert NAME in refused.err
    assert f"offramp heads fit {tiny_model} --workload" in refused.err
    run_offramp(*trace, *PRUNE).require(0)
    asked = loading.find_model(
        str(tiny_model),
        loading.read_transforms(["prune:drop=3"], "float32"),
        dtype="float32",
        trust_remote_code=False,
    )
    assert asked.name == "tiny + prune:drop=3"
    generate = ["generate", tiny_model, "--prompt", "x", "--heads", heads, "--transform", "prune:drop=3"]
    generate += ["--policy", "static:exit=1"]
    monkeypatch.setattr(loading.ModelRequest, "load", lambda self: pytest.fail("loaded"))
    assert f"offramp heads fit {tiny_model} --transform prune:drop=3" in run_offramp(*generate).require(2).err


def test_who_a_model_will_be_is_known_unless_layers_are_to_be_measured(tiny_model: Path) -> None:
    files = source.find_source(str(tiny_model))

    def identity(*texts: str) -> Any:
        transforms = loading.read_transforms(texts, "float32")
        return loading.ModelRequest(files, transforms, "float32", False).identity

    assert identity().fingerprint == files.identity.fingerprint
    assert (
        identity("prune:drop=2").fingerprint
        == offramp.load_model(str(tiny_model), transforms=["prune:drop=2"]).identity.fingerprint
    )
    assert identity("prune:by=angular,layers=1") is None


def test_generate_and_bench_name_the_model(tiny_model: Path) -> None:
    value = run_offramp(
        "generate", tiny_model, "--prompt", "the cat", "--max-new-tokens", 3, *PRUNE, "--json"
    ).require(0)
    assert value.json["model"] == NAME
    refused = run_offramp("generate", tiny_model, "--prompt", "x", "-p", f"static:exit={LAYERS}", *PRUNE)
    refused.require(2)


def test_a_run_of_a_transformed_model_ends_in_a_page(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    command = ["run", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 480, "--no-decode", *PRUNE]
    value = run_offramp(*command, "-o", tmp_path / "run", "--json").require(0).json
    summary = json.loads(Path(value["summary"]).read_text())
    assert summary["provenance"]["model"] == NAME
    assert summary["provenance"]["transforms"] == ["prune:drop=2"]
    assert summary["scores"][0]["reference_agreement"]["value"] is not None
    traces = [path.name for path in (tmp_path / "run" / "traces").iterdir()]
    assert len(traces) == 1
    assert traces[0].startswith("tiny-prune-drop-2-")
    assert NAME in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["transforms"] == ["prune:drop=2"]
    other = [word for word in command if word not in PRUNE]
    assert "another run" in run_offramp(*other, "-o", tmp_path / "run").require(2).err


def test_what_was_found_out_of_a_model_before_its_transform_is_not_kept(tiny_model: Path) -> None:
    model = offramp.load_model(str(tiny_model))
    offramp.generate(model, "the cat", policy="static:exit=2", max_new_tokens=2)
    pruned = loading.read_transforms(["prune:drop=2"], "float32")[0].apply(model)
    out = offramp.generate(pruned, "the cat", policy="static:exit=2", max_new_tokens=3)
    fresh = offramp.load_model(str(tiny_model), transforms=["prune:drop=2"])
    assert out.tokens == offramp.generate(fresh, "the cat", policy="static:exit=2", max_new_tokens=3).tokens
