"""`offramp predict`: equal to the Python interface, readable, and clear about bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import run_offramp
from offramp.policies.grammar import parse_policy
from offramp.tracing.trace import Trace
from offramp.tuning.predict import predict
from offramp.tuning.tune import tune
from offramp.tuning.tuned import Tuned, read_tuned, shift_of, write_tuned
from tiny_models import write_documents

POLICY = "threshold:signal=hidden_cosine,value=0.9,exits=1+3"


def traced(folder: Path, model: Path, seed: int) -> Path:
    texts = write_documents(folder / f"texts-{seed}.jsonl", documents=24, seed=seed)
    output = folder / f"trace-{seed}"
    command = ["trace", model, "-w", f"jsonl:{texts}#text", "--tokens", 480, "-o", output]
    run_offramp(*command).require(0)
    return output


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """Traces of one model on two workloads."""
    folder = tmp_path_factory.mktemp("predict")
    return traced(folder, tiny_model, 0), traced(folder, tiny_model, 1)


@pytest.fixture(scope="module")
def tuned_file(traces: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned policy that probes, whatever the tuner finds on so small a model."""
    trace = Trace.load(traces[0])
    found: Tuned = tune(trace, {"agreement": 0.5}, None)
    found = replace(found, policy=parse_policy(POLICY), shift=shift_of(trace, parse_policy(POLICY)))
    path = tmp_path_factory.mktemp("policies") / "policy.json"
    write_tuned(path, found)
    return path


def test_the_command_and_the_function_agree(tuned_file: Path, traces: tuple[Path, Path]) -> None:
    command = ["predict", tuned_file, "--trace", traces[1]]
    value = run_offramp(*command, "--json").require(0).json
    found = predict(read_tuned(tuned_file), Trace.load(traces[1]))
    assert value["policy"] == POLICY
    assert value["net_speedup"] == vars(found.net_speedup)
    assert value["quality"] == vars(found.quality)
    assert (value["floor"], value["floor_answer"]) == ("agreement=0.5", found.floor_answer)
    assert (value["risk_low"], value["risk_high"]) == (found.risk_low, found.risk_high)
    assert [row["other"]["exit"] for row in value["shift"]] == [1, 3]
    assert value["notes"] == list(found.notes)


def test_what_is_shown(tuned_file: Path, traces: tuple[Path, Path]) -> None:
    shown = run_offramp("predict", tuned_file, "--trace", traces[1]).require(0)
    for part in (
        POLICY.split(",")[0],
        "speed over the full model",
        "saved of plain decoding",
        "full model",
        "the floor agreement=0.5",
        "delta 0.1",
        "tuned on",
        "here",
        "note: ",
    ):
        assert part in shown.out
    for line in shown.out.splitlines():
        assert len(line) <= 80, line


def test_another_machine_and_batch(tuned_file: Path, traces: tuple[Path, Path]) -> None:
    command = ["predict", tuned_file, "--trace", traces[1], "--hardware", "h100", "--batch", 4, "--json"]
    value = run_offramp(*command).require(0).json
    found = predict(read_tuned(tuned_file), Trace.load(traces[1]), hardware="h100", batch=4)
    assert value["seconds_per_token"]["value"] == found.seconds_per_token.value < 1.0
    assert (value["machine"], value["batch"]) == (found.machine, 4)
    assert value["batching"] == "lockstep"
    assert "batch 4 in lockstep" in " ".join(run_offramp(*command[:-1]).require(0).out.split())


def test_any_policy_can_be_predicted_and_an_oracle_is_marked(traces: tuple[Path, Path]) -> None:
    value = run_offramp("predict", "static:exit=2", "--trace", traces[0], "--json").require(0).json
    assert value["floor"] is value["floor_answer"] is None
    assert value["skip_ratio"]["value"] == 0.5
    assert value["shift"] == []
    oracle = run_offramp("predict", "oracle:which=saturation", "--trace", traces[0], "--json").require(0)
    assert oracle.json["reachable"] is False
    assert "An oracle" in " ".join(oracle.json["notes"])


def test_the_same_documents_are_refused_unless_left_out(tuned_file: Path, traces: tuple[Path, Path]) -> None:
    refused = run_offramp("predict", tuned_file, "--trace", traces[0]).require(2)
    assert "of the trace's documents were used to tune the policy" in refused.err
    assert "--unseen" in refused.err
    value = run_offramp("predict", tuned_file, "--trace", traces[0], "--unseen", "--json").require(0).json
    assert value["documents"] == read_tuned(tuned_file).documents["report"]


def test_a_run_of_two_texts_is_asked_which(finished_run: Path) -> None:
    """Also where the policy is of one of them: the question is of another text."""
    policy = next((finished_run / "policies").glob("*agreement*"))
    refused = run_offramp("predict", policy, "--trace", finished_run).require(2).err
    assert "the run has 2 traces" in refused
    assert all(str(trace) in refused for trace in finished_run.glob("traces/*/*"))


def test_what_is_no_trace_or_no_policy_of_this_model_is_refused(
    tuned_file: Path, traces: tuple[Path, Path], tmp_path: Path
) -> None:
    assert "--trace" in run_offramp("predict", "never").require(2).err
    run_offramp("predict", "never", "--trace", tmp_path).require(2)
    value, edited = json.loads(tuned_file.read_text()), tmp_path / "edited.json"
    edited.write_text(json.dumps(value | {"policy": "static:exit=1"}))
    assert "edited" in run_offramp("predict", edited, "--trace", traces[1]).require(2).err
    other = read_tuned(tuned_file)
    write_tuned(edited, replace(other, model={**other.model, "fingerprint": "0" * 64}))
    refused = run_offramp("predict", edited, "--trace", traces[1]).require(2)
    assert "tuned for another model" in refused.err
    assert "tune a policy on a trace of this model" in refused.err


@pytest.mark.parametrize("option", ["--from-scores", "--score", "--level", "--floor"])
def test_a_saving_from_a_score_is_refused_with_what_to_use_instead(
    traces: tuple[Path, Path], option: str
) -> None:
    command = ["predict", "never", "--trace", traces[0], option, "x"]
    error = run_offramp(*command, "--json").require(2).json["error"]
    assert error["what"] == f"{option} is no option any more"
    assert "experiments/claims/predict.py" in error["fix"]
    assert option not in run_offramp("predict", "--help").require(0).out
