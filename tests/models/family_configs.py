"""Small random models of every causal-LM family that the installed transformers knows."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

if TYPE_CHECKING:
    from offramp.models.model import Model

VOCABULARY = 503
HIDDEN = 64
LAYERS = 4

# One small value for each field name that configs share; a family takes those that its config has.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "d_model": HIDDEN,
    "n_embd": HIDDEN,
    "embedding_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "ffn_dim": 96,
    "n_inner": 96,
    "ffn_hidden_size": 96,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "max_seq_len": 128,
    "context_length": 128,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 64,
    "mamba_d_state": 8,
    "state_size": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "sliding_window": 64,
    "sliding_window_size": 64,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "rel_extent": 64,
    "rotary_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "use_mamba_kernels": False,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 0,
}

# Latent attention keeps one latent for all heads: K and V have as many heads as Q.
LATENT_ATTENTION = {"num_key_value_heads": 4}

# What some families need besides the shared values, or instead of them.
SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": LATENT_ATTENTION,
    "axk2": LATENT_ATTENTION,
    "deepseek_v2": LATENT_ATTENTION,
    "deepseek_v3": LATENT_ATTENTION,
    "deepseek_v32": LATENT_ATTENTION,
    "dots3_note": LATENT_ATTENTION,
    "dots3_note_text": {
        **LATENT_ATTENTION,
        "moe_shared_expert_intermediate_size": 32,
        **{f"swa_num_{of}_heads": 4 for of in ("attention", "key_value")},
        **{f"swa_{of}_lora_rank": 16 for of in ("q", "kv")},
        "swa_head_dim": 32,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "glm4_moe_lite": LATENT_ATTENTION,
    "glm_moe_dsa": LATENT_ATTENTION,
    "longcat_flash": {**LATENT_ATTENTION, "expert_ffn_hidden_size": 32, "zero_expert_num": 2},
    "minicpm3": LATENT_ATTENTION,
    "sarvam_mla": LATENT_ATTENTION,
    "youtu": LATENT_ATTENTION,
    "blt": {"encoder_hash_byte_group_vocab": VOCABULARY},
    "falcon_h1": {"mamba_d_ssm": 128, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite": {"logits_scaling": 6.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "granitemoehybrid": {"logits_scaling": 6.0, "layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "bailing_hybrid": {**LATENT_ATTENTION, "layer_types": ["linear_attention", "full_attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "kimi_linear": {**LATENT_ATTENTION, "layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "minimax_m3_vl_text": {
        "layer_types": ["minimax_m3_sparse", "full_attention"] * 2,
        "index_block_size": 8,
        "index_topk_blocks": 2,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "opt": {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "recurrent_gemma": {"lru_width": HIDDEN, "num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * LAYERS, "num_hidden_layers": LAYERS},
    "xlm": {"causal": True, "is_encoder": False, "emb_dim": HIDDEN},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid", "mamba"] * 2},
    "zamba2": {
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 2,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def family_names() -> list[str]:
    """The model types for which the installed transformers has a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(config_class: Any, special: dict[str, Any] | None = None) -> Any:
    """A config of a class with the shared small values, then the family's own, in sub-configs too."""
    fields = set(inspect.signature(config_class.__init__).parameters)
    values = {key: value for key, value in SMALL.items() if key in fields}
    for name, sub_class in getattr(config_class, "sub_configs", {}).items():
        if sub_class is AutoConfig:
            sub_class = type(getattr(config_class(), name))
        if issubclass(sub_class, PreTrainedConfig):
            values[name] = small_config(sub_class)
    return config_class(**{**values, **(special or {})})


def build_family(name: str) -> Any:
    """A small random model of a family in float32, with norms and biases that are far from trivial."""
    return _built(AutoModelForCausalLM, name)


def image_text_names() -> list[str]:
    """The model types for which it has one that is given images and text, and that is no encoder-decoder."""
    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    both = ("t5gemma2", "vision-encoder-decoder")  # by what they hold, whatever their config's default says
    return sorted(
        name
        for name in names
        if name in CONFIG_MAPPING
        and name not in both
        and getattr(CONFIG_MAPPING[name], "is_encoder_decoder", False) is not True
    )


def build_image_text(name: str) -> Any:
    """The same of an image-text family, with what sees."""
    return _built(AutoModelForImageTextToText, name)


def _built(auto_class: Any, name: str) -> Any:
    torch.manual_seed(0)
    config = small_config(CONFIG_MAPPING[name], SPECIAL.get(name))
    model = auto_class.from_config(config, dtype=torch.float32)
    model = model.float().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def llama(vocabulary: int = 61, **config: Any) -> Any:
    """A random Llama of 3 layers whose layers change the hidden state a lot."""
    from transformers import LlamaConfig, LlamaForCausalLM

    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(values | config))).eval().requires_grad_(False)


class NoTokenizer:
    """As much of a tokenizer as loading asks for."""

    bos_token_id = None
    eos_token_id = 2

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [5]}


def model_of(family: str, dtype: str = "float32") -> Model:
    """A small random model of a family, as loading makes it."""
    from offramp.models.identity import ModelIdentity
    from offramp.models.loading import build_model

    identity = ModelIdentity(weights="w", config="c", tokenizer="t", source="a test")
    hf = build_family(family).to(getattr(torch, dtype))
    return build_model(hf, NoTokenizer(), name=family, identity=identity, dtype=dtype)
