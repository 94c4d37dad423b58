"""`offramp run` of a model whose layers stay on disk: everything but decoding, and it is said why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import offramp
from command_line import run_offramp, tree
from offramp.decoding.generation.generate import FULL_MODEL
from offramp.decoding.measurement.bench import settle
from offramp.decoding.measurement.machine_profiler import measure_hardware
from offramp.decoding.measurement.plain_timing import time_plain_decoding
from offramp.errors import ModelError
from offramp.models.gguf_file import CACHE_VARIABLE
from offramp.models.model import Model
from offramp.models.source import find_source
from offramp.models.streamed_loading import load_streamed


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run of the workloads that any run has, a few tokens each."""
    folder = tmp_path_factory.mktemp("runs") / "streamed"
    with pytest.MonkeyPatch.context() as patch:
        # Without timings that another test has kept of the same model.
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        shown = run_offramp("run", tiny_model, "--stream", "--tokens", 200, "-o", folder).require(0)
    assert "decoding needs all of the model's weights in memory" in " ".join(shown.out.split())
    return folder


def test_it_traces_scores_and_replays(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    assert [entry["workload"] for entry in summary["scores"]] == ["prose:short", "code:short"]
    assert summary["verdict"]["by_workload"]
    assert summary["frontier"]
    assert summary["hardware"] is None
    assert summary["decoding"]["workloads"] == []
    assert summary["measured"]["plain_seconds_per_token"] is None


def test_what_is_left_out_is_named_with_its_reason(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    reasons = summary["decoding"]["not_decoded"]
    assert "its layers stay on disk" in reasons["prose:short"]
    assert reasons["chat"].startswith("it was not traced either: its prompts need answers")
    missing = summary["provenance"]
    assert "its layers stay on disk" in missing["machine_not_timed"]
    assert "stay on disk" in missing["heads_not_fitted"]
    assert "its layers stay on disk" in missing["plain_decoding_not_timed"]
    assert any("chat was not decoded" in caveat for caveat in summary["verdict"]["caveats"])
    assert "chat was not decoded" in (run_folder / "report.html").read_text()


def test_a_run_with_all_weights_in_memory_is_another(run_folder: Path, tiny_model: Path) -> None:
    """It fits exit heads, so that its traces hold more."""
    before = tree(run_folder)
    command = ["run", tiny_model, "--no-stream", "--no-decode", "--tokens", 200, "-o", run_folder]
    assert "holds another run" in run_offramp(*command).require(2).err
    assert tree(run_folder) == before


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
    refuses(lambda model: time_plain_decoding(model, [3, 4, 5]))
    refuses(measure_hardware)
    refuses(timed)
