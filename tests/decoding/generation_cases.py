"""What tests of generation share: a tiny model, counting hooks, and a slow reference of early exit."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import offramp
from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import ABILITIES
from offramp.decoding.generation import generate
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.options import DecodingOptions, PolicySource
from offramp.models.calls import first_tensor, with_hidden
from tiny_models import write_llama

PROMPTS = ("the cat sat on the mat", "a model reads one", "deep layers", "numbers such as 12 and 345")
POLICY = "threshold:signal=margin,value=0.01,exits=1+2+3"
"""Leaves at each of the tiny model's exits now and then."""


@functools.cache
def tiny_llama() -> offramp.Model:
    """A random Llama of 4 layers, float32; whoever changes it puts it back."""
    folder = write_llama(Path(tempfile.mkdtemp()) / "llama")
    return offramp.load_model(str(folder), dtype="float32")


def generate_batch(
    model: offramp.Model,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    policy: PolicySource = None,
    max_new_tokens: int = 64,
    **options: Any,
) -> BatchGeneration:
    """What is tested under this name, with the options as `offramp.generate` takes them."""
    names = ("kv", "heads", "draft_length", "batching")
    how = {name: options.pop(name) for name in names if name in options}
    asked = DecodingOptions.read(policy, new_tokens=max_new_tokens, **how).for_task(options.pop("task", None))
    return generate.generate_batch(model, ids, mask, asked, **options)


def ids_of(model: offramp.Model, text: str) -> Tensor:
    """int64 [1, length]."""
    return torch.tensor([model.encode(text)])


@contextmanager
def counted_layers(hf: Any, modules: Sequence[torch.nn.Module] | None = None) -> Iterator[Counter[int]]:
    """Rows times positions that each module runs, by hooks that know nothing of the engine.

    modules: the layers, if they are not given. A layer that is stopped in the middle has not run.
    """
    counts: Counter[int] = Counter()
    engine = engine_of(hf)
    # What the family can do is tried when it is first asked for, by running layers.
    for ability in ABILITIES:
        engine.abilities.reason(ability)

    def counting(index: int) -> Any:
        def count(module: Any, arguments: Any, keywords: Any, output: Any) -> None:
            hidden = first_tensor(output)
            counts[index] += hidden.shape[0] * hidden.shape[1]

        return count

    handles = [
        module.register_forward_hook(counting(index), with_kwargs=True)
        for index, module in enumerate(dict.fromkeys(modules or engine.stack.layers))
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def state_of(hf: torch.nn.Module) -> str:
    """Everything about a model that decoding could leave changed: weights, attributes, hooks, config."""
    weights = [(name, id(tensor), tensor._version) for name, tensor in hf.state_dict(keep_vars=True).items()]
    modules = [
        (
            name,
            sorted(vars(module)),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            module.training,
        )
        for name, module in hf.named_modules()
    ]
    config: Any = hf.config
    generation: Any = hf.generation_config
    return repr((weights, modules, config.to_dict(), id(generation), generation.to_dict()))


@torch.no_grad()
def reference_logits(
    hf: Any, layers: Sequence[torch.nn.Module], ids: Sequence[int], exits: Sequence[int]
) -> Tensor:
    """Logits at every position, each read at its own exit: [length, vocabulary].

    One forward without a cache over the whole prefix. After its exit a position's state stays what it was, so
    that deeper layers make K and V (and move recurrent states) from the state that left: CALM's rule.
    """
    leaves = torch.tensor(list(exits))
    places = {layer: number for number, layer in enumerate(layers, start=1)}

    def freeze(module: Any, arguments: Any, keywords: Any, output: Any) -> Any:
        given = next(
            value
            for value in (*arguments, *keywords.values())
            if isinstance(value, Tensor) and value.is_floating_point()
        )
        runs = (leaves >= places[module])[None, :, None]
        hidden = torch.where(runs, first_tensor(output), given)
        return with_hidden(output, hidden)

    handles = [layer.register_forward_hook(freeze, with_kwargs=True) for layer in layers]
    try:
        return hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def reference_tokens(
    hf: Any, layers: Sequence[torch.nn.Module], prompt: Sequence[int], generation: Any
) -> list[int]:
    """The greedy choice for every new token of a generation, given its exits and its tokens."""
    fed = [*prompt, *generation.tokens[:-1]]
    exits = [len(layers)] * (len(prompt) - 1) + generation.exits.tolist()
    return reference_logits(hf, layers, fed, exits)[len(prompt) - 1 :].argmax(-1).tolist()


def assert_same(left: Any, right: Any) -> None:
    """Two generations with the same tokens, exits, and layers of new tokens."""
    assert left.tokens == right.tokens
    assert np.array_equal(left.exits, right.exits)
    assert left.layers_executed - left.prompt_layers == right.layers_executed - right.prompt_layers
