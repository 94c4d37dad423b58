"""A made-up run that looks like a real one: synthetic traces, really scored and judged."""

from __future__ import annotations

import argparse
import functools
import re
from dataclasses import replace
from pydoc_data.topics import topics
from typing import Any
from unittest import mock

import answer_examples as answers
import numpy as np
from numpy.typing import NDArray

from offramp.defaults import FLOORS
from offramp.models.shape import LayerShape, ModelShape
from offramp.policies.frontier import frontier
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.scoring.scoring import score
from offramp.studies.work.trace import passage_from_trace, typical_document
from offramp.timing.results import Timing
from offramp.tracing.manifest import DocumentRecord
from offramp.tracing.trace import Marginal, Trace
from offramp.tuning import replayed_verdicts
from offramp.tuning.floor import Floor
from offramp.tuning.search import add_exact
from offramp.tuning.verdict import Verdict

LAYERS = 30
CHAT = (
    "Sure! Here are three ways to keep basil alive on a windowsill. First, water it from below, so that "
    "the leaves "
    "stay dry. Second, cut the top pair of leaves once a week: the plant then grows two shoots where "
    "there was one. "
    "Third, turn the pot a quarter every few days.\n\nIf the stems go brown, it had too much water. "
)


def model_shape(layers: int = LAYERS) -> ModelShape:
    layer = LayerShape("attention", 3_540_000, 3_540_000, 221_184, 384, 576, None, 0)
    return ModelShape((layer,) * layers, 576, 49_152, 576, 49_152 * 576, 4)


# What shallow layers like to say; two of them are there to break a careless page.
COMMON = (" the", " of", " a", ",", "</script><img src=x onerror=alert(1)>", "\t", "   ")


class Pieces:
    """A toy tokenizer: words and signs with the space before them."""

    def __init__(self, text: str) -> None:
        self.stream = re.findall(r"\n| ?\w+| ?[^\w\s]| +", text)
        self.vocabulary = [*sorted(set(self.stream)), *COMMON]
        self.index = {piece: i for i, piece in enumerate(self.vocabulary)}

    def decode(self, token: int) -> str:
        return self.vocabulary[token]


def synthetic_facts(rng: np.random.Generator, final: NDArray[np.int32], size: int, late: float, layers: int):
    """Top-1 and the other facts of every exit; `late` in (0, 1) is how deep a typical token settles."""
    tokens = len(final)
    settle = np.clip(np.round(layers * rng.beta(6 * late, 6 * (1 - late), tokens)), 2, layers).astype(int)
    exits = np.arange(1, layers + 1)
    reached = exits[None] >= settle[:, None]
    early = rng.random((tokens, layers)) < 0.25 * (exits / layers) ** 2
    guesses = rng.integers(0, size, (tokens, layers)).astype(np.int32)
    common = rng.random((tokens, layers)) < 0.5
    guesses[common] = rng.choice([size - 7, size - 6, size - 5, size - 4], common.sum())
    top1 = np.where(reached | early, final[:, None], guesses).astype(np.int32)
    depth = exits / layers
    max_prob = 1 / (
        1 + np.exp(-(4.5 * depth[None] - 3.4 + 1.5 * reached + rng.normal(0, 0.9, (tokens, layers))))
    )
    kl = (
        np.where(top1 == final[:, None], 0.6, 3.0)
        * (1.02 - depth)
        * np.exp(rng.normal(0, 0.3, (tokens, layers)))
        * 3
    )
    kl[:, -1] = 0.0
    similar = np.clip(0.15 + 0.8 * depth**2 + rng.normal(0, 0.05, (tokens, layers)), -1, 1)
    similar[:, -1] = 1
    facts = {
        "max_prob": max_prob,
        "margin": max_prob * rng.uniform(0.5, 0.98, (tokens, layers)),
        "entropy": 6 * (1 - max_prob) * np.exp(rng.normal(0, 0.2, (tokens, layers))),
        "kl_to_final": kl,
        "nll": 1.5 + kl,
        "final_logprob": np.log(np.clip(max_prob, 1e-6, 1)) - kl,
        "logit_cosine": np.clip(similar + 0.2 * (1 - depth), -1, 1),
        "centred_logit_cosine": similar,
        "shuffled_logit_cosine": 0.1 + 0.2 * depth + rng.normal(0, 0.05, (tokens, layers)),
        "hidden_cosine_to_final": np.clip(similar - 0.1 * (1 - depth), -1, 1),
        "hidden_cosine_to_previous": np.clip(
            0.75 + 0.2 * depth + rng.normal(0, 0.02, (tokens, layers)), -1, 1
        ),
        "update_norm": 0.9 - 0.6 * depth + 0.3 * (depth > 0.95) + rng.normal(0, 0.02, (tokens, layers)),
    }
    converted = {name: np.asarray(values, dtype=np.float32) for name, values in facts.items()}
    ranks = np.where(top1 == final[:, None], 0, rng.integers(1, 500, (tokens, layers))).astype(np.int32)
    return {"top1": top1, "final_rank": ranks, **converted}


def synthetic_trace(
    pieces: Pieces,
    *,
    late: float = 0.85,
    documents: int = 64,
    length: int = 64,
    layers: int = LAYERS,
    seed: int = 0,
) -> Trace:
    rng = np.random.default_rng(seed)
    count = documents * length
    ids = np.resize(np.array([pieces.index[piece] for piece in pieces.stream], dtype=np.int32), count + 1)
    next_token = ids[1:]
    size = len(pieces.vocabulary)
    other = rng.random(count) < 0.4
    final = np.where(other, rng.integers(0, size, count), next_token).astype(np.int32)
    document = np.repeat(np.arange(documents, dtype=np.int32), length)
    facts = synthetic_facts(rng, final, size, late, layers)
    blocks = np.arange(documents) % 16
    sums = np.stack([np.bincount(final[blocks[document] == b], minlength=size) for b in range(16)]).astype(
        float
    )
    marginal = Marginal(sums, sums.sum(axis=1).astype(np.int64), blocks)
    return Trace(
        exits=np.arange(1, layers + 1),
        tokens={
            "token": ids[:-1],
            "next_token": next_token,
            "document": document,
            "position": np.tile(np.arange(length, dtype=np.int32), documents),
            "generated": np.zeros(count, dtype=np.bool_),
        },
        facts=lambda name: facts[name],
        documents=tuple(DocumentRecord(f"document {i}", length) for i in range(documents)),
        marginal=lambda: marginal,
        shape=model_shape(layers),
        provenance={},
    )


def quickly_judged(trace: Trace, floors: tuple[float, ...] = FLOORS) -> tuple[Verdict, ...]:
    """Verdicts whose policies are searched among single thresholds alone: pages show whatever is found."""
    with mock.patch.object(replayed_verdicts, "search_pool", lambda pool, risk: add_exact(pool, (risk,))):
        return replayed_verdicts.judge(trace, floors)


def first_two(value: Any) -> Any:
    """JSON with two entries of each list: validating takes as long as what is validated."""
    if isinstance(value, dict):
        return {name: first_two(part) for name, part in value.items()}
    return [first_two(part) for part in value[:2]] if isinstance(value, list) else value


def workload_result(name: str, text: str, *, mode: str = "text", seed: int = 0, **options) -> WorkloadResult:
    pieces = Pieces(text)
    trace = synthetic_trace(pieces, seed=seed, **options)
    layers = trace.layers
    sets = [tuple(range(1, layers)), tuple(range(layers // 2, layers, 5))] if layers > 1 else []
    frontiers = tuple(frontier(trace, s, exits) for exits in sets for s in ("max_prob", "margin", "entropy"))
    document = typical_document(trace)
    return WorkloadResult(
        name=name,
        mode=mode,
        trace=trace,
        card=score(trace),
        frontiers=frontiers,
        verdicts=quickly_judged(trace),
        passage=passage_from_trace(trace, pieces.decode, document),
        notes=(),
        trace_folder=f"traces/smollm2/{name}",
        seconds=21.4,
    )


def answered(workload: WorkloadResult, extra: float, gain: float) -> WorkloadResult:
    """The workload with a league, tuned policies, machines and a break-even table of its own."""
    tuned = (
        answers.tuned(Floor("agreement", 0.99), answers.certificate(False, 15, 230)),
        answers.tuned(Floor("agreement", 0.9), answers.certificate(True, 300, 22, risk_bound=0.088)),
    )
    return replace(
        workload,
        league=answers.league(extra),
        tuned=tuned,
        machines=answers.machines(gain),
        break_even=answers.break_even(),
    )


@functools.cache
def example_run() -> RunResult:
    """Three workloads of 64 documents each, with every answer of league, tuner and machines."""
    prose = re.sub(r"\s*\n\s*", " ", topics["assert"] + topics["with"] + topics["lambda"])
    with open(argparse.__file__, encoding="utf-8") as file:
        code = file.read()[9_000:21_000]
    workloads = (
        workload_result("prose", prose, late=0.84, seed=1),
        workload_result("code", code, late=0.9, seed=2),
        workload_result("chat", CHAT, mode="generation", late=0.8, seed=3),
    )
    workloads = tuple(
        answered(workload, extra, gain)
        for workload, extra, gain in zip(workloads, (0.0, -0.002, 0.06), (1.0, 0.97, 1.04), strict=True)
    )
    provenance = {
        "offramp": "0.1.0",
        "date": "2026-01-31T12:00:00Z",
        "model_fingerprint": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "tokenizer_fingerprint": "1f3a" * 16,
        "workload_fingerprints": {"prose": "aa" * 32, "code": "bb" * 32, "chat": "cc" * 32},
        "python": "3.11.9",
        "torch": "2.13.0",
        "transformers": "5.24.0",
        "machine": {"cores": 2, "threads": 2, "load_average": [0.4, 0.5, 0.6]},
    }
    measured = Timing(0.0583, 0.0571, 0.0597, 2, 0.42)
    command = "offramp run smollm2 --workload prose --workload code --workload chat --tokens 4096 -o out"
    return RunResult(
        "smollm2", LAYERS, workloads, provenance, measured, command, answers.HARDWARE, answers.HEADS
    )
