"""What a GGUF header states of a model and its tokenizer: whether it makes sense, and whether all of it that
changes what is computed reaches the model that transformers makes of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from offramp.errors import ModelError
from offramp.kit.rules import shown

OTHER_FILE = "use the same model as safetensors, or a GGUF file from another source"

RANGES: dict[str, tuple[bool, float, float]] = {
    "block_count": (True, 0, math.inf),
    "context_length": (True, 1, 100_000_000),
    "embedding_length": (True, 1, math.inf),
    "attention.head_count": (True, 1, math.inf),
    "attention.head_count_kv": (True, 1, math.inf),
    "attention.layer_norm_epsilon": (False, 0, 1),
    "attention.layer_norm_rms_epsilon": (False, 0, 1),
    "attention.sliding_window": (True, 0, math.inf),
    "rope.freq_base": (False, 1, 10**12),
    "rope.freq_base_swa": (False, 1, 10**12),
}
"""Below the architecture's name: whether a value has to be whole, its least and its most.

A list of heads has one value for each layer."""
NEEDED = ("block_count", "context_length", "embedding_length", "attention.head_count")
EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
"""One of them is needed, too: transformers makes up what is missing."""

CHANGES_NOTHING = {
    # Sizes: the shapes of the tensors are held against the model's.
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_shared_count"),
    *(f"attention.{what}_length{part}" for what in ("key", "value") for part in ("", "_swa")),
    # For other programs.
    *("tensor_data_layout", "pooling_type", "rope.scaling.finetuned"),
    # Details of a kind of scaling that is refused, or of none.
    *("rope.scaling.original_context_length", "rope.scaling.yarn_log_multiplier"),
    *(f"rope.scaling.yarn_{what}" for what in ("ext_factor", "attn_factor", "beta_fast", "beta_slow")),
}
"""Keys that transformers may pass over, below the architecture's name."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none", "linear"),  # linear by its factor
    "attention.causal": (True,),
    "expert_gating_func": (0, 1),  # softmax
    "interleave_moe_layer_step": (0, 1),
    **dict.fromkeys(("expert_group_count", "expert_group_used_count", "expert_weights_scale"), (0, 1)),
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale", "rope.scale_linear"), (0, 1)),
    **dict.fromkeys(("rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.alpha"), (0, 1)),
}
"""Values with which other keys change nothing; of those that are not listed, 0 and False."""
COMPUTED: dict[str, tuple[str, ...]] = {
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads", "num_attention_heads", "n_head"),
    **dict.fromkeys(
        EPSILONS, ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
    ),
    "attention.sliding_window": ("sliding_window",),
    "attention.sliding_window_pattern": ("sliding_window_pattern",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_weights_norm": ("norm_topk_prob",),
    "use_parallel_residual": ("use_parallel_residual", "parallel_attn"),
    "rope.dimension_count": ("rotary_width",),
    "rope.freq_base": ("rope_theta",),
    "rope.freq_base_swa": ("rope_theta_swa",),
    "rope.scaling.type": ("rope_type",),
    "rope.scaling.factor": ("factor",),
}
"""Where transformers' config says what is computed, for keys that it may pass over."""


def check_values(values: Mapping[str, Any], architecture: str, path: Path) -> None:
    """Refuse a header that lacks a value which every model needs, or states one that no model has."""
    stated: dict[str, Any] = {key: values.get(f"{architecture}.{key}") for key in RANGES}
    missing = [key for key in NEEDED if stated[key] is None]
    if all(stated[key] is None for key in EPSILONS):
        missing.append(EPSILONS[0])
    if missing:
        need = f"{architecture}.{missing[0]}, which a model of the architecture {architecture!r} needs"
        others = sorted(key for key in values if key.endswith(f".{missing[0]}"))
        raise _refusal(f"there is no {need}" + (f", but {others[0]}" if others else ""), path)
    for key, (whole, least, most) in RANGES.items():
        value = stated[key]
        layered = isinstance(value, tuple) and key.startswith("attention.head_count")
        # Models without attention state no heads.
        lowest = 0 if layered or ("mamba" in architecture and "head" in key) else least
        for one in value if layered else [] if value is None else [value]:
            number = isinstance(one, int if whole else int | float) and not isinstance(one, bool)
            if not number or not lowest <= one <= most:
                kind = "whole number" if whole else "number"
                upper = f"from {lowest:,} to {most:,}" if math.isfinite(most) else f"of {lowest:,} or more"
                raise _refusal(f"{architecture}.{key} is {shown(one)}, not a {kind} {upper}", path)


TOKENIZER = "tokenizer.ggml."
TOKEN_LISTS = {
    "tokens": (str, "texts"),
    "scores": (float, "numbers"),
    "token_type": (int, "whole numbers"),
    "merges": (str, "texts"),
}
TOKEN_IDS = (
    "bos_token_id",
    "eos_token_id",
    "unknown_token_id",
    "padding_token_id",
    "eot_token_id",
    "eom_token_id",
)
"""The last two end an answer in llama.cpp."""
SWITCHES = ("add_bos_token", "add_eos_token", "add_space_prefix")

GPT2_SPLITS = {
    *("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"),
    *("jina-v1-en", "jina-v2-code", "roberta-bpe", "exaone4", "mpt", "olmo", "jais", "trillion"),
    "granite-docling",
}
"""What llama.cpp calls vocabularies before which a text is split as GPT-2's is; transformers, too, splits so
whatever it has no name for."""
NEAR_SPLITS = {"smollm", "default"}
"""Of smollm, whose digits are split off first, spaces before a digit are other tokens, 1 of 1,000 in code;
default says that none is known."""


def check_tokenizer(values: Mapping[str, Any], rows: int | None, path: Path) -> None:
    """Refuse a tokenizer whose lists are not those of its tokens. rows: of the embedding, None if unknown."""
    tokens = values.get(f"{TOKENIZER}tokens", ())
    for key, (kind, kinds) in TOKEN_LISTS.items():
        stated = values.get(f"{TOKENIZER}{key}", ())
        if not isinstance(stated, tuple) or not all(isinstance(item, kind) for item in stated):
            raise _refusal(f"{TOKENIZER}{key} is no list of {kinds}", path)
        if not tokens:
            raise _refusal(f"{TOKENIZER}tokens is empty or missing", path)
        if stated and key != "merges" and len(stated) != len(tokens):
            raise _refusal(f"{TOKENIZER}{key} has {len(stated):,} values for {len(tokens):,} tokens", path)
    twice = next((token for token, count in Counter(tokens).items() if count > 1), None)
    if twice is not None:
        raise _refusal(f"{TOKENIZER}tokens has {shown(twice)} twice", path)
    template = values.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise _refusal(f"tokenizer.chat_template is {shown(template)}, not a text", path)
    for key in SWITCHES:
        if not isinstance(values.get(f"{TOKENIZER}{key}", False), bool):
            stated = values[f"{TOKENIZER}{key}"]
            raise _refusal(f"{TOKENIZER}{key} is {shown(stated)}, not true or false", path)
    if rows is not None and len(tokens) > rows:
        what = f"{TOKENIZER}tokens has {len(tokens):,} tokens, and the embedding has {rows:,} rows"
        raise _refusal(what, path)
    merges = values.get(f"{TOKENIZER}merges")
    if merges is None and not values.get(f"{TOKENIZER}scores"):
        raise _refusal(f"there is neither {TOKENIZER}merges nor {TOKENIZER}scores", path)
    for merge in merges or ():
        if merge.count(" ") != 1:
            raise _refusal(f"{TOKENIZER}merges has {shown(merge)}, which is not two texts and a space", path)
    for key in TOKEN_IDS:
        token = values.get(f"{TOKENIZER}{key}", 0)
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < len(tokens):
            what = f"{TOKENIZER}{key} is {shown(token)}, and the ids of tokens are 0 to {len(tokens) - 1:,}"
            raise _refusal(what, path)


def check_split(values: Mapping[str, Any], path: Path) -> None:
    """Refuse a byte-level tokenizer before which a text is split as transformers does not split it: it passes
    over names that it does not know, and makes other tokens."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as known
    except ImportError:  # before transformers read that key
        return
    split = values.get(f"{TOKENIZER}pre", "default")
    if values.get(f"{TOKENIZER}model") == "gpt2" and split not in {*known, *GPT2_SPLITS, *NEAR_SPLITS}:
        raise _refusal(f"transformers does not split texts as {TOKENIZER}pre = {shown(split)} says", path)


def check_all_read(
    values: Mapping[str, Any], tensors: Collection[str], architecture: str, config: Any, path: Path
) -> None:
    """Refuse a header with a value that changes what is computed and that `config`, which transformers made
    of it, does not have: it passes over keys that it has no name for."""
    read, computed = _keys_read(values, tensors, architecture), _computed(config)
    for name, value in values.items():
        key = name.removeprefix(f"{architecture}.")
        if key == name or key in read or key in CHANGES_NOTHING or value in NEUTRAL.get(key, (0,)):
            continue
        # llama.cpp itself computes Phi-3 without its window.
        if key == "attention.sliding_window" and architecture == "phi3":
            continue
        names = [known for known in COMPUTED.get(key, ()) if known in computed]
        if not names or not _same(value, computed[names[0]]):
            made = f", but makes a model with {names[0]} = {shown(computed[names[0]])}" if names else ""
            raise _refusal(f"transformers does not read {name} = {shown(value)}{made}", path)


def _keys_read(values: Mapping[str, Any], tensors: Collection[str], architecture: str) -> Collection[str]:
    """The keys below the architecture's name that transformers makes a config of."""
    from transformers import modeling_gguf_pytorch_utils as loader

    try:
        from transformers.integrations.gguf import gguf_config_mapping
    except ImportError:  # before transformers had more than one way
        functions: Mapping[str, Any] = {}
    else:
        functions = gguf_config_mapping.GGUF_CONFIG_ARCHS
    if architecture not in functions:
        tables: Any = loader.GGUF_TO_TRANSFORMERS_MAPPING["config"]
        names = [name for name in tables if _plain(name) == _plain(architecture)]
        table: Mapping[str, str | None] = tables[names[0]] if names else {}
        return {key for key, name in table.items() if name is not None}

    def made(without: str | None) -> Any:
        kept = {key: value for key, value in values.items() if key != without}
        try:
            return functions[architecture](kept, tuple(tensors))
        except KeyError:
            return None

    whole = made(None)
    return {name.removeprefix(f"{architecture}.") for name in values if made(name) != whole}


def _plain(name: str) -> str:
    """An architecture's name as both llama.cpp and transformers spell it: qwen2moe, qwen2_moe."""
    return re.sub(r"[-_]", "", name)


def _computed(config: Any) -> dict[str, Any]:
    """What transformers' config says, with the rotary embedding's values beside the others."""
    found: dict[str, Any] = dict(config.to_dict())
    heads = found.get("num_attention_heads")
    if heads and not found.get("head_dim") and found.get("hidden_size"):
        found["head_dim"] = found["hidden_size"] // heads
    rope = found.get("rope_parameters") or {}
    found |= rope.get("full_attention", rope)
    found |= {f"{key}_swa": value for key, value in rope.get("sliding_attention", {}).items()}
    if found.get("head_dim"):
        found["rotary_width"] = int(found["head_dim"] * found.get("partial_rotary_factor", 1))
    layers = found.get("layer_types")
    if layers:
        found["sliding_window_pattern"] = [kind == "sliding_attention" for kind in layers]
    return found


def _same(stated: Any, computed: Any) -> bool:
    if isinstance(computed, list) and isinstance(stated, int):  # of so many layers the last has no window
        return stated > 0 and computed == [number % stated < stated - 1 for number in range(len(computed))]
    if isinstance(stated, int | float) and isinstance(computed, int | float):
        return math.isclose(stated, computed, rel_tol=1e-6)  # the file has 32 bits
    return bool((list(stated) if isinstance(stated, tuple) else stated) == computed)


def _refusal(what: str, path: Path) -> ModelError:
    return ModelError(f"the GGUF file cannot be used: {what}", where=str(path), fix=OTHER_FILE)
