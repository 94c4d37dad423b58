"""Streamed models against the same models in memory, bit for bit, and every model that cannot be streamed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import family_configs
import pytest
import torch
from model_folders import edit_json
from streaming_cases import (
    driven_outputs,
    edit_tensors,
    layers_in_turn,
    own_outputs,
    shards,
    two_documents,
    write_family,
)
from torch import Tensor

from offramp.errors import ModelError
from offramp.models.checkpoint import read_headers
from offramp.models.loading import load_source
from offramp.models.source import find_source
from offramp.models.streaming import load_streamed, needed_memory

# Tied and looking back through a window, latent attention with experts stored one by one, attention with a
# state space, inputs for each layer beside the hidden state. Others: tests/tracing/test_tracing_streamed.py.
FAMILIES = ("gemma2", "deepseek_v3", "falcon_h1", "gemma3n_text")


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_model_is_the_model_in_memory(family: str, tmp_path: Path) -> None:
    source = write_family(tmp_path, family)
    assert len(shards(tmp_path)) > 2
    if family == "deepseek_v3":
        assert any(".experts.3." in name for name in read_headers(tmp_path))
    whole = load_source(source)
    model = load_streamed(source, dtype="float32")
    for index, layer in enumerate(layers_in_turn(model)):
        expected = dict(whole.stack.layers[index].state_dict())
        found = dict(layer.state_dict())
        assert found.keys() == expected.keys()
        assert all(same(found[name], expected[name]) for name in expected)
        others = [other for other in model.stack.layers if other is not layer]
        assert all(weight.is_meta for other in others for weight in other.parameters())
    in_layers = {id(weight) for layer in model.stack.layers for weight in layer.parameters()}
    resident = {name: weight for name, weight in model.hf.named_parameters() if id(weight) not in in_layers}
    expected = dict(whole.hf.named_parameters())
    assert all(same(weight, expected[name]) for name, weight in resident.items())
    ids = two_documents(whole.hf)
    own, driven = own_outputs(whole, ids), driven_outputs(model, ids)
    assert all(torch.equal(one, other) for one, other in zip(own, driven, strict=True))
    assert torch.equal(model.stack.readout(driven[-1], ids), whole.hf(input_ids=ids).logits)
    assert model.stack.readout_kind == whole.stack.readout_kind
    assert model.shape == whole.shape
    unlike = {"hf", "tokenizer", "stack", "streamed", "identify"}
    for field in dataclasses.fields(model):
        assert field.name in unlike or getattr(model, field.name) == getattr(whole, field.name)
    assert model.identity == whole.identity


def test_buffers_and_bfloat16_are_as_loaded_in_memory(tmp_path: Path) -> None:
    source = write_family(tmp_path, "gptj")
    whole = load_source(source, dtype="bfloat16")
    model = load_streamed(source, dtype="bfloat16")
    buffers = dict(model.hf.named_buffers())
    assert buffers
    assert all(same(buffer, buffers[name]) for name, buffer in whole.hf.named_buffers())
    ids = two_documents(whole.hf)
    own, driven = own_outputs(whole, ids), driven_outputs(model, ids)
    assert all(torch.equal(one, other) for one, other in zip(own, driven, strict=True))


def test_many_layers_are_judged_by_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(family_configs.SMALL, "num_hidden_layers", 13)
    source = write_family(tmp_path, "gemma3_text")
    whole = load_source(source)
    model = load_streamed(source, dtype="float32")
    assert {layer.window for layer in whole.shape.layers} == {64, None}
    assert model.shape == whole.shape
    ids = two_documents(whole.hf)
    assert all(map(torch.equal, own_outputs(whole, ids), driven_outputs(model, ids)))


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    model = load_streamed(write_family(tmp_path, "gemma2"), dtype="float32")
    embedding = model.hf.get_input_embeddings().weight
    assert model.hf.get_output_embeddings().weight is embedding
    assert not embedding.is_meta
    assert model.stack.head_weight is not None
    assert model.stack.head_weight.data_ptr() == embedding.data_ptr()
    tail = sum(weight.nbytes for weight in model.stack.tail[0].parameters())
    assert model.streamed is not None
    assert model.streamed.resident_bytes == embedding.nbytes + tail


def test_a_head_of_its_own_is_not_tied_whatever_the_config_says(tmp_path: Path) -> None:
    write_family(tmp_path, "gemma2")

    def own_head(tensors: dict[str, Tensor]) -> None:
        if "model.embed_tokens.weight" in tensors:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()

    edit_tensors(tmp_path, own_head)
    source = find_source(str(tmp_path))
    whole, model = load_source(source), load_streamed(source, dtype="float32")
    assert model.hf.get_output_embeddings().weight is not model.hf.get_input_embeddings().weight
    ids = two_documents(whole.hf)
    logits = model.stack.readout(driven_outputs(model, ids)[-1], ids)
    assert torch.equal(logits, whole.hf(input_ids=ids).logits)


def test_a_quantised_checkpoint_is_refused(llama_folder: Path) -> None:
    edit_json(llama_folder / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(ModelError, match="stored quantised"):
        load_streamed(find_source(str(llama_folder)), dtype="float32")


def other_width(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "layers.2.mlp.up_proj" in name]:
        tensors[name] = tensors[name][:, :-1].contiguous()


def truths(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "layers.2.mlp.up_proj" in name]:
        tensors[name] = tensors[name] > 0


def lost_norm(tensors: dict[str, Tensor]) -> None:
    tensors.pop("model.layers.2.input_layernorm.weight", None)


def lost_head(tensors: dict[str, Tensor]) -> None:
    tensors.pop("lm_head.weight", None)


def another_layer(tensors: dict[str, Tensor]) -> None:
    if "model.norm.weight" in tensors:
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)


def other_names(tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace("self_attn", "attention")] = tensors.pop(name)


def lost_expert(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "layers.1." in name and "experts.2.w1" in name]:
        tensors.pop(name)


@pytest.mark.parametrize(
    ("family", "damage", "what"),
    [
        ("llama", other_width, r"model.layers.2.mlp.up_proj.weight: there it is 96 x 64, here it is 96 x 63"),
        ("llama", truths, r"model.layers.2.mlp.up_proj.weight is BOOL, truth values"),
        ("llama", lost_norm, r"lack 1 tensors .* first is model.layers.2.input_layernorm.weight"),
        ("llama", lost_head, r"lack 1 tensors .* first is lm_head.weight"),
        ("llama", another_layer, r"hold 1 tensors that .* first is model.layers.7.mlp.up_proj.weight"),
        ("llama", other_names, r"lack 16 tensors .*, and hold 16 others"),
        ("mixtral", lost_expert, r"not of the model .*model.layers.1.mlp.experts.gate_up_proj"),
    ],
)
def test_weights_of_another_model_are_refused_before_any_is_read(
    family: str, damage: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(tmp_path, family)
    edit_tensors(tmp_path, damage)
    source = find_source(str(tmp_path))
    monkeypatch.setattr("offramp.models.streaming.ShardReader.read", None)
    for refusing in (
        lambda: load_streamed(source, dtype="float32"),
        lambda: needed_memory(source, "float32"),
    ):
        with pytest.raises(ModelError, match=what):
            refusing()


def test_constants_that_the_model_computes_itself_are_no_weights(tmp_path: Path) -> None:
    """Checkpoints of GPT-Neo hold its masks."""
    write_family(tmp_path, "gpt_neo")
    whole = load_source(find_source(str(tmp_path)))

    def masks(tensors: dict[str, Tensor]) -> None:
        if "transformer.wte.weight" in tensors:
            tensors["transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 4, 4)
            tensors["transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)

    edit_tensors(tmp_path, masks)
    source = find_source(str(tmp_path))
    assert load_streamed(source, dtype="float32").shape == load_source(source).shape == whole.shape


def test_a_config_of_another_depth_is_refused(tmp_path: Path) -> None:
    write_family(tmp_path, "llama")
    edit_json(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"tensors that the model in config\.json does not have"):
        load_streamed(find_source(str(tmp_path)), dtype="float32")
    edit_json(tmp_path / "config.json", num_hidden_layers=5)
    with pytest.raises(ModelError, match="lack 9 tensors"):
        load_streamed(find_source(str(tmp_path)), dtype="float32")


def test_announced_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    write_family(tmp_path, "llama")
    edit_json(tmp_path / "config.json", num_hidden_layers=3)
    source = find_source(str(tmp_path))
    with pytest.raises(ModelError, match=r"hold 9 tensors that"):
        load_streamed(source, dtype="float32")
    edit_json(tmp_path / "config.json", num_nextn_predict_layers=1)
    assert load_streamed(source, dtype="float32").layers == 3


@pytest.mark.parametrize(
    ("family", "layers", "what"),
    [
        ("zamba2", 4, "layers share weights"),
        ("zaya", 4, "compute something else when they run one by one"),
        ("rwkv", 9, "compute something else when they run one by one"),
    ],
)
def test_families_that_need_all_layers_are_refused_with_the_reason(
    family: str, layers: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(family_configs.SMALL, "num_hidden_layers", layers)
    source = write_family(tmp_path, family)
    with pytest.raises(ModelError, match=what):
        load_streamed(source, dtype="float32")


def test_a_model_that_asks_its_layers_where_they_are_is_refused(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaModel

    forward = LlamaModel.forward

    def following_the_weights(self: Any, input_ids: Tensor, **keywords: Any) -> Any:
        return forward(self, input_ids=input_ids.to(self.layers[0].mlp.up_proj.weight.device), **keywords)

    monkeypatch.setattr(LlamaModel, "forward", following_the_weights)
    with pytest.raises(ModelError, match="what its layers are called with depends on their weights"):
        load_streamed(find_source(str(llama_folder)), dtype="float32")


def test_code_that_comes_with_a_model(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(llama_folder / "code"))
    (llama_folder / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit_json(llama_folder / "config.json", auto_map=code, model_type="own")
    with pytest.raises(ModelError, match="auto_map"):
        find_source(str(llama_folder))
    source = find_source(str(llama_folder), trust_remote_code=True)
    model = load_streamed(source, dtype="float32", trust_remote_code=True)
    assert type(model.hf).__name__ == "OwnForCausalLM"
    whole = load_source(source, trust_remote_code=True)
    ids = two_documents(whole.hf)
    assert all(map(torch.equal, own_outputs(whole, ids), driven_outputs(model, ids)))
