"""Traces on which some policies pay, for the tests of this package."""

from __future__ import annotations

import numpy as np

from offramp.tracing.trace import Trace
from policy_traces import make_shape, make_trace

MODEL = {"name": "tiny", "fingerprint": "m1"}


def easy_and_hard(documents: int = 300, *, seed: int = 0, head: int = 20, wrong: float = 0.0) -> Trace:
    """Six of ten tokens may leave at exit 2 of 6 and say so, a share `wrong` of them in vain."""
    tokens = 25 * documents
    rng = np.random.default_rng(seed)
    easy, mistaken = rng.random(tokens) < 0.6, rng.random(tokens) < wrong
    depth = np.arange(1, 7)
    agrees = (depth == 6) | ((easy & ~mistaken)[:, None] & (depth >= 2))
    sure = np.where(easy[:, None] & (depth >= 2), 0.9, 0.1) + 0.05 * rng.random((tokens, 6))
    trace = make_trace(
        seed=seed,
        tokens=tokens,
        documents=documents,
        shape=make_shape(head=head),
        top1=np.where(agrees, 1, 0).astype(np.int32),
        max_prob=sure.astype(np.float32),
        margin=(sure**2).astype(np.float32),
        entropy=(1 - sure).astype(np.float32),
        hidden_cosine_to_previous=np.zeros((tokens, 6), dtype=np.float32),
    )
    workload = {"name": "texts", "fingerprint": "w1"}
    trace.provenance["request"] = {"model": MODEL, "dtype": "float32", "workload": workload, "heads": None}
    return trace
