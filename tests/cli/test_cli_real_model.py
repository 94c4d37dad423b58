"""From the command line to the answer on real weights, and on a GGUF file that nobody tuned for."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from command_line import run_offramp, summary_of
from offramp.cli import run_study
from offramp.report.summary import summary_schema
from tiny_models import GGUF_LAYERS, LINES, write_gguf


@pytest.mark.real_model
@pytest.mark.slow
def test_the_bundled_model_on_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_study, "FITTING_TOKENS", 100)
    folder = tmp_path / "run"
    command = ["run", "smollm2", "--workload", "prose", "--tokens", 256, "--exits", "10,20,30", "-o", folder]
    command += ["--no-decode", "--hardware", "h100"]  # the README's commands time this machine
    shown = run_offramp(*command, "--json").require(0)
    summary = summary_of(shown)
    jsonschema.validate(summary, summary_schema())
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["verdict"]["decision"] in ("pays", "does not pay", "too close to call")
    assert "smollm2" in summary["verdict"]["headline"]
    assert summary["measured"]["plain_seconds_per_token"] is None, "nothing was timed here"
    (scores,) = summary["scores"]
    assert scores["tokens"] == 256
    assert scores["curves"]["exits"] == [10, 20, 30]
    agreement = scores["curves"]["values"]["agreement"]
    assert 0 < agreement[0] < agreement[1] < agreement[2] == 1
    # An untrained model of this vocabulary would be at ln(49152) = 10.8.
    assert scores["curves"]["values"]["nll"][-1] < 5
    assert summary["provenance"]["model_licence"] == "Apache-2.0"
    assert "Q4_1" in summary["provenance"]["model_weights"]
    page = (folder / "report.html").read_text()
    assert summary["verdict"]["headline"].split(":")[0] in page


def test_any_gguf_on_any_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "other.gguf")
    (tmp_path / "notes.txt").write_text("\n\n".join(LINES * 100))
    monkeypatch.chdir(tmp_path)
    command = ["run", "other.gguf", "--workload", "txt:notes.txt", "--tokens", 200, "-o", "out"]
    shown = run_offramp(*command, "--json").require(0)
    summary = summary_of(shown)
    jsonschema.validate(summary, summary_schema())
    assert "converting other.gguf to safetensors, once" in shown.err
    assert summary["scores"][0]["tokens"] == 200
    assert summary["scores"][0]["curves"]["exits"] == list(range(1, GGUF_LAYERS + 1))
    assert summary["provenance"]["model"] == "other"
    assert summary["provenance"]["model_licence"] == "mit"
    assert Path("out/report.html").is_file()
    again = run_offramp(*command, "--json").require(0)
    assert "converting" not in again.err
