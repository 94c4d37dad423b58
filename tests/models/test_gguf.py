"""GGUF files: a round trip through the dense cache, damage, kills and two processes at once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from offramp.errors import InputError, ModelError, OfframpError
from offramp.models import gguf_file, gguf_header, source
from offramp.models.gguf_file import CACHE_VARIABLE, cache_folder, dense_folder, find_damage
from offramp.models.gguf_header import read_header
from offramp.models.gguf_metadata import check_all_read, check_split
from offramp.models.identity import identify_folder
from offramp.models.model import Model
from offramp.models.source import find_source, gguf_name
from offramp.tracing.loading import load_model
from tiny_models import GGUF_LAYERS, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tiny.gguf", "tiny"),
        ("model.gguf", "folder"),
        ("ggml-model-Q4_0.gguf", "folder-Q4_0"),
        ("modelled.gguf", "modelled"),
    ],
)
def test_a_file_that_says_nothing_is_called_after_its_folder(tmp_path: Path, file: str, name: str) -> None:
    assert gguf_name(tmp_path / "folder" / file) == name


def test_a_gguf_becomes_a_dense_model_with_its_weights_and_a_damaged_one_again(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.gguf"
    tensors = write_gguf(path)
    model = load_model(str(path))
    said = capsys.readouterr().err.splitlines()
    assert [line[: line.index("tiny.gguf")] for line in said] == ["offramp: reading ", "offramp: converting "]
    assert (model.name, model.layers, model.context_length) == ("tiny", GGUF_LAYERS, 64)
    assert model.identity.licence == "mit"
    assert model.identity.weights == gguf_file.sha256_of_file(path)
    embedding = model.hf.get_input_embeddings().weight
    assert torch.equal(embedding, torch.from_numpy(tensors["token_embd.weight"]))
    down = model.hf.model.layers[1].mlp.down_proj.weight
    assert torch.equal(down, torch.from_numpy(tensors["blk.1.ffn_down.weight"]))
    text = "grüße"
    assert model.decode(model.encode(text)).replace("<s>", "") == text
    # transformers gives every byte-level GGUF tokenizer this token; the file has no row for it.
    with pytest.raises(ModelError, match=r"special token '<\|endoftext\|>' \(id 259\)"):
        model.encode("a<|endoftext|>")
    described, folder = sorted(gguf_file.converted_models(), key=lambda entry: len(entry.name), reverse=True)
    assert (find_damage(described), find_damage(folder)) == (None, None)
    # A plan or a check before loading says who the model is by the first of them.
    assert (find_source(str(path)).folder, find_source(str(path)).whole().folder) == (described, folder)
    assert identify_folder(folder, source="", weights="") == identify_folder(described, source="", weights="")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float32}
    again = load_model(str(path))
    assert capsys.readouterr().err == ""
    assert again.identity == model.identity
    # A flipped bit in the cache is noticed and repaired.
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 0x10
    weights.write_bytes(content)
    repaired = load_model(str(path))
    assert "is damaged (model.safetensors changed); converting it again" in capsys.readouterr().err
    assert torch.equal(repaired.hf.get_input_embeddings().weight, embedding)
    # What was added would be read, and a manifest is believed as it was written alone: an older offramp's has
    # no seal.
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    assert find_damage(folder) == "chat_template.jinja was added"
    assert load_model(str(path)).identity == model.identity
    assert "chat_template.jinja was added" in capsys.readouterr().err
    manifest = folder / gguf_file.MANIFEST
    written = manifest.read_text()
    for text in ('{"files": {}}', json.dumps({"files": json.loads(written)["files"], "source": "tiny.gguf"})):
        manifest.write_text(text)
        assert "sha256" in str(find_damage(folder))
    manifest.write_text(written)
    assert find_damage(folder) is None
    manifest.unlink()
    assert find_damage(folder) is not None


def test_half_precision_is_kept_where_it_is_lossless(tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    write_gguf(path, dtype=np.float16)
    folder = dense_folder(path, gguf_file.sha256_of_file(path), gguf_file.convert_to_safetensors)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}


def test_a_tokenizer_that_makes_no_sense_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    content = path.read_bytes()
    assert content.count(b"a b") == 1
    path.write_bytes(content.replace(b"a b", b"a ~"))
    with pytest.raises(ModelError, match="cannot read this GGUF file"):
        load_model(str(path))
    assert not [entry for entry in (cache / "dense").iterdir() if entry.is_dir()]


def test_truncated_and_other_files_are_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    for content, why in [
        (b"<!DOCTYPE html>", "does not begin with the letters GGUF"),
        *((whole[:keep], r"not a GGUF file|truncated or damaged") for keep in (2, 20, 300, 5000, -64)),
    ]:
        path.write_bytes(content)
        with pytest.raises(ModelError, match=why) as error:
            load_model(str(path))
        assert error.value.where == str(path)
        assert not [entry for entry in (cache / "dense").glob("*") if entry.is_dir()]


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        *(({"block_count": count}, f"block_count = {count}, .* 2 layers") for count in (0, 1, 3, 10**9)),
        ({"embedding_length": 2**32 - 1}, "embedding_length = 4294967295"),
        ({"head_count": 10**9}, "head_count = 1000000000"),
        ({"vocab_size": 10**9}, "vocab_size = 1000000000"),
        ({"feed_forward_length": 10**9}, "feed_forward_length = 1000000000"),
    ],
)
def test_a_header_with_other_sizes_is_refused_before_anything_is_built(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, stated: dict[str, int], why: str
) -> None:
    monkeypatch.setattr(gguf_file, "_check_tensors", no_call)
    write_gguf(tmp_path / "tiny.gguf", **stated)
    require_refused(tmp_path / "tiny.gguf", cache, why)


def no_call(*_: object) -> None:
    raise AssertionError


def require_refused(path: Path, cache: Path, why: str) -> None:
    with pytest.raises(ModelError, match=why) as error:
        find_source(str(path)).whole()
    assert error.value.where == str(path)
    assert not list((cache / "dense").rglob("*.safetensors"))


def with_word(content: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


def after(content: bytes, name: bytes) -> int:
    return content.index(name) + len(name)


# Behind a tensor's name: the number of its axes, the axes, its type and where it begins.
NORM, LAST = b"output_norm.weight", b"blk.1.ffn_norm.weight"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda whole: with_word(whole, 4, ">I", 3), "it is big-endian"),
        (lambda whole: with_word(whole, 4, "<I", 99), "GGUF of the version 99, and 2 and 3 are read"),
        (lambda whole: with_word(whole, 8, "<Q", 0), "it holds no tensors"),
        (lambda whole: with_word(whole, 8, "<Q", 1), "it has"),
        (lambda whole: with_word(whole, 8, "<Q", 10**18), "truncated or damaged"),
        (lambda whole: with_word(whole, 16, "<Q", 10**18), "truncated or damaged"),
        # A list of numbers, which may be of any length.
        (
            lambda whole: with_word(whole, after(whole, b"token_type") + 8, "<Q", 2**60),
            "truncated or damaged",
        ),
        (
            lambda whole: whole.replace(b"blk.0.attn_q", b"blk.0.attn_k", 1),
            "attn_k.weight stands there twice",
        ),
        (
            lambda whole: with_word(whole, after(whole, NORM) + 12, "<I", 999),
            "output_norm.weight .* type 999",
        ),
        (
            lambda whole: with_word(whole, after(whole, NORM) + 12, "<I", 24),
            "output_norm.weight is I8, whole numbers, not weights",
        ),
        (lambda whole: with_word(whole, after(whole, NORM) + 4, "<Q", 0), r"shape \[0\]"),
        (lambda whole: with_word(whole, after(whole, LAST) + 16, "<Q", 0), "begins at byte 0 of"),
        (lambda whole: whole + bytes(64), "bytes, and it has"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(
    tmp_path: Path, cache: Path, damage: Callable[[bytes], bytes], why: str
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(damage(path.read_bytes()))
    require_refused(path, cache, why)


def test_a_truth_value_is_a_byte_of_0_or_1(tmp_path: Path) -> None:
    path, key = tmp_path / "tiny.gguf", "tokenizer.ggml.add_bos_token"
    write_gguf(path, keys={key: True})
    content = path.read_bytes()
    assert read_header(path).values[key] is True
    place = after(content, key.encode()) + 4
    path.write_bytes(content[:place] + b"\2" + content[place + 1 :])
    with pytest.raises(ModelError, match=f"damaged .{key} is neither true nor false"):
        read_header(path)


def test_a_header_too_large_to_read_is_refused_before_any_of_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    for bound, most, why in (
        ("LONGEST_TEXT", 30, r"38 bytes in the text of key, and at most 30"),
        ("ALL_TEXTS", 800, r"810 bytes in the texts up to that of key, and at most 800"),
        ("MOST_VALUES", 517, r"518 values in the lists up to tokenizer.ggml.token_type, and at most 517"),
        ("MOST_ENTRIES", 19, r"there are 20 tensors, and at most 19"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(gguf_header, bound, most)
            with pytest.raises(ModelError, match=why) as error:
                read_header(path)
        assert "GGUF file from another source" in error.value.fix
    content = path.read_bytes()
    size = gguf_header.LONGEST_TEXT + 1
    path.write_bytes(with_word(content, after(content, b"general.license") + 4, "<Q", size) + bytes(size))
    tracemalloc.start()
    with pytest.raises(ModelError, match=r"1,000,001 bytes in the text of general.license"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < size / 2
    tracemalloc.stop()


def test_names_of_tensors_are_mapped_once_while_a_file_is_read() -> None:
    import gguf

    slow: Any = gguf.get_tensor_name_map
    with gguf_file._read_quickly():
        first, second = (gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers) for layers in (2, 2))
        deeper = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    assert first is second
    assert first.mapping == slow(gguf.MODEL_ARCH.LLAMA, 2).mapping != deeper.mapping
    assert gguf.get_tensor_name_map is slow


def test_a_header_is_read_quickly_and_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import read_field

    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    slow: Any = GGUFReader(path)
    with gguf_file._read_quickly():
        quick: Any = GGUFReader(path)
    # One part for each value, so none is an array of its own.
    assert isinstance(quick.fields["tokenizer.ggml.tokens"].parts[-1], bytes)
    assert len(slow.fields) == len(quick.fields) > 15
    for key in slow.fields:
        assert read_field(quick, key) == read_field(slow, key)
    assert [tensor.name for tensor in quick.tensors] == [tensor.name for tensor in slow.tensors]


def header_of(architecture: str, **stated: Any) -> dict[str, Any]:
    """Keys below an architecture's name; a double underscore stands for a full stop."""
    return {f"{architecture}.{key.replace('__', '.')}": value for key, value in stated.items()}


# As llama.cpp's converter writes them, beside what every model has.
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"vocab_size": 32000, "rope__dimension_count": 128, "tensor_data_layout": "Meta AI"}),
    "qwen2": ("qwen2", {"rope__freq_base": 1e6, "rope__dimension_count": 128}),
    "qwen2moe": ("qwen2_moe", {"expert_count": 60, "expert_used_count": 4, "expert_gating_func": 1}),
    "qwen3": ("qwen3", {"attention__key_length": 128, "attention__value_length": 128}),
    "phi3": (
        "phi3",
        {"rope__scaling__original_context_length": 4096, "attention__sliding_window": 2047}
        | {"rope__dimension_count": 96},
    ),
    "gemma2": (
        "gemma2",
        {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention__sliding_window": 4096},
    ),
    "gemma3": (
        "gemma3_text",
        {"rope__freq_base_swa": 10000.0, "attention__sliding_window": 512, "attention__key_length": 256}
        | {"attention__sliding_window_pattern": 6},
    ),
    "stablelm": ("stablelm", {"use_parallel_residual": False, "rope__dimension_count": 20}),
    "falcon": ("falcon", {"attention__layer_norm_epsilon": 1e-5, "tensor_data_layout": "jploski"}),
    "starcoder2": ("starcoder2", {"rope__freq_base": 10000.0, "attention__layer_norm_epsilon": 1e-5}),
}


@pytest.mark.parametrize("architecture", WRITTEN)
def test_keys_that_change_nothing_are_passed_over(architecture: str) -> None:
    from transformers import AutoConfig

    family, stated = WRITTEN[architecture]
    common = {"context_length": 4096, "block_count": 2, "feed_forward_length": 48}
    neutral = {"rope__scaling__type": "none", "attention__causal": True, "attention__clamp_kqv": 0.0}
    values = header_of(architecture, **common, **neutral, **stated)
    config = AutoConfig.for_model(family)
    check_all_read(values, (), architecture, config, Path("any.gguf"))
    with pytest.raises(ModelError, match=rf"does not read {architecture}.logit_scale = 0.5"):
        check_all_read(values | {f"{architecture}.logit_scale": 0.5}, (), architecture, config, Path("any"))


@pytest.mark.parametrize(
    ("stated", "why"),
    [
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 16.0},
            "llama.rope.scaling.factor = 16.0",
        ),
        ({"rope__scaling__type": "yarn"}, "llama.rope.scaling.type = 'yarn'"),
        ({"rope__scale_linear": 16.0}, "llama.rope.scale_linear = 16.0"),
        ({"attention__clamp_kqv": 0.001}, "llama.attention.clamp_kqv = 0.001"),
        ({"logit_scale": -1.0}, "llama.logit_scale = -1.0"),
        ({"attention__causal": False}, "llama.attention.causal = False"),
        ({"attention__sliding_window": 1}, "llama.attention.sliding_window = 1"),
        ({"expert_count": 2}, "llama.expert_count = 2"),
        ({"some_new_key": "x"}, "llama.some_new_key = 'x'"),
    ],
)
def test_keys_that_transformers_would_drop_are_refused(
    tmp_path: Path, cache: Path, stated: dict[str, Any], why: str
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, keys=header_of("llama", **stated))
    require_refused(path, cache, f"transformers does not read {why}")


def test_a_model_that_computes_another_value_is_named_with_it() -> None:
    from transformers import AutoConfig

    for architecture, values, made in (
        ("starcoder2", {"rope__freq_base": 999999.4}, "rope_theta = 10000.0"),
        ("phi3", {"rope__dimension_count": 72}, "rotary_width = 96"),
        ("gemma2", {"final_logit_softcapping": 20.0}, "final_logit_softcapping = 30.0"),
    ):
        config = AutoConfig.for_model(architecture)
        with pytest.raises(ModelError, match=f"but makes a model with {made}"):
            check_all_read(header_of(architecture, **values), (), architecture, config, Path("any.gguf"))


EPSILON = "attention.layer_norm_rms_epsilon"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("context_length", 0, "context_length is 0, not a whole number from 1 to 100,000,000"),
        ("context_length", -5, "context_length is -5, not a whole number"),
        ("context_length", 2**63, "context_length is 9223372036854775808, not a whole number"),
        ("context_length", None, "there is no llama.context_length"),
        ("rope.freq_base", 0.0, r"freq_base is 0.0, not a number from 1 to 1,000,000,000,000$"),
        ("rope.freq_base", float("nan"), "freq_base is nan"),
        ("rope.freq_base", -10000.0, "freq_base is -10000.0"),
        (EPSILON, None, f"there is no llama.{EPSILON}, which a model"),
        (EPSILON, float("nan"), "epsilon is nan, not a number from 0 to 1"),
        ("attention.head_count", 0, "head_count is 0, not a whole number of 1 or more"),
        ("attention.head_count", True, "head_count is True, not a whole number"),
        ("attention.head_count_kv", [4, -2], "head_count_kv is -2, not a whole number of 0 or more"),
        ("block_count", 2.0, "block_count is 2.0, not a whole number"),
        ("block_count", "2", "block_count is '2', not a whole number"),
    ],
)
def test_values_that_no_model_has_are_refused_by_their_key(
    tmp_path: Path, key: str, value: Any, why: str
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, keys={f"llama.{key}": value})
    with pytest.raises(ModelError) as error:
        read_header(path)
    assert re.search(why, error.value.what)
    assert error.value.where == str(path)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("tokens", "abc", "tokens is no list of texts"),
        ("tokens", [1] * 259, "tokens is no list of texts"),
        ("tokens", None, "tokens is empty or missing"),
        ("tokens", [str(number) for number in range(300)], "token_type has 259 values for 300 tokens"),
        ("token_type", [3, 3], "token_type has 2 values for 259 tokens"),
        ("token_type", ["x"] * 259, "token_type is no list of whole numbers"),
        ("scores", [0.5], "scores has 1 values for 259 tokens"),
        ("merges", "a b", "merges is no list of texts"),
        ("merges", ["nospace"], "merges has 'nospace', which is not two texts and a space"),
        ("merges", ["a b c"], "merges has 'a b c'"),
        ("merges", None, "there is neither tokenizer.ggml.merges nor tokenizer.ggml.scores"),
        ("bos_token_id", 4_000_000_000, "bos_token_id is 4000000000, and the ids of tokens are 0 to 258"),
        ("bos_token_id", -1, "bos_token_id is -1"),
        ("eos_token_id", "</s>", "eos_token_id is '</s>'"),
        ("eot_token_id", 259, "eot_token_id is 259, and the ids of tokens are 0 to 258"),
        ("tokens", [str(number % 258) for number in range(259)], "tokens has '0' twice"),
        ("add_bos_token", "no", "add_bos_token is 'no', not true or false"),
    ],
)
def test_a_tokenizer_that_does_not_fit_together_is_refused_by_its_key(
    tmp_path: Path, key: str, value: Any, why: str
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, keys={f"tokenizer.ggml.{key}": value})
    with pytest.raises(ModelError, match=f"the GGUF file cannot be used: .*{why}"):
        read_header(path)


def test_a_split_of_texts_that_transformers_does_not_know_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    for split in ("nonexistent", "starcoder", 7):
        write_gguf(path, keys={"tokenizer.ggml.pre": split})
        require_refused(path, cache, f"does not split texts as tokenizer.ggml.pre = {split!r} says")
    for model, split in (("gpt2", "smollm"), ("gpt2", "gpt-2"), ("gpt2", "llama-bpe"), ("llama", "any")):
        check_split({"tokenizer.ggml.model": model, "tokenizer.ggml.pre": split}, path)
    check_split({"tokenizer.ggml.model": "gpt2"}, path)


def test_a_template_that_fails_names_the_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, keys={"tokenizer.chat_template": "{{ 1 / 0 }}"})
    with pytest.raises(ModelError, match="the model's chat template cannot write") as error:
        load_model(str(path)).encode_chat("a")
    assert error.value.where == str(path)
    write_gguf(path, keys={"tokenizer.chat_template": 7})
    with pytest.raises(ModelError, match=r"chat_template is 7, not a text"):
        read_header(path)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tokens = [str(number) for number in range(300)]
    write_gguf(path, keys={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": None})
    with pytest.raises(ModelError, match="has 300 tokens, and the embedding has 259 rows"):
        read_header(path)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"general.architecture": "LLAMA"}, "no LLAMA.block_count, .* 'LLAMA' needs, but llama.block_count"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"split.count": "3"}, "one of '3' parts"),
    ],
)
def test_other_architectures_and_parts_are_said(tmp_path: Path, keys: dict[str, Any], why: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", keys=keys)
    with pytest.raises(ModelError, match=why):
        read_header(tmp_path / "tiny.gguf")


def test_a_file_is_hashed_only_if_its_header_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 4096)
    monkeypatch.setattr(source, "sha256_of_file", no_call)
    with pytest.raises(ModelError, match="bytes, and it has"):
        find_source(str(path))


def test_a_pipe_and_a_link_to_a_device_are_called_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "device.gguf").symlink_to("/dev/zero")
    for name in ("pipe.gguf", "device.gguf"):
        with pytest.raises(ModelError, match="is a device, a pipe or a socket"):
            find_source(str(tmp_path / name))


FEED = "blk.0.ffn_up.weight"
OTHERS: list[tuple[Callable[[dict[str, np.ndarray]], Any], dict[str, int], str]] = [
    (lambda tensors: tensors.pop(FEED), {}, "lacks 1 of .*layers.0.mlp.up_proj.weight; they would"),
    (
        lambda tensors: tensors.update({"rope_freqs.weight": np.full(4, 8, np.float32)}),
        {},
        "not read 1 of .* rope_freqs",
    ),
    (lambda tensors: tensors.update({"blk.0.attn_q.bias": np.ones(32, np.float32)}), {}, "attn_q.bias"),
    (lambda tensors: tensors.update({FEED: tensors[FEED][:40]}), {}, r"\[40, 32\] .* \[48, 32\]"),
    (lambda tensors: tensors.update({FEED: tensors[FEED].T}), {}, r"\[32, 48\] .* \[48, 32\]"),
    (lambda tensors: None, {"feed_forward_length": 40}, r"\[48, 32\] .* \[40, 32\]"),
    (lambda tensors: None, {"head_count": 2}, r"\[32, 32\] .* \[16, 32\]"),
    (lambda tensors: None, {"vocab_size": 200}, r"\[259, 32\] .* \[200, 32\]"),
    (lambda tensors: tensors[FEED].fill(np.nan), {}, "NaN or infinite"),
    (lambda tensors: tensors[FEED].fill(-np.inf), {}, "NaN or infinite"),
]


@pytest.mark.parametrize(("change", "stated", "why"), OTHERS)
def test_tensors_that_are_not_those_of_the_model_are_refused(
    tmp_path: Path,
    cache: Path,
    change: Callable[[dict[str, np.ndarray]], Any],
    stated: dict[str, int],
    why: str,
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, change=change, **stated)
    require_refused(path, cache, why)


def test_what_transformers_says_is_missing_is_refused_too(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "_check_tensors", lambda *_: None)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, change=lambda tensors: tensors.pop(FEED))
    require_refused(path, cache, "lacks 1 of the model")


def test_flipped_header_bits_never_get_through_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    refused = 0
    for position in range(4, 1200, 29):
        content = bytearray(whole)
        content[position] ^= 0x40
        path.write_bytes(content)
        # Any error but this one would be a traceback for the user.
        with contextlib.suppress(ModelError):
            read_header(path)
            continue
        refused += 1
    assert refused > 5


def test_without_the_gguf_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(ModelError) as error:
        load_model(str(path))
    assert "offramp[gguf]" in error.value.fix


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "some.gguf"
    source.write_bytes(b"GGUF")

    def disk_full(path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OfframpError, match=r"No space left.*4 bytes were, [\d,]+ are free") as error:
        dense_folder(source, "0" * 64, disk_full)
    assert CACHE_VARIABLE in error.value.fix
    assert [entry.name for entry in (cache / "dense").iterdir()] == [
        f"{next((cache / 'dense').glob('*.lock')).name}"
    ]


def write_whole(source: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"whole")


@pytest.mark.parametrize("kind", ["pipe", "link", "text"])
def test_what_stands_where_a_lock_is_held_is_left_alone(tmp_path: Path, cache: Path, kind: str) -> None:
    source, other = tmp_path / "some.gguf", tmp_path / "notes.txt"
    source.write_bytes(b"GGUF")
    other.write_text("precious")
    folder = dense_folder(source, "0" * 64, write_whole)
    lock = next((cache / "dense").glob("*.lock"))
    lock.unlink()
    {"pipe": lambda: os.mkfifo(lock), "link": lambda: lock.symlink_to(other)}.get(
        kind, lambda: lock.write_text("precious")
    )()
    with pytest.raises(InputError, match="a lock's file cannot be used"):
        dense_folder(source, "0" * 64, write_whole)
    assert other.read_text() == "precious"
    assert folder.is_dir()


def test_a_link_in_the_cache_is_replaced_and_what_it_leads_to_is_left(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "some.gguf"
    source.write_bytes(b"GGUF")
    folder = dense_folder(source, "0" * 64, write_whole)
    moved = folder.rename(tmp_path / "elsewhere")
    for place in (lambda: folder.symlink_to(moved), lambda: folder.write_text("a file")):
        place()
        assert dense_folder(source, "0" * 64, write_whole) == folder
        assert folder.is_dir()
        assert not folder.is_symlink()
        shutil.rmtree(folder)
    assert (moved / "model.safetensors").read_bytes() == b"whole"


def test_a_copy_that_vanishes_before_it_is_read_is_no_bad_input(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanishes(*given: Any) -> Path:
        folder = dense_folder(*given)
        shutil.rmtree(cache)
        return folder

    monkeypatch.setattr(source, "dense_folder", vanishes)
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(OfframpError, match=r"the converted copy of tiny\.gguf was removed") as failed:
        load_model(str(tmp_path / "tiny.gguf"))
    assert failed.value.exit_code == 1
    assert failed.value.where.startswith(str(cache))


def test_a_cache_in_the_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "~no such user/cache")
    with pytest.raises(InputError, match="home directory") as error:
        cache_folder()
    assert CACHE_VARIABLE in error.value.where


CONVERT_WHEN_TOLD = """
import sys, time
from pathlib import Path
from offramp.models.gguf_file import dense_folder

def convert(source, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    (source.parent / "began").touch()
    while not (source.parent / "go on").exists():
        time.sleep(0.01)
    (folder / "model.safetensors").write_bytes(b"whole")

print(dense_folder(Path(sys.argv[1]), "a" * 64, convert))
"""


def start_conversion(source: Path) -> subprocess.Popen[str]:
    """A process that converts until there is a file "go on"."""
    command = [sys.executable, "-c", CONVERT_WHEN_TOLD, str(source)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_a_killed_conversion_leaves_no_folder_and_the_next_one_sweeps(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "some.gguf"
    process = start_conversion(source)
    wait_for(tmp_path / "began")
    process.send_signal(signal.SIGKILL)
    process.wait()
    folders = [entry.name for entry in (cache / "dense").iterdir() if entry.is_dir()]
    assert len(folders) == 1
    assert folders[0].startswith(".writing-")

    def convert(path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"whole")

    folder = dense_folder(source, "a" * 64, convert)
    assert [entry for entry in (cache / "dense").iterdir() if entry.is_dir()] == [folder]
    manifest = json.loads((folder / gguf_file.MANIFEST).read_text())
    assert list(manifest["files"]) == ["model.safetensors"]
    assert find_damage(folder) is None


def test_what_lies_outside_of_a_converted_folder_is_never_part_of_it(tmp_path: Path, cache: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "default.jinja").write_text("other words")

    def convert(path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"whole")

    folder = dense_folder(tmp_path / "some.gguf", "a" * 64, convert)
    added = folder / "additional_chat_templates"
    added.symlink_to(elsewhere)
    assert find_damage(folder) == "additional_chat_templates was added"
    added.unlink()
    named = gguf_file.Converted({"../outside": gguf_file.sha256_of_file(elsewhere / "default.jinja")}, "")
    gguf_file._FILE.write(folder / gguf_file.MANIFEST, named)
    assert "leads outside of the folder" in str(find_damage(folder))


def test_of_two_processes_one_converts_and_both_get_the_folder(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "some.gguf"
    first = start_conversion(source)
    wait_for(tmp_path / "began")
    second = start_conversion(source)
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    (tmp_path / "go on").touch()
    outputs = [process.communicate(timeout=30) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert outputs[0][0] == outputs[1][0]
    assert (Path(outputs[0][0].strip()) / "model.safetensors").read_bytes() == b"whole"


@pytest.mark.real_model
def test_the_bundled_model_reads_and_answers(smollm2: Model) -> None:
    model = smollm2
    assert (model.layers, model.context_length, model.dtype) == (30, 8192, "float32")
    assert model.stack.readout_kind == "fast"
    assert model.stack.largest_difference == 0.0
    assert model.identity.licence == "Apache-2.0"
    assert not model.uses_plain_chat_template
    ids = torch.tensor([model.encode_chat("What is the capital of France?")])
    last: list[torch.Tensor] = []
    model.stack.capture(ids, lambda index, before, after: last.append(after))
    logits = model.stack.readout(last[-1])
    assert torch.equal(logits, model.hf(ids, use_cache=False).logits)
    assert model.decode([int(logits[0, -1].argmax())]).strip() in ("The", "Paris")
    layer = model.shape.layers[0]
    assert (layer.key_value_width, layer.attention_width) == (2 * 3 * 64, 9 * 64)
    assert layer.key_value_parameters == 2 * 576 * 192
