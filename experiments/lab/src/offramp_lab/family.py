"""The lab's family of models: one decoder with five switches, so that models can differ in one thing alone.

transformers has no class for most of their combinations (learned positions with RMSNorm or SwiGLU, say), and
classes of different families differ in more than their names say: biases, initial weights, dropout,
activation. So this is transformers' Llama with parts replaced. With rmsnorm, swiglu, rotary and plain it
computes what Llama does bit for bit; with layernorm, gelu and learned what GPT-2 does without its biases.

transformers learns of the family by `register`, which offramp calls for a folder that needs it (an entry
point in the group `offramp.model_families`); elsewhere:

    from offramp_lab import family
    family.register()
    transformers.AutoModelForCausalLM.from_pretrained(folder)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm

LAB_FAMILY = "offramp_lab"
"""The `model_type` in the config of a model."""

Norm = Literal["layernorm", "rmsnorm"]
Mlp = Literal["gelu", "swiglu"]
Positions = Literal["learned", "rotary"]
Heads = Literal["all", "grouped"]
Residual = Literal["plain", "depth_scaled"]


@strict
class LabConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """A Llama's config with four switches more; the fifth, grouped heads, is Llama's `num_key_value_heads`.

    residual: "depth_scaled" multiplies what the norms of layer l give by 1/sqrt(l) (LayerNorm scaling, arXiv
    2502.05795); the final norm is not scaled.
    """

    model_type = LAB_FAMILY
    norm: Norm = "rmsnorm"
    mlp: Mlp = "swiglu"
    positions: Positions = "rotary"
    residual: Residual = "plain"


class ScaledLayerNorm(nn.LayerNorm):
    """A layer norm whose output is multiplied by a constant."""

    def __init__(self, size: int, epsilon: float, scale: float) -> None:
        super().__init__(size, eps=epsilon)
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [..., size]."""
        return super().forward(hidden) * self.scale


class ScaledRMSNorm(LlamaRMSNorm):
    """An RMS norm whose output is multiplied by a constant."""

    def __init__(self, size: int, epsilon: float, scale: float) -> None:
        super().__init__(size, eps=epsilon)
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [..., size]."""
        found: Tensor = super().forward(hidden) * self.scale
        return found


def make_norm(config: LabConfig, scale: float = 1.0) -> nn.Module:
    """The norm that a config asks for; without a scale it is the library's own."""
    size, epsilon = config.hidden_size, config.rms_norm_eps
    if scale == 1.0:
        return nn.LayerNorm(size, eps=epsilon) if config.norm == "layernorm" else LlamaRMSNorm(size, epsilon)
    scaled = ScaledLayerNorm if config.norm == "layernorm" else ScaledRMSNorm
    return scaled(size, epsilon, scale)


class GeluMlp(nn.Module):
    """Two matrices with GELU between them, in GPT-2's approximation (arXiv 1606.08415, section 2)."""

    def __init__(self, config: LabConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [..., size]."""
        found: Tensor = self.down_proj(nn.functional.gelu(self.up_proj(hidden), approximate="tanh"))
        return found


class LabLayer(LlamaDecoderLayer):  # type: ignore[no-untyped-call]
    """A layer of Llama with the norms and the feed-forward network that its config asks for."""

    def __init__(self, config: LabConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        scale = 1.0 if config.residual == "plain" else 1.0 / math.sqrt(layer_idx + 1)
        own: Any = self  # whose parts are declared to be Llama's
        own.input_layernorm = make_norm(config, scale)
        own.post_attention_layernorm = make_norm(config, scale)
        if config.mlp == "gelu":
            own.mlp = GeluMlp(config)


class NoRotation(nn.Module):
    """In the place of rotary positions: every query and key is turned by nothing, exactly."""

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [..., positions, head size]."""
        shape = (*position_ids.shape, self.head_size)
        return hidden.new_ones(shape), hidden.new_zeros(shape)


class LabModel(LlamaModel):  # type: ignore[no-untyped-call]
    """The layers, with what is added to the embedding where positions are learned."""

    config_class = LabConfig
    _no_split_modules = ["LabLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": LabLayer, "attentions": LlamaAttention}  # noqa: RUF012

    def __init__(self, config: LabConfig) -> None:
        super().__init__(config)
        own: Any = self
        own.layers = nn.ModuleList([LabLayer(config, place) for place in range(config.num_hidden_layers)])
        own.norm = make_norm(config)
        if config.positions == "learned":
            own.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            own.rotary_emb = NoRotation(config.head_dim or config.hidden_size // config.num_attention_heads)
        own.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """As Llama's, its embedding made here where positions are learned."""
        if self.config.positions == "learned":
            if inputs_embeds is None:
                inputs_embeds = self.embed_tokens(input_ids)
            if position_ids is None:
                cache = more.get("cache", more.get("past_key_values"))  # its older name
                seen = 0 if cache is None else cache.get_seq_length()
                position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen
            added: Any = self.embed_positions
            inputs_embeds = inputs_embeds + added(position_ids)
            input_ids = None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **more,
        )


class LabForCausalLM(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """The model with its head."""

    config_class = LabConfig
    _no_split_modules = ["LabLayer"]  # noqa: RUF012

    def __init__(self, config: LabConfig) -> None:
        super().__init__(config)
        own: Any = self
        own.model = LabModel(config)
        own.post_init()


def register() -> None:
    """Let transformers know the family by its config's `model_type`. Again: nothing."""
    AutoConfig.register(LAB_FAMILY, LabConfig, exist_ok=True)
    AutoModelForCausalLM.register(LabConfig, LabForCausalLM, exist_ok=True)
