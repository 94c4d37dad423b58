"""What ends a generation early: a number that is not finite, or memory that runs out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from offramp.decoding.engine.engine import Engine
from offramp.decoding.engine.meter import Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.generation.next_token import is_broken
from offramp.errors import OfframpError
from offramp.models.model import Model


@torch.no_grad()
def describe_problem(engine: Engine, ids: Tensor, new: int) -> str:
    """Where the logits after some tokens broke: token and layer, found by running all layers on them.

    Layer by layer, since hooks on the model would meet generations in other threads. ids: int64 [length],
    prompt and new tokens. new: how many new tokens there are.
    """
    sequences = Sequences(engine, ids[None], None, Meter())
    inputs = sequences.inputs(0, len(ids))
    hidden, where = inputs.hidden, ""
    for index in range(engine.layers):
        hidden = sequences.run(hidden, inputs, index, index + 1)
        if not bool(torch.isfinite(hidden).all()):
            where = f"layer {index + 1} gives"
            break
    if not where:
        broken = bool(is_broken(sequences.read_out(hidden)).any())
        where = (
            "the output head gives" if broken else "only an exit, or K and V of this very generation, give"
        )
    return (
        f"new token {new + 1} (position {len(ids)}): {where} a number that is not finite, "
        f"from the tokens up to {int(ids[-1])} at position {len(ids) - 1}"
    )


# What torch's allocators say, on processors and accelerators.
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "alloc_cpu")


@contextmanager
def explain_out_of_memory(model: Model, ids: Tensor, new_tokens: int) -> Iterator[None]:
    """Turn an allocation that failed into an OfframpError that says what would fit.

    ids: int64 [batch, length], the prompts.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(said in str(error) for said in _SAID):
            raise
        raise _explained(model, ids, new_tokens) from error


def _explained(model: Model, ids: Tensor, new_tokens: int) -> OfframpError:
    batch, length = ids.shape
    per_token = key_value_bytes(model)
    free = free_bytes(ids.device)
    # Half of what is free: the prompt's activations and the logits want the rest.
    fitting = free // 2 // max(per_token, 1)
    rows = fitting // (length + new_tokens)
    if rows >= 1 and batch > 1:
        fix = f"decode {min(rows, batch - 1)} prompts at a time"
    else:
        tokens = min(fitting // batch, length + new_tokens - 1)
        fix = f"give at most {tokens} tokens a prompt, new ones included"
    return OfframpError(
        f"memory ran out for {batch} x {length + new_tokens} tokens, whose K and V take "
        f"{batch * (length + new_tokens) * per_token / 2**20:,.0f} MiB; {free / 2**20:,.0f} MiB are free",
        where=f"generating with {model.name}",
        fix=fix,
    )


def key_value_bytes(model: Model) -> int:
    """Bytes of K and V that one token of one sequence keeps, all layers together."""
    elements = sum(layer.key_value_width for layer in model.shape.layers)
    return int(elements * model.shape.element_bytes)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, or on the machine itself, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
