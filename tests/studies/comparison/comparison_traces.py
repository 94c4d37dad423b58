"""Small synthetic traces of models that exit well or badly, and bare rows, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import ModelFacts, Row
from offramp.tracing.facts import FACTS
from offramp.tracing.trace import Marginal, Trace
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
    scores: Mapping[str, float] | None = None,
    speedup: Mapping[str, float] | None = None,
    measured: Mapping[str, float] | None = None,
    transform: str = "",
    facts: Mapping[str, object] | None = None,
    **fields,
) -> Row:
    """A row with only what a test looks at."""
    given = {"tokens": 1920, "documents": 60, "workload_fingerprint": workload, "heads": "", "source": model}
    return Row(
        model=ModelFacts(model, base or model, transform, **(facts or {})),
        workload=workload,
        scores={name: Estimate(value) for name, value in (scores or {}).items()},
        eas=(),
        candidates=candidates or {},
        exits=(1, 2),
        depth_fraction=(0.5, 1.0),
        curves={},
        intervals={},
        exit_speedup=speedup or {},
        measured_speedup=measured or {},
        **{**given, **fields},
    )
