"""`offramp replay` on hardware, with strategies, batches and the bill, and the lists that go with it."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest

import offramp
from command_line import run_offramp
from offramp.costs.machine_registry import machine_names
from offramp.costs.profile_file import required_keys
from offramp.policies.grammar import policy_kinds
from offramp.policies.signals import SIGNALS
from offramp.report.replayed import amount

POLICY = "threshold:signal=max_prob,value=0.06,exits=1+2+3"


@pytest.fixture(scope="module")
def trace(finished_run: Path) -> Path:
    """The trace of texts of the finished run."""
    (folder,) = (path for path in (finished_run / "traces" / "tiny").iterdir() if path.name != "chat")
    return folder


def test_a_machine_gives_seconds_and_the_function_the_same(trace: Path) -> None:
    command = ["replay", trace, "--policy", POLICY, "--hardware", "h100", "--kv", "recompute"]
    value = run_offramp(*command, "--json").require(0).json
    result = offramp.replay(
        offramp.Trace.load(trace), offramp.parse_policy(POLICY), machine="h100", kv="recompute"
    )
    assert value["seconds_per_token"] == result.seconds_per_token
    assert value["plain_seconds_per_token"] == result.plain_seconds_per_token
    assert value["predicted_speedup"] == result.predicted_speedup
    assert (value["basis"], value["kv"], value["batch"]) == ("h100", "recompute", 1)
    assert value["gain"] == vars(result.gain)
    assert sum(value["gain"].values()) == pytest.approx(1.0 - 1.0 / value["predicted_speedup"])
    shown = run_offramp(*command).require(0).out
    assert "predicted speed (h100)" in shown
    assert re.search(r"saved of plain decoding +layers .* %, head .* %, probes .* %", shown)
    assert "predicted time per token" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_breakdown_is_printed_line_by_line(trace: Path) -> None:
    command = ["replay", trace, "--policy", POLICY, "--explain"]
    value = run_offramp(*command, "--json").require(0).json
    breakdown = value["bill"]
    assert math.fsum(line["count"] * line["price"] for line in breakdown["lines"]) == breakdown["total"]
    assert breakdown["plain"] / breakdown["total"] == value["predicted_speedup"]
    shown = run_offramp(*command).require(0).out
    charges = shown.partition("What the policy is charged, in bytes\n")[2]
    rows = [row for row in charges.splitlines() if row.strip()]
    charged = [line for line in breakdown["lines"] if line["total"]]
    assert len(charged) < len(breakdown["lines"])  # overhead moves no bytes
    for line, row in zip(charged, rows[1:], strict=False):
        assert row.startswith(line["part"])
        assert f"{line['count']:,}" in row
    assert not re.search(r"\de[+-]?\d", "".join(rows))
    assert len(rows) == 1 + len(charged) + 1
    assert f"a speed of {breakdown['speedup']:.3f} ×" in rows[-1]
    assert max(map(len, shown.splitlines())) <= 80
    assert "bill" not in run_offramp(*command[:-1], "--json").require(0).json


def test_batches_and_speculation(trace: Path) -> None:
    command = ["replay", trace, "--policy", POLICY, "--json"]
    batch = run_offramp(*command, "--batch", 4, "--batching", "rebatch").require(0).json
    assert (batch["batch"], batch["batching"]) == (4, "rebatch")
    charged = sum(
        line["count"] * line["rows"]
        for line in run_offramp(*command, "--kv", "speculate", "--explain").require(0).json["bill"]["lines"]
        if line["probe"]
    )
    speculated = run_offramp(*command, "--kv", "speculate").require(0).json
    assert speculated["probes_per_token"] == charged / speculated["tokens"]
    drafted = run_offramp(*command, "--kv", "speculate", "--draft-length", 2).require(0).json
    assert drafted["agreement"] == 1.0
    shown = run_offramp(*command[:-1], "--batch", 4).require(0).out
    assert "batch 4 in lockstep" in " ".join(shown.split())


def test_own_timings_from_a_file(trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "engine.toml"
    text = 'kind = "timings"\nname = "engine"\nsource = "profiled"\ndtype = "float32"\nlayers = 4\n'
    text += 'unit = "milliseconds"\n'
    path.write_text(
        text + "[[batch]]\nsize = 1\nlayer = 0.5\nhead = 1.0\noverhead = 0.25\n", encoding="utf-8"
    )
    command = ["replay", trace, "--hardware", path, "--json", "--policy"]
    value = run_offramp(*command, "static:exit=2").require(0).json
    assert value["basis"] == "engine"
    assert value["plain_seconds_per_token"] == pytest.approx(3.25e-3)
    path.write_text(text + "[[batch]]\nsize = 1\nlayer = -0.5\nhead = 1.0\n", encoding="utf-8")
    error = run_offramp(*command, "static:exit=2").require(2).json["error"]
    assert error["where"].startswith(str(path))
    assert "layer is -0.5" in error["what"]


def test_hardware_that_was_not_measured_names_the_command(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    away = shutil.copytree(trace, tmp_path / "trace")  # beside its run, what that timed is taken
    refused = run_offramp("replay", away, "--policy", POLICY, "--hardware", "local").require(2)
    assert "offramp hardware measure" in refused.err


def test_an_oracle_is_marked(trace: Path) -> None:
    command = ["replay", trace, "--policy", "oracle:which=saturation"]
    assert run_offramp(*command, "--json").require(0).json["reachable"] is False
    assert "oracle, at 100 % agreement: it looks at what no decoder knows" in " ".join(
        run_offramp(*command).out.split()
    )


def test_the_lists_of_hardware_signals_and_policies() -> None:
    machines = run_offramp("list", "hardware", "--json").require(0).json["hardware"]
    assert {row["name"] for row in machines} - {"aic:SYSTEM"} == set(machine_names())
    assert all(row["source"] for row in machines)
    signals = run_offramp("list", "signals", "--json").require(0).json["signals"]
    assert [row["name"] for row in signals] == list(SIGNALS)
    by_name = {row["name"]: row for row in signals}
    assert by_name["margin"]["recorded"] == "always"
    assert by_name["margin"]["probe"] == "full head"
    assert by_name["restricted_margin"]["recorded"] == "--signals restricted"
    assert by_name["correctness"]["recorded"] == "--heads FILE"
    assert "arXiv 2207.07061" in run_offramp("list", "signals").require(0).out
    shown = " ".join(run_offramp("list", "hardware").require(0).out.split())
    assert "67 TFLOP/s float32, 989 TFLOP/s bfloat16; 3,350 GB/s" in shown
    text = run_offramp("list", "--help").require(0).out
    assert all(key in text for key in required_keys())
    shown = run_offramp("list", "policies").require(0).out
    for kind in policy_kinds().values():
        for parameter in kind.parameters:
            assert f"{parameter.name}={parameter.default or '…'}" in shown


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.003456e6, "flops", "3.46 kFLOP"),
        (56.62e6, "bytes", "56.6 MB"),
        (999.96e6, "bytes", "1.00 GB"),
        (8.0, "bytes", "8 B"),
        (6.1e-6, "seconds", "6.10 µs"),
    ],
)
def test_a_breakdown_shows_amounts_in_the_unit_that_suits_them(value: float, unit: str, shown: str) -> None:
    assert amount(value, unit) == shown


def test_execute_says_what_later_tokens_make_of_it(trace: Path, tiny_model: Path) -> None:
    command = ["replay", trace, "--policy", POLICY, "--execute", "--model", tiny_model]
    value = run_offramp(*command, "--json").require(0).json
    found = offramp.rerun(offramp.load_model(str(tiny_model)), offramp.Trace.load(trace), POLICY)
    assert found.drift is not None
    assert value["rerun"]["agreement"] == found.agreement
    assert value["rerun"]["drift"]["tokens_changed"] == found.drift.tokens_changed
    assert "rerun (one parallel forward)" in run_offramp(*command).require(0).out
