"""A converted Whisper held against others: `python experiments/speech/against.py CONVERTED ORIGINAL SOUNDS`.

Of each sound the greedy transcript by ctranslate2 (`pip install ctranslate2`, which runs ORIGINAL), by
transformers' own `generate` and by offramp's full model; the logits of the first two; and the seconds of
encoder, decoder's layers and head of a request.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import offramp
from offramp.kit.sound import given_sound, read_wav

NEW_TOKENS = 96
RULED_OUT = -1e30
"""Logits of suppressed tokens are below it in ctranslate2."""


def timed(model: Any, file: Path) -> tuple[Any, dict[str, float]]:
    """The full model's answer, and its seconds in encoder, decoder layers, head and all else."""
    own = model.hf.inner
    parts = {"encoder": [own.get_encoder()], "layers": list(model.stack.layers), "head": [model.stack.head]}
    spent: dict[str, float] = defaultdict(float)
    begun: list[float] = []

    def begin(*_: object) -> None:
        begun.append(time.perf_counter())

    def end(name: str, *_: object) -> None:
        spent[name] += time.perf_counter() - begun.pop()

    handles = [module.register_forward_pre_hook(begin) for name in parts for module in parts[name]]
    handles += [module.register_forward_hook(partial(end, name)) for name in parts for module in parts[name]]
    started = time.perf_counter()
    try:
        answer = offramp.generate(model, audio=file, max_new_tokens=NEW_TOKENS)
    finally:
        for handle in handles:
            handle.remove()
    spent["else"] = time.perf_counter() - started - sum(spent.values())
    return answer, spent


def compare(converted: Path, original: Path, sounds: Path) -> None:
    """Print the counts, the largest difference, and the seconds."""
    import ctranslate2
    from transformers import GenerationMixin

    model = offramp.load_model(converted, device="cpu")
    extractor, front = model.hf.maker, list(model.bos_policy.front)
    other = ctranslate2.models.Whisper(str(original), compute_type="float32", intra_threads=1)
    equal: dict[str, int] = defaultdict(int)
    spent: dict[str, float] = defaultdict(float)
    largest, files = 0.0, sorted(sounds.glob("*.wav"))
    for file in files:
        samples = read_wav(file).at(extractor.sampling_rate)
        features = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np")[
            "input_features"
        ]
        (theirs,) = other.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(features)),
            [front],
            beam_size=1,
            max_length=len(front) + NEW_TOKENS,
            return_logits_vocab=True,
        )
        with torch.no_grad():
            ids = GenerationMixin.generate(
                model.hf.inner,
                input_features=torch.from_numpy(features),
                decoder_input_ids=torch.tensor([front]),
                max_new_tokens=NEW_TOKENS,
            )[0].tolist()
        model.hf.encodings.clear()
        answer, parts = timed(model, file)
        for name, seconds in parts.items():
            spent[name] += seconds
        written = [token for token in answer.tokens if token not in model.eos_token_ids]
        equal["ctranslate2"] += written == theirs.sequences_ids[0]
        equal["transformers"] += answer.tokens == ids[len(front) :]
        with model.given([given_sound(file)]), torch.no_grad():
            ours = model.hf(
                input_ids=torch.tensor([[*front, *theirs.sequences_ids[0]]]), use_cache=False
            ).logits[0]
        for place, row in enumerate(theirs.logits[0]):
            wanted = np.array(row)
            known = (wanted > RULED_OUT) & np.isfinite(ours[len(front) - 1 + place].numpy())
            difference = np.abs(wanted - ours[len(front) - 1 + place].numpy())[known]
            largest = max(largest, float(difference.max()))
    for name, count in equal.items():
        print(f"{count} of {len(files)} transcripts equal {name}'s")
    print(f"largest difference of logits from ctranslate2's: {largest:.2g}")
    whole = sum(spent.values())
    for name, seconds in spent.items():
        print(f"{name}: {1e3 * seconds / len(files):.1f} ms a request, {seconds / whole:.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Hold a converted Whisper against ctranslate2 and transformers."
    )
    parser.add_argument("converted", type=Path)
    parser.add_argument("original", type=Path, help="CTranslate2's folder")
    parser.add_argument("sounds", type=Path, help="a folder of WAV files")
    compare(**vars(parser.parse_args()))
