"""What exits could bring a request to a translator or a summariser at most, timed on models of its shape.

Beside it: what a head cut to a short list of 2,048 tokens would bring at full depth, answers kept or not.

python experiments/speech/ceilings.py [--seconds 20]

No weights of such models come in a package that offramp reads. Time and ceiling do not depend on what they
are: each model is built from its published config with random ones, and is given random tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers

import offramp
from offramp.costs.token import TokenCosts
from offramp.policies.prices import costs_of
from offramp.policies.whole_request import request_of

START = 0
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "opus-mt": (
        "Marian",
        {"vocab_size": 58_101, "d_model": 512, "decoder_start_token_id": START, "pad_token_id": 1}
        | {f"{part}_layers": 6 for part in ("encoder", "decoder")}
        | {f"{part}_attention_heads": 8 for part in ("encoder", "decoder")}
        | {f"{part}_ffn_dim": 2048 for part in ("encoder", "decoder")},
    ),
    "t5-small": ("T5", {"vocab_size": 32_128, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8}),
    "bart-base": (
        "Bart",
        {"vocab_size": 50_265, "d_model": 768}
        | {f"{part}_layers": 6 for part in ("encoder", "decoder")}
        | {f"{part}_attention_heads": 12 for part in ("encoder", "decoder")}
        | {f"{part}_ffn_dim": 3072 for part in ("encoder", "decoder")},
    ),
}
"""By name its family and its config, as published."""

CLASSES = {"Marian": "MarianMTModel"}
REQUESTS = {"a sentence": (32, 32), "a page": (512, 64)}
"""Tokens that are read, and that are written."""


def built(name: str) -> Any:
    """A model of that shape with random weights, in float32."""
    family, values = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**values)
    return getattr(transformers, CLASSES.get(family, f"{family}ForConditionalGeneration"))(config).eval()


def documents(source: int, answer: int, vocabulary: int) -> Iterator[offramp.Document]:
    """Random tokens of these lengths; the first is what stands in front of an answer."""
    generator = np.random.default_rng(0)
    for number in range(4):
        given = offramp.Given(tokens=tuple(generator.integers(2, vocabulary, source).tolist()))
        tokens = (START, *generator.integers(2, vocabulary, answer).tolist())
        yield offramp.Document(f"d{number}", "random", tokens=tokens, given=given)


def _with_cut_head(costs: TokenCosts) -> float:
    """A step of all layers whose output is one of the short list's tokens."""
    return costs.plain - costs.head + costs.short_exit_head


def main() -> None:
    """Time each shape, and print the ceiling of each request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, for each model")
    seconds = parser.parse_args().seconds
    rows = []
    for name in CONFIGS:
        model = offramp.wrap(built(name), name=name)
        profile = offramp.measure_hardware(model, budget_seconds=seconds)
        for what, (source, answer) in REQUESTS.items():
            workload = offramp.Workload(
                name=what,
                mode="text",
                documents=tuple(documents(source, answer, model.shape.vocabulary_size)),
                licence="none",
                source="random tokens",
            )
            trace = offramp.trace(model, workload, tokens=4 * answer)
            request, costs = request_of(trace, profile), costs_of(trace, profile)
            assert request is not None
            tokens = (1.0 - request.once_share) / costs.plain
            rows.append(
                {
                    "model": name,
                    "request": what,
                    "read": source,
                    "written": answer,
                    "encoder": round(request.once_share, 4),
                    "layers": round(tokens * float(costs.layers.sum()), 4),
                    "head": round(tokens * costs.head, 4),
                    "ceiling": round(request.ceiling, 3),
                    "cut_head": round(request.speed(costs.plain / _with_cut_head(costs)), 3),
                    "seconds": round(request.once + request.tokens * request.plain, 4),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"threads": torch.get_num_threads(), "requests": rows}))


if __name__ == "__main__":
    main()
