"""One policy for several workloads: each entry is what its own trace is tuned to, at a share of delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tuning_traces import MODEL, easy_and_hard

import offramp
from offramp.decoding.execution.tune import require_judged
from offramp.errors import InputError
from offramp.policies.grammar import parse_policy, write_policy
from offramp.policies.replay import replay
from offramp.tracing.trace import Trace
from offramp.tuning.floor import parse_floor

FLOOR = {"agreement": 0.9}


def of_workload(name: str, *, model: Any = MODEL, **options: Any) -> Trace:
    trace = easy_and_hard(**options)
    workload = {"name": name, "fingerprint": f"fingerprint of {name}"}
    trace.provenance["request"] = {**trace.request, "workload": workload, "model": model}
    return trace


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    """One text where many tokens leave early and one where none does without harm."""
    return [of_workload("easy", documents=200), of_workload("hard:short", documents=200, wrong=0.6)]


def test_each_entry_is_what_its_workload_is_tuned_to(traces: list[Trace], tmp_path: Path) -> None:
    found = offramp.tune_tasks(traces, FLOOR, None, delta=0.1)
    assert list(found.tuned) == ["easy", "hard:short"]
    for trace, (name, tuned) in zip(traces, found.tuned.items(), strict=True):
        alone = offramp.tune(trace, FLOOR, None, delta=0.05)
        assert tuned == alone
        assert tuned.certificate.delta == 0.05, "Bonferroni: a headline over two workloads"
        assert found.policy.for_task(name) == tuned.policy
        assert replay(trace, found.policy).exits.tolist() == replay(trace, tuned.policy).exits.tolist()
    texts = [str(tuned.policy) for tuned in found.tuned.values()]
    assert texts[0] != texts[1]
    assert str(found.policy.for_task("another")) == "never"
    assert parse_policy(str(found.policy)) == found.policy
    write_policy(found.policy, tmp_path / "policy.json")
    assert parse_policy(str(tmp_path / "policy.json")) == found.policy


def test_a_smaller_delta_needs_more_documents() -> None:
    """22 documents without a loss certify 0.9 at 0.1, at 0.05 it takes 29."""
    few = [of_workload(name, documents=45) for name in ("one", "other")]
    alone = offramp.tune(few[0], FLOOR, None, delta=0.1)
    assert alone.certificate.documents_needed == 22
    both = offramp.tune_tasks(few, FLOOR, None, delta=0.1)
    assert [one.certificate.documents_needed for one in both.tuned.values()] == [29, 29]
    assert all("not certifiable: 27 documents, 29 needed" in one.answer for one in both.tuned.values())


def test_traces_that_keep_two_references_have_no_floor_in_common() -> None:
    traces = [of_workload(name, documents=9) for name in ("a", "b")]
    for trace, name in zip(traces, ("one", "two"), strict=True):
        trace.reference_top1 = trace.full_top1
        reference = {"name": name, "fingerprint": name, "dtype": "float32"}
        trace.provenance["request"] = {**trace.request, "reference": reference}
    floor = parse_floor("reference_agreement=0.9")
    require_judged(traces, None, floor, decodes=False)
    require_judged(traces[:1], "one", floor, decodes=True)
    with pytest.raises(InputError, match="the reference of the trace is another model, two in float32"):
        require_judged(traces, "one", floor, decodes=True)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (list, "there is no trace to tune on"),
        (lambda: [of_workload("a", documents=9), of_workload("a", documents=8)], "two traces of a"),
        (
            lambda: [of_workload("a", documents=9), of_workload("b", documents=9, model={"name": "other"})],
            "not of one model, dtype and exit heads",
        ),
        (lambda: [of_workload("a=b", documents=9)], "no entry for a workload named 'a=b'"),
        (lambda: [of_workload("a+(b", documents=9)], r"no entry for a workload named 'a\+\(b'"),
    ],
)
def test_what_makes_no_policy_of_tasks_is_refused(made: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        offramp.tune_tasks(made(), FLOOR, None)
