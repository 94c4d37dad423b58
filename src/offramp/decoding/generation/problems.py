"""The full model beside a generation: where a number stopped being finite, and how hard a prompt is."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.engine import Engine
from offramp.decoding.engine.meter import Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.generation.choosing import is_broken
from offramp.models.stack import ExitStack
from offramp.tracing.prompts import PROMPT_TOKENS


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


def prompt_entropy(
    stack: ExitStack, hidden: Tensor, mask: Tensor | None, names: tuple[str, ...]
) -> dict[str, NDArray[np.float64]]:
    """Mean entropy of the full model over each prompt's last tokens, nats: float64 [batch], by fact name.

    hidden: states after layer L [batch, positions, hidden]. See `offramp.tracing.prompts`.
    """
    last = hidden[:, -PROMPT_TOKENS:]
    log_probabilities = stack.readout(last).float().log_softmax(-1)
    # A token that is ruled out adds 0 log 0 = 0.
    log_probabilities = log_probabilities.clamp(min=torch.finfo(torch.float32).min)
    entropy = (-log_probabilities.exp() * log_probabilities).sum(-1).double()
    real = torch.ones_like(entropy) if mask is None else mask[:, -PROMPT_TOKENS:].double()
    mean = ((entropy * real).sum(1) / real.sum(1)).cpu().numpy()
    return dict.fromkeys(names, mean)
