"""Small random models of every encoder-decoder that the installed transformers knows, and what they read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from family_configs import HIDDEN, LAYERS, SMALL, VOCABULARY, small_config
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

MAPPINGS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
)

BOTH = {
    "is_encoder_decoder": True,
    "is_decoder": False,
    "encoder_layers": LAYERS,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "max_encoder_position_embeddings": 128,
    "max_decoder_position_embeddings": 128,
    "max_source_positions": 128,
    "max_target_positions": 128,
    "encoder_num_hidden_layers": LAYERS,
    "decoder_num_hidden_layers": LAYERS,
    "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4,
    "encoder_num_key_value_heads": 4,
    "decoder_num_key_value_heads": 4,
    "num_decoder_layers": LAYERS,
    "num_encoder_layers": LAYERS,
    "d_kv": 16,
    "d_ff": 96,
    "scale_embedding": False,
}
"""What these have beside the values of `family_configs.SMALL`, as far as a family's config has it."""

GEMMA: dict[str, Any] = {
    name: {
        key: SMALL[key]
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    }
    | {
        "intermediate_size": 96,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "query_pre_attn_scalar": 16,
    }
    for name in ("encoder", "decoder")
}

CONFORMER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 8,
    "max_position_embeddings": 128,
}

BERT: dict[str, Any] = {
    **{key: SMALL[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")},
    "model_type": "bert",
    "intermediate_size": 96,
}

SPECIAL: dict[str, dict[str, Any]] = {
    "bigbird_pegasus": {"attention_type": "original_full"},
    "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["en", "de"]},
    "led": {"attention_window": 16},
    "longt5": {"num_layers": LAYERS, "local_radius": 15},
    "m2m_100": {"scale_embedding": True},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "num_experts": 4},
    "prophetnet": {"num_encoder_layers": LAYERS, "ngram": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96},
    "switch_transformers": {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 2},
    "t5gemma": GEMMA,
    "whisper": {"num_mel_bins": 16, "max_source_positions": 24, "suppress_tokens": None},
    "speech_to_text": {"input_feat_per_channel": 16, "input_channels": 1, "conv_channels": 32},
    "canary": {
        "encoder_config": CONFORMER,
        "decoder_config": {
            **{key: SMALL[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")},
            **{key: SMALL[key] for key in ("num_hidden_layers", "num_attention_heads")},
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
        },
    },
    "cohere_asr": {"encoder_config": CONFORMER, "num_key_value_heads": 4},
    "moonshine_streaming": {
        "num_key_value_heads": 4,
        "encoder_config": {
            **{key: SMALL[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")},
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "sliding_windows": ((16, 4), (16, 0)),
        },
    },
    "encoder-decoder": {
        "encoder": BERT,
        "decoder": {**BERT, "is_decoder": True, "add_cross_attention": True},
    },
    "vision-encoder-decoder": {
        "encoder": {
            **{key: SMALL[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")},
            "model_type": "vit",
            "intermediate_size": 96,
            "image_size": 32,
            "patch_size": 8,
        },
        "decoder": {**BERT, "is_decoder": True, "add_cross_attention": True},
    },
    "pegasus_x": {"block_size": 8, "num_global_tokens": 4, "stagger_local_blocks": False},
}

READ: dict[str, tuple[str, tuple[int, ...]]] = {
    "whisper": ("input_features", (1, 16, 48)),
    "speech_to_text": ("input_features", (1, 68, 16)),
    "moonshine": ("input_values", (1, 6400)),
    "pop2piano": ("inputs_embeds", (1, 17, HIDDEN)),
    "canary": ("input_features", (1, 136, 16)),
    "cohere_asr": ("input_features", (1, 136, 16)),
    "moonshine_streaming": ("input_values", (1, 6400)),
    "vision-encoder-decoder": ("pixel_values", (1, 3, 32, 32)),
}
"""Of encoders that read no token ids: the name and the shape of their input."""


def conditioned_names() -> list[str]:
    """The model types whose config is one of an encoder-decoder."""
    names = sorted({name for mapping in MAPPINGS for name in getattr(modeling_auto, mapping)})
    return [name for name in names if name in CONFIG_MAPPING and _is_encoder_decoder(name)]


def _is_encoder_decoder(name: str) -> bool:
    return getattr(CONFIG_MAPPING[name], "is_encoder_decoder", False) is True or name in SPECIAL


def _class_of(name: str) -> Any:
    found = next(
        getattr(modeling_auto, mapping).get(name)
        for mapping in MAPPINGS
        if name in getattr(modeling_auto, mapping)
    )
    class_name = found if isinstance(found, str) else found[0]
    return getattr(importlib.import_module("transformers"), class_name)


def build_conditioned(name: str) -> tuple[Any, Mapping[str, Tensor] | None]:
    """A small random encoder-decoder in float32, with norms and biases that are far from trivial, and what
    its encoder reads if it is no token ids."""
    torch.manual_seed(0)
    config_class = CONFIG_MAPPING[name]
    known = set(vars(config_class())) | set(getattr(config_class, "attribute_map", {}))
    own = {key: value for key, value in BOTH.items() if key in known}
    special = SPECIAL.get(name, {})
    config = small_config(config_class, {**own, **special})
    model: Any = _class_of(name)(config).float().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    if name not in READ:
        return model, None
    key, shape = READ[name]
    generator = torch.Generator("cpu").manual_seed(0)
    return model, {key: torch.randn(shape, generator=generator, device="cpu")}
