"""`offramp heads fit` and `heads import`, what is traced through them, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from importing_cases import LENS_MAP, OUTPUT_MAP, translators, write_map
from safetensors.torch import load_file, save_file

from command_line import run_offramp
from offramp.heads.file import read_heads
from offramp.tracing.trace import Trace
from tiny_models import LAYERS, VOCABULARY, write_documents, write_llama

CLASSIFIERS = ["correctness", "correctness_network", "short_correctness"]
CLASSIFIERS += ["adainfer", "candidate_score", "convergence"]


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
    fit = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400, "--exits", "1,3"]
    outcome = run_offramp(*fit, "-o", path, "--seed", 1).require(0)
    lines = [line.split() for line in outcome.out.splitlines() if line.strip()]
    assert [line[0] for line in lines if line[0].isdecimal()] == ["1", "3"]
    assert "correctness" in outcome.out
    # A tiny random model has no converged hidden state: nothing to learn, and the command says so.
    assert "convergence is not shown to beat the base rate at any exit" in outcome.out
    assert "(0.70): not shown to beat" in outcome.out
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
    assert added.json["kv_maps"]["maps"]["1"]["rank"] == 5
    whole = read_heads(both)
    assert whole.reading_fingerprint == read_heads(fitted).fingerprint
    assert whole.kv_maps is not None
    np.testing.assert_array_equal(whole.kv_maps.maps[1].inward, found.kv_maps.maps[1].inward)
    before = both.read_bytes()
    add = [*arguments, "--add-to", both, "-o", both, "--overwrite"]
    refused = run_offramp(*add, "--kv-maps", "1").require(2).err
    assert "K,V maps of exit 2 already, which would be lost" in refused
    assert "--kv-maps 1,2" in refused
    assert both.read_bytes() == before
    exits = run_offramp(*add, "--kv-maps", "1,2", "--exits", "2").require(2).err
    assert "--exits means nothing where only K,V maps are fitted" in exits
    candidate = run_offramp(*add, "--kv-maps", "1,2", "--candidate-exit", "2").require(2).err
    assert "--candidate-exit means nothing with --add-to" in candidate


def test_a_tuned_policy_finds_the_heads_that_it_was_tuned_with(
    fitted: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = write_documents(tmp_path / "texts.jsonl", documents=80, words=24, seed=1)
    heads = Path(shutil.copy(fitted, tmp_path / "heads.safetensors"))
    trace = ["trace", tiny_model, "-w", f"jsonl:{texts}#text", "--tokens", 800, "--document-tokens", 10]
    run_offramp(*trace, "--heads", heads, "-o", tmp_path / "trace").require(0)
    policy = tmp_path / "policy.json"
    tune = ["tune", tmp_path / "trace", "--floor", "agreement=0.2", "--model", "none", "--hardware", "h100"]
    raw = [*trace, "-o", tmp_path / "raw"]
    run_offramp(*raw).require(0)
    not_its_own = ["tune", tmp_path / "raw", *tune[2:], "--heads", heads, "-o", policy]
    assert "the trace was made without exit heads" in run_offramp(*not_its_own).require(2).err
    assert not policy.exists()
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


sys.path.insert(0, str(Path(__file__).parents[1] / "tracing"))

HIDDEN = 32


@pytest.fixture
def lens(tmp_path: Path) -> Path:
    """A tuned lens's folder."""
    folder = tmp_path / "lens"
    folder.mkdir()
    save_file(translators(LAYERS, HIDDEN), folder / "params.safetensors")
    config = {"base_model_name_or_path": "owner/tiny", "d_model": HIDDEN, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_tuned_lens_is_imported_traced_and_decoded(
    lens: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new folder" / "heads.safetensors"
    arguments = ["heads", "import", lens, "--format", "tuned-lens", "--model", tiny_model, "-o", path]
    outcome = run_offramp(*arguments, "--json").require(0)
    assert outcome.json["exits"] == [1, 2, 3]
    assert outcome.json["lens"] == {"explained": None, "penalty": None}
    assert outcome.json["documents"] == {}
    assert outcome.json["fingerprint"] == read_heads(path).fingerprint
    assert "tiny: a linear lens at exits 1, 2, 3" in outcome.err
    assert "left out: 0.weight, since the state before the first layer is no exit" in outcome.err
    trace = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 300, "--heads", path]
    run_offramp(*trace, "-o", tmp_path / "through").require(0)
    run_offramp(*trace[:-2], "-o", tmp_path / "plain").require(0)
    through, plain = Trace.load(tmp_path / "through"), Trace.load(tmp_path / "plain")
    assert through.provenance["request"]["heads"]["imported"] is True
    np.testing.assert_array_equal(through.top1[:, -1], plain.top1[:, -1])
    assert (through.top1[:, 0] != plain.top1[:, 0]).any()
    decoded = run_offramp(
        *("generate", tiny_model, "--policy", "static:exit=2", "--heads", path, "--prompt", "the cat"),
        *("--max-new-tokens", 4),
    ).require(0)
    assert "layers skipped" in decoded.err
    run_offramp(*arguments).require(2)
    run_offramp(*arguments, "--overwrite").require(0)


def test_heads_in_the_models_own_checkpoint(tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    """Tensors that transformers does not know: the model is as ever, the heads are found by their keys."""
    folder = tmp_path / "early"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for layer in (0, 2):
        tensors[f"early.{layer}.norm.weight"] = torch.ones(HIDDEN)
        tensors[f"early.{layer}.head.weight"] = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path, key_map = tmp_path / "heads", write_map(tmp_path / "map.toml", OUTPUT_MAP)
    outcome = run_offramp("heads", "import", folder, "--map", key_map, "-o", path).require(0)
    assert "early: an output head of its own at exits 1, 3" in outcome.out
    trace = ["trace", folder, "-w", f"jsonl:{documents}#text", "--tokens", 200, "--heads", path]
    refused = run_offramp(*trace, "--exits", "1,2", "-o", tmp_path / "trace").require(2)
    assert "(--exits 1,3)" in refused.err
    run = ["run", folder, "-w", f"jsonl:{documents}#text", "--heads", path, "-o", tmp_path / "run"]
    assert "(--exits 1,3)" in run_offramp(*run, "--exits", "1,2").require(2).err
    assert not (tmp_path / "run").exists()
    run_offramp(*trace, "-o", tmp_path / "trace").require(0)  # all exits are those that have heads
    found = Trace.load(tmp_path / "trace")
    assert found.exits.tolist() == [1, 3, LAYERS]
    # The same weights without the heads are another folder, so another base.
    outcome = run_offramp(
        "generate", tiny_model, "--policy", "static:exit=1", "--heads", path, "--prompt", "x"
    )
    assert "the exit heads were imported for early (" in outcome.require(2).err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("--format tuned-lens", "it is not said which model"),
        ("--format tuned-lens --model none --dtype float12", "unknown dtype 'float12'"),
        ("--format tuned-lens --model none --transform prune:drop=2", "a pruned one counts others"),
        ("--map map.toml --model none", "no tensor has a key like 'layers.{exit}.weight'"),
    ],
)
def test_an_import_is_refused_before_the_model_is_loaded(
    lens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_map(tmp_path / "map.toml", LENS_MAP.replace("{exit}.weight", "layers.{exit}.weight"))
    outcome = run_offramp("heads", "import", lens, *options.split(), "-o", "folder/heads").require(2)
    assert what in outcome.err
    assert "what to do:" in outcome.err
    assert not (tmp_path / "folder").exists()


def test_nothing_is_written_of_heads_that_do_not_fit_the_model(
    lens: Path, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["heads", "import", lens, "--format", "tuned-lens", "--model", tiny_model]
    (lens / "config.json").write_text(json.dumps({"d_model": 768, "num_hidden_layers": 12}))
    refused = run_offramp(*arguments, "-o", tmp_path / "folder" / "heads").require(2)
    assert "the lens was trained for a hidden size of 768; tiny has 32" in " ".join(refused.err.split())
    assert not (tmp_path / "folder").exists()
