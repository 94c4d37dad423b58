"""`offramp run` by models and machines: heads of the user, layers on disk, any GGUF.

On the bundled weights: see `tests/test_readme.py`, whose first command it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import offramp
from command_line import run_offramp, summary_of, tree
from offramp.decoding.generation.generate import FULL_MODEL
from offramp.errors import ModelError
from offramp.heads.file import read_heads
from offramp.models.gguf_file import CACHE_VARIABLE
from offramp.models.model import Model
from offramp.models.source import find_source
from offramp.models.streaming import load_streamed
from offramp.report.summary import summary_schema
from offramp.runs import request
from offramp.timing.bench import settle
from offramp.timing.decoder import generate_repeatedly
from offramp.timing.local_profile import measure_hardware
from tiny_models import GGUF_LAYERS, LAYERS, LINES, write_gguf, write_llama


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


@pytest.fixture(scope="module")
def unasked(documents: Path) -> Iterator[str]:
    """A text that, with `chat`, stands for the workloads that any run has: those take long to read."""
    text = f"jsonl:{documents}#text"
    assert request.DEFAULT_WORKLOADS == ("prose:short", "code:short")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "DEFAULT_WORKLOADS", (text, "chat"))
        yield text


@pytest.fixture(scope="module")
def streamed_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, unasked: str) -> Path:
    """A run of workloads that nobody asked for, a few tokens each."""
    folder = tmp_path_factory.mktemp("runs") / "streamed"
    with pytest.MonkeyPatch.context() as patch:
        # Without timings that another test has kept of the same model.
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        shown = run_offramp("run", tiny_model, "--stream", "--tokens", 200, "-o", folder).require(0)
    said = " ".join(shown.out.split())
    why = "decoding needs all of the model's weights in memory"
    assert f"This machine was not timed, so speeds are in bytes moved: {why}" in said
    return folder


def test_it_traces_scores_and_replays(streamed_run: Path, unasked: str) -> None:
    summary = json.loads((streamed_run / "summary.json").read_text())
    assert [entry["workload"] for entry in summary["scores"]] == [unasked]
    assert summary["verdict"]["by_workload"]
    assert summary["frontier"]
    assert summary["hardware"] is None
    assert summary["decoding"]["workloads"] == []
    assert summary["measured"]["plain_seconds_per_token"] is None


def test_what_is_left_out_is_named_with_its_reason(streamed_run: Path, unasked: str) -> None:
    summary = json.loads((streamed_run / "summary.json").read_text())
    reasons = summary["decoding"]["not_decoded"]
    assert "its layers stay on disk" in reasons[unasked]
    assert reasons["chat"].startswith("it was not traced either: its prompts need answers")
    missing = summary["provenance"]
    assert "its layers stay on disk" in missing["machine_not_timed"]
    assert "stay on disk" in missing["heads_not_fitted"]
    assert "its layers stay on disk" in missing["plain_decoding_not_timed"]
    assert any("chat was not decoded" in caveat for caveat in summary["verdict"]["caveats"])
    assert "chat was not decoded" in (streamed_run / "report.html").read_text()


def test_a_run_with_all_weights_in_memory_is_another(streamed_run: Path, tiny_model: Path) -> None:
    """It fits exit heads, so that its traces hold more."""
    before = tree(streamed_run)
    command = ["run", tiny_model, "--no-stream", "--no-decode", "--tokens", 200, "-o", streamed_run]
    assert "holds another run" in run_offramp(*command).require(2).err
    assert tree(streamed_run) == before


def test_a_workload_that_was_asked_for_is_not_left_out(tiny_model: Path, tmp_path: Path) -> None:
    command = ["run", tiny_model, "--stream", "-w", "prose", "-w", "chat", "-o", tmp_path / "run"]
    assert "prompts need answers" in run_offramp(*command).require(2).err
    assert not (tmp_path / "run").exists()


def test_everything_that_decodes_refuses_it(tiny_model: Path) -> None:
    model = load_streamed(find_source(str(tiny_model)), dtype="float32")

    def refuses(decode: Any) -> None:
        with pytest.raises(ModelError, match="all of the model's weights in memory") as caught:
            decode(model)
        assert caught.value.where == "tiny"

    def timed(model: Model) -> object:
        return settle(model, [FULL_MODEL], prompts=[[3, 4]])

    refuses(lambda model: offramp.generate(model, "the cat"))
    refuses(lambda model: generate_repeatedly(model, [3, 4, 5], new_tokens=4, repeats=1))
    refuses(measure_hardware)
    refuses(timed)


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
