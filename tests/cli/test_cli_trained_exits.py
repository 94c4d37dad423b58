"""A folder of trained exits in the place of a file of heads, and what `offramp run --heads` makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import jsonschema
import pytest

import offramp
from command_line import run_offramp, summary_of
from offramp.errors import InputError
from offramp.files import write_sealed_json
from offramp.heads.file import EXITS_FILE, TRAINING_FILE, UNDER_WAY, read_heads
from offramp.report.sections.potential import TITLE
from offramp.report.summary import summary_schema
from offramp.tracing.trace import Trace
from offramp.tuning.tuned import read_tuned
from tiny_models import LAYERS, write_llama

MAPS = ["--kv-maps", "1,2", "--kv-rank", 4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Path:
    """A folder as training leaves it: a lens, classifiers, a short list and K,V maps at two exits."""
    folder = tmp_path_factory.mktemp("exits") / "trained"
    fit = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400, "--exits", "1,2"]
    run_offramp(*fit, *MAPS, "-o", folder / EXITS_FILE).require(0)
    (folder / TRAINING_FILE).write_text("{}")
    return folder


@pytest.fixture
def short(tiny_model: Path, documents: Path, tmp_path: Path) -> list[object]:
    """A short run's command line."""
    work = ["-w", f"jsonl:{documents}#text", "--tokens", 128, "--no-decode", "--hardware", "h100"]
    return ["run", tiny_model, *work, "-o", tmp_path / "run"]


def test_a_run_reads_its_exits_through_the_trained_ones(
    trained: Path, short: list[object], tmp_path: Path, tiny_model: Path, documents: Path
) -> None:
    outcome = run_offramp(*short, "--heads", trained, "--json").require(0)
    (place,) = (tmp_path / "run" / "traces").glob("*/*")
    found = Trace.load(place)
    assert found.exits.tolist() == [1, 2, LAYERS]
    heads = read_heads(trained)
    assert (
        found.request["heads"]["fingerprint"]
        == heads.fingerprint
        == read_heads(trained / EXITS_FILE).fingerprint
    )
    summary = summary_of(outcome)
    jsonschema.validate(summary, summary_schema())
    assert summary["heads"]["reading"]
    (kept,) = (tmp_path / "run").glob("heads-*.safetensors")
    assert read_heads(kept).fingerprint == heads.fingerprint
    # It is the same run however the two are named, and done.
    old = run_offramp(*short, "--exits", trained).require(0)
    assert f"trained exits are named by --heads now, and layers by --exits: --heads {trained}" in old.err
    run_offramp(*short, "--exits", "1,2", "--heads", trained / EXITS_FILE).require(0)

    # Beside it the same tokens are traced as the model's own head reads them, for the card alone.
    (scores,) = summary["scores"]
    assert scores["read_through"] == "a linear lens"
    assert scores["readings"]["fitted"]["representation"]["value"] == scores["representation"]["value"]
    assert TITLE in (tmp_path / "run" / "report.html").read_text()
    (of_run,) = run_offramp("score", tmp_path / "run", "--json").require(0).json["scores"]
    assert of_run["trace"] == str(place)
    assert of_run["readings"] == scores["readings"]
    raw = tmp_path / "raw"
    work = ["-w", f"jsonl:{documents}#text", "--tokens", 128, "--exits", "1,2"]
    run_offramp("trace", tiny_model, *work, "--signals", "logit_gap,restricted", "-o", raw).require(0)
    alone, beside = run_offramp("score", raw, place, "--json").require(0).json["scores"]
    assert alone["readings"] is None
    assert beside["readings"] == scores["readings"]
    assert alone["representation"]["value"] == scores["readings"]["raw"]["representation"]["value"]
    said = " ".join(run_offramp("score", raw, place).require(0).out.split())
    assert "exits are read through a linear lens" in said
    assert "distance in representation quality between what the model's own head reads" in said


def test_a_tuned_policy_finds_the_folder_again(
    trained: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    trace = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 600, "--heads", trained]
    run_offramp(*trace, "-o", tmp_path / "trace").require(0)
    tune = ["tune", tmp_path / "trace", "--floor", "agreement=0.2", "--model", "none", "--hardware", "h100"]
    run_offramp(*tune, "--heads", trained, "-o", tmp_path / "policy.json").require(0)
    assert read_tuned(tmp_path / "policy.json").heads_file == trained / EXITS_FILE
    generate = ["generate", tiny_model, "--prompt", "the cat", "--max-new-tokens", 4, "--policy"]
    run_offramp(*generate, tmp_path / "policy.json").require(0)


def test_what_holds_no_trained_exits_is_refused_before_a_model_is_looked_at(
    trained: Path, documents: Path, tiny_model: Path, tmp_path: Path
) -> None:
    empty, begun, unfinished = (tmp_path / name for name in ("empty", "begun", "unfinished"))
    for folder in (empty, begun, unfinished):
        folder.mkdir()
    (begun / UNDER_WAY[0]).write_bytes(b"")
    shutil.copy(trained / EXITS_FILE, unfinished)
    alone = tmp_path / "alone.safetensors"
    fit = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400]
    run_offramp(*fit, *MAPS, "--no-lens", "--no-classifiers", "-o", alone).require(0)
    trace = ["trace", "no model", "-w", f"jsonl:{documents}#text", "-o", tmp_path / "trace", "--json"]
    for options, what, where in (
        (["--heads", empty], "no trained exits", "empty"),
        (["--heads", begun], "the training of these exits has not ended", "begun"),
        (["--exits", unfinished], "the training of these exits has not ended", "unfinished"),
        (["--exits", tmp_path / "gone"], "not a list of layers", "--exits"),
        (["--exits", alone], "K,V maps alone", "alone.safetensors"),
        (["--exits", trained, "--heads", trained], "others are given too", "--exits"),
    ):
        error = run_offramp(*trace, *options).require(2).json["error"]
        assert what in error["what"]
        assert where in error["where"]
    with pytest.raises(InputError, match="has not ended"):
        offramp.run(str(tiny_model), f"jsonl:{documents}#text", exits=unfinished)


def test_a_record_of_another_version_is_refused_before_a_model_is_looked_at(
    trained: Path, documents: Path, tmp_path: Path
) -> None:
    outdated = shutil.copytree(trained, tmp_path / "outdated")
    write_sealed_json(outdated / TRAINING_FILE, {"kind": "training", "schema_version": 1})
    run = ["run", "no/model", "-w", f"jsonl:{documents}#text", "-o", tmp_path / "run", "--json"]
    error = run_offramp(*run, "--exits", outdated).require(2).json["error"]
    assert "its schema version is 1" in error["what"]
    assert error["where"] == str(outdated / TRAINING_FILE)
    assert EXITS_FILE in error["fix"]
    assert not (tmp_path / "run").exists()


def test_exits_of_another_base_are_refused(trained: Path, short: list[object], tmp_path: Path) -> None:
    short[1] = write_llama(tmp_path / "other", num_hidden_layers=3)
    outcome = run_offramp(*short, "--exits", trained).require(2)
    assert "the exit heads were fitted on tiny (" in outcome.err
    assert not (tmp_path / "run").exists()


def test_maps_alone_leave_a_run_as_it_is_read_without_heads(
    trained: Path, short: list[object], tmp_path: Path, tiny_model: Path, documents: Path
) -> None:
    fit = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400]
    run_offramp(*fit, *MAPS, "--no-lens", "--no-classifiers", "-o", tmp_path / "alone").require(0)
    outcome = run_offramp(*short, "--exits", "1,2", "--heads", tmp_path / "alone", "--json").require(0)
    assert summary_of(outcome)["heads"]["classifiers"] == {}
