"""Scoring and replay of a trace on disk, without a model: seconds for the score card and for exact frontiers.

    python benchmarks/replay.py                                100,000 tokens x 30 exits
    python benchmarks/replay.py --tokens 1000000 --exits 32    a million tokens

    python benchmarks/replay.py --tokens 1000000 --exits 32    a million tokens, 32 exits
share their difficulty. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from numpy.typing import NDArray

import offramp
from offramp.models.shape import LayerShape, ModelShape
from offramp.tracing.facts import FACTS
from offramp.tracing.part import Part, PartDocument, write_part
from offramp.tracing.request import TraceRequest
from offramp.tracing.storage import block_of, write_manifest

VOCABULARY = 49_152
DOCUMENT_TOKENS = 250
PART_TOKENS = 16_000
SIGNALS = ("max_prob", "margin", "entropy")


def shape_of(layers: int) -> ModelShape:
    """The shape of SmolLM2-135M with another number of layers."""
    layer = LayerShape("attention", 3_540_096, 3_540_096, 221_184, 384, 576, None, 0)
    return ModelShape((layer,) * layers, 576, VOCABULARY, 576, VOCABULARY * 576, 4)


def facts_of(tokens: int, exits: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Facts of some documents: [tokens, exits] each."""
    difficulty = np.repeat(rng.normal(size=tokens // DOCUMENT_TOKENS), DOCUMENT_TOKENS)[:, None]
    depth = np.linspace(-3.0, 3.0, exits)[None, :]
    confidence = 1 / (1 + np.exp(-(depth - difficulty + rng.normal(size=(tokens, exits)))))
    agrees = rng.random((tokens, exits)) < confidence
    agrees[:, -1] = True
    facts: dict[str, NDArray[np.generic]] = {
        fact.name: (confidence * rng.random()).astype(fact.dtype) for fact in FACTS
    }
    facts["top1"] = np.where(agrees, 1, 2).astype(np.int32)
    facts["max_prob"] = confidence.astype(np.float32)
    facts["margin"] = (confidence**2).astype(np.float32)
    facts["entropy"] = (5 * (1 - confidence)).astype(np.float32)
    return facts


def write_synthetic_trace(folder: Path, tokens: int, exits: int) -> None:
    """A whole trace on disk, in parts."""
    rng = np.random.default_rng(0)
    documents = tokens // DOCUMENT_TOKENS
    request = TraceRequest(
        model={"name": "synthetic"},
        workload={"name": "synthetic"},
        dtype="float32",
        exits=tuple(range(1, exits + 1)),
        tokens=tokens,
        context=DOCUMENT_TOKENS,
        document_tokens=DOCUMENT_TOKENS,
        reductions="eager",
        threads=1,
        code="",
        versions={},
    )
    parts = []
    for index, start in enumerate(range(0, tokens, PART_TOKENS)):
        rows = min(PART_TOKENS, tokens - start)
        part = synthetic_part(index, start, rows, exits, documents, rng)
        write_part(folder, part, np.arange(1, exits + 1), request.fingerprint)
        parts.append(part)
    ids = [f"document {number}" for number in range(documents)]
    write_manifest(folder, request, parts, ids, shape_of(exits), [], 0.0)


def synthetic_part(
    index: int, start: int, rows: int, exits: int, documents: int, rng: np.random.Generator
) -> Part:
    """Some whole documents."""
    document = (np.arange(start, start + rows) // DOCUMENT_TOKENS).astype(np.int32)
    position = (np.arange(start, start + rows) % DOCUMENT_TOKENS).astype(np.int32)
    blocks, counts = np.unique([block_of(int(d), documents) for d in document], return_counts=True)
    return Part(
        index=index,
        tokens={
            "token": position,
            "next_token": position,
            "document": document,
            "position": position,
            "generated": np.zeros(rows, dtype=np.bool_),
        },
        facts=facts_of(rows, exits, rng),
        marginal={
            int(block): rng.dirichlet(np.full(VOCABULARY, 0.01)) * count
            for block, count in zip(blocks, counts, strict=True)
        },
        marginal_rows={int(block): int(count) for block, count in zip(blocks, counts, strict=True)},
        documents=tuple(PartDocument(int(d), DOCUMENT_TOKENS) for d in np.unique(document)),
    )


def clock(call: Callable[[], object], repeats: int) -> dict[str, object]:
    """Median and samples of some calls."""
    samples = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        samples.append(time.perf_counter() - started)
    return {"median": statistics.median(samples), "samples": samples}


def score_from_disk(folder: Path) -> None:
    """Read and score."""
    offramp.score(offramp.Trace.load(folder))


def frontiers_from_disk(folder: Path, signals: Sequence[str]) -> None:
    """Read what the frontiers need, and compute them over all exits."""
    trace = offramp.Trace.load(folder)
    for signal in signals:
        offramp.frontier(trace, signal)


def both_from_disk(folder: Path) -> None:
    """Score card and the three frontiers of one loaded trace."""
    trace = offramp.Trace.load(folder)
    offramp.score(trace)
    for signal in SIGNALS:
        offramp.frontier(trace, signal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--exits", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic_trace(folder, options.tokens, options.exits)
        both = clock(lambda: both_from_disk(folder), options.repeats)
        scored = clock(lambda: score_from_disk(folder), options.repeats)
        frontier = clock(lambda: frontiers_from_disk(folder, SIGNALS[:1]), options.repeats)
        size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        json.dumps(
            {
                "benchmark": "replay",
                "tokens": options.tokens,
                "exits": options.exits,
                "trace_bytes": size,
                "score_and_frontiers_seconds": both["median"],
                "score_seconds": scored["median"],
                "frontier_seconds": frontier["median"],
                "details": {"both": both, "score": scored, "frontier": frontier},
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "machine": {"cores": os.cpu_count(), "load_average_at_start": load},
            }
        )
    )


if __name__ == "__main__":
    main()
