"""`offramp run`: the machine it predicts for and the exit heads it reads through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import run_offramp, summary_of
from offramp.tracing.heads_file import read_heads
from tiny_models import LAYERS, write_llama


@pytest.fixture
def short(tiny_model: Path, documents: Path, tmp_path: Path) -> list[object]:
    """A short run's command line."""
    work = ["-w", f"jsonl:{documents}#text", "--tokens", 128, "--no-decode"]
    return ["run", tiny_model, *work, "-o", tmp_path / "run"]


def test_by_itself_a_run_times_the_machine_and_fits_heads(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["hardware"]["name"] == "local"
    assert summary["hardware"]["layer_seconds"] > 0
    assert {verdict["basis"] for verdict in summary["verdict"]["by_workload"]} == {"local"}
    assert {entry["machine"] for entry in summary["machines"]} == {"local", "h100", "l4"}
    several = [read_heads(path) for path in finished_run.glob("heads-*.safetensors")]
    assert [(len(heads.exits), heads.lens) for heads in several] == [(LAYERS - 1, None)] * 2
    fitted = {heads.fingerprint for heads in several}
    for manifest in finished_run.glob("traces/*/*/manifest.json"):
        request = json.loads(manifest.read_text())["request"]
        assert request["heads"]["fingerprint"] in fitted
        assert request["signals"] == ["logit_gap", "restricted"]


def test_another_machine_and_heads_of_the_user(
    finished_run: Path, short: list[object], tmp_path: Path
) -> None:
    given = finished_run / "heads-chat.safetensors"
    outcome = run_offramp(*short, "--hardware", "h100", "--heads", given, "--json").require(0)
    verdicts = summary_of(outcome)["verdict"]["by_workload"]
    assert {verdict["basis"] for verdict in verdicts} == {"h100"}
    (kept,) = (tmp_path / "run").glob("heads-*.safetensors")
    assert read_heads(kept).fingerprint == read_heads(given).fingerprint


def test_what_does_not_fit_is_refused_before_the_folder_is_made(
    finished_run: Path, short: list[object], tmp_path: Path
) -> None:
    unknown = run_offramp(*short, "--hardware", "h1000", "--json").require(2)
    assert "h1000" in unknown.json["error"]["what"]
    missing = run_offramp(*short, "--heads", tmp_path / "none.safetensors", "--json").require(2)
    assert "none.safetensors" in missing.json["error"]["where"]
    other = write_llama(tmp_path / "other", hidden_size=32, num_attention_heads=4)
    foreign = [other if argument == short[1] else argument for argument in short]
    run_offramp(*foreign, "--heads", finished_run / "heads-chat.safetensors").require(2)
    assert not (tmp_path / "run").exists()
