"""`offramp bench`: one real measurement of a tiny model, what is shown and kept of it, and bad input."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console

import offramp
from command_line import Outcome, run_offramp
from offramp.cli import bench_stage
from offramp.cli.bench_stage import show
from offramp.errors import OfframpError
from offramp.kit.typed import from_json
from offramp.policies.grammar import parse_policy
from offramp.timing.results import RESULTS, BenchResult
from tiny_models import write_llama

POLICY = "static:exit=2"


pytestmark = pytest.mark.usefixtures("uncollected")


@pytest.fixture(scope="module")
def workload(documents: Path) -> str:
    return f"jsonl:{documents}#text"


def command(model: Path, workload: str, *further: object) -> list[object]:
    sizes = ["--rounds", 2, "--new-tokens", 8, "--prompt-tokens", 10, "--prompts", 2]
    return ["bench", model, "--policy", POLICY, "-w", workload, *sizes, *further]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its timings on this machine in the tests' own cache."""
    from offramp.costs.machine_registry import save_local_profile

    folder = write_llama(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=512)
    loaded = offramp.load_model(str(folder))
    save_local_profile(offramp.measure_hardware(loaded, budget_seconds=0.5, batches=(1, 2)))
    return folder


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, model: Path, workload: str, uncollected: None
) -> tuple[Outcome, Path, Path]:
    """One measurement at two batch sizes, predicted from a trace, with its files."""
    folder = tmp_path_factory.mktemp("bench")
    trace, output = folder / "trace", folder / "bench.json"
    run_offramp("trace", model, "-w", workload, "--tokens", 480, "-o", trace).require(0)
    further = ["--trace", trace, "--batch", 1, "--batch", 2, "-o", output, "--json"]
    outcome = run_offramp(*command(model, workload, *further)).require(0)
    return outcome, output, trace


def test_the_file_and_the_last_line_hold_the_same_results(measured: tuple[Outcome, Path, Path]) -> None:
    outcome, output, _ = measured
    results = RESULTS.read(output)
    assert [from_json(BenchResult, result) for result in outcome.json["results"]] == list(results)
    assert outcome.json["file"] == str(output)
    assert [result.batch for result in results] == [1, 2]
    assert outcome.json["answer"] == results[0].answer
    assert results[0].answer in ("faster", "slower", "equivalent", "unresolved")
    assert list(output.parent.glob(".writing-*")) == []


def test_the_last_line_has_every_contender_with_its_answer(measured: tuple[Outcome, Path, Path]) -> None:
    first = RESULTS.read(measured[1])[0]
    found = {one["name"]: one for one in measured[0].json["contenders"]}
    policy = found[f"{POLICY} (propagate)"]
    assert {"answer", "ratio", "low", "high", "executed_agreement", "gain", "counted", "resolution"} <= set(
        policy
    )
    assert policy["low"] < policy["ratio"] < policy["high"]
    assert policy["counted"]["layers"] == 2.0
    assert first.free_running is not None
    assert policy["executed_agreement"] == first.free_running.agreement.value
    plain = found[first.plain]
    assert (plain["ratio"], plain["answer"], plain["executed_agreement"]) == (1.0, "equivalent", 1.0)
    assert plain["credit"]["high"] <= 1.0
    assert [name for name, one in found.items() if one["role"] == "a/a"]
    assert not any(one["answer"] == "defect" for one in found.values())


def test_predicted_stands_beside_measured(measured: tuple[Outcome, Path, Path]) -> None:
    for result in RESULTS.read(measured[1]):
        (forecast,) = result.forecasts
        assert (forecast.policy, forecast.kv, forecast.batch) == (POLICY, "propagate", result.batch)
        assert forecast.predicted is not None
        assert forecast.predicted_skip == forecast.measured_skip == 0.5
        assert forecast.measured == result.contender(f"{POLICY} (propagate)").seconds_per_token
        assert {part.part for part in forecast.parts} >= {"layers", "K,V repair", "heads", "overhead"}
        assert result.free_running is not None
        assert forecast.measured_agreement == result.free_running.agreement.value


def test_what_is_shown(measured: tuple[Outcome, Path, Path]) -> None:
    shown = measured[0].err  # with --json people read standard error
    for part in (
        f"{POLICY} (propagate) on tiny: 2 prompts, 8 new tokens, 2 rounds",
        "counted, a token: 2.0 of 4 layers, 1.0 heads; ",
        "batch 2 in lockstep",
        "layers ran / said",
        "2.0 / 2.0",
        "tokens a second",
        "the rounds were over after ",
        "in one call generate() took ",
        "its gain by prices: layers",
        "free running, 2 answers:",
        "its parts: layers ",
        "left out: generate(prompt_lookup_num_tokens)",
        "written: ",
    ):
        assert part in " ".join(shown.split()), part
    assert [line for line in shown.splitlines() if len(line) > 80 and not line.startswith("written")] == []


def test_a_policy_within_another_is_shown_whole(measured: tuple[Outcome, Path, Path]) -> None:
    name = "shortlist:policy=[threshold:signal=restricted_margin,value=0.5,exits=1+2] (propagate)"
    result = RESULTS.read(measured[1])[0]
    named = tuple(replace(one, name=name) if one.role == "policy" else one for one in result.contenders)
    console = Console(file=io.StringIO(), width=200)
    show(console, replace(result, contenders=named))
    assert console.file.getvalue().count(name) == 4  # type: ignore[attr-defined]


def test_without_timings_of_the_machine_nothing_is_predicted(tmp_path: Path, workload: str) -> None:
    other = write_llama(tmp_path / "other", num_hidden_layers=3)
    outcome = run_offramp(*command(other, workload, "--no-peers", "--no-quality", "--seconds", 0)).require(0)
    said = "".join(outcome.out.split())  # a long path is broken at any letter
    for words in (
        "nothing is predicted: there are no timings of this model on this machine",
        f"offramp hardware measure {other}, or choose from",
    ):
        assert words.replace(" ", "") in said
    assert "free running" not in said
    assert "generate(assistant" not in said


def test_a_trace_without_timings_is_refused_before_anything_is_timed(
    measured: tuple[Outcome, Path, Path], tmp_path: Path, workload: str
) -> None:
    other = write_llama(tmp_path / "other", num_hidden_layers=3)
    with mock.patch("offramp.cli.bench_stage.run", side_effect=AssertionError("timed")):
        outcome = run_offramp(*command(other, workload, "--trace", measured[2])).require(2)
        assert "there are no timings of this model" in outcome.err
        outcome = run_offramp(
            *command(other, workload, "--trace", measured[2], "--hardware", "h100")
        ).require(2)
        assert "the trace is of another model" in outcome.err


def test_too_few_seconds_for_an_answer_give_the_honest_one(tiny_model: Path, workload: str) -> None:
    sizes = ["--new-tokens", 5, "--prompt-tokens", 8, "--no-peers", "--no-quality", "--json"]
    outcome = run_offramp("bench", tiny_model, "-p", "never", "-w", workload, "--seconds", 0, *sizes)
    found = outcome.require(0).json
    (policy,) = [one for one in found["contenders"] if one["role"] == "policy"]
    # Never to exit may be faster or slower than generate(), or seem so on two prompts: the interval says it.
    assert found["answer"] == policy["answer"] in ("unresolved", "faster", "slower", "equivalent")
    assert policy["answer"] != "faster" or policy["low"] > 1.0
    assert policy["answer"] != "slower" or policy["high"] < 1.0
    assert found["results"][0]["stopped"] == "seconds"
    assert found["results"][0]["prompts"] == 2  # the fewest that have an interval


def test_a_tuned_policy_is_held_to_its_floor(
    measured: tuple[Outcome, Path, Path], model: Path, workload: str, tmp_path: Path
) -> None:
    from offramp.tuning.tuned import write_tuned

    trace = offramp.Trace.load(measured[2])
    tuned = offramp.tune(trace, floor={"agreement": 0.5}, hardware="h100")
    promised = replace(
        tuned,
        policy=parse_policy(POLICY),
        floor=replace(tuned.floor, value=0.999),
        certificate=replace(tuned.certificate, holds=True),
    )
    write_tuned(tmp_path / "policy.json", promised)
    sizes = ["--new-tokens", 8, "--prompt-tokens", 8, "--rounds", 1, "--prompts", 2, "--no-peers"]
    arguments = ["bench", model, "-p", tmp_path / "policy.json", "-w", workload, *sizes, "--json"]
    outcome = run_offramp(*arguments).require(0)
    (result,) = outcome.json["results"]
    assert result["floor"]["floor"] == "agreement=0.999"
    assert result["floor"]["kept"]["value"] < 0.999
    assert "BELOW ITS FLOOR: " in outcome.err
    assert "under the policy's certified floor agreement=0.999" in " ".join(outcome.err.split())


def test_fresh_processes_are_one_measurement(
    tiny_model: Path, workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose commands are run here, one after another; below one is started."""
    monkeypatch.setattr(bench_stage, "_run", lambda words: run_offramp(*words).require(0))
    output = tmp_path / "bench.json"
    sizes = ["--new-tokens", 5, "--prompt-tokens", 8, "--prompts", 2, "--rounds", 1, "--no-peers"]
    command = ["bench", tiny_model, "-p", POLICY, "-w", workload, *sizes, "--processes", 2, "-o", output]
    run_offramp(*command).require(0)
    (result,) = RESULTS.read(output)
    assert result.processes == 2
    assert [(one.process, one.prompt) for one in result.main.clusters] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert result.free_running is not None  # by the first


def test_what_a_fresh_process_said_when_it_failed_is_said() -> None:
    with pytest.raises(OfframpError, match=r"a fresh process failed: .*no/such/model"):
        bench_stage._run(["bench", "no/such/model", "-p", POLICY])


def test_a_policy_must_be_given(tiny_model: Path) -> None:
    outcome = run_offramp("bench", tiny_model, "--json").require(2)
    error: dict[str, Any] = json.loads(outcome.out.splitlines()[-1])["error"]
    assert "policy must be given" in error["what"]
