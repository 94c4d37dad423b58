"""What the tests of reading exits share: hidden states of a text by exit, and a trace of the same text."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from random_heads import ALL_FACTS, random_heads
from tracing_models import build_family, llama, numbers, tiny_llama, tiny_model, workload_of

from offramp.heads.exit_heads import ExitHeads
from offramp.models.model import Model
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

__all__ = [
    "ALL_FACTS",
    "build_family",
    "llama",
    "random_heads",
    "tiny_llama",
    "tiny_model",
]

OF_LOGITS = ("top1", "max_prob", "margin", "logit_gap", "entropy")
OF_SHORTLIST = ("restricted_top1", "restricted_max_prob", "restricted_margin")
LOOKING_BACK = ("kl_to_previous", "js_to_previous", "top_k_overlap")
EVERYWHERE = (*OF_LOGITS, *OF_SHORTLIST, "hidden_cosine_to_previous")
LENGTH = 14


def engine_of(model: Model) -> Any:
    """What the reader looks at of an engine."""
    return SimpleNamespace(stack=model.stack, layers=model.layers, hf=model.hf, transposed=False)


def states_of(model: Model, ids: Sequence[int]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """By exit: output and input of its layer, positions as rows [rows, 1, ...]."""
    states = {}
    axis = model.stack.position_axis

    def one_by_one(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.transpose(axis - 1, axis)

    def keep(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        states[index + 1] = (one_by_one(after).clone(), one_by_one(before).clone())

    model.stack.capture(torch.tensor([ids]), keep)
    return states


def needs_of(exits: Sequence[int], heads: ExitHeads | None, facts: Sequence[str]) -> dict[int, Any]:
    """All facts at all exits below L, but comparisons not at the first one."""
    of_heads = () if heads is None else tuple(heads.classifiers)
    needs = dict.fromkeys(exits[:-1], (*facts, *LOOKING_BACK, *of_heads))
    needs[exits[0]] = (*facts, *(fact for fact in of_heads if fact != "candidate_score"))
    return needs


def logits_of(model: Model, hidden: torch.Tensor, heads: ExitHeads | None, exit: int) -> torch.Tensor:
    """The model's own readout of [rows, 1, hidden], through lens and network."""
    if heads is not None and heads.reading is not None and exit in heads.exits:
        rows = hidden.flatten(1)
        read = heads.reading.at(heads.exits.index(exit), hidden.device)
        hidden = read(rows).view_as(hidden)
    return model.stack.readout(hidden).float().reshape(len(hidden), -1)


def traced(model: Model, heads: ExitHeads | None, exits: str, vocabulary: int) -> tuple[Trace, list[int]]:
    ids = [int(word) for word in numbers(3, LENGTH, vocabulary).split()]
    work = workload_of(" ".join(map(str, ids)))
    return trace(
        model, work, tokens=100, exits=exits, signals="all", heads=heads, context=40, progress=False
    ), ids[:-1]
