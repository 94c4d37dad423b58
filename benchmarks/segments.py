"""Growing K and V in place, and compiled runs of layers, over the loop as it was: seconds per token in situ.

    python benchmarks/segments.py                                       smollm2 after 64, 512 and 1,500 tokens
    python benchmarks/segments.py --sizes 30 --dtype bfloat16 --positions 512

The loop without exits decodes random prompts side by side, in turns of a few tokens in random order, each on
its own cache: with transformers' layers of it, which concatenate K and V for each token ("concatenated",
twice, so that two identical contenders are compared too); as the engine runs ("in place"); and with layers
compiled so many at a time by torch.compile, lengths dynamic, writing in place ("compiled 10"). Attention must
be full and unmasked, as in a Llama. Ratios are medians over turns, with a bootstrapped 95 % interval; what
compiling took is apart. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import offramp
from offramp.decoding.engine import sequences as engine_sequences
from offramp.decoding.engine.cache import GrowingLayer
from offramp.decoding.generation.generate import FULL_MODEL, hold_batch
from offramp.decoding.generation.loop import Loop
from offramp.models.calls import first_tensor
from offramp.models.model import Model

CONCATENATED, AGAIN, IN_PLACE = "concatenated", "concatenated again", "in place"
TURN = 6
"""Tokens of a turn."""
WARM = 4


@dataclass(frozen=True)
class Held:
    """A contender between two turns. first_seconds: of its first tokens, compiling included."""

    loop: Loop
    steps: Iterator[int]
    first_seconds: float


class Compiled:
    """The layers of a model, compiled `size` at a time; each length and buffer is the same graph."""

    def __init__(self, model: Model, size: int) -> None:
        layers = list(model.stack.layers)
        self.size = size
        self.segments = [
            torch.compile(_segment(layers[first : first + size]), fullgraph=True, dynamic=True)
            for first in range(0, len(layers), size)
        ]

    def drive(self, loop: Loop) -> None:
        """From now on the loop's single tokens run through compiled layers, all of them in one go."""
        sequences, own = loop.sequences, loop.sequences.run
        layers = loop.plan.engine.layers

        @torch.no_grad()
        def run(hidden: Tensor, inputs: Any, first: int, last: int) -> Tensor:
            entries = sequences.cache.layers
            rooms = [entry.room for entry in entries]
            if (first, last) != (0, layers) or any(
                room is None or room.keys.shape[-2] <= inputs.start for room in rooms
            ):
                return own(hidden, inputs, first, last)  # makes the buffers, or larger ones
            keywords = inputs.calls[0].keywords
            assert keywords["attention_mask"] is None, "every position is attended to"
            for place, segment in enumerate(self.segments):
                part = slice(place * self.size, (place + 1) * self.size)
                keys, values = [room.keys for room in rooms[part]], [room.values for room in rooms[part]]
                hidden = segment(hidden, keywords["position_embeddings"], keys, values, inputs.start)
            for index, (entry, room) in enumerate(zip(entries, rooms, strict=True)):
                entry.keys, entry.values = (held[..., : inputs.end, :] for held in (room.keys, room.values))
                sequences.lengths[index] = inputs.end
                sequences.meter.count("layers", index + 1, len(hidden))
            return hidden

        sequences.run = run  # type: ignore[method-assign]


class _Written:
    """Stands for the cache within a compiled graph: one layer's buffers, of which `length` are used."""

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        self.keys, self.values, self.length = keys, values, length

    def update(self, keys: Tensor, values: Tensor, *rest: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        until = self.length + keys.shape[-2]
        self.keys[:, :, self.length : until].copy_(keys)
        self.values[:, :, self.length : until].copy_(values)
        return self.keys[:, :, :until], self.values[:, :, :until]


def _segment(layers: Sequence[Any]) -> Callable[..., Tensor]:
    def run(
        hidden: Tensor, places: tuple[Tensor, Tensor], keys: list[Tensor], values: list[Tensor], length: int
    ) -> Tensor:
        for layer, own_keys, own_values in zip(layers, keys, values, strict=True):
            cache = _Written(own_keys, own_values, length)
            hidden = first_tensor(
                layer(hidden, attention_mask=None, position_embeddings=places, cache=cache, use_cache=True)
            )
        return hidden

    return run


def begun(model: Model, ids: Tensor, name: str, compiled: dict[str, Compiled], turns: int) -> Held:
    """A contender after its prompt and a few tokens, and what these took."""
    patched = patch.object(engine_sequences, "grow_in_place", lambda cache: None)
    loop = hold_batch(model, ids, None, replace(FULL_MODEL, new_tokens=WARM + TURN * turns + 2))
    steps = loop.steps()
    if name in (CONCATENATED, AGAIN):
        with patched:
            next(steps)
    else:
        next(steps)
        assert all(isinstance(entry, GrowingLayer) for entry in loop.sequences.cache.layers)
    next(steps)
    if name in compiled:
        compiled[name].drive(loop)
    began = time.perf_counter()
    for _ in range(WARM - 1):
        next(steps)
    return Held(loop, steps, time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    model = offramp.load_model(options.model, dtype=options.dtype)
    compiled = {f"compiled {size}": Compiled(model, size) for size in options.sizes}
    found = [_at(model, position, options, compiled) for position in options.positions]
    print(
        json.dumps(
            {"model": model.name, "dtype": model.dtype, "threads": torch.get_num_threads(), "at": found}
        )
    )


def _at(
    model: Model, position: int, options: argparse.Namespace, compiled: dict[str, Compiled]
) -> dict[str, Any]:
    """All contenders after prompts of `position` tokens."""
    names = [CONCATENATED, AGAIN, IN_PLACE, *compiled]
    generator, order = torch.Generator().manual_seed(position), random.Random(position)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    first = dict.fromkeys(names, 0.0)
    same = dict.fromkeys(names, True)
    for _ in range(options.prompts):
        ids = torch.randint(model.shape.vocabulary_size, (1, position), generator=generator)
        held = {name: begun(model, ids, name, compiled, options.turns) for name in names}
        for name in names:
            first[name] = max(first[name], held[name].first_seconds)
        for _ in range(options.turns):
            for name in order.sample(names, len(names)):
                began = time.perf_counter()
                for _ in range(TURN):
                    next(held[name].steps)
                seconds[name].append((time.perf_counter() - began) / TURN)
        for name in names:
            same[name] &= torch.equal(held[name].loop.answers.ids, held[CONCATENATED].loop.answers.ids)
        held.clear()  # which closes their steps, and lets go of the caches
    rows = {}
    for name in names:
        ratios = np.array(seconds[CONCATENATED]) / np.array(seconds[name])
        ratio, (low, high) = float(np.median(ratios)), _interval(ratios)
        taken = float(np.median(seconds[name]))
        print(
            f"{position:5} {name:20} {1e3 * taken:6.1f} ms  {ratio:.3f} ({low:.3f} to {high:.3f})  "
            f"tokens {'the same' if same[name] else 'differ'}, first {WARM - 1} in {first[name]:.1f} s, "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        rows[name] = {
            "seconds_per_token": taken,
            "concatenated_over_it": [ratio, low, high],
            "same_tokens": same[name],
            "first_seconds": first[name],
        }
    return {"position": position, "load": os.getloadavg()[0], "contenders": rows}


def _interval(ratios: NDArray[np.float64], samples: int = 4000) -> list[float]:
    """95 % limits of the median, by resampling turns."""
    chosen = np.random.default_rng(0).choice(ratios, (samples, len(ratios)))
    return [float(limit) for limit in np.quantile(np.median(chosen, axis=1), (0.025, 0.975))]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",") if number]

    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--positions", type=numbers, default=[64, 512, 1500])
    parser.add_argument("--sizes", type=numbers, default=[10], help="layers compiled at a time; empty: none")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--turns", type=int, default=8, help="turns of each contender after each prompt")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
