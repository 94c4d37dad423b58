"""Answers about pictures: rows of a batch answer as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import offramp
from offramp.models.model import Model
from offramp.workloads.workload import Workload


@pytest.fixture(scope="module")
def model(llava: Path) -> Model:
    return offramp.load_model(llava)


@pytest.fixture(scope="module")
def workload(pictures: Path) -> Workload:
    return offramp.load_workload(f"images:{pictures}")


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
