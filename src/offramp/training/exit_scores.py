"""How the exits of a model in training stand now, as flat figures for its log."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from offramp.models.model import Model
from offramp.models.wrapping import wrap
from offramp.scoring.documents import bits_per_byte, text_sizes
from offramp.scoring.scoring import score
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

TOKENS = 2048
PREFIX = "exits/"


def exit_scores(
    model: Any,
    tokenizer: Any = None,
    *,
    workload: Any,
    tokens: int = TOKENS,
    exits: str | Sequence[int] = "all",
    prefix: str = PREFIX,
) -> dict[str, float]:
    """The score card's main figures, and agreement and bits per byte of every exit, by name.

    model: a model object of transformers, in whatever mode, or an offramp Model; its weights, gradients, mode
    and every random state are left as they are. tokenizer: of an object; None where the workload is of token
    ids, whose text has no bytes: then it is bits per token. workload, tokens, exits: as `offramp.trace`.

    Names: representation, increment, calibration, composite, saturation_skip; agreement/EXIT and
    bits_per_byte/EXIT (bits_per_token/EXIT). What is undefined is left out.

    Raises what `offramp.wrap` and `offramp.trace` raise.

    >>> figures = offramp.exit_scores(hf_model, tokenizer, workload="prose:short", tokens=64)
    >>> sorted(figures)[:2]
    ['exits/agreement/1', 'exits/agreement/2']
    """
    with unchanged_randomness():
        wrapped = model if isinstance(model, Model) else wrap(model, tokenizer)
        traced = trace(wrapped, workload, tokens, exits, progress=False)
    figures = _figures(traced, wrapped)
    return {f"{prefix}{name}": value for name, value in figures.items()}


def _figures(traced: Trace, model: Model) -> dict[str, float]:
    card = score(traced)
    names = ("representation", "increment", "calibration", "composite", "saturation_skip")
    found = {name: getattr(card, name).value for name in names}
    sizes = {} if model.has_no_tokenizer else text_sizes(traced, partial(model.decode, special=False))
    size = sum(one.bytes for one in sizes.values())
    for place, exit in enumerate(traced.exits.tolist()):
        found[f"agreement/{exit}"] = float(card.curves.values["agreement"][place])
        if size:
            found[f"bits_per_byte/{exit}"] = bits_per_byte(traced, size, place)
        else:
            found[f"bits_per_token/{exit}"] = bits_per_byte(traced, traced.token_count, place)
    return {name: float(value) for name, value in found.items() if value is not None}


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Run something, and leave the random states of Python, numpy and torch on every device as they were."""
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    xpu = torch.xpu.get_rng_state_all() if torch.xpu.is_available() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if xpu is not None:
            torch.xpu.set_rng_state_all(xpu)
        if mps is not None:
            torch.mps.set_rng_state(mps)
