"""What tests of importing exit heads share: files as others write them, and maps to read them by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from offramp.models.model import Model

Tensors = dict[str, torch.Tensor]


def translators(layers: int, hidden: int, *, seed: int = 0) -> Tensors:
    """`layer_translators.state_dict()` of a tuned lens: "0.weight", "0.bias", ... of states 0 to L - 1."""
    generator = torch.Generator().manual_seed(seed)
    found: Tensors = {}
    for layer in range(layers):
        found[f"{layer}.weight"] = 0.3 * torch.randn(hidden, hidden, generator=generator)
        found[f"{layer}.bias"] = torch.randn(hidden, generator=generator)
    return found


def write_tuned_lens(folder: Path, model: Model, tensors: Tensors | None = None, **config: Any) -> Path:
    """A tuned lens's folder, its params.pt converted. config: entries to change; None: left out."""
    folder.mkdir(exist_ok=True)
    tensors = translators(model.layers, model.shape.hidden_size) if tensors is None else tensors
    save_file(tensors, folder / "params.safetensors")
    weight = model.hf.lm_head.weight.detach().float().numpy()
    entries: dict[str, Any] = {
        "base_model_name_or_path": f"an-owner/{model.name}",
        "d_model": model.shape.hidden_size,
        "num_hidden_layers": model.layers,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": hashlib.sha256(str.encode(np.array_str(weight, precision=1))).hexdigest(),
        "lens_type": "linear_tuned_lens",
    } | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))
    return folder


def output_tensors(model: Model, exits: tuple[int, ...], *, seed: int = 0) -> Tensors:
    """Early heads as a training script may save them: by layer counted from 0, with an RMS norm each."""
    generator = torch.Generator().manual_seed(seed)
    hidden, vocabulary = model.shape.hidden_size, model.shape.vocabulary_size
    found: Tensors = {}
    for exit in exits:
        prefix = f"early.{exit - 1}"
        found[f"{prefix}.norm.weight"] = 1 + 0.2 * torch.randn(hidden, generator=generator)
        found[f"{prefix}.head.weight"] = torch.randn(vocabulary, hidden, generator=generator)
    return found


OUTPUT_MAP = """
first = 0
[output]
weight = "early.{exit}.head.weight"
[output.norm]
kind = "rms"
weight = "early.{exit}.norm.weight"
epsilon = 1e-5
"""

LENS_MAP = """
[lens]
weight = "{exit}.weight"
bias = "{exit}.bias"
residual = true
"""


def write_map(path: Path, text: str) -> Path:
    """A key map on disk."""
    path.write_text(text, encoding="utf-8")
    return path
