"""What holds of every model that is given a source, whatever that is."""

from __future__ import annotations

from typing import Any

import numpy as np

import offramp
from offramp.kit.given import given_of
from offramp.models.model import Model
from offramp.tracing.trace import Trace
from offramp.workloads.workload import Workload

LEAVING = ("static:exit=2", "threshold:signal=margin,value=0.2,exits=1+2+3")
RERUNS = (
    (LEAVING[0], "propagate"),
    (LEAVING[1], "propagate"),
    (LEAVING[1], "recompute"),
    (LEAVING[0], "speculate"),
)
"""Policies, and what becomes of K and V."""


def assert_reruns_are_forced_decoding(
    model: Model, workload: Workload, trace: Trace, policy: str, kv: Any
) -> None:
    """Of three documents a rerun leaves where decoding does that is made to say the traced tokens."""
    documents = {document.id: document for document in workload.documents}
    rerun = offramp.rerun(model, trace, policy, kv=kv, workload=workload)
    for number, record in enumerate(trace.documents[:3]):
        rows = np.flatnonzero(trace.document == number)
        forced = [*trace.token[rows].tolist(), int(trace.next_token[rows[-1]])]
        given = given_of(documents[record.id])
        assert given is not None
        read: Any = {{"text": "source"}.get(given.kind, given.kind): given.text}
        read |= {"prompt": given.prompt} if given.kind == "image" else {}
        answer: Any = offramp.generate(model, **read, policy=policy, kv=kv, force_tokens=forced)
        assert answer.exits[0] == model.layers
        np.testing.assert_array_equal(answer.exits[1:], rerun.exits[rows])
