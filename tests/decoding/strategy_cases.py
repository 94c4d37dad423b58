"""What the tests of KV strategies share: decoding tiny models, forced texts, and traces of the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest.mock import patch

import family_configs
import numpy as np
import torch
from generation_cases import counted_layers
from torch import Tensor
from tracing_models import build_family, llama, tiny_model, workload_of

from offramp.decoding.engine.build import engine_of
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.generation.early_exit import EarlyExit
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.options import DecodingOptions
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

__all__ = ["ExitReader", "build_family", "counted_layers", "engine_of", "llama", "tiny_model"]

VOCABULARY = 61


@dataclass(frozen=True)
class Scripted(ExitPolicy):
    """Leaves where it is told to: the n-th token of an answer at the n-th exit, again and again."""

    exits: tuple[int, ...]

    kind: ClassVar[str] = "scripted"

    def needs(self, layers: int) -> dict[int, tuple[str, ...]]:
        return {exit: () for exit in sorted(set(self.exits)) if exit < layers}

    def decider(self, layers: int, streams: int) -> Decider:
        return _Follows(self.exits)


class _Follows(Decider):
    def __init__(self, exits: tuple[int, ...]) -> None:
        self.exits = np.array(exits)

    def begin(self, tokens: Any) -> None:
        super().begin(tokens)
        self.now = self.exits[tokens.index % len(self.exits)]

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return np.asarray(self.now == exit)


def agreeable(hf: Any) -> None:
    """Let the layers after the second change little, so that exits agree with the full model quite often."""
    for layer in hf.model.layers[2:]:
        layer.self_attn.o_proj.weight.mul_(0.3)
        layer.mlp.down_proj.weight.mul_(0.3)


def build_windowed(name: str, window: int = 6) -> Any:
    """A small random model of a family, whose windows (if it has any) slide over short texts already."""
    with patch.dict(family_configs.SMALL, sliding_window=window):
        return build_family(name)


def ids_of(hf: Any, length: int, rows: int = 1, seed: int = 1) -> Tensor:
    """Random tokens that are not special ones: int64 [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    least = min(59, hf.config.get_text_config().vocab_size)
    return torch.randint(3, least, (rows, length), generator=generator)


def greedy(hf: Any, ids: Tensor, new: int, mask: Tensor | None = None, **options: Any) -> Tensor:
    """transformers' own greedy decoding: int64 [rows, new]."""
    mask = torch.ones_like(ids) if mask is None else mask
    options = {"pad_token_id": 0, "do_sample": False} | options
    return hf.generate(ids, attention_mask=mask, max_new_tokens=new, **options)[:, ids.shape[1] :]


def decode(
    hf: Any,
    ids: Tensor,
    policy: str | ExitPolicy,
    kv: str,
    *,
    new: int = 16,
    mask: Tensor | None = None,
    draft_length: Any = 4,
    lookup: int = 0,
    batching: str = "lockstep",
    forced: Sequence[int] | None = None,
    **options: Any,
) -> BatchGeneration:
    """Decode with a policy inside transformers' generate."""
    chosen = parse_policy(policy) if isinstance(policy, str) else policy
    forced_ids = None if forced is None else torch.tensor([list(forced)] * len(ids))
    how = DecodingOptions(chosen, kv, None, draft_length, batching, lookup=lookup)
    early = EarlyExit(how, forced=forced_ids)
    new = new if forced is None else len(forced)
    greedy(hf, ids, new, mask, custom_generate=early, **options)
    assert early.last is not None
    return early.last


def number_text(seed: int, length: int) -> list[int]:
    """Random token ids of the models with a tokenizer of numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def trace_of_new(model: Model, ids: Sequence[int], prompt: int) -> Trace:
    """A trace of one text as a decoder meets it: rows of the fed new tokens only, the last one left out."""
    work = workload_of(" ".join(map(str, ids)))
    whole = trace(
        model, work, tokens=len(ids), exits="all", signals="all", context=len(ids) + 2, progress=False
    )
    assert whole.token.tolist() == list(ids[:-1])
    rows = slice(prompt, len(ids) - 1)
    return Trace.from_facts(
        {name: whole.fact(name)[rows] for name in whole.fact_names},
        document=np.zeros(len(ids) - 1 - prompt, dtype=np.int32),
        shape=whole.shape,
        exits=whole.exits,
        position=whole.position[rows],
    )
