"""Layouts: the key map of each program whose exits are known, as its config.json settles it.

Where the programs were read:
tuned-lens: the package of that name (arXiv 2303.08112).
multi-exit: github.com/IBM/auto-contrastive-generation at 04efae2, autocontrastive_gen/modeling/
multi_exit_modeling.py (arXiv 2305.01628), in which `ibm-research/gpt2-medium-multiexit` is.
ee-llm: github.com/pan-x-c/EE-LLM at 62488c6 (arXiv 2312.04916, 2402.00518), megatron/model/transformer.py,
megatron/model/language_model.py, megatron/arguments.py; the nested names of a Megatron checkpoint joined by
dots, and the checkpoint's arguments as config.json.
balcony: github.com/benyaminjami/Balcony-LLaMA, branch finetuning at 84faf4b, finetuning/transformers_extra/
models/llama/modeling_nestedllama.py (arXiv 2503.05005): beside a frozen Llama, per exit a list of one layer
(or none), an RMS norm, and an output head unless exits are read by the model's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from offramp.errors import InputError, refused_as
from offramp.files import JsonError, read_json
from offramp.kit.given_file import Count, Number
from offramp.models.model import Model
from offramp.tracing.importing.key_map import EXIT, PLACE, KeyMap, Lens, Mlp, Norm, Output
from offramp.tracing.importing.tensors import Tensors

WHY_ATTENTION = (
    "the exits are transformer layers with attention, which need keys and values of their own for every "
    "token; exits of offramp keep none"
)
WHY_MLP = (
    "an exit's MLP reads the state between attention and MLP of its layer and takes that MLP's place; exits "
    "of offramp read the state after a layer"
)
UNKNOWN = "nothing but its size"
"""By what a model is recognised of which the files hold and say nothing."""


class Config(BaseModel):
    """Entries of a config.json that a layout reads; others are left alone, absent ones have its defaults."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


@dataclass(frozen=True)
class Layout:
    """One program's files, as their config.json settles it.

    of_exits: regular expression of the keys that belong to an exit. Each of them must be a part that is read,
    so that no exit is read in another way than it was trained. unequal: why its exits have no equal in
    offramp, by a regular expression of the keys in question; empty if they have. names: the model's weights
    as the files call them. builds: whether transformers can build the model of these very files.
    """

    key_map: KeyMap
    of_exits: str
    unequal: Mapping[str, str] = field(default_factory=dict)
    names: Callable[[Model], Mapping[str, Tensor]] = lambda model: model.hf.state_dict()
    builds: bool = True


class TunedLens(Config):
    """Of a lens, as the package saves it; None where it says nothing."""

    lens_type: Literal["linear_tuned_lens"] = "linear_tuned_lens"
    base_model_name_or_path: str | None = None
    d_model: int | None = None
    num_hidden_layers: int | None = None
    unembed_hash: str | None = None
    bias: bool | None = None


def _tuned_lens(config: TunedLens, keys: Collection[str]) -> Layout:
    """Translator k reads hidden_states[k] of transformers, the state after layer k: exit k; 0 is no exit.

    Its output is added to the state, h + A h + b, where the paper (section 3) writes A h + b.
    """
    bias = None if config.bias is False else f"{EXIT}.bias"
    lens = Lens(weight=f"{EXIT}.weight", bias=bias, residual=True)
    return Layout(KeyMap(lens=lens), r"\d+\.(weight|bias)")


class MultiExit(Config):
    """Of a model with heads."""

    lm_head_layer_indices: list[int | str]


def _multi_exit(config: MultiExit, keys: Collection[str]) -> Layout:
    """Head k is of hidden_states[k] of transformers, behind the model's norm; "original" is its own."""
    head, maps = "name_to_lm_exit_head", "name_to_conv_matrix."
    exits = {exit for exit in config.lm_head_layer_indices if isinstance(exit, int)}
    why = "a matrix between the final norm and the model's own head"
    return Layout(
        _map(exits, output=Output(weight=f"{head}.lm_head_{EXIT}.weight")),
        rf"{head}\.(?!lm_head_original\.).*",
        {rf"{re.escape(maps)}.*": why} if any(key.startswith(maps) for key in keys) else {},
    )


class EeLlm(Config):
    """Of the arguments that a checkpoint holds."""

    exit_layer_nums: list[int]
    pre_exit: bool = False
    use_exit_mlp: bool = False
    use_exit_block: bool = False
    use_exit_norm: bool = False
    untie_exit_output_weights: bool = False
    untie_embeddings_and_output_weights: bool = False
    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    norm_epsilon: Number = 1e-5
    apply_layernorm_1p: bool = False
    padded_vocab_size: Count | None = None
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1

    def problem(self) -> tuple[str, str] | None:
        """What is wrong with a checkpoint of these arguments, and what to do; None if nothing is."""
        parts = self.tensor_model_parallel_size * self.pipeline_model_parallel_size
        if parts > 1:
            return (
                f"the checkpoint is split into {parts} parts, each of which counts its layers anew",
                "join them with EE-LLM's tools/convert_parallelism.sh (TP=1, PP=1), and convert the result",
            )
        if self.apply_layernorm_1p and self.use_exit_norm:
            return (
                "the norms' weights are stored less 1 (apply_layernorm_1p)",
                "add 1 to the weights of every exit_norm, and set apply_layernorm_1p to false",
            )
        if self.untie_embeddings_and_output_weights and not self.untie_exit_output_weights:
            return (
                "exits read by the embedding of a model whose output head is another, which EE-LLM cannot "
                "train",
                "give the arguments of the checkpoint that the tensors are of",
            )
        return None


def _ee_llm(config: EeLlm, keys: Collection[str]) -> Layout:
    """Layers count from 1, keys from 0; an exit before its layer reads the state after the one before."""
    before, layers = int(config.pre_exit), r"language_model\.encoder\.layers\.\d+"
    key, norm = f"language_model.encoder.layers.{EXIT}.exit_norm", Norm(kind="none")
    if config.use_exit_norm and config.normalization == "RMSNorm":
        norm = Norm(kind="rms", weight=f"{key}.weight", epsilon=config.norm_epsilon)
    elif config.use_exit_norm:
        norm = Norm(kind="layer", weight=f"{key}.weight", bias=f"{key}.bias", epsilon=config.norm_epsilon)
    head = f"language_model.exit_output_layer.{PLACE}.weight" if config.untie_exit_output_weights else None
    output = Output(weight=head, norm=norm, rows=config.padded_vocab_size)
    return Layout(
        _map([number - before for number in config.exit_layer_nums], first=before, output=output),
        rf"language_model\.exit_output_layer\..*|{layers}\.(exit_norm|exit_block|mlp\.branch)\..*",
        ({rf"{layers}\.mlp\.branch\..*": WHY_MLP} if config.use_exit_mlp else {})
        | ({rf"{layers}\.exit_block\..*": WHY_ATTENTION} if config.use_exit_block else {}),
        lambda model: {
            "language_model.embedding.word_embeddings.weight": model.hf.get_input_embeddings().weight
        },
        builds=False,
    )


NESTED_LLAMA = "nested_llama"
"""The type of Balcony's models, which transformers cannot build; as a "llama" they are the base alone."""


class Balcony(Config):
    """Of NestedLlamaConfig."""

    exit_layer_indices: list[int]
    exit_decoder_layer: bool = False
    exit_mlp: bool = False
    exit_attention: bool = False
    tie_exit_lm_head: bool | None = None
    tie_word_embeddings: bool = False
    rms_norm_eps: Number = 1e-6
    hidden_act: str = "silu"
    model_type: str = NESTED_LLAMA


def _balcony(config: Balcony, keys: Collection[str]) -> Layout:
    """all_hidden_states[k], which exit k reads, is the state after k layers.

    Without attention NestedLlamaDecoderLayer adds its network to the state that its norm has made.
    """
    module, layered = f"model.exit_modules.{PLACE}", config.exit_decoder_layer
    mlp = Mlp(
        norm=f"{module}.0.input_layernorm.weight",
        gate=f"{module}.0.mlp.gate_proj.weight",
        up=f"{module}.0.mlp.up_proj.weight",
        down=f"{module}.0.mlp.down_proj.weight",
        epsilon=config.rms_norm_eps,
        adds_to_normed=True,
    )
    tied = config.tie_word_embeddings if config.tie_exit_lm_head is None else config.tie_exit_lm_head
    norm = Norm(kind="rms", weight=f"{module}.{int(layered)}.weight", epsilon=config.rms_norm_eps)
    output = Output(weight=None if tied else f"{module}.{1 + layered}.weight", norm=norm)
    other = f"the exits' networks are of the activation {config.hidden_act!r}; offramp's are of 'silu'"
    attends = layered and (config.exit_attention or not config.exit_mlp)
    return Layout(
        _map(config.exit_layer_indices, mlp=mlp if layered else None, output=output),
        r"model\.exit_modules\..*",
        ({r"model\.exit_modules\.\d+\.0\.self_attn\..*": WHY_ATTENTION} if attends else {})
        | ({r"model\.exit_modules\..*\.mlp\..*": other} if layered and config.hidden_act != "silu" else {}),
        builds=config.model_type != NESTED_LLAMA,
    )


LAYOUTS: Mapping[str, tuple[type[Config], Callable[[Any, Collection[str]], Layout]]] = {
    "tuned-lens": (TunedLens, _tuned_lens),
    "multi-exit": (MultiExit, _multi_exit),
    "ee-llm": (EeLlm, _ee_llm),
    "balcony": (Balcony, _balcony),
}


def _map(exits: Iterable[int], **parts: Any) -> KeyMap:
    """A key map with the exits of a config, any numbers: they are held against the model later."""
    return KeyMap.model_construct(exits=tuple(exits), **parts)


@dataclass(frozen=True)
class Described:
    """Files of a known layout.

    check_base: refuses another model than the one that the exits were trained for, and says by what it was
    recognised. builds: as of `Layout`.
    """

    key_map: KeyMap
    check_base: Callable[[Model], str]
    builds: bool


def describe(name: str, tensors: Tensors) -> Described:
    """What files of a layout hold, by their config.json; all parts of their exits are read.

    Raises InputError for a config.json that is damaged, or absent though an entry is needed, and for exits
    that offramp has no equal of.
    """
    kind, read = LAYOUTS[name]
    where = config_path(tensors.where)
    config = _read_config(where, kind, name)
    problem = config.problem() if isinstance(config, EeLlm) else None
    if problem is not None:
        raise InputError(problem[0], where=str(where), fix=problem[1])
    layout = read(config, tensors.stored)

    def matching(pattern: str) -> list[str]:
        return [key for key in tensors.stored if re.fullmatch(pattern, key)]

    for pattern, why in layout.unequal.items():
        raise _cannot_be_read(tensors, matching(pattern), why)
    known = {*layout.key_map.keys(layout.key_map.exits_among(tensors.stored))}
    left = [key for key in matching(layout.of_exits) if key not in known]
    if left:
        why = f"no part of an exit that the layout {name}, with this config.json, has"
        raise _cannot_be_read(tensors, left, why)

    def check_base(model: Model) -> str:
        if isinstance(config, TunedLens):
            return check_lens(model, config, str(where))
        return check_same(model, tensors, layout.names(model))

    return Described(layout.key_map, check_base, layout.builds)


def _cannot_be_read(tensors: Tensors, keys: list[str], why: str) -> InputError:
    """The error for exits that no exit of offramp can be the same as. keys: of the tensors in question."""
    rest = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return InputError(
        f"{keys[0]}{rest}: {why}" if keys else why,
        where=str(tensors.where),
        fix="train exits of this model instead: offramp exits train MODEL --workload W --kind block -o DIR",
    )


def config_path(path: Path) -> Path:
    """The config.json that belongs to tensors. path: their folder, or their file."""
    return (path if path.is_dir() else path.parent) / "config.json"


def read_config_json(file: Path) -> dict[str, Any]:
    """The content of a config.json. Raises InputError for one that is damaged."""
    what, fix = "config.json cannot be read", "copy the file again"
    with refused_as(InputError, what, JsonError, where=str(file), fix=fix):
        content: dict[str, Any] = read_json(file, lenient=True)
    return content


def _read_config(file: Path, kind: type[Config], layout: str) -> Config:
    needed = ", ".join(name for name, entry in kind.model_fields.items() if entry.is_required())
    if needed and not file.is_file():
        raise InputError(
            f"the layout {layout} needs a config.json beside the tensors, which says {needed}",
            where=str(file),
            fix="copy it from where the tensors came (docs/bring-your-own-exits.md says how it is made)",
        )
    try:
        return kind.model_validate_json(json.dumps(read_config_json(file) if file.is_file() else {}))
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "the file"
        found = "" if first["type"] == "missing" else f", not {first['input']!r}"
        raise InputError(
            f"{entry}: {first['msg']}{found}",
            where=str(file),
            fix=f"give the config.json of a model of the layout {layout}, or write a key map: --map MAP.toml",
        ) from error


def check_lens(model: Model, config: TunedLens, where: str) -> str:
    """Refuse a lens of another model: its size, the hash of its output head or, without one, its name.

    Returns by what the model was recognised. Raises InputError.
    """

    def refused(why: str, entry: str = "") -> InputError:
        known = f"; if you know that it is the same model, take {entry} out of the file" if entry else ""
        fix = f"give the model that it was trained for with --model{known}"
        return InputError(f"the lens was trained {why}", where=where, fix=fix)

    for what, said, found in (
        ("hidden size", config.d_model, model.shape.hidden_size),
        ("number of layers", config.num_hidden_layers, model.layers),
    ):
        if said is not None and said != found:
            raise refused(f"for a {what} of {said:,}; {model.name} has {found:,}")
    name = config.base_model_name_or_path
    if config.unembed_hash is not None:
        if config.unembed_hash != head_hash(model):
            raise refused(f"for another output head than that of {model.name}", "unembed_hash")
        return "unembed_hash"
    if name is not None and _last_part(name) != _last_part(model.name):
        raise refused(f"for {name}, not for {model.name}", "base_model_name_or_path")
    return UNKNOWN if name is None else "base_model_name_or_path"


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def head_hash(model: Model) -> str:
    """tuned-lens' hash of the output head: SHA-256 of how numpy prints its corners with one digit.

    It is made to be the same in any floating-point type. Raises InputError if the head is not one linear
    layer.
    """
    if model.stack.head_weight is None:
        raise InputError(
            "a tuned lens belongs to a model whose output head is one linear layer",
            where=model.name,
            fix="give the model that it was trained for with --model",
        )
    weight = model.stack.head_weight.detach().float().cpu().numpy()
    return hashlib.sha256(np.array_str(weight, precision=1).encode()).hexdigest()


def check_same(model: Model, tensors: Tensors, weights: Mapping[str, Tensor]) -> str:
    """Refuse a model whose weights are not those that lie beside the exits.

    Of each weight its first row is compared, which training changes; in the less precise of both dtypes.
    weights: of the model, by the files' keys. Those on no device are left out, and all of a model that was
    changed after loading.

    Returns by what the model was recognised. Raises InputError.
    """
    known = {} if model.transforms else {name: own for name, own in weights.items() if not own.is_meta}
    shared = [name for name in known if name in tensors.stored]
    other = [name for name in shared if not _is_same(tensors.first_row(name), known[name])]
    if other:
        raise InputError(
            f"the exits were trained with other weights than those of {model.name}: {other[0]} differs"
            + (f", and {len(other) - 1} more of {len(shared)}" if len(other) > 1 else ""),
            where=str(tensors.where),
            fix="give the model that they were trained for with --model; if its own weights were trained on, "
            "those that lie beside the exits",
        )
    return f"the first rows of weights that lie beside the exits: {len(shared)}" if shared else UNKNOWN


def _is_same(stored: Tensor, own: Tensor) -> bool:
    """Whether a stored row is the first of a weight, but for a change of the dtype."""
    row = (own.detach()[:1] if own.dim() else own.detach()).cpu()
    return stored.shape == row.shape and (
        torch.equal(stored.to(row.dtype), row) or torch.equal(stored, row.to(stored.dtype))
    )
