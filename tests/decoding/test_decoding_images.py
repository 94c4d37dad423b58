"""Answers about pictures: a rerun leaves where decoding does, and rows of a batch answer as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from given_cases import RERUNS, assert_reruns_are_forced_decoding

import offramp
from offramp.models.model import Model
from offramp.tracing.trace import Trace
from offramp.workloads.workload import Workload


@pytest.fixture(scope="module")
def model(llava: Path) -> Model:
    return offramp.load_model(llava)


@pytest.fixture(scope="module")
def workload(pictures: Path) -> Workload:
    return offramp.load_workload(f"images:{pictures}")


@pytest.fixture(scope="module")
def trace(model: Model, workload: Workload) -> Trace:
    return offramp.trace(model, workload, tokens=60)


@pytest.mark.parametrize(("policy", "kv"), RERUNS)
def test_a_rerun_leaves_where_forced_decoding_does(
    model: Model, workload: Workload, trace: Trace, policy: str, kv: Any
) -> None:
    assert_reruns_are_forced_decoding(model, workload, trace, policy, kv)


@pytest.mark.parametrize(
    ("policy", "batching"),
    [("never", "lockstep"), ("threshold:signal=margin,value=0.2,exits=2", "rebatch")],
)
def test_prompts_of_different_lengths_are_answered_together_as_alone(
    model: Model, workload: Workload, policy: str, batching: Any
) -> None:
    given = [document.given for document in workload.documents[:4] if document.given is not None]
    assert len({len(model.front(picture)) for picture in given}) > 1
    how: Any = {"policy": policy, "kv": "propagate", "max_new_tokens": 8}
    together: Any = offramp.generate(
        model,
        [picture.prompt for picture in given],
        image=[picture.text for picture in given],
        batching=batching,
        **how,
    )
    for picture, row in zip(given, together, strict=True):
        alone: Any = offramp.generate(model, picture.prompt, image=picture.text, **how)
        assert (alone.tokens, alone.exits.tolist()) == (row.tokens, row.exits.tolist())
