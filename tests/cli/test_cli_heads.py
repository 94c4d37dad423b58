"""`offramp heads fit`, and a trace read through what it wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from command_line import run_offramp
from offramp.tracing.heads_file import read_heads
from offramp.tracing.trace import Trace
from tiny_models import write_documents, write_llama

CLASSIFIERS = [
    "correctness",
    "correctness_network",
    "short_correctness",
    "adainfer",
    "candidate_score",
    "convergence",
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Path:
    """Heads of the tiny model, fitted through the command line."""
    path = tmp_path_factory.mktemp("heads") / "new folder" / "heads.safetensors"
    arguments = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 800]
    outcome = run_offramp(*arguments, "-o", path, "--json").require(0)
    assert outcome.json["heads"] == str(path)
    assert outcome.json["exits"] == [1, 2, 3]
    assert list(outcome.json["classifiers"]) == CLASSIFIERS
    assert len(outcome.json["lens"]["explained"]) == 3
    assert outcome.json["fingerprint"] == read_heads(path).fingerprint
    return path


def test_a_table_says_what_each_exit_is_worth(tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    path = tmp_path / "heads"
    arguments = [
        "heads",
        "fit",
        tiny_model,
        "-w",
        f"jsonl:{documents}#text",
        "--tokens",
        400,
        "--exits",
        "1,3",
    ]
    outcome = run_offramp(*arguments, "-o", path, "--seed", 1).require(0)
    lines = [line.split() for line in outcome.out.splitlines() if line.strip()]
    assert [line[0] for line in lines if line[0].isdecimal()] == ["1", "3"]
    assert "correctness" in outcome.out
    # A tiny random model has no converged hidden state: nothing to learn, and the command says so.
    assert "convergence is not shown to beat the base rate at any exit" in outcome.out
    assert f"written: {path}" in outcome.out
    assert read_heads(path).provenance["seed"] == 1


def test_a_trace_read_through_the_heads(
    fitted: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    arguments = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 300, "--heads", fitted]
    run_offramp(*arguments, "-o", tmp_path / "through").require(0)
    run_offramp(*arguments[:-2], "-o", tmp_path / "plain").require(0)
    through, plain = Trace.load(tmp_path / "through"), Trace.load(tmp_path / "plain")
    request = through.provenance["request"]["heads"]
    heads = read_heads(fitted)
    assert request["fingerprint"] == heads.fingerprint
    assert request["lens"] is True
    assert request["documents"] == {workload: list(ids) for workload, ids in heads.documents.items()}
    assert sorted(request["facts"]) == sorted(CLASSIFIERS)
    for name in CLASSIFIERS:
        assert through.fact(name).shape == through.top1.shape
    np.testing.assert_array_equal(through.top1[:, -1], plain.top1[:, -1])
    assert (through.top1[:, 0] != plain.top1[:, 0]).any()


def test_heads_of_another_base_are_refused(fitted: Path, documents: Path, tmp_path: Path) -> None:
    other = write_llama(tmp_path / "other", num_hidden_layers=3)
    arguments = ["trace", other, "-w", f"jsonl:{documents}#text", "--heads", fitted]
    outcome = run_offramp(*arguments, "-o", tmp_path / "trace").require(2)
    assert "the exit heads were fitted on tiny (" in outcome.err
    assert "not on other (" in outcome.err
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        (["--tokens", 0], "tokens must be at least 1"),
        (["--tokens", 8], "all of one document"),
        (["--exits", 4], "no exit below the last layer"),
        (["--exits", "1-3"], "not a list of layers"),
        (["--exits", 9], "no exit 9"),
        (["--candidate-exit", 4], "candidate exit 4 is not among"),
        (["--no-lens", "--no-classifiers"], "neither a lens nor classifiers"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
        (["-w", "pros"], "no workload 'pros'"),
    ],
    ids=str,
)
def test_bad_input_is_refused(
    tiny_model: Path, documents: Path, tmp_path: Path, extra: list[object], why: str
) -> None:
    path = tmp_path / "folder" / "heads"
    arguments = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "-o", path, *extra]
    outcome = run_offramp(*arguments).require(2)
    assert why in outcome.err
    assert "what to do:" in outcome.err
    assert not path.parent.exists()


def test_an_output_that_cannot_be_is_refused_before_the_model_is_loaded(fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output, why in [
        (tmp_path, "is a folder"),
        (tmp_path / "file", "is there already"),
        (tmp_path / "file" / "heads", "file"),
    ]:
        outcome = run_offramp("heads", "fit", "no such model", "-w", "prose", "-o", output).require(2)
        assert why in outcome.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_is_replaced_when_asked_for(
    fitted: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(fitted, tmp_path / "heads"))
    arguments = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 200, "-o", path]
    run_offramp(*arguments, "--no-classifiers").require(2)
    run_offramp(*arguments, "--no-classifiers", "--overwrite").require(0)
    assert read_heads(path).classifiers == {}


def test_maps_are_fitted_alone_and_added_to_other_heads(
    fitted: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    """What they take is said before they are fitted."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    arguments = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400]
    maps = ["--kv-maps", "1,2", "--kv-rank", "5"]
    outcome = run_offramp(*arguments, *maps, "--no-lens", "--no-classifiers", "-o", alone).require(0)
    assert "the sums of K,V maps at exits 1, 2 take" in outcome.out
    found = read_heads(alone)
    assert found.holds_maps_alone
    assert found.kv_maps is not None
    assert found.kv_maps.ranks == {1: 5, 2: 5}
    added = run_offramp(*arguments, *maps, "--add-to", fitted, "-o", both, "--json").require(0)
    assert added.json["kv_maps"]["1"]["rank"] == 5
    whole = read_heads(both)
    assert whole.reading_fingerprint == read_heads(fitted).fingerprint
    assert whole.kv_maps is not None
    np.testing.assert_array_equal(whole.kv_maps.maps[1].inward, found.kv_maps.maps[1].inward)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--kv-maps", "eight"], "--kv-maps"),
        (["--kv-maps", "3"], "--kv-maps"),
        (["--kv-maps", "1", "--kv-rank", "half"], "--kv-rank"),
        (["--add-to", "heads"], "--add-to"),
    ],
)
def test_maps_that_cannot_be_are_refused(
    tiny_model: Path, documents: Path, tmp_path: Path, arguments: list[str], where: str
) -> None:
    command = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400]
    outcome = run_offramp(*command, *arguments, "-o", tmp_path / "heads").require(2)
    assert where in outcome.err
    assert not (tmp_path / "heads").exists()


def test_a_tuned_policy_finds_the_heads_that_it_was_tuned_with(
    fitted: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_documents(tmp_path / "texts.jsonl", documents=80, words=24, seed=1)
    heads = Path(shutil.copy(fitted, tmp_path / "heads.safetensors"))
    trace = ["trace", tiny_model, "-w", f"jsonl:{texts}#text", "--tokens", 800, "--document-tokens", 10]
    run_offramp(*trace, "--heads", heads, "-o", tmp_path / "trace").require(0)
    policy = tmp_path / "policy.json"
    tune = ["tune", tmp_path / "trace", "--floor", "agreement=0.2", "--model", "none", "--hardware", "h100"]
    tuned = run_offramp(*tune, "--heads", heads, "-o", policy, "--json").require(0).json
    assert tuned["policy"] != "never"
    assert tuned["generate"].endswith(f"--policy {policy} --heads {heads} --prompt TEXT")
    generate = ["generate", tiny_model, "--prompt", "the cat", "--max-new-tokens", 4, "--policy"]
    without = run_offramp(*generate, policy).require(0).out
    assert without == run_offramp(*generate, policy, "--heads", heads).require(0).out
    (tmp_path / "moved").mkdir()
    moved = [shutil.move(path, tmp_path / "moved" / path.name) for path in (policy, heads)]
    assert run_offramp(*generate, moved[0]).require(0).out == without
    monkeypatch.setattr("offramp.tracing.loading.ModelRequest.load", None)
    heads = tmp_path / "moved" / "heads.safetensors"
    heads.rename(tmp_path / "moved" / "other.safetensors")
    lost = run_offramp(*generate, moved[0]).require(2).err
    assert "tuned with the exit heads" in lost
    assert f"it was {heads}, which is gone" in lost
    other = write_llama(tmp_path / "other", initializer_range=0.3)
    assert "tuned for another model" in run_offramp("generate", other, *generate[2:], moved[0]).require(2).err
