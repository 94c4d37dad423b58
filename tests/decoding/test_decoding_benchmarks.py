"""The benchmarks of decoding run through on a tiny model; their figures mean nothing there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import benchmark

import offramp
from tiny_models import LINES, write_llama

SHORT = ["--new-tokens", "5", "--rounds", "1", "--prompts", "1", "--profile-seconds", "0.01"]


@pytest.fixture(scope="module")
def model_and_text(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("benchmarks")
    text = folder / "text.txt"
    text.write_text("\n\n".join(LINES * 4), encoding="utf-8")
    return str(write_llama(folder / "llama")), f"txt:{text}"


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return found


def test_decoding_in_all_its_parts(
    model_and_text: tuple[str, str], documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text = model_and_text[0], f"jsonl:{documents}#text"
    module = benchmark("decoding")
    module.main(["--model", model, "--workload", text, "--dtypes", "float32", "--draft-length", "2", *SHORT])
    found = last_line(capsys)["float32"]
    assert set(found) == {*module.PARTS, "profile_check"}
    assert found["never-exit"]["never_exit_over_generate"]["value"] > 0
    static = found["static"]
    assert [(row["exit"], row["kv"]) for row in static["exits"]] == [
        (exit, kv) for exit in (1, 2, 3) for kv in module.WITHOUT_DRAFTS
    ]
    shares = [row["ideal_seconds_per_token"] for row in static["exits"] if row["kv"] == "recompute"]
    assert shares == sorted(shares)
    assert shares[-1] < static["never_exit_seconds_per_token"]
    assert all(row["over_ideal"]["value"] > 0 for row in static["exits"])
    assert found["speculate"]["exits"][0]["exit"] == 3
    assert found["speculate"]["exits"][0]["assistant_over_speculate"]["value"] > 0
    for batching in ("lockstep", "rebatch"):
        assert found["batch"][batching]["tokens_per_second"] > 0
        assert found["batch"][batching]["answer"] in ("faster", "slower", "equivalent", "unresolved")
        assert found["batch"][batching]["defects"] == []


def test_predictions_are_written_down_before_they_are_judged(
    model_and_text: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, text = model_and_text
    module = benchmark("prediction")
    module.main(
        [
            *("--model", model, "--workload", text, "--dtypes", "float32", "--trace-tokens", "40"),
            *("--output", str(tmp_path), *SHORT),
        ]
    )
    found = last_line(capsys)
    written = json.loads((tmp_path / "predictions-float32.json").read_text(encoding="utf-8"))
    # 3 static exits with 4 strategies, 2 thresholds on 2 signals.
    assert len(found["forecasts"]) == len(written["predicted_seconds_per_token"]) == 16
    assert written["profile_measured_at"] < found["benches"]["float32"]["circumstances"]["date"]
    for one in found["forecasts"]:
        name = f"{one['policy']} ({one['kv']})"
        assert one["predicted"] == written["predicted_seconds_per_token"][name]
        assert one["plain_predicted"] == pytest.approx(written["plain_seconds_per_token"])
        assert len(one["parts"]) == 5
        if one["kv"] != "speculate" and one["policy"].startswith("static"):
            assert one["predicted"] == pytest.approx(one["priced"])
    assert found["predictions"]["policies"] == found["cost_model"]["policies"] == 16


@pytest.fixture(scope="module")
def trace(model_and_text: tuple[str, str], documents: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trace of texts without heads; the tiny tokenizer puts BOS in front, so rows begin at 1."""
    folder = tmp_path_factory.mktemp("traces") / "trace"
    found = offramp.trace(
        offramp.load_model(model_and_text[0]),
        f"jsonl:{documents}#text",
        tokens=960,
        exits="all",
        output=folder,
    )
    assert found.position[0] == 1
    return str(folder)


def test_the_league_is_decoded(
    model_and_text: tuple[str, str], trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("league")
    module.main([trace, "--model", model_and_text[0], "--floors", "0.05", "--families", "2", *SHORT])
    found = last_line(capsys)
    assert 1 <= len(found["policies"]) <= 2
    for row in found["policies"]:
        assert row["predicted_agreement"] >= row["floor"] == 0.05
        assert row["measured_seconds_per_token"] > 0
        assert row["predicted_seconds_per_token"] > 0
        assert 0 <= row["measured_agreement"]["value"] <= 1


def test_decisions_drift_only_where_states_are_propagated(
    model_and_text: tuple[str, str], trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("drift")
    policies = "static:exit=2;threshold:signal=margin,value=0.01,exits=1+2+3"
    module.main([trace, "--model", model_and_text[0], "--documents", "2", "--policies", policies])
    found = last_line(capsys)["drift"]
    assert [row["kv"] for row in found] == [*module.STRATEGIES] * 2
    for row in found:
        assert row["tokens"] > 10
        if row["kv"] != "propagate":
            assert row["exits_differ"] == row["mean_exit_difference"] == 0
        if row["kv"] == "recompute":
            assert row["tokens_differ"] == 0
    # Under speculate the chosen tokens are the full model's, not the exit's.
    assert found[1]["tokens_differ"] > 0
    # A static exit reads no state that was propagated; one that comes and goes does.
    assert found[2]["tokens_differ"] == 0 < found[5]["exits_differ"]


def test_the_timing_benchmark_runs_through(
    model_and_text: tuple[str, str], capsys: pytest.CaptureFixture[str], documents: Path
) -> None:
    module = benchmark("timing")
    model, text = model_and_text[0], f"jsonl:{documents}#text"
    sizes = ["--new-tokens", "5", "--seconds", "0,1", "--prompts", "3", "--runs", "5", "--pairs", "2"]
    module.main(["--model", model, "--workload", text, *sizes])
    found = last_line(capsys)
    assert [row["pair_spread"] for row in found["simulation"]] == list(module.SPREADS)
    assert all(0 <= row["at_worth_said_equivalent"] <= 1 for row in found["simulation"])
    assert [row["budget_seconds"] for row in found["machine"]] == [0.0, 1.0]
    for row in found["machine"]:
        assert row["low"] < row["ratio"] < row["high"]
        assert row["seconds_spent"] > 0


@pytest.mark.slow
def test_int8_is_measured_again_in_fresh_processes(
    model_and_text: tuple[str, str], capsys: pytest.CaptureFixture[str], documents: Path
) -> None:
    module = benchmark("int8_again")
    sizes = ["--new-tokens", "4", "--seconds", "0", "--prompts", "2", "--processes", "2"]
    text = f"jsonl:{documents}#text"
    module.main(["--model", model_and_text[0], "--workload", text, "--transform", "prune:drop=2", *sizes])
    found = last_line(capsys)
    first, second = found["processes"]
    assert first["plain"] == second["plain"]
    assert min(first["ratio"], second["ratio"]) <= found["ratio"] <= max(first["ratio"], second["ratio"])
    assert found["low"] < found["ratio"] < found["high"]
