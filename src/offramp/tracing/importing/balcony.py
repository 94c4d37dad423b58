"""The layout balcony: Balcony's exits (arXiv 2503.05005) as far as they keep no keys and values of their own.

As github.com/benyaminjami/Balcony-LLaMA trains and saves them (branch finetuning, read at commit 84faf4b,
finetuning/transformers_extra/models/llama/modeling_nestedllama.py): beside a frozen Llama, per exit a list of
one layer (or none), an RMS norm, and an output head unless exits are read by the model's own.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from offramp.tracing.importing.base_weights import check_same_names
from offramp.tracing.importing.key_map import PLACE, KeyMap, MlpKeys, OutputKeys
from offramp.tracing.importing.layout import (
    WHY_ATTENTION,
    Config,
    Described,
    Layout,
    cannot_be_read,
    read_config,
)
from offramp.tracing.importing.tensors import Tensors

NAME = "balcony"
EXITS = "model.exit_modules"
UNKNOWN_TYPE = "nested_llama"
"""The type of these models, which transformers cannot build; as a "llama" they are the base alone."""


class _Config(Config):
    """Of NestedLlamaConfig; what is not there has that class's default."""

    exit_layer_indices: list[int]
    exit_decoder_layer: bool = False
    exit_mlp: bool = False
    exit_attention: bool = False
    tie_exit_lm_head: bool | None = None
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    model_type: str = UNKNOWN_TYPE

    @property
    def shares_head(self) -> bool:
        """Whether exits are read by the model's own output head."""
        return self.tie_word_embeddings if self.tie_exit_lm_head is None else self.tie_exit_lm_head


def _describe(path: Path, tensors: Tensors) -> Described:
    config = read_config(path, _Config, NAME)
    if config.exit_decoder_layer and (config.exit_attention or not config.exit_mlp):
        attention = [key for key in tensors.stored if re.fullmatch(rf"{EXITS}\.\d+\.0\.self_attn\..*", key)]
        raise cannot_be_read(tensors, attention, WHY_ATTENTION)
    if config.exit_decoder_layer and config.hidden_act != "silu":
        why = f"the exits' networks are of the activation {config.hidden_act!r}; offramp's are of 'silu'"
        raise cannot_be_read(tensors, [], why)
    layer, norm = f"{EXITS}.{PLACE}.0", int(config.exit_decoder_layer)
    # Without attention NestedLlamaDecoderLayer adds its network to the state that its norm has made.
    mlp = MlpKeys(
        norm=f"{layer}.input_layernorm.weight",
        gate=f"{layer}.mlp.gate_proj.weight",
        up=f"{layer}.mlp.up_proj.weight",
        down=f"{layer}.mlp.down_proj.weight",
        epsilon=config.rms_norm_eps,
        adds_to_normed=True,
    )
    output = OutputKeys(
        weight=None if config.shares_head else f"{EXITS}.{PLACE}.{norm + 1}.weight",
        norm="rms",
        norm_weight=f"{EXITS}.{PLACE}.{norm}.weight",
        epsilon=config.rms_norm_eps,
    )
    # all_hidden_states[k], which exit k reads, is the state after k layers.
    key_map = KeyMap(
        tuple(config.exit_layer_indices),
        1,
        NAME,
        mlp=mlp if config.exit_decoder_layer else None,
        output=output,
    )
    return Described(key_map, partial(check_same_names, tensors=tensors), config.model_type != UNKNOWN_TYPE)


BALCONY = Layout(NAME, _describe, of_exits=rf"{EXITS}\..*")
