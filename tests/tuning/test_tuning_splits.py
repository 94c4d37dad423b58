from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from offramp.errors import InputError
from offramp.policies.binding import TunedOn, seen_notes, text_caveat
from offramp.tracing.trace import Trace, heads_documents
from offramp.tuning.splits import (
    digests,
    fewest_documents,
    require_disjoint,
    seen_documents,
    split_documents,
    split_roles,
    texts,
)
from offramp.workloads.shared_text import Sketcher, read_sketch, sharing, write_sketch
from policy_traces import make_trace

WORKLOAD = {"name": "texts", "fingerprint": "w1"}


SAW = ("search", "certify")
"""The roles whose documents shaped a tuned policy."""


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
    assert (len(fit), len(report)) == (3, 4)


def test_overlap_is_found_by_digest() -> None:
    trace = traced(20)
    roles = split_roles(trace, 0)
    known = TunedOn({role: digests(trace, getattr(roles, role)) for role in SAW})
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


# -- shared text


def said(number: int, words: int = 60) -> str:
    drawn = np.random.default_rng(number).integers(10_000, size=words)
    return " ".join(f"word{word}" for word in drawn)


def saying(trace: Trace, documents: Sequence[str]) -> Trace:
    """The trace, with what its documents say."""
    sketcher = Sketcher()
    trace.documents = tuple(
        dataclasses.replace(record, text=write_sketch(sketcher.sketch(text)))
        for record, text in zip(trace.documents, documents, strict=True)
    )
    return trace


def sketches(trace: Trace, places: Sequence[int]) -> list[Any]:
    return [read_sketch(str(trace.documents[place].text)) for place in places]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(0, 3))
@example([0, 1, *[2] * 20], 0)  # three texts, of which one alone fills a role: each role still has one
@example([0, 1, *[2] * 20], 1)
@example([0, 1, *[2] * 20], 2)
@example([0, 1, *[2] * 20], 3)
def test_no_two_roles_share_text(spoken: list[int], seed: int) -> None:
    trace = saying(traced(len(spoken)), [said(number) for number in spoken])
    roles = split_roles(trace, seed)
    halves = split_documents(trace, seed)
    for parts in ([roles.search, roles.certify, roles.report], halves):
        assert sorted(np.concatenate(parts)) == list(range(len(spoken)))
        for place, one in enumerate(parts):
            for other in parts[place + 1 :]:
                assert not sharing(sketches(trace, one), sketches(trace, other))
    if len(set(spoken)) >= 3:
        assert min(len(roles.search), len(roles.certify), len(roles.report)) >= 1


def test_documents_that_share_nothing_have_the_roles_of_their_ids_alone() -> None:
    plain, spoken = traced(50), saying(traced(50), [said(number) for number in range(50)])
    for role in ("search", "certify", "report"):
        before, now = (getattr(split_roles(trace, 1), role) for trace in (plain, spoken))
        np.testing.assert_array_equal(before, now)
    for before, now in zip(split_documents(plain, 1), split_documents(spoken, 1), strict=True):
        np.testing.assert_array_equal(before, now)


def test_a_document_that_repeats_another_goes_where_the_first_drawn_of_them_goes() -> None:
    plain = split_roles(traced(50), 1)
    first, other = int(plain.certify[0]), int(plain.report[0])
    spoken = [said(number) for number in range(50)]
    spoken[other] = f"{said(99, 20)} {spoken[first]}"
    roles = split_roles(saying(traced(50), spoken), 1)
    assert roles.certify[:2].tolist() == [first, other]
    np.testing.assert_array_equal(roles.search, plain.search)
    assert len(roles.report) == len(plain.report)  # another document is drawn in its place


def test_a_document_of_another_workload_that_lies_in_one_tuned_on_is_known() -> None:
    trace = saying(traced(20), [said(number, 300) for number in range(20)])
    roles = split_roles(trace, 0)
    tuned_on = TunedOn(
        {role: digests(trace, getattr(roles, role)) for role in SAW},
        {role: texts(trace, getattr(roles, role)) for role in SAW},
    )
    inside = [" ".join(said(int(role[0]), 300).split()[100:130]) for role in (roles.search, roles.report)]
    workload = {"name": "short", "fingerprint": "w2"}
    other = saying(traced(3, workload=workload), [inside[0], inside[1], said(77)])
    assert seen_documents(other, tuned_on) == {"search": ["document 0"], "certify": []}
    with pytest.raises(InputError, match="1 of the trace's documents were used to tune the policy, or share"):
        require_disjoint(other, tuned_on)
    (note,) = seen_notes(other, tuned_on)
    assert note.startswith("the policy was tuned on 1 of the trace's 3 documents, or on text that they share")
    require_disjoint(other.subset(np.array([1, 2])), tuned_on)
    # Without sketches only the same ids of the same workload are known.
    require_disjoint(other, TunedOn(tuned_on.digests))
    require_disjoint(traced(3, workload=workload), tuned_on)


def test_documents_that_heads_saw_by_their_text_have_no_other_role() -> None:
    trace = traced(9, fitted=("document 2",))
    trace.documents = tuple(
        dataclasses.replace(record, heads_saw=place == 5) for place, record in enumerate(trace.documents)
    )
    assert heads_documents(trace) == {"document 2", "document 5"}
    assert split_roles(trace, 0).heads.tolist() == [2, 5]
    assert sorted(np.concatenate(split_documents(trace, 0))) == [0, 1, 3, 4, 6, 7, 8]


def test_what_is_not_known_of_shared_text_is_said() -> None:
    old, new = traced(4), saying(traced(4), [said(number) for number in range(4)])
    assert text_caveat(new) is None
    caveat = text_caveat(old)
    assert caveat is not None
    assert "which an older offramp made" in caveat
    fitted = saying(traced(4, fitted=("document 2",)), [said(number) for number in range(4)])
    caveat = text_caveat(fitted)
    assert caveat is not None
    assert "fitted on 1 documents of other workloads, taken to share no text with these" in caveat
    fitted.provenance["request"]["heads"]["texts"] = True
    assert text_caveat(fitted) is None
