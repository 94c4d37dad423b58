"""Importing exit heads of others: the right tensor at the right exit, and everything else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from importing_cases import (
    LENS_MAP,
    OUTPUT_MAP,
    output_tensors,
    translators,
    write_map,
    write_tuned_lens,
)
from safetensors.torch import save_file
from tracing_models import build_family, llama, tiny_llama, tiny_model, workload_of
from transformers import OPTConfig, OPTForCausalLM

import offramp
from offramp.errors import InputError
from offramp.heads.importing.imports import find_import, import_heads
from offramp.policies.replay import replay
from offramp.tracing.tracer import trace

TEXTS = ("3 1 4 1 5 9 2 6 5 3 5", "8 9 7 9 3 2 3 8 4 6")


def sequences() -> list[list[int]]:
    return [[int(word) for word in text.split()][:-1] for text in TEXTS]


def traced_top1(model: Any, heads: Any) -> np.ndarray:
    work = workload_of(*TEXTS)
    return trace(model, work, tokens=100, context=40, heads=heads, progress=False).top1


def hidden_states(model: Any, ids: list[int]) -> tuple[torch.Tensor, ...]:
    """transformers' own: the embedding, then the state after each layer (the last one normed)."""
    with torch.no_grad():
        states = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return tuple(state[0] for state in states)


# -- tuned-lens


def test_a_tuned_lens_is_read_as_its_own_program_reads_it(tmp_path: Path) -> None:
    """For i, h in enumerate(hidden_states[:-1]): unembed(h + translator_i(h)), as tuned-lens trains it."""
    model = tiny_llama()
    tensors = translators(model.layers, 32)
    folder = write_tuned_lens(tmp_path / "lens", model, tensors)
    heads = import_heads(folder, model, format="tuned-lens")
    assert heads.exits == (1, 2)
    found = traced_top1(model, heads)
    expected = []
    for ids in sequences():
        rows = []
        for i, h in enumerate(hidden_states(model, ids)[:-1]):
            translated = h + torch.nn.functional.linear(h, tensors[f"{i}.weight"], tensors[f"{i}.bias"])
            rows.append(model.hf.lm_head(model.hf.model.norm(translated)).argmax(-1))
        expected.append(torch.stack(rows, -1))
    by_lens = torch.cat(expected).numpy()
    assert np.array_equal(found[:, :-1], by_lens[:, 1:])  # the first translator reads the embedding
    assert not np.array_equal(found[:, :-1], by_lens[:, :-1])


def test_what_is_not_known_of_a_lens_is_not_made_up(tmp_path: Path) -> None:
    model = tiny_llama()
    folder = write_tuned_lens(tmp_path / "lens", model)
    heads = import_heads(folder, model, format="tuned-lens")
    assert heads.lens is not None
    assert heads.lens.explained is None
    assert heads.lens.penalty is None
    assert heads.documents == {}
    assert heads.classifiers == {}
    imported = heads.provenance["imported"]
    assert imported["format"] == "tuned-lens"
    assert imported["base_recognised_by"] == "unembed_hash"
    assert list(imported["files"]) == ["params.safetensors"]
    assert find_import(folder, format="tuned-lens").left_out(3) == (
        "left out: 0.weight, since the state before the first layer is no exit",
    )
    found = trace(model, workload_of(*TEXTS), tokens=20, context=40, heads=heads, progress=False)
    assert found.provenance["request"]["heads"]["imported"] is True
    assert any("does not know which documents" in note for note in replay(found, "static:exit=1").notes)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"d_model": 64}, "for a hidden size of 64; tiny has 32"),
        ({"num_hidden_layers": 12}, "for a number of layers of 12; tiny has 3"),
        ({"unembed_hash": "0" * 64}, "for another output head than that of tiny"),
        (
            {"unembed_hash": None, "base_model_name_or_path": "EleutherAI/pythia-70m"},
            "for EleutherAI/pythia-70m, not for tiny",
        ),
        ({"lens_type": "mlp"}, "lens_type is 'mlp'; offramp reads linear_tuned_lens"),
        ({"d_model": "32"}, "d_model is '32', which does not fit"),
    ],
    ids=str,
)
def test_a_tuned_lens_of_another_base_is_refused(config: dict[str, Any], what: str, tmp_path: Path) -> None:
    model = tiny_llama()
    folder = write_tuned_lens(tmp_path / "lens", model, **config)
    with pytest.raises(InputError, match=what) as caught:
        import_heads(folder, model, format="tuned-lens")
    assert caught.value.fix
    assert caught.value.where.startswith(str(folder / "config.json"))


def test_a_lens_in_half_precision_without_a_config_or_a_bias(tmp_path: Path) -> None:
    model = tiny_llama()
    exact = translators(3, 32)
    half = {key: value.half() for key, value in exact.items()}
    save_file(half, tmp_path / "params.safetensors")
    heads = import_heads(tmp_path / "params.safetensors", model, format="tuned-lens")
    assert heads.lens is not None
    assert heads.provenance["imported"]["base_recognised_by"] == "nothing but its size"
    np.testing.assert_array_equal(
        heads.lens.weight[0], half["1.weight"].float().numpy() + np.eye(32, dtype="f")
    )
    weights = {key: value for key, value in exact.items() if key.endswith("weight")}
    folder = write_tuned_lens(tmp_path / "lens", model, weights, bias=False)
    bare = import_heads(folder, model, format="tuned-lens")
    assert bare.lens is not None
    assert not bare.lens.bias.any()


# -- key maps


@pytest.mark.parametrize(
    ("first", "residual", "transposed"),
    [(0, True, True), (0, False, False), (1, True, False), (1, False, True)],
)
def test_a_lens_by_a_key_map(first: int, residual: bool, transposed: bool, tmp_path: Path) -> None:
    model = tiny_llama()
    plain = translators(3, 32)
    # As a file of other habits holds exits 1 and 2.
    tensors = {f"probe.{exit - 1 + first}.A": plain[f"{exit}.weight"] for exit in (1, 2)}
    if transposed:
        tensors = {key: value.t().contiguous() for key, value in tensors.items()}
    save_file(tensors, tmp_path / "probe.safetensors")
    text = f'first = {first}\n[lens]\nweight = "probe.{{exit}}.A"\n'
    text += f"residual = {str(residual).lower()}\ntransposed = {str(transposed).lower()}\n"
    heads = import_heads(
        tmp_path / "probe.safetensors", model, key_map=write_map(tmp_path / "map.toml", text)
    )
    assert heads.exits == (1, 2)
    assert heads.lens is not None
    for place, exit in enumerate(heads.exits):
        expected = plain[f"{exit}.weight"].numpy() + (np.eye(32, dtype=np.float32) if residual else 0)
        np.testing.assert_allclose(heads.lens.weight[place], expected, atol=1e-6)
    assert not heads.lens.bias.any()


def test_output_heads_by_a_key_map(tmp_path: Path) -> None:
    model = tiny_llama()
    tensors = output_tensors(model, (1, 2))
    save_file(tensors, tmp_path / "early.safetensors")
    key_map = write_map(tmp_path / "map.toml", OUTPUT_MAP)
    heads = import_heads(tmp_path / "early.safetensors", model, key_map=key_map)
    found = traced_top1(model, heads)
    rows = []
    for ids in sequences():
        states = hidden_states(model, ids)
        of_exits = []
        for exit in (1, 2):
            h = states[exit]
            normed = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            normed = normed * tensors[f"early.{exit - 1}.norm.weight"]
            of_exits.append((normed @ tensors[f"early.{exit - 1}.head.weight"].t()).argmax(-1))
        rows.append(torch.stack(of_exits, -1))
    assert np.array_equal(found[:, :-1], torch.cat(rows).numpy())


def test_heads_numbered_by_their_place(tmp_path: Path) -> None:
    model = tiny_model(llama(num_hidden_layers=5), name="five")
    tensors = {f"heads.{place}.weight": torch.randn(32, 61) for place in (0, 1)}
    save_file(tensors, tmp_path / "early.safetensors")
    text = 'exits = [2, 4]\n[output]\nweight = "heads.{place}.weight"\ntransposed = true\n'
    heads = import_heads(
        tmp_path / "early.safetensors", model, key_map=write_map(tmp_path / "map.toml", text)
    )
    assert heads.exits == (2, 4)
    assert heads.output is not None
    assert heads.output.norm == "model"
    np.testing.assert_array_equal(heads.output.weight[1], tensors["heads.1.weight"].t().numpy())


def test_the_head_of_the_last_layer_is_left_out(tmp_path: Path) -> None:
    model = tiny_llama()
    save_file(output_tensors(model, (1, 2, 3)), tmp_path / "early.safetensors")
    key_map = write_map(tmp_path / "map.toml", OUTPUT_MAP)
    found = find_import(tmp_path / "early.safetensors", key_map=key_map)
    assert found.heads_for(model).exits == (1, 2)
    assert found.left_out(3) == ("left out: early.2.head.weight, since exit L is the full model itself",)


BAD_MAPS = {
    "none": ("first = 1\n", r"one of the tables \[lens\], \[mlp\] and \[output\].*; it has: first"),
    "the model's own": ("[output]\n", "must have a norm of its own and no bias"),
    "network": ('[mlp]\nnorm = "{exit}.n"\ngate = "g"\nup = "u"\ndown = "d"\nepsilon = 0.0\n', "gate is 'g'"),
    "no toml": ("[lens", "not TOML"),
    "unknown": (LENS_MAP + "transpose = true\n", "unknown key 'transpose'(.|\n)*did you mean 'transposed'"),
    "unknown on top": ("fist = 0\n" + LENS_MAP, "has no entry 'fist'(.|\n)*did you mean 'first'"),
    "first": ("first = 2\n" + LENS_MAP, "first is 2"),
    "missing": ('[lens]\nweight = "{exit}.weight"\n', "'residual' is missing"),
    "type": ('[lens]\nweight = "{exit}.weight"\nresidual = 1\n', "residual is 1"),
    "placeholder": ('[lens]\nweight = "weight"\nresidual = true\n', r"write \{exit\} where"),
    "place": ('[lens]\nweight = "{place}.weight"\nresidual = true\n', "list the exits"),
    "nothing but exits": ("exits = [1]\n", "with the key of a tensor; it has: exits"),
    "exits": ("exits = [3, 1]\n" + LENS_MAP, "ascending layers from 1"),
    "exit 0": ("exits = [0, 1]\n" + LENS_MAP, "an entry of exits is 0"),
    "norm": (OUTPUT_MAP.replace('"rms"', '"batch"'), "kind is 'batch'"),
    "epsilon": (OUTPUT_MAP.replace("1e-5", "5"), "epsilon is 5, .*(.|\n)*under the norm's root"),
    "no epsilon": (OUTPUT_MAP.replace("epsilon = 1e-5", ""), "'epsilon' is missing"),
    "bias of rms": (OUTPUT_MAP + 'bias = "{exit}.b"\n', "a norm of the kind rms has no bias"),
}


@pytest.mark.parametrize("case", list(BAD_MAPS))
def test_a_map_that_makes_no_sense_is_refused(case: str, tmp_path: Path) -> None:
    text, what = BAD_MAPS[case]
    path = write_map(tmp_path / "map.toml", text)
    with pytest.raises(InputError, match=what) as caught:
        find_import(tmp_path / "absent.safetensors", key_map=path)
    assert caught.value.where.startswith(str(path))


# -- files


def test_a_map_that_does_not_fit_lists_what_there_is(tmp_path: Path) -> None:
    save_file(
        {**translators(12, 8), "scale": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "lens.safetensors"
    )
    path = write_map(tmp_path / "map.toml", LENS_MAP.replace("{exit}.weight", "layer.{exit}.weight"))
    with pytest.raises(InputError, match=r"no tensor has a key like 'layer.\{exit\}.weight'") as caught:
        find_import(tmp_path / "lens.safetensors", key_map=path)
    assert caught.value.fix.splitlines()[1:] == [
        "  scale: BF16 [2]",
        "  0..11.bias: F32 [8]",
        "  0..11.weight: F32 [8, 8]",
    ]
    with pytest.raises(InputError, match="nothing says which tensors") as caught:
        find_import(tmp_path / "lens.safetensors")
    assert "0..11.weight: F32 [8, 8]" in caught.value.fix


def test_keys_with_braces_are_listed_as_they_are(tmp_path: Path) -> None:
    save_file({"a{x.1": torch.ones(2), "a{x.2": torch.ones(2), "{}": torch.ones(2)}, tmp_path / "odd")
    with pytest.raises(InputError, match="nothing says which tensors") as caught:
        find_import(tmp_path / "odd")
    assert caught.value.fix.splitlines()[1:] == ["  a{x.1..2: F32 [2]", "  {}: F32 [2]"]


def test_a_number_with_leading_zeros_is_no_second_name_of_an_exit(tmp_path: Path) -> None:
    model = tiny_llama()
    tensors = {f"{exit}.{exit}0.A": torch.full((32, 32), float(exit)) for exit in (1, 2)}
    save_file({**tensors, "01.010.A": torch.zeros(32, 32)}, tmp_path / "lens")
    text = '[lens]\nweight = "{exit}.{exit}0.A"\nresidual = false\n'
    heads = import_heads(tmp_path / "lens", model, key_map=write_map(tmp_path / "map.toml", text))
    assert heads.exits == (1, 2)
    assert heads.lens is not None
    assert heads.lens.weight[:, 0, 0].tolist() == [1.0, 2.0]


def test_a_key_that_two_files_of_a_folder_have_is_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_file(translators(3, 32), tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="lies in two weight files, first"):
        find_import(tmp_path, format="tuned-lens")


def test_heads_behind_a_norm_that_changes_the_size_are_refused(tmp_path: Path) -> None:
    """OPT's 350M brings its states to another size on the way to its head."""
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 16, "ffn_dim": 64, "num_hidden_layers": 3}
    config = OPTConfig(
        vocab_size=61, num_attention_heads=4, max_position_embeddings=64, do_layer_norm_before=False, **sizes
    )
    model = tiny_model(OPTForCausalLM(config))
    save_file({f"{exit}.A": torch.randn(61, 32) for exit in (1, 2)}, tmp_path / "early")
    text = '[output]\nweight = "{exit}.A"\n'
    with pytest.raises(InputError, match="its head takes 16 numbers, made of the 32 of a hidden state"):
        import_heads(tmp_path / "early", model, key_map=write_map(tmp_path / "map.toml", text))
    own = write_map(tmp_path / "own.toml", text + '[output.norm]\nkind = "none"\n')
    assert traced_top1(model, import_heads(tmp_path / "early", model, key_map=own)).shape[1] == 3


def without(key: str) -> Any:
    return lambda tensors: tensors.pop(key)


def replaced(key: str, change: Any) -> Any:
    return lambda tensors: tensors.update({key: change(tensors[key])})


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[2] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (without("2.bias"), "the file has no tensor '2.bias'"),
        (replaced("1.weight", lambda t: t[:, :16].contiguous()), r"1.weight has the shape \[32, 16\], not"),
        (replaced("2.weight", lambda t: t.to(torch.int8)), "2.weight is of the type I8"),
        (replaced("1.weight", with_nan), "1.weight holds a number that is not finite"),
        (replaced("2.bias", lambda t: t * 1e38), r"2.bias holds .e\+38, and products with it are infinite"),
        (
            lambda tensors: tensors.update({"7.weight": torch.ones(32, 32), "7.bias": torch.ones(32)}),
            "exit 7",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(spoil: Any, what: str, tmp_path: Path) -> None:
    model = tiny_llama()
    tensors = translators(3, 32)
    spoil(tensors)
    folder = write_tuned_lens(tmp_path / "lens", model, tensors)
    with pytest.raises(InputError, match=what):
        import_heads(folder, model, format="tuned-lens")


def test_a_pickle_is_refused_and_the_hint_converts_it(tmp_path: Path, monkeypatch: Any) -> None:
    model = tiny_llama()
    folder = write_tuned_lens(tmp_path / "lens", model)
    (folder / "params.safetensors").unlink()
    tensors = translators(3, 32)
    torch.save(tensors, folder / "params.pt")
    hints = []
    for path in (folder, folder / "params.pt"):
        with pytest.raises(InputError, match="is a pickle") as caught:
            import_heads(path, model, format="tuned-lens")
        assert caught.value.where == str(folder / "params.pt")
        hints.append(caught.value.fix)
    (program,) = {hint.split('python -c "')[1].rstrip('"') for hint in hints}
    monkeypatch.chdir(folder)
    exec(program, {})
    assert import_heads(folder, model, format="tuned-lens").exits == (1, 2)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_by_another_name_is_found_by_its_bytes(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "lens.safetensors"
    torch.save({"0.weight": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="is a pickle"):
        find_import(path, format="tuned-lens")


def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not safetensors at all")
    (tmp_path / "empty").mkdir()
    save_file(translators(3, 32), tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    for name, what in [
        ("text.safetensors", "not safetensors"),
        ("cut.safetensors", "damaged or truncated"),
        ("absent", "no such file"),
        ("empty", "holds no .safetensors"),
    ]:
        with pytest.raises(InputError, match=what):
            find_import(tmp_path / name, format="tuned-lens")
    (tmp_path / "empty" / "config.json").write_text(json.dumps([1]))
    save_file(translators(3, 32), tmp_path / "empty" / "params.safetensors")
    with pytest.raises(InputError, match="it holds a list, not an object"):
        find_import(tmp_path / "empty", format="tuned-lens")


def test_an_unknown_format_and_a_map_beside_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown format 'tuned_lens'") as caught:
        offramp.import_heads(tmp_path, tiny_llama(), format="tuned_lens")
    assert "did you mean 'tuned-lens'?" in caught.value.fix
    with pytest.raises(InputError, match="format= means nothing beside key_map="):
        offramp.import_heads(tmp_path, tiny_llama(), format="tuned-lens", key_map=tmp_path / "map.toml")


def test_a_model_of_several_streams_takes_no_heads_of_its_hidden_size(tmp_path: Path) -> None:
    model = tiny_model(build_family("gemma3n_text"), head_scale=5.0)
    save_file(translators(model.layers, model.shape.hidden_size), tmp_path / "lens.safetensors")
    with pytest.raises(InputError, match="numbers per token"):
        import_heads(tmp_path / "lens.safetensors", model, format="tuned-lens")
