from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offramp.errors import PolicyError
from offramp.policies.binding import base_of, require_base
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import replay
from offramp.tracing.trace import Trace
from offramp.tuning.predict import predict
from offramp.tuning.tune import tune
from offramp.tuning.tuned import read_tuned, write_tuned
from policy_traces import make_trace

MODEL = {"name": "tiny", "fingerprint": "m1"}
LENS = {"fingerprint": "lens", "lens": True, "documents": {}, "facts": []}
PLAIN = {"fingerprint": "plain", "lens": False, "documents": {}, "facts": ["correctness"]}
SURE = "threshold:signal=max_prob,value=0.9,exits=2"


def traced(heads: Any = None, model: Any = None, *, workload: str = "w1", **options: Any) -> Trace:
    trace = make_trace(**options)
    trace.provenance["request"] = {
        "model": model or MODEL,
        "dtype": "float32",
        "workload": {"name": workload, "fingerprint": workload},
        "heads": heads,
    }
    return trace


def test_a_base_is_the_model_its_precision_and_its_heads() -> None:
    assert base_of(traced()) == {**MODEL, "dtype": "float32", "heads": None}
    assert base_of(traced(LENS))["heads"] == {"fingerprint": "lens", "lens": True}


@pytest.mark.parametrize(
    ("before", "now", "policy", "fits"),
    [
        (None, None, SURE, True),
        (LENS, LENS, SURE, True),
        # A lens changes every fact of an exit, and its output.
        (LENS, None, SURE, False),
        (None, LENS, "static:exit=2", False),
        (LENS, {**LENS, "fingerprint": "other"}, SURE, False),
        # Without one, only what comes with the heads is other.
        (PLAIN, None, SURE, True),
        (PLAIN, {**PLAIN, "fingerprint": "other"}, SURE, True),
        (PLAIN, None, "threshold:signal=restricted_margin,value=0.9,exits=2", False),
        (PLAIN, {**PLAIN, "fingerprint": "other"}, "threshold:signal=correctness,value=0.9,exits=2", False),
        (LENS, None, "never", True),
    ],
)
def test_heads_that_a_policy_does_not_know_are_refused(
    before: Any, now: Any, policy: str, fits: bool
) -> None:
    tuned_for = base_of(traced(before))
    if fits:
        require_base(tuned_for, parse_policy(policy), traced(now))
        return
    with pytest.raises(PolicyError, match="the policy was tuned on a trace made") as error:
        require_base(tuned_for, parse_policy(policy), traced(now))
    assert "--heads FILE" in error.value.fix
    assert error.value.exit_code == 2


def test_another_model_is_refused() -> None:
    for other in (traced(model={"name": "big", "fingerprint": "m2"}), make_trace()):
        with pytest.raises(PolicyError, match="tuned for another model, tiny"):
            require_base(base_of(traced()), parse_policy("never"), other)


def test_a_tuned_file_is_bound_to_its_heads(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokens": 600, "documents": 60}
    found = tune(traced(LENS, **options), {"agreement": 0.5}, None, method="naive")
    assert not found.plain
    path = tmp_path / "policy.json"
    write_tuned(path, found)
    assert json.loads(path.read_text())["model"]["heads"] == {"fingerprint": "lens", "lens": True}
    same, other = traced(LENS, workload="w2", **options), traced(workload="w2", **options)
    assert predict(read_tuned(path), same).documents == 60
    replay(same, str(path))
    for apply in (lambda: predict(read_tuned(path), other), lambda: replay(other, str(path))):
        with pytest.raises(PolicyError, match="made with the exit heads lens, this one was made without"):
            apply()


def test_documents_that_the_policy_or_its_heads_have_seen_are_counted(tmp_path: Path) -> None:
    trace = traced(documents=12)
    path = tmp_path / "policy.json"
    tuned = tune(trace, {"agreement": 0.5}, None, method="naive")
    write_tuned(path, tuned)
    used = tuned.documents["search"] + tuned.documents["certify"]
    (note,) = replay(trace, str(path)).notes
    assert note.startswith(f"the policy was tuned on {used} of the trace's 12 documents")
    assert replay(traced(documents=12, workload="w2"), str(path)).notes == ()
    assert replay(trace, "never").notes == ()
    fitted = {**PLAIN, "documents": {"w1": [trace.documents[0].id, "elsewhere"], "w2": ["other"]}}
    (note,) = replay(traced(fitted, documents=12), SURE).notes
    assert note.startswith("the exit heads were fitted on 1 of the trace's 12 documents")
