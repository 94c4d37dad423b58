"""Schemas of records: what is written fits them, and nothing else does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import jsonschema
import numpy as np
import pytest
from annotated_types import Ge

from offramp.kit.record_schema import schema_of
from offramp.kit.typed import FloatArray, IntArray, finite_json


@dataclass(frozen=True)
class Inner:
    IF_ANY: ClassVar[tuple[str, ...]] = ("note",)

    name: str
    loss: float
    note: str | None = None


@dataclass(frozen=True)
class Outer:
    READ_OFF: ClassVar[tuple[str, ...]] = ("twice",)
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("compute",)
    INLINE: ClassVar[tuple[str, ...]] = ("inner",)

    count: Annotated[int, Ge(1)]
    share: Annotated[float, Ge(0.0)]
    inner: Inner
    curve: FloatArray
    exits: IntArray
    compute: Callable[[], int] = field(default=int)

    @property
    def twice(self) -> int:
        """Read off the count."""
        return 2 * self.count


WRITTEN: dict[str, Any] = finite_json(
    Outer(2, 0.5, Inner("a", math.nan), np.array([1.0, np.nan]), np.array([3]))
)


def test_what_is_written_fits() -> None:
    assert WRITTEN == {
        "count": 2,
        "share": 0.5,
        "name": "a",
        "loss": None,
        "curve": [1.0, None],
        "exits": [3],
        "twice": 4,
    }
    jsonschema.validate(json.loads(json.dumps(WRITTEN, allow_nan=False)), schema_of(Outer))


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"share": None},
        {"loss": "a"},
        {"twice": "4"},
        {"curve": ["a"]},
        {"exits": [None]},
        {"inner": {"name": "a", "loss": 0.0}},
    ],
)
def test_nothing_else_does(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**WRITTEN, **change}, schema_of(Outer))


@pytest.mark.parametrize("name", list(WRITTEN))
def test_every_entry_has_to_be_there(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({key: part for key, part in WRITTEN.items() if key != name}, schema_of(Outer))


def test_what_an_inner_record_leaves_out_may_be_left_out() -> None:
    noted = {**WRITTEN, "note": "seen"}
    assert (
        finite_json(Outer(2, 0.5, Inner("a", math.nan, "seen"), np.array([1.0]), np.array([3])))["note"]
        == "seen"
    )
    jsonschema.validate(json.loads(json.dumps(noted)), schema_of(Outer))
