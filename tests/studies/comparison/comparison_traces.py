"""Small synthetic traces of models that exit well or badly, and bare rows, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from comparison_examples import card
from offramp.scoring.documents import NOTHING, TextSize
from offramp.studies.comparison.results import FloorOn, ModelFacts, Row
from offramp.tracing.facts import FACTS
from offramp.tracing.trace import Marginal, Trace
from offramp.tuning.floor import Floor
from policy_traces import make_shape

LAYERS = 6


def synthetic_trace(
    agrees,
    *,
    length: int,
    seed: int = 0,
    workload: str = "w1",
    model: str = "tiny",
    vocabulary: int = 5,
) -> Trace:
    """A trace of documents of `length` tokens. agrees: bool [tokens, exits], the last exit is made to agree.

    Exits that agree are surer; all other facts are 0 or noise. Documents are called document 0, 1, ...
    """
    generator = np.random.default_rng(seed)
    agrees = np.array(agrees, dtype=bool)
    agrees[:, -1] = True
    tokens, exits = agrees.shape
    document = np.repeat(np.arange(tokens // length), length).astype(np.int32)
    sure = np.clip(0.3 + 0.5 * agrees + 0.2 * generator.random(agrees.shape), 0.0, 1.0)
    facts = {fact.name: np.zeros(agrees.shape, dtype=fact.dtype) for fact in FACTS}
    facts["top1"] = np.where(agrees, 1, 2).astype(np.int32)
    facts["final_rank"] = np.where(agrees, 0, 1).astype(np.int32)
    for name, values in {
        "max_prob": sure,
        "margin": sure**2,
        "entropy": 1.0 - sure,
        "kl_to_final": np.where(agrees, 0.1, 2.0) * (np.arange(exits, 0, -1) - 1) / exits,
        "nll": 1.5 + (1.0 - sure),
        "centred_logit_cosine": sure,
        "logit_cosine": sure,
        "hidden_cosine_to_final": sure,
        "hidden_cosine_to_previous": 0.8 + 0.1 * sure,
    }.items():
        facts[name] = values.astype(np.float32)
    choice = generator.integers(0, vocabulary, tokens)
    blocks = np.arange(tokens // length) % 16
    sums = np.zeros((16, vocabulary))
    np.add.at(sums, (blocks[document], choice), 1.0)
    marginal = Marginal(sums, np.bincount(blocks[document], minlength=16), blocks)
    request = {
        "model": {"name": model, "fingerprint": model},
        "dtype": "float32",
        "workload": {"name": workload, "fingerprint": workload, "mode": "text"},
        "heads": None,
    }
    trace = Trace.from_facts(
        facts,
        document=document,
        position=(np.arange(tokens) % length).astype(np.int32),
        marginal=marginal,
        shape=make_shape(exits),
        provenance={"request": request, "notes": [], "request_fingerprint": f"{model} {workload}"},
    )
    trace.next_token = choice.astype(np.int32)
    return trace


def easy_documents(
    generator: np.random.Generator, reach: float, *, documents: int, length: int, exits: int = LAYERS
):
    """Agreement, bool [tokens, exits], of documents that differ in how easy they are: tokens depend on it.

    reach: mean agreement of every early exit.
    """
    ease = generator.beta(2.0, 2.0, documents) * 2.0 * reach
    return generator.random((documents * length, exits)) < np.repeat(np.clip(ease, 0, 1), length)[:, None]


def bare_row(
    model: str,
    workload: str,
    *,
    base: str | None = None,
    candidates: Mapping[str, float | None] | None = None,
    tokens: int = 1920,
    exits: tuple[int, ...] = (1, 2),
    bytes_per_token: float | None = None,
    speedup: Mapping[FloorOn, float] | None = None,
    measured: Mapping[FloorOn, float] | None = None,
    transform: str = "",
    facts: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Row:
    """A row with only what a test looks at."""
    given = {
        "workload_fingerprint": workload,
        "heads": "",
        "source": model,
        "bits_per_byte": None,
        "own_text": False,
        "documents": (),
        "tokens": tokens,
        "layers": exits[-1],
        "notes": (),
    }
    size = NOTHING if bytes_per_token is None else TextSize(round(1000 * bytes_per_token), 0, 1000)
    return Row(
        model=ModelFacts(model, base or model, transform=transform, **(facts or {})),
        workload=workload,
        card=card(tokens=tokens, exits=exits, candidates=candidates or {}),
        text=size,
        exit_speedup=speedup or {},
        measured_speedup=measured or {},
        **{**given, **fields},
    )


def with_card(row: Row, **changes: Any) -> Row:
    """The row with other fields of its score card."""
    return replace(row, card=replace(row.card, **changes))


def floor(value: float, machine: str = "local") -> FloorOn:
    """A floor on agreement on a machine."""
    return Floor("agreement", value), machine
