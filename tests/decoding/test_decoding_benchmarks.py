"""The benchmarks of decoding run through on a tiny model; their figures mean nothing there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_modules import benchmark

import offramp
from offramp.policies.policy import Tokens
from tiny_models import LINES, write_llama

SHORT = ["--new-tokens", "5", "--rounds", "1", "--prompts", "1", "--profile-seconds", "0.01"]


@pytest.fixture(scope="module")
def model_and_text(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("benchmarks")
    text = folder / "text.txt"
    text.write_text("\n\n".join(LINES * 4), encoding="utf-8")
    return str(write_llama(folder / "llama")), f"txt:{text}"


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of three layers: what is tried at every exit takes its time."""
    return str(write_llama(tmp_path_factory.mktemp("shallow") / "llama", num_hidden_layers=3))


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
    shallow: str, model_and_text: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, text = shallow, model_and_text[1]
    module = benchmark("prediction")
    module.main(
        [
            *("--model", model, "--workload", text, "--dtypes", "float32", "--trace-tokens", "40"),
            *("--output", str(tmp_path), *SHORT),
        ]
    )
    found = last_line(capsys)
    written = json.loads((tmp_path / "predictions-float32.json").read_text(encoding="utf-8"))
    # 2 static exits with 4 strategies that need no maps, 2 thresholds on 2 signals.
    assert len(found["forecasts"]) == len(written["predicted_seconds_per_token"]) == 12
    assert written["profile_measured_at"] < found["benches"]["float32"]["circumstances"]["date"]
    for one in found["forecasts"]:
        name = f"{one['policy']} ({one['kv']})"
        assert one["predicted_by_profile"] == written["predicted_seconds_per_token"][name]
        ratio = one["predicted_by_profile"] / written["plain_seconds_per_token"]
        assert one["predicted"] == pytest.approx(ratio * one["plain_measured"])
        assert one["plain_predicted"] == pytest.approx(written["plain_seconds_per_token"])
        assert len(one["parts"]) == 5
        if one["kv"] != "speculate" and one["policy"].startswith("static"):
            assert one["predicted"] == pytest.approx(one["priced"])
    assert found["predictions"]["policies"] == found["cost_model"]["policies"] == 12


PRICES = ["--profile-seconds", "0.01", "--seconds", "0.01"]


@pytest.mark.slow
@pytest.mark.usefixtures("any_load_of_others")
def test_prices_on_any_model(model_and_text: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    module = benchmark("prices")
    module.main(["--shapes", model_and_text[0], "--instruction-sets", "native", *PRICES])
    found = last_line(capsys)
    (cell,) = found["instruction_sets"]["native"]["shapes"].values()
    assert found["worst_error_over_change"] == cell["error_over_change"] > 0
    assert found["holds"] == (cell["error_over_change"] <= 0.2)
    rows = {row["policy"]: row for row in cell["policies"]}
    assert list(rows) == list(module.grid(4))
    assert all(row["pairs"] >= 2 and row["predicted"] > 0 < row["measured"] for row in rows.values())
    # Priced from what ran: probes on top of everything else.
    assert rows["full head probes, never"]["predicted"] > 1.0
    assert cell["plain_by_profile_over_measured"] > 0


def test_policies_of_the_prices_benchmark_leave_at_their_rate() -> None:
    module = benchmark("prices")
    for name, policy in module.grid(12).items():
        decider, left = policy.decider(12, 1), []
        for token in range(20):
            decider.begin(Tokens(np.array([token])))
            asked = [(exit, facts) for exit, facts in policy.needs(12).items()]
            leaves = [decider.decide(exit, dict.fromkeys(facts, np.zeros(1)))[0] for exit, facts in asked]
            left.append(any(leaves))
            decider.end(np.array([12]), {})
        expected = 0.0 if "never" in name else 1.0 if "static" in name else 0.5
        assert np.mean(left) >= expected
        # Several exits leave more often than one.
        exactly = any(word in name for word in ("never", "static", "full head"))
        assert (np.mean(left) == expected) == exactly


def test_errors_of_ratios_by_hand() -> None:
    rows = [{"predicted": p, "measured": m} for p, m in ((0.5, 0.6), (0.9, 0.8), (1.5, 1.1))]
    found = benchmark("prices").errors(rows)
    assert found["median_error"] == pytest.approx(0.1)
    assert found["median_change"] == pytest.approx(0.2)
    assert found["error_over_change"] == pytest.approx(0.5)
    assert found["raw_median"] == pytest.approx(0.1 / 0.6)
    assert found["raw_worst"] == pytest.approx(0.4 / 1.1)


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
    sizes = ["--prompts", "20", "--candidates", "2", "--search", "8", "--documents", "60", "--draws", "10"]
    lengths = ["--prompt-tokens", "6", "--new-tokens", "4", "--executions", str(tmp_path / "kept")]
    module.main([str(tmp_path / "trace"), *sizes, *lengths])
    found = last_line(capsys)
    assert found["prompts"] == 20
    assert found["limits"] == {"0.1": 27, "0.05": 15}
    assert 1 <= len(found["candidates"]) <= 2
    for floor in ("agreement=0.95", "agreement=0.9"):
        for name in ("wsr sequential", "hb", "naive", "replay bound"):
            for entry in found[floor][name].values():
                assert 0 <= entry["broken"] <= entry["certified"] <= 10


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


def test_mapped_beside_propagate(
    model_and_text: tuple[str, str], documents: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = benchmark("mapped")
    given = ["--model", model_and_text[0], "--workload", f"jsonl:{documents}#text", "--exits", "1,2"]
    sizes = ["--fit-tokens", "600", "--documents", "9", "--prompt-tokens", "5", "--new-tokens", "12"]
    sizes += ["--ranks", "4,full,auto", "--replayed", "0.7", "--timed", "1"]
    module.main([*given, *sizes, "-o", str(tmp_path / "maps")])
    found = last_line(capsys)
    assert [row["exit"] for row in found["exits"]] == [1, 2]
    for row in found["exits"]:
        assert row["replayed"] >= 0.7
        assert row["drift"] == pytest.approx(row["replayed"] - row["propagate"])
        four, full, auto = row["mapped"]
        assert (four["columns"], full["columns"]) == (4, None)
        assert 1 <= auto["columns"] <= 32
        assert four["bytes_over_propagate"] < full["bytes_over_propagate"]
        assert full["flops_over_propagate"] > 1
        assert all(one["seconds_over_propagate"] > 0 for one in row["mapped"])


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
@pytest.mark.usefixtures("any_load_of_others")
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


def test_layers_compiled_and_caches_in_place_give_the_same_tokens(
    shallow: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = benchmark("segments")
    # Uncompiled: what the segments compute is tested, and no compiler is needed.
    monkeypatch.setattr(module.torch, "compile", lambda function, **options: function)
    options = ["--model", shallow, "--positions", "5", "--sizes", "1,2", "--prompts", "2", "--turns", "4"]
    module.main(options)
    (found,) = last_line(capsys)["at"]
    assert list(found["contenders"]) == [
        "concatenated", "concatenated again", "in place", "compiled 1", "compiled 2",
    ]  # fmt: skip
    for row in found["contenders"].values():
        assert row["same_tokens"]
        ratio, low, high = row["concatenated_over_it"]
        assert 0 < low <= ratio <= high
    # Segments that forget what came before are found out.
    monkeypatch.setattr(
        module._Written, "update", lambda self, keys, values, *rest, **keywords: (keys, values)
    )
    module.main(options)
    (found,) = last_line(capsys)["at"]
    assert [row["same_tokens"] for row in found["contenders"].values()] == [True, True, True, False, False]
