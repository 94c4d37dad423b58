"""Layouts of others: their exits are read as their own programs read them, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from layout_cases import (
    HIDDEN,
    PADDED,
    VOCABULARY,
    Tensors,
    balcony_reading,
    balcony_tensors,
    base_of,
    ee_llm_reading,
    ee_llm_tree,
    flat,
    random,
    require_read_so,
    write,
    write_megatron,
)
from tracing_models import build_family, llama, tiny_llama, tiny_model, workload_of

from offramp.errors import InputError, ModelError
from offramp.heads.described import read_by, reading_parts
from offramp.heads.file import read_heads, write_heads
from offramp.heads.importing.imports import find_import, import_heads
from offramp.heads.importing.key_map import Tensors as FileTensors
from offramp.heads.importing.layouts import ForeignLayout
from offramp.models.model import Model
from offramp.tracing.tracer import trace

DOCS = Path(__file__).parents[2] / "docs/bring-your-own-exits.md"


@pytest.fixture(scope="module")
def model() -> Model:
    """Four layers, head and embedding tied."""
    return tiny_model(llama(num_hidden_layers=4, tie_word_embeddings=True), head_scale=3.0)


# -- LayerSkip: an ordinary model


def test_exits_that_share_the_head_are_those_of_an_ordinary_model() -> None:
    """As transformers drafts with the first layers of a LayerSkip model (`assistant_early_exit`)."""
    model = tiny_llama()
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    traced = trace(model, workload_of(" ".join(map(str, [*ids, 5]))), tokens=100, context=40, progress=False)
    config, layers = model.hf.config, model.layers
    for exit in range(1, layers + 1):
        config.num_hidden_layers = exit
        try:
            with torch.no_grad():
                logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0]
        finally:
            config.num_hidden_layers = layers
        assert traced.top1[:, exit - 1].tolist() == logits.argmax(-1).tolist()


# -- IBM's multi-exit models


def test_multi_exit_heads_are_read_behind_the_models_own_norm(tmp_path: Path) -> None:
    gpt2 = tiny_model(build_family("gpt2"), head_scale=3.0)
    layers, hidden, vocabulary = gpt2.layers, gpt2.shape.hidden_size, gpt2.shape.vocabulary_size
    heads = {
        f"name_to_lm_exit_head.lm_head_{exit}.weight": random(vocabulary, hidden, seed=exit)
        for exit in range(1, layers + 1)
    }
    original = {"name_to_lm_exit_head.lm_head_original.weight": gpt2.hf.lm_head.weight}
    indices = ["original", *range(1, layers + 1)]
    folder = write(
        tmp_path / "multi", {**base_of(gpt2), **heads, **original}, {"lm_head_layer_indices": indices}
    )
    found = find_import(folder, format="multi-exit")
    imported = found.heads_for(gpt2)
    assert imported.exits == tuple(range(1, layers))
    assert found.left_out(layers) == (
        f"left out: name_to_lm_exit_head.lm_head_{layers}.weight, since exit L is the full model itself",
    )
    provenance = imported.provenance["imported"]
    assert provenance["format"] == "multi-exit"
    assert provenance["source"] == "multi"
    assert provenance["base_recognised_by"].startswith("the first rows of weights")
    require_read_so(
        gpt2,
        imported,
        lambda exit, state: (
            gpt2.hf.transformer.ln_f(state) @ heads[f"name_to_lm_exit_head.lm_head_{exit}.weight"].t()
        ),
    )


def test_a_matrix_behind_the_norm_is_refused_by_name(tmp_path: Path, model: Model) -> None:
    maps = {f"name_to_conv_matrix.{exit}_to_4.weight": random(HIDDEN, HIDDEN) for exit in (1, 2)}
    folder = write(tmp_path / "maps", maps, {"lm_head_layer_indices": [1, 2]})
    with pytest.raises(InputError, match=r"name_to_conv_matrix.1_to_4.weight and 1 more: a matrix between"):
        find_import(folder, format="multi-exit")


# -- Balcony

BALCONY = {"exit_layer_indices": [3, 1], "rms_norm_eps": 1e-5, "model_type": "nested_llama"}


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("decoder", ["none", "mlp"])
def test_balcony_exits_without_attention_are_read_as_its_program_reads_them(
    decoder: str, untied: bool, tmp_path: Path, model: Model
) -> None:
    tensors = balcony_tensors((3, 1), decoder=decoder, untied=untied)
    config = {"exit_decoder_layer": decoder == "mlp", "exit_mlp": decoder == "mlp"}
    # transformers leaves out of a config what is the class's default.
    config = BALCONY | {name: True for name, value in config.items() if value}
    folder = write(tmp_path / "b", {**base_of(model), **tensors}, config | {"tie_exit_lm_head": not untied})
    heads = import_heads(folder, model, format="balcony")
    assert heads.exits == (1, 3)
    assert heads.output is not None
    assert (heads.output.weight is not None) == untied
    write_heads(heads, tmp_path / "heads.safetensors")
    heads = read_heads(tmp_path / "heads.safetensors")
    require_read_so(model, heads, balcony_reading(model, tensors, (3, 1), 1e-5))


@pytest.mark.parametrize(
    ("decoder", "config", "what"),
    [
        (
            "all",
            {},
            r"exit_modules.0.0.self_attn.\w_proj.weight and 7 more: the exits are transformer layers",
        ),
        ("mlp", {"exit_mlp": True, "exit_attention": True}, "keys and values of their own"),
        ("mlp", {"exit_mlp": True, "hidden_act": "gelu"}, "of the activation 'gelu'"),
        (
            "all",
            {"exit_mlp": True},
            r"exit_modules.0.0.self_attn.\w_proj.weight and 7 more: the exits are transformer layers",
        ),
        ("mlp", {"exit_mlp": True, "exit_layer_indices": [1, 2, 3]}, "no tensor 'model.exit_modules.2.0"),
        ("mlp", {"exit_mlp": True, "exit_layer_indices": [1]}, "exit_modules.1.* more: no part of an exit"),
        ("mlp", {"exit_mlp": True, "exit_layer_indices": [2, 9]}, "is of exit 9; .* 1 to 3"),
        (
            "mlp",
            {"exit_mlp": True, "exit_layer_indices": "3"},
            "exit_layer_indices is '3', which does not fit",
        ),
        (
            "none",
            {"exit_decoder_layer": False, "tie_exit_lm_head": None},
            "no tensor 'model.exit_modules.1.1.",
        ),
    ],
)
def test_balcony_exits_that_offramp_has_no_equal_of_are_refused(
    decoder: str, config: dict[str, Any], what: str, tmp_path: Path, model: Model
) -> None:
    tensors = balcony_tensors((3, 1), decoder=decoder, untied=False)
    settings = BALCONY | {"exit_decoder_layer": True, "tie_exit_lm_head": True} | config
    folder = write(tmp_path / "b", tensors, settings)
    with pytest.raises(InputError, match=what):
        import_heads(folder, model, format="balcony")


# -- EE-LLM

EE_LLM = {
    "the 1.3B recipe": {"pre_exit": True, "exit_layer_nums": [2, 4], "normalization": "RMSNorm"},
    "the 7B recipe": {
        "pre_exit": True,
        "exit_layer_nums": [2, 4],
        "normalization": "RMSNorm",
        "untie_exit_output_weights": True,
        "untie_embeddings_and_output_weights": True,
    },
    "tuned": {
        "exit_layer_nums": [3, 1, 4],
        "normalization": "RMSNorm",
        "norm_epsilon": 1e-3,
        "use_exit_norm": True,
        "untie_exit_output_weights": True,
    },
    "norms alone": {"pre_exit": True, "exit_layer_nums": [2, 3], "use_exit_norm": True, "norm_epsilon": 1e-2},
}


def exits_of(arguments: dict[str, Any]) -> tuple[int, ...]:
    """The exits below layer 4, ascending."""
    exits = sorted(number - bool(arguments.get("pre_exit")) for number in arguments["exit_layer_nums"])
    return tuple(exit for exit in exits if exit < 4)


@pytest.mark.parametrize("recipe", list(EE_LLM))
def test_ee_llm_exits_are_read_as_its_program_reads_them(recipe: str, tmp_path: Path, model: Model) -> None:
    arguments = EE_LLM[recipe] | {"padded_vocab_size": PADDED}
    tree = ee_llm_tree(model, arguments["exit_layer_nums"], arguments)
    folder = write(tmp_path / "ee", flat(tree), arguments)
    heads = import_heads(folder, model, format="ee-llm")
    assert heads.exits == exits_of(arguments)
    assert (
        heads.provenance["imported"]["base_recognised_by"]
        == "the first rows of weights that lie beside the exits: 1"
    )
    own = {"the 1.3B recipe": "a reading without a norm", "norms alone": "a norm of its own"}
    assert reading_parts(read_by(heads)) == [own.get(recipe, "an output head of its own")]
    require_read_so(model, heads, ee_llm_reading(model, tree, arguments))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"use_exit_mlp": True},
            r"layers.1.mlp.branch.dense_h_to_4h.weight and 1 more: an exit's MLP reads the",
        ),
        (
            {"use_exit_block": True},
            r"exit_block.self_attention.dense.weight and 1 more: the exits are transform",
        ),
        ({"pipeline_model_parallel_size": 4}, "split into 4 parts"),
        ({"use_exit_norm": True, "apply_layernorm_1p": True}, "stored less 1"),
        ({"untie_embeddings_and_output_weights": True, "untie_exit_output_weights": False}, "is another"),
        ({"padded_vocab_size": 96}, r"has the shape \[128, 32\], not \[96, 32\]"),
        ({"normalization": "BatchNorm"}, "normalization is 'BatchNorm'(.|\n)*choose one of: LayerNorm"),
        ({"exit_layer_nums": [2, 8]}, "is of exit 7"),
    ],
)
def test_ee_llm_exits_that_cannot_be_the_same_are_refused(
    changes: dict[str, Any], what: str, tmp_path: Path, model: Model
) -> None:
    arguments = EE_LLM["the 7B recipe"] | {"padded_vocab_size": PADDED} | changes
    folder = write(tmp_path / "ee", flat(ee_llm_tree(model, (2, 4), arguments)), arguments)
    with pytest.raises(InputError, match=what):
        import_heads(folder, model, format="ee-llm")


def test_the_pages_program_converts_a_megatron_checkpoint(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = EE_LLM["tuned"] | {"padded_vocab_size": PADDED, "rank": 0, "some_function": print}
    tree = ee_llm_tree(model, arguments["exit_layer_nums"], arguments)
    monkeypatch.chdir(tmp_path)
    Path("mp_rank_00").mkdir()
    write_megatron(Path("mp_rank_00/model_optim_rng.pt"), tree, arguments)
    program = next(block for block in DOCS.read_text().split("```python\n") if "model_optim_rng" in block)
    exec(program.split("```")[0], {})
    heads = import_heads("ee-exits", model, format="ee-llm")
    assert heads.exits == (1, 3)
    require_read_so(model, heads, ee_llm_reading(model, tree, arguments))


# -- all of them


def test_another_base_is_refused_by_its_weights(tmp_path: Path, model: Model) -> None:
    tensors = balcony_tensors((3, 1), decoder="none", untied=False)
    settings = BALCONY | {"tie_exit_lm_head": True}
    base = base_of(model)
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in base.items()}
    folder = write(tmp_path / "rounded", {**rounded, **tensors}, settings)
    assert import_heads(folder, model, format="balcony").exits == (1, 3)
    trained = {**base, "model.layers.2.mlp.up_proj.weight": 1.001 * base["model.layers.2.mlp.up_proj.weight"]}
    folder = write(tmp_path / "trained", {**trained, **tensors}, settings)
    with pytest.raises(
        InputError, match=r"other weights than those of tiny: model.layers.2.mlp.up_proj.weight"
    ):
        import_heads(folder, model, format="balcony")
    folder = write(tmp_path / "alone", tensors, settings)
    heads = import_heads(folder, model, format="balcony")
    assert heads.provenance["imported"]["base_recognised_by"] == "nothing but its size"


def test_a_weight_without_dimensions_is_compared_whole(tmp_path: Path) -> None:
    base = tiny_model(llama(num_hidden_layers=4))
    base.hf.register_buffer("scale", torch.tensor(2.0))
    tensors = FileTensors.find(write(tmp_path, {"scale": torch.tensor(2.0)}, None))
    assert "first rows of weights" in ForeignLayout().recognise(base, tensors)
    base.hf.scale.fill_(3.0)
    with pytest.raises(InputError, match="scale differs"):
        ForeignLayout().recognise(base, tensors)


def test_a_layout_without_its_config_says_what_it_needs(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", balcony_tensors((3, 1), decoder="none", untied=False), None)
    with pytest.raises(InputError, match=r"needs a config.json .* which says exit_layer_indices"):
        find_import(folder, format="balcony")
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="it is not JSON"):
        find_import(folder, format="balcony")


def test_exits_of_a_hub_repository_keep_its_commit(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "0123456789abcdef"
    snapshot.parent.mkdir()
    write(snapshot, balcony_tensors((3, 1), decoder="none", untied=True), BALCONY)
    asked: list[Any] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nothing says which tensors") as undescribed:
        find_import("an-owner/exits@v2")
    assert "LayerSkip's do" in undescribed.value.fix
    (tmp_path / "lens").mkdir()
    for slip in ("lens/exits", "lnes/params.safetensors", "exits"):
        with pytest.raises(InputError, match="no such file or folder"):
            find_import(slip, format="balcony")
    assert not asked, "nothing is fetched for any of these"
    imported = import_heads("an-owner/exits@v2", model, format="balcony").provenance["imported"]
    assert (imported["source"], imported["revision"]) == ("an-owner/exits@v2", "0123456789abcdef")
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("an-owner/exits", "v2")
    assert "*.safetensors" in patterns
    assert not any("bin" in pattern or ".py" in pattern for pattern in patterns)
    (snapshot / "exits.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file") as caught:
        import_heads("an-owner/exits@v2", model, format="balcony")
    assert "hf download an-owner/exits --revision v2 --local-dir FOLDER" in caught.value.fix


def test_an_import_of_another_shape_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    tensors: Tensors = balcony_tensors((3, 1), decoder="none", untied=True)
    tensors["model.exit_modules.1.1.weight"] = random(VOCABULARY + 3, HIDDEN)
    found = find_import(write(tmp_path / "b", tensors, BALCONY), format="balcony")
    config = {"num_hidden_layers": 4, "hidden_size": HIDDEN, "vocab_size": VOCABULARY}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": config}))
    with pytest.raises(InputError, match=r"exit_modules.1.1.weight has the shape \[64, 32\], not \[61, 32\]"):
        found.require_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 4}))
    found.require_config(tmp_path)  # of another family's names: seen once the model is loaded
