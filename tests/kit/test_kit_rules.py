"""What annotations say beyond types, refused wherever a value stands: argument, field, request."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Le

from offramp.errors import InputError
from offramp.kit import numbers
from offramp.kit.arguments import checked, settle_fields, settled
from offramp.kit.numbers import Count
from offramp.kit.request import Request
from offramp.kit.rules import Beside, Must, OneOf, only_if, only_with, suggest

TYPES = {
    name: hint
    for name, hint in vars(numbers).items()
    if hasattr(hint, "__metadata__") and hint.__origin__ in (int, float)
}


def beyond(limit: Any, kind: type) -> tuple[float, float]:
    """The last number that a limit allows, and the next one, which it does not."""
    ((name, bound),) = [
        (name, getattr(limit, name)) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)
    ]
    up = name in ("le", "lt")
    if kind is int:
        return bound, bound + 1 if up else bound - 1
    outwards = math.inf if up else -math.inf
    if name in ("ge", "le"):
        return float(bound), math.nextafter(bound, outwards)
    return math.nextafter(bound, -outwards), float(bound)


LIMITS = [(name, limit) for name, hint in TYPES.items() for limit in hint.__metadata__]


@pytest.mark.parametrize(("name", "limit"), LIMITS, ids=str)
def test_a_number_at_a_limit_is_taken_and_the_next_one_refused(name: str, limit: Any) -> None:
    hint = TYPES[name]
    within, outside = beyond(limit, hint.__origin__)
    assert settled("a_value", within, hint, name) == within
    with pytest.raises(InputError) as refused:
        settled("a_value", outside, hint, name)
    assert refused.value.what.startswith("a value must be ")
    assert refused.value.where == "a_value= (--a-value)"
    assert refused.value.fix.startswith("give a number that is ")
    assert refused.value.exit_code == 2


def test_every_type_of_numbers_is_tested() -> None:
    assert {"Count", "Whole", "Share", "Seconds", "Positive", "NotNegative"} <= set(TYPES)
    assert all(
        isinstance(limit, Ge | Le) or hasattr(limit, "gt") or hasattr(limit, "lt") for _, limit in LIMITS
    )


Even = Annotated[int, Must(lambda number: number % 2 == 0, "even", "give 2, say")]
Name = Annotated[str, OneOf("tree", lambda: ("oak", "elm"))]
NoMore = Beside(lambda least, given: least <= given.most, "at most {most}")
WithLeaves = only_if(lambda given: given.name == "oak", "of an {name}", "name=oak")


@checked
def planted(
    name: Name = "oak",
    even: Even = 2,
    most: Count = 5,
    least: Annotated[int, NoMore] = 1,
    pot: str | None = None,
    soil: Annotated[str | None, only_with("pot")] = None,
    acorns: Annotated[int, WithLeaves] = 0,
) -> tuple[Any, ...]:
    return name, even, most, least, pot, soil, acorns


@dataclass(frozen=True)
class Planted:
    name: Name = "oak"
    even: Even = 2
    most: Count = 5
    least: Annotated[int, NoMore] = 1
    pot: str | None = None
    soil: Annotated[str | None, only_with("pot")] = None
    acorns: Annotated[int, WithLeaves] = 0

    def __post_init__(self) -> None:
        settle_fields(self)


@dataclass(frozen=True, kw_only=True)
class Planting(Request):
    name: Name = "oak"
    even: Even = 2
    most: Count = 5
    least: Annotated[int, NoMore] = 1
    pot: str | None = None
    soil: Annotated[str | None, only_with("pot")] = None
    acorns: Annotated[int, WithLeaves] = 0


PLACES = pytest.mark.parametrize("make", [planted, Planted, Planting], ids=["argument", "field", "request"])


@PLACES
@pytest.mark.parametrize(
    ("given", "what", "fix"),
    [
        ({"name": "oakk"}, "unknown tree 'oakk'", "did you mean 'oak'? choose one of: oak, elm"),
        ({"name": "pine"}, "unknown tree 'pine'", "choose one of: oak, elm"),
        ({"name": 3}, "name cannot be int 3", "give str"),
        ({"even": 3}, "even must be even, not 3", "give 2, say"),
        ({"least": 6}, "least must be at most 5, not 6", "give at most 5"),
        ({"most": 2, "least": 3}, "least must be at most 2, not 3", "give at most 2"),
    ],
)
def test_a_rule_is_refused_wherever_it_stands(
    make: Callable[..., Any], given: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(InputError) as refused:
        make(**given)
    assert (refused.value.what, refused.value.fix) == (what, fix)
    assert next(reversed(given)) in refused.value.where


@PLACES
def test_what_keeps_the_rules_is_taken(make: Callable[..., Any]) -> None:
    made = make(name="oak", even=4, most=3, least=3, pot="clay", soil="peat", acorns=7)
    values = made if isinstance(made, tuple) else tuple(vars(made).values())
    assert values == ("oak", 4, 3, 3, "clay", "peat", 7)
    assert make(name="elm")  # a default is not given


@PLACES
@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"soil": "peat"}, r"soil=? means nothing without (--)?pot"),
        ({"name": "elm", "acorns": 2}, r"acorns=? means nothing of an elm"),
    ],
)
def test_what_means_nothing_beside_the_rest_is_refused(
    make: Callable[..., Any], given: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError, match=what) as refused:
        make(**given)
    assert refused.value.fix.startswith("add ")


def test_a_long_value_is_cut() -> None:
    with pytest.raises(InputError) as refused:
        planted(name="oak" * 100)
    assert len(refused.value.what) < 100


def test_near_names_are_offered_first() -> None:
    assert suggest("elmm", ["oak", "elm"]) == "did you mean 'elm'? choose one of: oak, elm"
    assert suggest("zzz", ["oak", "elm"]) == "choose one of: oak, elm"
