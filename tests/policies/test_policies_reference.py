"""Replay of a transformed model: its agreement with the untransformed one stands beside its own."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.errors import InputError
from offramp.policies.replay import replay
from policy_traces import make_trace


def test_both_agreements_by_hand() -> None:
    top1 = np.array([[1, 1, 2], [3, 2, 2], [4, 5, 4], [6, 6, 6]], dtype=np.int32)
    trace = make_trace(tokens=4, layers=3, documents=2, top1=top1)
    trace.reference_top1 = np.array([1, 2, 5, 9], dtype=np.int32)
    second = replay(trace, "static:exit=2")
    assert second.agreement == 2 / 4
    assert second.reference_agreement == 3 / 4  # an exit may agree where the transformed full model does not
    never = replay(trace, "never")
    assert never.agreement == 1.0
    assert never.reference_agreement == 1 / 4
    # Speculation gives the transformed full model's tokens, not the untransformed one's.
    exact = replay(trace, "static:exit=2", kv="speculate")
    assert (exact.agreement, exact.reference_agreement) == (1.0, 1 / 4)


def test_a_model_without_transforms_has_none() -> None:
    trace = make_trace()
    assert trace.reference_top1 is None
    assert trace.reference_agreement is None
    assert replay(trace, "static:exit=2").reference_agreement is None


def test_the_error_for_missing_timings_names_the_transforms(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    trace = make_trace()
    model = {"name": "tiny + int8", "fingerprint": "f" * 64, "transforms": ["int8"]}
    trace.provenance["request"] = {"model": model, "dtype": "float32"}
    with pytest.raises(InputError) as caught:
        replay(trace, "static:exit=2", machine="local")
    assert "offramp hardware measure MODEL --transform int8 --dtype float32" in caught.value.fix
