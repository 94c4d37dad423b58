"""What the goldens are made of: three tiny models, their texts, and a machine of known speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tiny_models import CHAT_TEMPLATE, VOCABULARY, write_documents, write_tokenizer

MODELS = ("dense", "mixture", "state_space")
TEXTS = "jsonl:words.jsonl#text"
FEW_TEXTS = "jsonl:few.jsonl#text"
OTHER_TEXTS = "jsonl:other.jsonl#text"
SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
CONFIGS: dict[str, dict[str, Any]] = {
    "dense": {"model_type": "llama", "intermediate_size": 48, **ATTENTION},
    "mixture": {
        "model_type": "olmoe",
        "intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        **ATTENTION,
    },
    "state_space": {
        "model_type": "mamba2",
        "num_heads": 8,
        "head_dim": 8,
        "expand": 2,
        "n_groups": 2,
        "state_size": 8,
        "chunk_size": 8,
        "conv_kernel": 4,
    },
}
LATE = 0.35
"""What each layer adds, as a share of what the layer before it adds: so that the guesses of layers agree."""
PROFILE = """\
kind = "roofline"
name = "made up"
description = "a machine of the goldens"
source = "made up"
bytes_per_second = 2e10
launch_seconds = 1e-6
decision_seconds = 2e-6
[flops_per_second]
float32 = 1e11
bfloat16 = 2e11
"""


def write_world(folder: Path) -> None:
    """Models, texts and a machine's profile, by the names under which commands of the goldens know them."""
    for seed, name in enumerate(MODELS):
        write_model(folder / name, CONFIGS[name], seed=seed)
    write_documents(folder / "words.jsonl", documents=96)
    write_documents(folder / "few.jsonl", documents=24, seed=2)
    write_documents(folder / "other.jsonl", documents=48, seed=1)
    (folder / "machine.toml").write_text(PROFILE)


def write_model(folder: Path, config: dict[str, Any], *, seed: int) -> None:
    """A model in float32 whose weights are the same bits on every machine and with every version of torch."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values = {key: value for key, value in (SHARED | config).items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[config["model_type"]](**values), dtype=torch.float32
    )
    draws = np.random.RandomState(seed)  # its stream is frozen, and these draws need no logarithm
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = draws.random_sample(tuple(parameter.shape)) - 0.5
            parameter.copy_(torch.from_numpy((placed(name, drawn)).astype(np.float32)))
    model.save_pretrained(folder)
    write_tokenizer(folder, chat_template=CHAT_TEMPLATE)


def placed(name: str, drawn: np.ndarray) -> np.ndarray:
    """Values of one parameter, from uniform draws between -0.5 and 0.5."""
    kind = name.rpartition(".")[0].rpartition(".")[2]
    if name.endswith(("A_log", "dt_bias")):
        return drawn
    if drawn.ndim == 1:
        return (1.0 if name.endswith((".weight", ".D")) else 0.0) + drawn / 4
    layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
    adds = kind in ("o_proj", "down_proj", "out_proj") or name.endswith("experts.down_proj")
    return drawn * (0.75 * LATE**layer if adds else 0.75)


def truncated(path: Path) -> None:
    """Cut the end off a file."""
    path.write_bytes(path.read_bytes()[:-32])


def edited(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file without sealing it again."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
