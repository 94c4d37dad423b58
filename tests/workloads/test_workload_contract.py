from __future__ import annotations

import dataclasses
import itertools

import pytest

from offramp.errors import WorkloadError
from offramp.testing import check_workload, check_workload_source
from offramp.workloads.workload import Document, Workload, WorkloadSource

GOOD = Workload("poems", "text", (Document("a", "A"), Document("b", "B")), licence="CC0-1.0", source="here")
SOURCE = WorkloadSource("poems", lambda argument: GOOD, "text", "two", "CC0-1.0", "poems")


def test_a_good_workload_is_returned() -> None:
    assert check_workload(GOOD) is GOOD
    assert check_workload(lambda: GOOD) is GOOD
    assert check_workload_source(SOURCE) is GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": ()}, "no documents"),
        ({"documents": (Document("a", "A"), Document("a", "B"))}, "same id"),
        ({"documents": (Document("a", ""),)}, "is empty"),
        ({"documents": (Document("a", "\udcff"),)}, "surrogate"),
        ({"licence": ""}, "licence is not set"),
        ({"source": " "}, "source is not set"),
        ({"name": ""}, "name is not set"),
        ({"mode": "audio"}, "the mode is 'audio'"),
        ({"chat": True}, "chat template"),
    ],
)
def test_each_broken_rule_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_workload(dataclasses.replace(GOOD, **change))


def test_two_loads_must_be_equal() -> None:
    count = itertools.count()

    def shuffled() -> Workload:
        return dataclasses.replace(GOOD, documents=GOOD.documents[:: -1 if next(count) else 1])

    with pytest.raises(WorkloadError, match="differ from document 'a' on"):
        check_workload(shuffled)

    def shorter() -> Workload:
        return dataclasses.replace(GOOD, documents=GOOD.documents[: 1 + next(count) % 2])

    with pytest.raises(WorkloadError, match="different fingerprints"):
        check_workload(shorter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"description": ""}, "description is not set"),
        ({"name": "a:b"}, "colon"),
        ({"mode": "generation"}, "says mode 'generation'"),
    ],
)
def test_a_source_must_say_what_is_true(change: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_workload_source(dataclasses.replace(SOURCE, **change))


def test_a_fingerprint_follows_the_traced_text_only() -> None:
    same = dataclasses.replace(GOOD, name="other", source="there")
    assert same.fingerprint == GOOD.fingerprint
    others = [
        dataclasses.replace(GOOD, documents=GOOD.documents[::-1]),
        dataclasses.replace(GOOD, documents=(Document("a", "A"), Document("b", "b"))),
        dataclasses.replace(GOOD, mode="generation"),
        dataclasses.replace(GOOD, mode="generation", chat=True),
    ]
    assert len({GOOD.fingerprint, *(other.fingerprint for other in others)}) == 5
