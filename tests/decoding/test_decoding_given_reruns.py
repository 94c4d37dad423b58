"""What reads a sound or a picture: a rerun of its trace leaves where decoding the traced tokens does."""

from __future__ import annotations

import pytest
from given_cases import RERUNS, assert_reruns_are_forced_decoding

import offramp
from offramp.models.model import Model
from offramp.tracing.trace import Trace
from offramp.workloads.workload import Workload

Traced = tuple[Model, Workload, Trace]


@pytest.fixture(
    scope="module",
    params=[("whisper", "audio", "sounds", 80), ("llava", "images", "pictures", 60)],
    ids=["sounds", "pictures"],
)
def traced(request: pytest.FixtureRequest) -> Traced:
    folder, source, documents, tokens = request.param
    model = offramp.load_model(request.getfixturevalue(folder))
    workload = offramp.load_workload(f"{source}:{request.getfixturevalue(documents)}")
    return model, workload, offramp.trace(model, workload, tokens=tokens)


@pytest.mark.parametrize(("policy", "kv"), RERUNS)
def test_a_rerun_is_forced_decoding_exit_for_exit(traced: Traced, policy: str, kv: str) -> None:
    model, workload, trace = traced
    assert_reruns_are_forced_decoding(model, workload, trace, policy, kv)
