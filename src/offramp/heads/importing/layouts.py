"""Layouts: one declaration for each program whose exits are known.

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
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from offramp.errors import InputError
from offramp.heads.importing.key_map import (
    EXIT,
    PLACE,
    Epsilon,
    KeyMap,
    LensKeys,
    NetworkKeys,
    NormKeys,
    OutputKeys,
    Tensors,
)
from offramp.kit.given_file import Count, TomlTable
from offramp.models.model import Model

TRAIN = "train exits of this model instead: offramp exits train MODEL --workload W --kind block -o DIR"
WHY_ATTENTION = (
    "the exits are transformer layers with attention, which need keys and values of their own for every "
    "token; exits of offramp keep none"
)
WHY_MLP = (
    "an exit's MLP reads the state between attention and MLP of its layer and takes that MLP's place; exits "
    "of offramp read the state after a layer"
)
OTHER_MODEL = "give the model that they were trained for with --model"
LINEAR = "linear_tuned_lens"
UNKNOWN = "nothing but its size"
"""By what a model is recognised of which the files hold and say nothing."""
MEGATRON_EMBEDDING = "language_model.embedding.word_embeddings.weight"


class ForeignLayout(TomlTable):
    """One program's files. Its fields are what is read of their config.json; other entries are left alone.

    of_exits: regular expression of the keys that belong to an exit. Each of them must be a part that is read,
    so that no exit is read in another way than it was trained. unequal: why those of some keys, a regular
    expression too, have no equal in offramp.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    of_exits: ClassVar[str]
    unequal: ClassVar[Mapping[str, str]] = {}
    unbuilt: ClassVar[tuple[str | None, ...]] = ()
    model_type: str | None = None

    @property
    def key_map(self) -> KeyMap:
        """Where the files hold the exits' parts."""
        raise NotImplementedError

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with such a config, and what to do."""
        yield from ()

    def recognise(self, model: Model, tensors: Tensors) -> str:
        """Refuse a model whose weights are not those beside the exits, and say by what it was recognised.

        Of each weight its first row is compared, which training changes; in the less precise of both dtypes.
        Those on no device are left out, and all of a model that was changed after loading. Raises InputError.
        """
        weights = model.hf.state_dict()
        if MEGATRON_EMBEDDING in tensors.stored:
            weights[MEGATRON_EMBEDDING] = model.hf.get_input_embeddings().weight
        known = {} if model.transforms else {name: own for name, own in weights.items() if not own.is_meta}
        shared = [name for name in known if name in tensors.stored]
        other = [name for name in shared if not _is_same(tensors.first_row(name), known[name])]
        if other:
            raise InputError(
                f"the exits were trained with other weights than those of {model.name}: {other[0]} differs"
                + (f", and {len(other) - 1} more of {len(shared)}" if len(other) > 1 else ""),
                where=str(tensors.where),
                fix=f"{OTHER_MODEL}; if its own weights were trained on, those that lie beside the exits",
            )
        return f"the first rows of weights that lie beside the exits: {len(shared)}" if shared else UNKNOWN


def _is_same(stored: Tensor, own: Tensor) -> bool:
    """Whether a stored row is the first of a weight, but for a change of the dtype."""
    row = (own.detach()[:1] if own.dim() else own.detach()).cpu()
    return stored.shape == row.shape and (
        torch.equal(stored.to(row.dtype), row) or torch.equal(stored, row.to(stored.dtype))
    )


class TunedLens(ForeignLayout):
    """Translator k reads hidden_states[k] of transformers, the state after layer k: exit k; 0 is no exit.

    Its output is added to the state, h + A h + b, where the paper (section 3) writes A h + b.
    """

    of_exits = r"\d+\.(weight|bias)"
    lens_type: str = LINEAR
    base_model_name_or_path: str | None = None
    d_model: int | None = None
    num_hidden_layers: int | None = None
    unembed_hash: str | None = None
    bias: bool | None = None

    @property
    def key_map(self) -> KeyMap:
        """A lens."""
        bias = None if self.bias is False else f"{EXIT}.bias"
        return KeyMap(lens=LensKeys(weight=f"{EXIT}.weight", bias=bias, residual=True))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Lenses of another type."""
        if self.lens_type != LINEAR:
            yield f"lens_type is {self.lens_type!r}; offramp reads {LINEAR}", TRAIN

    def recognise(self, model: Model, tensors: Tensors) -> str:
        """Refuse another model by its size, the hash of its output head or, without one, its name."""
        name, why, entry = self.base_model_name_or_path, "", ""
        if self.d_model not in (None, model.shape.hidden_size):
            why = f"for a hidden size of {self.d_model:,}; {model.name} has {model.shape.hidden_size:,}"
        elif self.num_hidden_layers not in (None, model.layers):
            why = f"for a number of layers of {self.num_hidden_layers:,}; {model.name} has {model.layers:,}"
        elif self.unembed_hash is not None:
            if model.stack.head_weight is None:
                why = "for a model whose output head is one linear layer"
            elif self.unembed_hash != head_hash(model.stack.head_weight):
                why, entry = f"for another output head than that of {model.name}", "unembed_hash"
        elif name is not None and _last_part(name) != _last_part(model.name):
            why, entry = f"for {name}, not for {model.name}", "base_model_name_or_path"
        if why:
            known = f"; if you know that it is the same model, take {entry} out of the file" if entry else ""
            raise InputError(
                f"the lens was trained {why}", where=str(tensors.config), fix=f"{OTHER_MODEL}{known}"
            )
        if self.unembed_hash is not None:
            return "unembed_hash"
        return UNKNOWN if name is None else "base_model_name_or_path"


def head_hash(weight: Tensor) -> str:
    """tuned-lens' hash of an output head: SHA-256 of how numpy prints its corners with one digit.

    It is made to be the same in any floating-point type.
    """
    corners = np.array_str(weight.detach().float().cpu().numpy(), precision=1)
    return hashlib.sha256(corners.encode()).hexdigest()


def _last_part(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


class MultiExit(ForeignLayout):
    """Head k is of hidden_states[k] of transformers, behind the model's norm; "original" is its own."""

    of_exits = r"name_to_lm_exit_head\.(?!lm_head_original\.).*|name_to_conv_matrix\..*"
    unequal: ClassVar = {
        r"name_to_conv_matrix\..*": "a matrix between the final norm and the model's own head"
    }
    lm_head_layer_indices: list[int | str]

    @property
    def key_map(self) -> KeyMap:
        """An output head."""
        exits = {exit for exit in self.lm_head_layer_indices if isinstance(exit, int)}
        output = OutputKeys(weight=f"name_to_lm_exit_head.lm_head_{EXIT}.weight")
        return KeyMap.of_exits(exits, output=output)


class EeLlm(ForeignLayout):
    """Layers count from 1, keys from 0; an exit before its layer reads the state after the one before.

    The entries are arguments that a checkpoint holds.
    """

    of_exits = (
        r"language_model\.(exit_output_layer|encoder\.layers\.\d+\.(exit_norm|exit_block|mlp\.branch))\..*"
    )
    unbuilt = (None,)
    unequal: ClassVar = {r".*\.mlp\.branch\..*": WHY_MLP, r".*\.exit_block\..*": WHY_ATTENTION}
    exit_layer_nums: list[int]
    pre_exit: bool = False
    use_exit_mlp: bool = False
    use_exit_block: bool = False
    use_exit_norm: bool = False
    untie_exit_output_weights: bool = False
    untie_embeddings_and_output_weights: bool = False
    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    norm_epsilon: Epsilon = 1e-5
    apply_layernorm_1p: bool = False
    padded_vocab_size: Count | None = None
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1

    @property
    def key_map(self) -> KeyMap:
        """A norm and an output head, each where exits have one of their own."""
        key, norm = f"language_model.encoder.layers.{EXIT}.exit_norm", NormKeys(kind="none")
        if self.use_exit_norm and self.normalization == "RMSNorm":
            norm = NormKeys(kind="rms", weight=f"{key}.weight", epsilon=self.norm_epsilon)
        elif self.use_exit_norm:
            norm = NormKeys(
                kind="layer", weight=f"{key}.weight", bias=f"{key}.bias", epsilon=self.norm_epsilon
            )
        head = f"language_model.exit_output_layer.{PLACE}.weight" if self.untie_exit_output_weights else None
        output = OutputKeys(weight=head, norm=norm, rows=self.padded_vocab_size)
        exits = [number - self.pre_exit for number in self.exit_layer_nums]
        return KeyMap.of_exits(exits, first=int(self.pre_exit), output=output)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Checkpoints in parts, norms and heads that are not as they seem, and what has no equal."""
        parts = self.tensor_model_parallel_size * self.pipeline_model_parallel_size
        if parts > 1:
            yield (
                f"the checkpoint is split into {parts} parts, each of which counts its layers anew",
                "join them with EE-LLM's tools/convert_parallelism.sh (TP=1, PP=1), and convert the result",
            )
        if self.apply_layernorm_1p and self.use_exit_norm:
            yield (
                "the norms' weights are stored less 1 (apply_layernorm_1p)",
                "add 1 to the weights of every exit_norm, and set apply_layernorm_1p to false",
            )
        if self.untie_embeddings_and_output_weights and not self.untie_exit_output_weights:
            yield (
                "exits read by the embedding of a model whose output head is another, which EE-LLM cannot "
                "train",
                "give the arguments of the checkpoint that the tensors are of",
            )
        if self.use_exit_mlp or self.use_exit_block:
            yield WHY_MLP if self.use_exit_mlp else WHY_ATTENTION, TRAIN


class Balcony(ForeignLayout):
    """all_hidden_states[k], which exit k reads, is the state after k layers.

    Without attention NestedLlamaDecoderLayer adds its network to the state that its norm has made. The
    entries are NestedLlamaConfig's.
    """

    of_exits = r"model\.exit_modules\..*"
    unbuilt = (None, "nested_llama")  # which is no type of transformers' own; as a "llama" they are the base
    unequal: ClassVar = {r".*\.self_attn\..*": WHY_ATTENTION}
    exit_layer_indices: list[int]
    exit_decoder_layer: bool = False
    exit_mlp: bool = False
    exit_attention: bool = False
    tie_exit_lm_head: bool | None = None
    tie_word_embeddings: bool = False
    rms_norm_eps: Epsilon = 1e-6
    hidden_act: str = "silu"

    @property
    def key_map(self) -> KeyMap:
        """A network, a norm and an output head, the first and the last where exits have them."""
        module, layered = f"model.exit_modules.{PLACE}", self.exit_decoder_layer
        mlp = NetworkKeys(
            norm=f"{module}.0.input_layernorm.weight",
            gate=f"{module}.0.mlp.gate_proj.weight",
            up=f"{module}.0.mlp.up_proj.weight",
            down=f"{module}.0.mlp.down_proj.weight",
            epsilon=self.rms_norm_eps,
            adds_to_normed=True,
        )
        tied = self.tie_word_embeddings if self.tie_exit_lm_head is None else self.tie_exit_lm_head
        norm = NormKeys(kind="rms", weight=f"{module}.{int(layered)}.weight", epsilon=self.rms_norm_eps)
        output = OutputKeys(weight=None if tied else f"{module}.{1 + layered}.weight", norm=norm)
        return KeyMap.of_exits(self.exit_layer_indices, mlp=mlp if layered else None, output=output)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Layers that have no equal."""
        if self.exit_decoder_layer and (self.exit_attention or not self.exit_mlp):
            yield WHY_ATTENTION, TRAIN
        if self.exit_decoder_layer and self.hidden_act != "silu":
            act = f"the exits' networks are of the activation {self.hidden_act!r}; offramp's are of 'silu'"
            yield act, TRAIN


LAYOUTS: Mapping[str, type[ForeignLayout]] = {
    "tuned-lens": TunedLens,
    "multi-exit": MultiExit,
    "ee-llm": EeLlm,
    "balcony": Balcony,
}
