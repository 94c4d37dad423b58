"""The benchmarks of decoding run through on a tiny model; their figures mean nothing there."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import offramp
from tiny_models import LINES, write_llama

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHORT = ["--new-tokens", "5", "--rounds", "1", "--prompts", "1", "--profile-seconds", "0.01"]


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


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
        assert found["batch"][batching]["validity"] in ("VALID", "INVALID")
        assert not any("too few samples" in reason for reason in found["batch"][batching]["reasons"])


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


def test_an_executed_guarantee_is_held_against_what_was_decoded(
    tiny_model: Path, documents: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = benchmark("executed_guarantee")
    model, text = offramp.load_model(str(tiny_model)), f"jsonl:{documents}#text"
    offramp.trace(model, text, tokens=384, document_tokens=8, output=tmp_path / "trace", progress=False)
    sizes = ["--prompts", "20", "--candidates", "4", "--search", "8", "--documents", "60", "--draws", "10"]
    lengths = ["--prompt-tokens", "6", "--new-tokens", "4", "--executions", str(tmp_path / "kept")]
    module.main([str(tmp_path / "trace"), *sizes, *lengths])
    found = last_line(capsys)
    assert found["prompts"] == 20
    assert found["limits"] == {"0.1": 27, "0.05": 15}
    assert 1 <= len(found["candidates"]) <= 4
    for floor in ("agreement=0.95", "agreement=0.9"):
        for name in ("wsr sequential", "hb", "naive", "replay bound"):
            for entry in found[floor][name].values():
                assert 0 <= entry["broken"] <= entry["certified"] <= 10
    # Decoded once: the second time all is read.
    module.main([str(tmp_path / "trace"), *sizes, *lengths])
    assert capsys.readouterr().out.count("  0 documents decoded") == len(found["candidates"])


def test_the_draws_break_a_floor_where_candidates_lose_more_than_their_search_says() -> None:
    import numpy as np

    module = benchmark("executed_guarantee")
    proposal = benchmark("executed_guarantee").Proposal
    candidates = [
        proposal(None, "propagate", 0.01, 0.03, 0.9, 1.0, False),
        proposal(None, "propagate", 0.02, 0.04, 0.8, 1.0, False),
    ]
    rng = np.random.default_rng(0)
    executed = np.stack([rng.binomial(32, 0.02, 400), rng.binomial(32, 0.12, 400)], axis=1) / 32
    world = module.Population(candidates, executed, np.zeros((400, 2)))
    found = module.count_broken(world, 0.95, 300, 50, 0)
    assert found["wsr sequential"]["0.1"]["broken"] <= 5
    assert found["wsr sequential"]["0.1"]["certified"] > 40
    assert found["replay bound"]["0.1"]["broken"] == 50  # in replay nothing is lost
    assert world.order(world.reruns, 0.05) == [0, 1]
    assert world.order(world.reruns, 0.035) == [0]
