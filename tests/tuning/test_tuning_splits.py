from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import InputError
from offramp.tracing.trace import Trace
from offramp.tuning.splits import (
    SAW,
    digests,
    fewest_documents,
    require_disjoint,
    require_seed,
    split_documents,
    split_roles,
)
from policy_traces import make_trace

WORKLOAD = {"name": "texts", "fingerprint": "w1"}


def traced(documents: int, *, fitted: tuple[str, ...] = (), workload: Any = None) -> Trace:
    """A trace of some documents, on some of which heads were fitted."""
    heads = {"documents": {"w1": list(fitted), "other": ["document 1"]}} if fitted else None
    trace = make_trace(tokens=2 * documents, documents=documents)
    trace.provenance["request"] = {"workload": workload or WORKLOAD, "heads": heads}
    return trace


@settings(max_examples=40, deadline=None)
@given(documents=st.integers(1, 80), fitted=st.integers(0, 20), seed=st.integers(0, 5))
def test_every_document_has_one_role(documents: int, fitted: int, seed: int) -> None:
    used = tuple(f"document {place}" for place in range(min(fitted, documents)))
    roles = split_roles(traced(documents, fitted=used), seed)
    together = np.concatenate([roles.heads, roles.search, roles.certify, roles.report])
    assert sorted(together) == list(range(documents))
    assert [f"document {place}" for place in sorted(roles.heads)] == sorted(used, key=lambda i: int(i[9:]))
    free = documents - len(used)
    if free >= 3:
        assert min(len(roles.search), len(roles.certify), len(roles.report)) >= 1
    assert sum(roles.counts().values()) == documents


def test_the_shares_of_a_hand_worked_split() -> None:
    assert split_roles(traced(600), 0).counts() == {"heads": 0, "search": 120, "certify": 360, "report": 120}
    fitted = tuple(f"document {place}" for place in range(100))
    counts = split_roles(traced(600, fitted=fitted), 0).counts()
    assert counts == {"heads": 100, "search": 100, "certify": 300, "report": 100}
    # By hand: of 7 documents 20 % are 1.4, so one searches and one reports.
    assert split_roles(traced(7), 0).counts() == {"heads": 0, "search": 1, "certify": 5, "report": 1}


def test_the_split_depends_on_seed_and_ids_alone() -> None:
    trace = traced(50)
    first, again, other = split_roles(trace, 3), split_roles(trace, 3), split_roles(trace, 4)
    np.testing.assert_array_equal(first.certify, again.certify)
    assert not np.array_equal(first.certify, other.certify)
    # The certify documents come in drawn order: a test may not look at them in an order with a meaning.
    assert list(first.certify) != sorted(first.certify)


def test_documents_that_heads_were_fitted_on_judge_no_verdict() -> None:
    used = ("document 2", "document 5")
    fit, report = split_documents(traced(9, fitted=used), 0)
    assert sorted([*fit, *report]) == [0, 1, 3, 4, 6, 7, 8]


def test_overlap_is_found_by_digest() -> None:
    trace = traced(20)
    roles = split_roles(trace, 0)
    known = {role: digests(trace, getattr(roles, role)) for role in SAW}
    with pytest.raises(InputError, match="16 of the trace's documents were used to tune") as error:
        require_disjoint(trace, known)
    assert "document " in error.value.where
    require_disjoint(trace.subset(roles.report), known)
    # The same ids in another workload are other documents.
    require_disjoint(traced(20, workload={"name": "texts", "fingerprint": "w2"}), known)


@pytest.mark.parametrize("certify", [1, 2, 7, 22, 45])
def test_the_fewest_documents_that_leave_so_many_to_certify(certify: int) -> None:
    fewest = fewest_documents(certify)

    def suffices(documents: int) -> bool:
        roles = split_roles(traced(documents), seed=0)
        return len(roles.certify) >= certify and len(roles.search) > 0

    assert [count for count in range(1, fewest + 1) if suffices(count)] == [fewest]


def test_a_negative_seed_draws_nothing() -> None:
    require_seed(0)
    with pytest.raises(InputError, match="a seed of -1 is below 0"):
        split_roles(traced(5), seed=-1)
