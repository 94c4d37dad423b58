"""The slow way to a rerun: decoding whose tokens are forced, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.decoding.engine.engine import Engine
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.options import DecodingOptions
from offramp.decoding.rerun.sequences import TracedSequence, first_decided
from offramp.decoding.strategies.mapped import Mapped
from offramp.decoding.strategies.propagate import Propagate
from offramp.decoding.strategies.recompute import Recompute
from offramp.errors import OfframpError
from offramp.models.model import Model

ROWS_AT_ONCE = 8
APART = (Propagate.name, Mapped.name, Recompute.name)
"""Strategies with which a row of a batch says what it would say alone."""


def decode_forced(
    model: Model,
    engine: Engine,
    options: DecodingOptions,
    sequences: Sequence[TracedSequence],
    prompt_tokens: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The trace's rows that were decided, the exits taken and the tokens chosen there: int64 [decided] each.

    Sequences of one shape are decoded side by side where each row may leave on its own.

    Raises InputError as `offramp.generate` does, OfframpError for a logit that is not finite.
    """
    apart = options.kv in APART and engine.abilities.rebatch is None and engine.abilities.lockstep is None
    rows, exits, top1 = [], [], []
    shapes = sorted(sequences, key=lambda one: (one.length, first_decided(one, prompt_tokens)))
    for (_, first), alike in itertools.groupby(
        shapes, key=lambda one: (one.length, first_decided(one, prompt_tokens))
    ):
        some = [one for one in alike if first < one.length]
        size = ROWS_AT_ONCE if apart else 1
        for start in range(0, len(some), size):
            together = some[start : start + size]
            found = _decode(model, options, together, first)
            rows += [one.rows[first - one.first_row :] for one in together]
            exits += [generation_exits for generation_exits, _ in found]
            top1 += [chosen for _, chosen in found]
    empty = np.zeros(0, dtype=np.int64)
    return tuple(np.concatenate(column) if column else empty for column in (rows, exits, top1))  # type: ignore[return-value]


def _decode(
    model: Model, options: DecodingOptions, sequences: Sequence[TracedSequence], first: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    device = model.hf.device
    prompts = torch.tensor([one.ids[:first] for one in sequences], device=device)
    forced = torch.tensor([[*one.ids[first:], one.next_token] for one in sequences], device=device)
    batching = "rebatch" if len(sequences) > 1 else "lockstep"
    own = replace(options, batching=batching, new_tokens=forced.shape[1])
    result = generate_batch(model, prompts, options=own, force_tokens=forced)
    problem = next((row.problem for row in result.rows if row.problem is not None), None)
    if problem is not None:
        raise OfframpError(problem, where=model.name, fix="load the model in float32")
    return [(row.exits[1:], np.array(row.chosen[1:], dtype=np.int64)) for row in result.rows]
