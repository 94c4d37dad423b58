"""Records as JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.kit.typed import InvalidRecordError, finite_json, from_json, to_json


@dataclass(frozen=True)
class Part:
    name: str
    value: float


@dataclass(frozen=True)
class Whole:
    READ_OFF: ClassVar[tuple[str, ...]] = ("count",)

    parts: tuple[Part, ...]
    by_name: dict[str, int]
    note: str | None = None

    @property
    def count(self) -> int:
        return len(self.parts)


PARTS = st.builds(Part, st.text(), st.floats(allow_nan=False, allow_infinity=False))
WHOLES = st.builds(Whole, st.lists(PARTS).map(tuple), st.dictionaries(st.text(), st.integers()))


@given(WHOLES)
def test_a_record_reads_back_from_its_json(whole: Whole) -> None:
    text = json.dumps(to_json(whole), allow_nan=False)
    assert from_json(Whole, json.loads(text)) == whole
    assert json.loads(text)["count"] == whole.count


def test_what_is_not_finite_is_null_only_where_that_is_asked_for() -> None:
    values = {
        "array": np.array([1.0, np.nan]),
        "inner": (Part("a", math.inf), np.float64("nan"), np.int64(3)),
    }
    assert finite_json(values) == {"array": [1.0, None], "inner": [{"name": "a", "value": None}, None, 3]}
    assert to_json(values)["inner"][0]["value"] == math.inf


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"parts": [{"name": "a", "value": 1}, {"name": "b"}], "by_name": {}}, "parts[2].value"),
        ({"parts": [], "by_name": {"a": "b"}}, "by_name.a"),
        ({"by_name": {}}, "parts"),
        (3, ""),
    ],
)
def test_another_value_is_refused_with_the_place(value: object, place: str) -> None:
    with pytest.raises(InvalidRecordError) as caught:
        from_json(Whole, value)
    assert caught.value.place == place
