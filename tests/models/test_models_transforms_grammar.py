from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import InputError, OfframpError
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.quantise import GROUPS, Int4, Int8
from offramp.models.transforms.transform import (
    Transform,
    describe_transforms,
    options_of,
    parse_transform,
    parse_transforms,
    text_of,
)


@pytest.mark.parametrize(
    ("text", "transform", "canonical"),
    [
        ("int8", Int8(), "int8"),
        ("int4", Int4(), "int4:group=32"),
        ("int4:group=128", Int4(group=128), "int4:group=128"),
        ("prune:drop=21+20", Prune(drop=(20, 21)), "prune:drop=20+21"),
        ("prune:layers=6,by=angular", Prune(by="angular", layers=6), "prune:by=angular,layers=6"),
        (
            "prune:tokens=64,by=influence,workload=code,layers=2",
            Prune(by="influence", layers=2, workload="code", tokens=64),
            "prune:by=influence,layers=2,workload=code,tokens=64",
        ),
        (
            "prune:by=influence,layers=2,trace=t",
            Prune(by="influence", layers=2, trace="t"),
            "prune:by=influence,layers=2,trace=t",
        ),
    ],
)
def test_texts_and_what_they_mean(text: str, transform: object, canonical: str) -> None:
    parsed = parse_transform(text)
    assert parsed == transform
    assert parsed.text == canonical
    assert parse_transform(canonical) == parsed


@given(
    st.one_of(
        st.just(Int8()),
        st.builds(Int4, group=st.sampled_from(GROUPS)),
        st.builds(Prune, drop=st.sets(st.integers(1, 999), min_size=1).map(tuple)),
        st.builds(
            Prune,
            by=st.sampled_from(["angular", "influence"]),
            layers=st.integers(1, 99),
            tokens=st.integers(1, 10**8),
            workload=st.sampled_from(["prose", "code", "txt:a b/c.txt", "hf:owner/set#split#field"]),
        ),
    )
)
def test_every_transform_reads_back_from_its_text(transform: Any) -> None:
    assert parse_transform(transform.text) == transform


def read_or_refused(text: str) -> Transform | InputError:
    try:
        return parse_transform(text)
    except InputError as error:
        return error


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_three_parts(text: str) -> None:
    for whole in (text, f"int4:{text}", f"prune:{text}", f"int4:group={text}"):
        found = read_or_refused(whole)
        if isinstance(found, InputError):
            assert all((found.what, found.where, found.fix))
        else:
            assert parse_transform(found.text) == found


@pytest.mark.parametrize(
    ("text", "what", "fix", "offset"),
    [
        ("int9", "unknown transform 'int9'", "did you mean 'int8'? choose one of: int4, int8, prune", 0),
        ("", "unknown transform ''", "choose one of", 0),
        (" int8", "unknown transform ' int8'", "did you mean 'int8'?", 0),
        ("int8:", "an option of int8 is missing here", "write int8 alone", 5),
        ("int8:bits=3", "int8 has no option 'bits'", "write int8 alone", 5),
        ("int4:grup=32", "int4 has no option 'grup'", "did you mean 'group'?", 5),
        ("int4:group", "group has no value", "write group= and a whole number", 10),
        ("int4:group=many", "group=many does not fit", "give a whole number", 11),
        ("int4:group=³", "group=³ does not fit", "give a whole number", 11),
        ("int4:group=32,group=64", "group is given twice", "give it once", 14),
        ("prune:drop=20+21,", "an option of prune is missing here", "choose one of: by, drop", 17),
        ("prune:drop=20++21", "drop=20++21 does not fit", 'joined by "+"', 11),
    ],
)
def test_the_place_at_fault_is_shown(text: str, what: str, fix: str, offset: int) -> None:
    with pytest.raises(InputError) as caught:
        parse_transform(text)
    assert what == caught.value.what
    assert fix in caught.value.fix
    *_, shown, caret = caught.value.where.split("\n")
    assert shown == f"  {text}"
    assert caret.index("^") == offset + 2


def test_values_that_do_not_go_together_name_the_text() -> None:
    for text, what in [
        ("int4:group=33", "group must be one of 32, 64 and 128 weights, not 33"),
        ("prune:by=angulr,layers=3", "unknown measure 'angulr'"),
    ]:
        with pytest.raises(InputError, match=what) as caught:
            parse_transform(text)
        assert text in caught.value.where


def test_several_keep_their_order_and_names_are_distinct() -> None:
    assert parse_transforms([]) == ()
    assert parse_transforms(["prune:drop=2", "int8"]) == (Prune(drop=(2,)), Int8())
    with pytest.raises(InputError, match="prune is given twice") as caught:
        parse_transforms(["prune:drop=2", "int8", "prune:drop=3"])
    assert caught.value.where == "prune:drop=2, prune:drop=3"


@dataclasses.dataclass(frozen=True)
class Needy:
    """Does nothing, but wants to be told how."""

    name: ClassVar[str] = "needy"
    how: str
    often: int = 2
    strict: bool = False

    @property
    def text(self) -> str:
        return f"needy:how={self.how},often={self.often},strict={text_of(self.strict)}"

    def check(self, dtype: str | None = None) -> None:
        """Everything can do nothing."""

    def apply(self, model: Any) -> Any:
        """Do nothing."""
        return model


class Plain:
    """No dataclass, so that nothing says what its options are."""

    name = text = check = apply = "plain"


@dataclasses.dataclass(frozen=True)
class Fractional:
    """Has a field that the grammar cannot write."""

    name: ClassVar[str] = "fractional"
    text = check = apply = None
    share: float = 0.5


def test_a_plug_in_is_read_like_the_built_in_ones(plug_in: Any) -> None:
    known = plug_in("needy", f"{__name__}:Needy")
    assert list(known) == ["int8", "int4", "prune", "needy"]
    assert known["needy"] is Needy
    assert parse_transform("needy:how=gently,strict=true") == Needy("gently", strict=True)
    assert [line.name for line in describe_transforms()][-1] == "needy:how=…,often=2,strict=false"
    with pytest.raises(InputError, match="needy needs how=") as caught:
        parse_transform("needy:often=3")
    assert caught.value.fix == "add how=, a word"
    with pytest.raises(InputError, match="strict=yes does not fit"):
        parse_transform("needy:how=gently,strict=yes")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("needy", f"{__name__}:Missing", "cannot be loaded"),
        ("needy", "no_such_package:Needy", "cannot be loaded"),
        ("needy", "dataclasses:dataclass", "not the class of a transform"),
        ("needy", "dataclasses:Field", "not the class of a transform"),
        ("needful", f"{__name__}:Needy", "calls itself 'needy'"),
        ("plain", f"{__name__}:Plain", "cannot be written as text: Plain is no dataclass"),
        ("fractional", f"{__name__}:Fractional", "the field share has the type"),
    ],
)
def test_a_broken_plug_in_is_named(plug_in: Any, name: str, value: str, what: str) -> None:
    plug_in(name, value)
    with pytest.raises(OfframpError, match=what) as caught:
        parse_transform(f"{name}:how=so")
    assert f"{name} = {value}" in caught.value.where


def test_lists_say_every_option_and_its_default() -> None:
    described = {line.name.partition(":")[0]: line for line in describe_transforms()}
    assert described["int8"].name == "int8"
    assert described["int4"].name == "int4:group=32"
    assert all(line.description.endswith(".") for line in described.values())
    assert [option.name for option in options_of(Prune)][:3] == ["by", "layers", "drop"]
