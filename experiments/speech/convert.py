"""A Whisper of CTranslate2 as a folder of transformers: `python experiments/speech/convert.py SOURCE TARGET`.

SOURCE holds model.bin, config.json and tokenizer.json. model.bin: the format's version, the specification's
name and revision, the tensors (name, shape, type, bytes), then further names of some of them; numbers are
little-endian, strings end with a zero (python/ctranslate2/specs/model_spec.py of CTranslate2).
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as typed

transformers: Any = typed  # whose classes take whatever a config has
TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")
HEAD = 64
"""Features of an attention head, in every Whisper."""
ENGLISH = 51_864
"""Tokens of the models that know one language; the others have more."""
PARTS = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
    "position_encodings": ("embed_positions",),
    "embeddings": ("embed_tokens",),
}
"""In transformers, of what lies in a tensor one after another; a name that is not here is the same there."""
ENDINGS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def read_tensors(path: Path) -> dict[str, Any]:
    """Numpy arrays by name. Raises ValueError for another model, and for weights in whole numbers."""
    data, place = path.read_bytes(), 0

    def taken(size: int) -> bytes:
        nonlocal place
        place += size
        return data[place - size : place]

    def number(form: str) -> int:
        return int(struct.unpack(f"<{form}", taken(struct.calcsize(form)))[0])

    def name() -> str:
        return taken(number("H"))[:-1].decode()

    _, specification, _ = number("I"), name(), number("I")
    tensors = {}
    for _ in range(number("I")):
        own, rank = name(), number("B")
        shape, kind = [number("I") for _ in range(rank)], TYPES[number("B")]
        tensors[own] = np.frombuffer(taken(number("I")), kind).reshape(shape)
    for _ in range(number("I")):
        own, other = name(), name()
        tensors[own] = tensors[other]
    scaled = any(name.endswith("weight_scale") for name in tensors)
    if specification != "WhisperSpec" or scaled or place != len(data):
        raise ValueError(f"{path} is no Whisper in float16 or float32, or of another version")
    return tensors


def state_of(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same by transformers' names."""
    state = {}
    for name, tensor in tensors.items():
        side, *inner, ending = name.split("/")
        if ending in ENDINGS and inner != ["projection"]:
            layer = [inner.pop(0).replace("layer_", "layers.")] if inner[0][6:].isdigit() else []
            names = PARTS.get("/".join(inner), ("/".join(inner),))
            for own, part in zip(names, np.split(tensor, len(names)), strict=True):
                state[".".join(["model", side, *layer, own, ENDINGS[ending]])] = part
    # Whisper's keys have no bias: zeros lie there.
    assert not any(state.pop(name).any() for name in [*state] if name.endswith("k_proj.bias"))
    return state | {"proj_out.weight": state["model.decoder.embed_tokens.weight"]}


def convert(source: Path, target: Path) -> None:
    """Write the folder."""
    state = state_of(read_tensors(source / "model.bin"))
    vocabulary, width = state["proj_out.weight"].shape
    stated = json.loads((source / "config.json").read_text())
    added = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"].strip("<|>"): token["id"] for token in added}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ids["endoftext"])
    special["decoder_start_token_id"] = ids["startoftranscript"]
    sizes = {"vocab_size": vocabulary, "d_model": width}
    for side in ("encoder", "decoder"):
        layers = sum(name.startswith(f"model.{side}") and name.endswith("fc1.bias") for name in state)
        sizes |= {f"{side}_layers": layers, f"{side}_attention_heads": width // HEAD}
        sizes[f"{side}_ffn_dim"] = 4 * width
    bands = sizes["num_mel_bins"] = state["model.encoder.conv1.weight"].shape[1]
    off = dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"))
    config = transformers.WhisperConfig(**sizes, **special, **off)
    model = transformers.WhisperForConditionalGeneration(config)
    model.load_state_dict({name: torch.tensor(np.float32(array)) for name, array in state.items()})
    several = {  # of a model that knows one language nothing is asked for
        "lang_to_id": {f"<|{name}|>": number for name, number in ids.items() if len(name) in (2, 3)},
        "task_to_id": {task: ids[task] for task in ("transcribe", "translate")},
    }
    model.generation_config = transformers.GenerationConfig(
        suppress_tokens=stated["suppress_ids"],
        begin_suppress_tokens=stated["suppress_ids_begin"],
        no_timestamps_token_id=ids["notimestamps"],
        is_multilingual=vocabulary > ENGLISH,
        max_length=model.config.max_target_positions,
        **(special | several if vocabulary > ENGLISH else special),
    )
    model.save_pretrained(target)
    transformers.WhisperFeatureExtractor(feature_size=bands).save_pretrained(target)
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    file = str(source / "tokenizer.json")
    transformers.PreTrainedTokenizerFast(tokenizer_file=file, **ends).save_pretrained(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A Whisper of CTranslate2 as a folder of transformers.")
    parser.add_argument("source", type=Path, help="with model.bin, config.json and tokenizer.json")
    parser.add_argument("target", type=Path)
    convert(**vars(parser.parse_args()))
