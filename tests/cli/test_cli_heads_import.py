"""`offramp heads import`: a tuned lens and heads in a checkpoint, and everything that is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import run_offramp
from offramp.tracing.heads_file import read_heads
from offramp.tracing.trace import Trace
from tiny_models import LAYERS, VOCABULARY, write_llama

sys.path.insert(0, str(Path(__file__).parents[1] / "tracing"))

from importing_cases import LENS_MAP, OUTPUT_MAP, translators, write_map

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
    refused = run_offramp(*trace, "-o", tmp_path / "trace").require(2)
    assert "trace their exits only: --exits 1,3" in refused.err
    run = ["run", folder, "-w", f"jsonl:{documents}#text", "--heads", path, "-o", tmp_path / "run"]
    assert "trace their exits only: --exits 1,3" in run_offramp(*run).require(2).err
    assert not (tmp_path / "run").exists()
    run_offramp(*trace, "--exits", "1,3", "-o", tmp_path / "trace").require(0)
    found = Trace.load(tmp_path / "trace")
    assert found.exits.tolist() == [1, 3, LAYERS]
    # The same weights without the heads are another folder, so another base.
    outcome = run_offramp(
        "generate", tiny_model, "--policy", "static:exit=1", "--heads", path, "--prompt", "x"
    )
    assert "the exit heads were imported for early (" in outcome.require(2).err


def without_model(lens: Path) -> list[Any]:
    return [lens, "--format", "tuned-lens"]


def with_pickle(lens: Path) -> list[Any]:
    torch.save(translators(LAYERS, HIDDEN), lens / "params.safetensors")
    return [lens, "--format", "tuned-lens", "--model", "no such model"]


def with_unknown_format(lens: Path) -> list[Any]:
    return [lens, "--format", "tunedlens", "--model", "no such model"]


def with_nothing_said(lens: Path) -> list[Any]:
    return [lens, "--model", "no such model"]


def with_a_map_of_other_keys(lens: Path) -> list[Any]:
    other = LENS_MAP.replace("{exit}.weight", "layers.{exit}.weight")
    return [lens, "--map", write_map(lens / "map.toml", other), "--model", "no such model"]


def with_an_unknown_type(lens: Path) -> list[Any]:
    return [lens, "--format", "tuned-lens", "--model", "no such model", "--dtype", "float8"]


def with_layers_dropped(lens: Path) -> list[Any]:
    return [*without_model(lens), "--model", "no such model", "--transform", "prune:drop=2"]


def with_no_file(lens: Path) -> list[Any]:
    return [lens / "absent", "--format", "tuned-lens", "--model", "no such model"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (without_model, "it is not said which model"),
        (with_pickle, "the file is a pickle"),
        (with_unknown_format, "no format 'tunedlens'"),
        (with_nothing_said, "nothing says which tensors"),
        (with_a_map_of_other_keys, "no tensor has a key like 'layers.{exit}.weight'"),
        (with_an_unknown_type, "unknown dtype 'float8'"),
        (with_no_file, "there is no such file"),
        (with_layers_dropped, "a pruned one counts others"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    lens: Path, tmp_path: Path, arguments: Any, what: str
) -> None:
    output = tmp_path / "folder" / "heads"
    outcome = run_offramp("heads", "import", *arguments(lens), "-o", output).require(2)
    assert what in outcome.err
    assert "what to do:" in outcome.err
    assert not output.parent.exists()


def of_another_shape(lens: Path) -> None:
    save_file(translators(LAYERS, 16), lens / "params.safetensors")


def with_nan(lens: Path) -> None:
    tensors = translators(LAYERS, HIDDEN)
    tensors["2.bias"][3] = torch.nan
    save_file(tensors, lens / "params.safetensors")


def of_another_size(lens: Path) -> None:
    (lens / "config.json").write_text(json.dumps({"d_model": 768, "num_hidden_layers": 12}))


def of_another_name(lens: Path) -> None:
    (lens / "config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2"}))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (of_another_shape, "1.weight has the shape [16, 16], not [32, 32]"),
        (with_nan, "2.bias holds a number that is not finite"),
        (of_another_size, "the lens was trained for a hidden size of 768; tiny has 32"),
        (of_another_name, "the lens was trained for gpt2, not for tiny"),
    ],
)
def test_heads_that_do_not_fit_the_model_are_refused(
    lens: Path, tiny_model: Path, tmp_path: Path, spoil: Any, what: str
) -> None:
    spoil(lens)
    output = tmp_path / "folder" / "heads"
    arguments = ["heads", "import", lens, "--format", "tuned-lens", "--model", tiny_model, "-o", output]
    outcome = run_offramp(*arguments).require(2)
    assert what in " ".join(outcome.err.split())
    assert not output.parent.exists()


def test_imported_heads_of_another_base_are_refused(
    lens: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    path = tmp_path / "heads"
    arguments = ["heads", "import", lens, "--format", "tuned-lens", "--model", tiny_model, "-o", path]
    run_offramp(*arguments).require(0)
    other = write_llama(tmp_path / "other", initializer_range=0.3)
    outcome = run_offramp(
        "trace", other, "-w", f"jsonl:{documents}#text", "--heads", path, "-o", tmp_path / "trace"
    ).require(2)
    assert "the exit heads were imported for tiny (" in outcome.err
    assert "not for other (" in outcome.err
    assert not (tmp_path / "trace").exists()
