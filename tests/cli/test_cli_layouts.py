"""`offramp heads import --format`: from a public checkpoint's files to traces and tokens, without --model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from layout_cases import balcony_tensors
from safetensors.torch import load_file, save_file

from command_line import run_offramp
from offramp.heads.file import read_heads
from offramp.tracing.trace import Trace
from tiny_models import CONTEXT, LAYERS, VOCABULARY, write_tokenizer

HIDDEN = 32


@pytest.fixture
def multi_exit(tmp_path: Path) -> Path:
    """A GPT-2 with a head after every layer, as a pickle, with the masks that older GPT-2 files hold."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "multi"
    folder.mkdir()
    write_tokenizer(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=CONTEXT, bos_token_id=0,
        eos_token_id=1, initializer_range=0.2, lm_head_layer_indices=list(range(1, LAYERS + 1)),
    )  # fmt: skip
    tensors = GPT2LMHeadModel(config).state_dict()
    for layer in range(LAYERS):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.uint8)
        head = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(layer))
        tensors[f"name_to_lm_exit_head.lm_head_{layer + 1}.weight"] = head
    torch.save(tensors, folder / "pytorch_model.bin")
    config.save_pretrained(folder)
    return folder


def test_a_multi_exit_model_is_converted_imported_traced_and_decoded(
    multi_exit: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = tmp_path / "heads.safetensors"
    arguments = ["heads", "import", multi_exit, "--format", "multi-exit", "-o", heads]
    refused = run_offramp(*arguments).require(2)
    assert "the file is a pickle" in refused.err
    monkeypatch.chdir(multi_exit)
    exec(refused.err.split('python -c "')[1].rsplit('"', 1)[0], {})
    outcome = run_offramp(*arguments, "--json").require(0)
    assert "multi: an output head of its own at exits 1, 2, 3" in outcome.err
    assert f"left out: name_to_lm_exit_head.lm_head_{LAYERS}.weight" in outcome.err
    assert outcome.json["provenance"]["imported"]["source"] == "multi"
    assert outcome.json["fingerprint"] == read_heads(heads).fingerprint
    trace = ["trace", multi_exit, "-w", f"jsonl:{documents}#text", "--tokens", 120, "--heads", heads]
    run_offramp(*trace, "-o", tmp_path / "trace").require(0)
    assert Trace.load(tmp_path / "trace").exits.tolist() == [1, 2, 3, LAYERS]
    generate = ["generate", multi_exit, "--policy", "static:exit=2", "--heads", heads, "--prompt", "the cat"]
    assert "layers skipped" in run_offramp(*generate, "--max-new-tokens", 4).require(0).err


def test_a_balcony_checkpoint_is_its_own_base_once_its_config_says_what_transformers_knows(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    folder, heads = tmp_path / "balcony", tmp_path / "heads.safetensors"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    exits = balcony_tensors((1, 3), decoder="mlp", untied=False)
    base = load_file(tiny_model / "model.safetensors")
    save_file({**base, **exits}, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    of_balcony = {"exit_layer_indices": [1, 3], "tie_exit_lm_head": True, "exit_decoder_layer": True}
    of_balcony |= {"exit_mlp": True, "model_type": "nested_llama"}
    (folder / "config.json").write_text(json.dumps(config | of_balcony))
    arguments = ["heads", "import", folder, "--format", "balcony", "-o", heads]
    refused = run_offramp(*arguments).require(2)
    assert "transformers cannot build it from these files" in " ".join(refused.err.split())
    run_offramp(*arguments, "--model", tiny_model).require(0)
    trace = ["trace", "-w", f"jsonl:{documents}#text", "--tokens", 120, "--heads", heads, "--exits", "1,3"]
    run_offramp(*trace, tiny_model, "-o", tmp_path / "theirs").require(0)
    (folder / "config.json").write_text(json.dumps(config | of_balcony | {"model_type": "llama"}))
    outcome = run_offramp(*arguments, "--overwrite").require(0)
    assert "balcony: a network of 24 units and a norm of its own at exits 1, 3" in outcome.out
    run_offramp(*trace, folder, "-o", tmp_path / "own").require(0)
    theirs, own = Trace.load(tmp_path / "theirs"), Trace.load(tmp_path / "own")
    np.testing.assert_array_equal(theirs.top1, own.top1)
    assert (own.top1[:, 0] != own.top1[:, -1]).any()
