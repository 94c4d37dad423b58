"""What tests of mapped K and V share: random maps, maps that change nothing, and a slow reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.heads.at_work import describe_base
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.heads.parts import ExitMaps
from offramp.models.calls import first_tensor, with_hidden
from offramp.models.model import Model


def random_maps(
    hidden: int, layers: int, exits: Sequence[int], *, rank: int | None = 3, scale: float = 0.3, seed: int = 0
) -> KeyValueMaps:
    """Maps of a model of so many layers; with scale 0 they change nothing."""
    generator = np.random.default_rng(seed)

    def numbers(*shape: int) -> Any:
        return (scale * generator.normal(size=shape)).astype(np.float32)

    def maps(exit: int) -> ExitMaps:
        deeper = layers - 1 - exit
        whole = {"change": numbers(deeper, hidden, hidden) / np.float32(hidden**0.5)}
        low = {"inward": numbers(rank or 1, hidden), "outward": numbers(deeper, hidden, rank or 1)}
        return ExitMaps(
            centre=numbers(hidden),
            bias=numbers(deeper, hidden),
            explained=np.zeros((rank or 1, deeper)),
            penalty=0.0,
            **(whole if rank is None else low),
        )

    return KeyValueMaps({exit: maps(exit) for exit in exits})


def heads_with(maps: KeyValueMaps, model: Model | None = None, **base: Any) -> ExitHeads:
    """Heads that hold nothing else, of a model, or of a base of so many layers."""
    described = {"dtype": "float32", **base} if model is None else describe_base(model)
    return ExitHeads(described, None, {}, None, exits=(), candidate_exit=None, documents={}, kv_maps=maps)


def maps_for(model: Model, exits: Sequence[int] | None = None, **options: Any) -> ExitHeads:
    """Random maps of a model from some exits, or from all that can have them."""
    chosen = range(1, model.layers - 1) if exits is None else exits
    return heads_with(random_maps(model.shape.hidden_size, model.layers, chosen, **options), model)


def mapped_state(maps: KeyValueMaps, exit: int, layer: int, hidden: np.ndarray) -> np.ndarray:
    """What a token that left gives as the output of a layer, exit < layer < L, in plain float64.

    hidden: its state there [..., hidden].
    """
    own, place = maps.maps[exit], layer - exit - 1
    h = hidden.astype(np.float64)
    if own.change is not None:
        change = own.change[place].astype(np.float64)
    else:
        assert own.inward is not None
        assert own.outward is not None
        change = own.outward[place].astype(np.float64) @ own.inward.astype(np.float64)
    return np.asarray(h + (h - own.centre) @ change.T + own.bias[place])


@torch.no_grad()
def mapped_logits(
    hf: Any, layers: Sequence[torch.nn.Module], maps: KeyValueMaps, ids: Sequence[int], exits: Sequence[int]
) -> Tensor:
    """Logits at every position, each read at its own exit: [length, vocabulary].

    One forward without a cache over the whole prefix, in which the output of each layer that a position does
    not run is what its map says.
    """
    last = len(layers)
    left: dict[int, Tensor] = {}
    places = {layer: number for number, layer in enumerate(layers, start=1)}

    def replace(module: Any, arguments: Any, keywords: Any, output: Any) -> Any:
        layer, hidden = places[module], first_tensor(output).clone()
        for position, exit in enumerate(exits):
            if exit == layer:
                left[position] = hidden[0, position].clone()
            elif exit < layer == last:
                hidden[0, position] = left[position]  # to be read out
            elif exit < layer:
                state = mapped_state(maps, exit, layer, left[position].float().numpy())
                hidden[0, position] = torch.from_numpy(state).to(hidden.dtype)
        return with_hidden(output, hidden)

    handles = [layer.register_forward_hook(replace, with_kwargs=True) for layer in layers]
    try:
        return hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def mapped_tokens(model: Model, maps: KeyValueMaps, prompt: Sequence[int], generation: Any) -> list[int]:
    """The greedy choice for every new token of a generation, given its exits and its tokens."""
    fed = [*prompt, *generation.tokens[:-1]]
    exits = [model.layers] * (len(prompt) - 1) + generation.exits.tolist()
    logits = mapped_logits(model.hf, model.stack.layers, maps, fed, exits)
    return logits[len(prompt) - 1 :].argmax(-1).tolist()
