"""What the tests of executions share: tiny models that now and then agree, and a slow judge."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from strategy_cases import agreeable
from tracing_models import NumberTokenizer, build_family, llama, tiny_model, workload_of

from offramp.decoding.generation.generate import generate
from offramp.decoding.openings import Opening
from offramp.decoding.options import DecodingOptions
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from offramp.workloads.workload import Workload

__all__ = ["NumberTokenizer", "agreeable", "build_family", "llama", "tiny_model", "workload_of"]

POLICY = "threshold:signal=margin,value=0.05,exits=1+2+3"


@functools.cache
def agreeable_llama(eos: int | None = None, **config: Any) -> Model:
    """A random Llama of 4 layers; those after the second change little."""
    hf = llama(num_hidden_layers=4, eos_token_id=eos, **config)
    tokenizer = NumberTokenizer(eos=eos)
    return tiny_model(
        hf, name=f"agreeable {eos} {config}", head_scale=3.0, change=agreeable, tokenizer=tokenizer
    )


def options_of(policy: ExitPolicy | str = POLICY, kv: str = "propagate", **more: Any) -> DecodingOptions:
    return DecodingOptions(parse_policy(str(policy)), kv, **more)


def openings_of(*lengths: int, vocabulary: int = 58) -> list[Opening]:
    """Random prompts of some lengths."""
    generator = torch.Generator().manual_seed(3)
    return [
        Opening(f"d{place}", tuple(torch.randint(3, vocabulary, (n,), generator=generator).tolist()), True)
        for place, n in enumerate(lengths)
    ]


def decoded_alone(model: Model, opening: Opening, options: DecodingOptions, new_tokens: int) -> Any:
    """One prompt decoded by itself."""
    return generate(
        model,
        list(opening.ids),
        policy=options.policy,
        kv=options.kv,
        heads=options.heads,
        max_new_tokens=new_tokens,
    )


@torch.no_grad()
def best_tokens(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
    """The full model's own choice in each place, one whole forward per token."""
    return [
        int(model.hf(input_ids=torch.tensor([[*prompt, *answer[:place]]])).logits[0, -1].argmax())
        for place in range(len(answer))
    ]


@functools.cache
def texts(documents: int = 80, length: int = 14) -> Workload:
    """Texts of random numbers."""
    return workload_of(lengths=(length,) * documents, vocabulary=58)


@functools.cache
def traced(documents: int = 40, of: int = 80, eos: int | None = None) -> tuple[Model, Trace, Workload]:
    """A model, the trace of its first documents of some, and all of them."""
    model, work = agreeable_llama(eos), texts(of)
    found = trace(
        model, work, tokens=10 * documents, document_tokens=10, signals="restricted", progress=False
    )
    assert len(np.unique(found.document)) == documents
    return model, found, work
