"""`offramp predict`: equal to the Python interface, readable, and clear about bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import run_offramp
from offramp.policies.grammar import parse_policy
from offramp.scoring.scoring import score
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor
from offramp.tuning.predict import predict
from offramp.tuning.tune import tune
from offramp.tuning.tuned import Tuned, read_tuned, shift_of, write_tuned
from tiny_models import write_documents, write_llama

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
    found = replace(found, policy_text=POLICY, shift=shift_of(trace, parse_policy(POLICY)))
    path = tmp_path_factory.mktemp("policies") / "policy.json"
    write_tuned(path, found)
    return path


def test_the_command_and_the_function_agree(tuned_file: Path, traces: tuple[Path, Path]) -> None:
    command = ["predict", tuned_file, "--trace", traces[1]]
    value = run_offramp(*command, "--json").require(0).json
    found = predict(read_tuned(tuned_file), Trace.load(traces[1]))
    assert value["policy"] == POLICY
    assert value["net_speedup"] == found.net_speedup.to_json()
    assert value["quality"] == found.quality.to_json()
    assert (value["floor"], value["floor_answer"]) == ("agreement=0.5", found.floor_answer)
    assert (value["risk_low"], value["risk_high"]) == (found.risk_low, found.risk_high)
    assert [row["exit"] for row in value["shift"]] == [1, 3]
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


def test_a_floor_in_nats_is_shown_in_nats(
    tuned_file: Path, traces: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    write_tuned(path, replace(read_tuned(tuned_file), floor=Floor("nll", 0.02, clip=1.0)))
    shown = run_offramp("predict", path, "--trace", traces[1]).require(0).out
    assert "NLL increase, clipped" in shown
    assert "the floor nll=0.02" in shown


def test_another_machine_and_batch(tuned_file: Path, traces: tuple[Path, Path]) -> None:
    command = ["predict", tuned_file, "--trace", traces[1], "--hardware", "h100", "--batch", 4, "--json"]
    value = run_offramp(*command).require(0).json
    found = predict(read_tuned(tuned_file), Trace.load(traces[1]), hardware="h100", batch=4)
    assert value["seconds_per_token"] == found.seconds_per_token < 1.0
    assert (value["machine"], value["batch"]) == (found.machine, 4)
    assert value["batching"] == "lockstep"
    assert "batch 4 in lockstep" in " ".join(run_offramp(*command[:-1]).require(0).out.split())


def test_an_oracle_is_marked(traces: tuple[Path, Path]) -> None:
    outcome = run_offramp("predict", "oracle:which=saturation", "--trace", traces[0], "--json").require(0)
    assert outcome.json["reachable"] is False
    assert "An oracle" in " ".join(outcome.json["notes"])


def test_any_policy_can_be_predicted(traces: tuple[Path, Path]) -> None:
    value = run_offramp("predict", "static:exit=2", "--trace", traces[0], "--json").require(0).json
    assert value["floor"] is value["floor_answer"] is None
    assert value["skip_ratio"]["value"] == 0.5
    assert value["shift"] == []


def test_the_same_documents_are_refused_unless_left_out(tuned_file: Path, traces: tuple[Path, Path]) -> None:
    refused = run_offramp("predict", tuned_file, "--trace", traces[0]).require(2)
    assert "of the trace's documents were used to tune the policy" in refused.err
    assert "--unseen" in refused.err
    value = run_offramp("predict", tuned_file, "--trace", traces[0], "--unseen", "--json").require(0).json
    assert value["documents"] == read_tuned(tuned_file).documents["report"]


def test_a_policy_of_another_model_is_refused(tuned_file: Path, tmp_path: Path) -> None:
    other = write_llama(tmp_path / "other", hidden_size=48, intermediate_size=96)
    refused = run_offramp("predict", tuned_file, "--trace", traced(tmp_path, other, 2)).require(2)
    assert "tuned for another model" in refused.err
    assert "tune a policy on a trace of this model" in refused.err


def test_an_edited_or_newer_file_is_refused(
    tuned_file: Path, traces: tuple[Path, Path], tmp_path: Path
) -> None:
    value = json.loads(tuned_file.read_text())
    edited, newer = tmp_path / "edited.json", tmp_path / "newer.json"
    edited.write_text(json.dumps(value | {"policy": "static:exit=1"}))
    newer.write_text(json.dumps(value | {"schema_version": 99}))
    assert "edited" in run_offramp("predict", edited, "--trace", traces[1]).require(2).err
    assert "schema version 99" in run_offramp("predict", newer, "--trace", traces[1]).require(2).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to predict with"),
        (["static:exit=2", "--from-scores", "cells.json"], "a policy and --from-scores are given"),
        (["static:exit=9"], "exit 9"),
        (["static:exit=x"], "not an exit"),
        (["absent.json"], "absent.json"),
        (["static:exit=2", "--hardware", "h10"], "h100"),
        (["static:exit=2", "--batch", "0"], "batch of 0"),
        (["static:exit=2", "--batch", "4"], "--hardware"),
        (["static:exit=2", "--seed", "-1"], "a seed of -1 is below 0"),
        (["static:exit=2", "--hardware", "h100", "--kv", "copy"], "unknown strategy 'copy'"),
        (["--from-scores", "absent.json"], "cells cannot be read"),
        (["static:exit=2", "--floor", "agreement=0.9"], "--floor means nothing with a policy"),
        (["static:exit=2", "--level", "0.8"], "--level means nothing with a policy"),
        (["--from-scores", "absent.json", "--batch", "8"], "--batch means nothing with --from-scores"),
        (["--from-scores", "absent.json", "--unseen"], "--unseen means nothing with --from-scores"),
        ([f"{POLICY}+4"], "exit 4"),
        (["threshold:signal=restricted_margin,value=0.9,exits=2"], "--signals"),
    ],
)
def test_bad_input(traces: tuple[Path, Path], arguments: list[str], message: str) -> None:
    refused = run_offramp("predict", *arguments, "--trace", traces[1], "--json").require(2)
    assert message in refused.err
    assert refused.json["error"]["exit_code"] == 2


def test_a_trace_must_be_given_and_be_one(tmp_path: Path) -> None:
    assert "--trace" in run_offramp("predict", "never").require(2).err
    run_offramp("predict", "never", "--trace", tmp_path).require(2)


def write_cells(path: Path, bases: int) -> Path:
    cells: list[dict[str, Any]] = [
        {
            "model": f"m{base}",
            "base": f"b{base}",
            "scores": {"composite": base / 20, "representation": 0.2},
            "saving": base / 40,
            "floor": "agreement=0.99",
            "machine": "h100",
        }
        for base in range(bases)
    ]
    path.write_text("\n".join(map(json.dumps, cells)))
    return path


def test_from_scores(traces: tuple[Path, Path], tmp_path: Path) -> None:
    cells = write_cells(tmp_path / "cells.jsonl", 14)
    command = ["predict", "--from-scores", cells, "--trace", traces[0], "--score", "representation"]
    value = run_offramp(*command, "--json").require(0).json
    card = score(Trace.load(traces[0]))
    assert value["value"] == card.candidates["representation"]
    assert value["low"] <= value["saving"] <= value["high"]
    assert (value["bases"], value["level"], value["machine"]) == (14, 0.9, "h100")
    shown = run_offramp(*command).require(0).out
    assert "predicted saving of time" in shown
    assert "14 independently trained models" in shown


def test_from_too_few_scores_nothing_is_predicted(traces: tuple[Path, Path], tmp_path: Path) -> None:
    cells = write_cells(tmp_path / "cells.jsonl", 5)
    refused = run_offramp("predict", "--from-scores", cells, "--trace", traces[0]).require(2)
    assert "not predictable: 5 independently trained models, 12 needed" in refused.err
