"""Large made-up traces for the benchmarks that need no model.

Documents share their difficulty and confidence rises with depth, so that nearly every value of a signal is a
breakpoint of its frontier.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.models.shape import LayerShape, ModelShape
from offramp.tracing.facts import FACTS
from offramp.tracing.manifest import describe_trace, write_manifest
from offramp.tracing.request import TraceRequest
from offramp.tracing.sealed_parts import Part, PartDocument, block_of, write_part

VOCABULARY = 49_152
DOCUMENT_TOKENS = 250
PART_TOKENS = 16_000


def shape_of(layers: int) -> ModelShape:
    """The shape of SmolLM2-135M with another number of layers."""
    layer = LayerShape("attention", 3_540_096, 3_540_096, 221_184, 384, 576, None, 0)
    return ModelShape((layer,) * layers, 576, VOCABULARY, 576, VOCABULARY * 576, 4)


def facts_of(tokens: int, exits: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Facts of some documents: [tokens, exits] each."""
    size = (tokens, exits)
    difficulty = np.repeat(rng.normal(size=-(-tokens // DOCUMENT_TOKENS)), DOCUMENT_TOKENS)[:tokens, None]
    depth = np.linspace(-3.0, 3.0, exits)[None, :]
    rising = np.sort(depth - difficulty + rng.normal(size=size), axis=1)
    confidence = 1 / (1 + np.exp(-rising))
    agrees = rng.random(size) < confidence**0.5
    agrees[:, -1] = True
    noise = rng.random(size, dtype=np.float32)
    facts: dict[str, NDArray[np.generic]] = {fact.name: noise.astype(fact.dtype) for fact in FACTS}
    facts["top1"] = np.where(agrees, 1, 2).astype(np.int32)
    facts["max_prob"] = confidence.astype(np.float32)
    facts["margin"] = (confidence**2).astype(np.float32)
    facts["entropy"] = (5 * (1 - confidence)).astype(np.float32)
    facts["hidden_cosine_to_previous"] = (0.5 * (confidence + noise)).astype(np.float32)
    return facts


def write_synthetic_trace(folder: Path, tokens: int, exits: int) -> None:
    """A whole trace on disk, in parts."""
    rng = np.random.default_rng(0)
    documents = -(-tokens // DOCUMENT_TOKENS)
    request = TraceRequest(
        model={"name": "synthetic", "fingerprint": "synthetic"},
        workload={"name": "synthetic", "fingerprint": "synthetic"},
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
    write_manifest(folder, describe_trace(request, parts, ids, shape_of(exits), []), 0.0)


def synthetic_part(
    index: int, start: int, rows: int, exits: int, documents: int, rng: np.random.Generator
) -> Part:
    """Some whole documents."""
    document = (np.arange(start, start + rows) // DOCUMENT_TOKENS).astype(np.int32)
    position = (np.arange(start, start + rows) % DOCUMENT_TOKENS).astype(np.int32)
    blocks, counts = np.unique([block_of(int(d), documents) for d in document], return_counts=True)
    numbers, lengths = np.unique(document, return_counts=True)
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
        documents=tuple(
            PartDocument(int(number), int(length)) for number, length in zip(numbers, lengths, strict=True)
        ),
    )
