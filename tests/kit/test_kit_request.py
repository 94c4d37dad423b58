"""A request: what a class says of its fields is the command line, the call in Python, and what is refused."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer
from annotated_types import Ge, Le
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from offramp.cli.command import command
from offramp.commands import words_of
from offramp.errors import InputError
from offramp.kit.numbers import Number
from offramp.kit.request import (
    Kinds,
    Options,
    Request,
    added_later,
    argument,
    as_call,
    fields_of,
    flags,
    hidden,
    not_identity,
    not_repeated,
    one_word,
    python_only,
)
from offramp.kit.rules import only_if, only_with

MINUTES = 3.5
FEWEST = 0


@dataclass(frozen=True, kw_only=True)
class Sizes(Options):
    """A part of several requests."""

    tokens: Annotated[int, Ge(-1), Le(10**9)] = 16
    """How many
    tokens."""
    share: Number | None = None
    """Of something."""

    def check(self) -> None:
        """No tokens are none."""
        super().check()
        if self.tokens < 1:
            raise InputError("no tokens", where="--tokens")


@dataclass(frozen=True, kw_only=True)
class Bake(Sizes, Request):
    """Bake a cake.

    And more of it.
    """

    cake: Annotated[str, argument] = field(kw_only=False)
    """What to bake."""
    layers: Annotated[str | Sequence[str], flags("--layer", "-l"), not_identity] = ()
    """May be given several times."""
    oven: Annotated[bool, flags("--oven/--no-oven")] = True
    """Use one."""
    minutes: Annotated[float | None, only_with("oven"), not_repeated] = None
    """By default {MINUTES:g}."""
    glaze: Annotated[
        str | None, only_if(lambda asked: len(asked.layers) > FEWEST, "on {cake} without layers", "--layer")
    ] = None
    """Of the top."""
    gloss: Annotated[int, only_with("glaze"), added_later] = 0
    """Of the glaze."""
    plate: Path | None = None
    """Where it stands."""
    slices: Annotated[str | Sequence[int] | None, one_word] = None
    """Where it is cut."""
    secret: Annotated[bool, hidden] = False
    """Not shown."""
    progress: Annotated[bool, python_only] = False
    """Say something."""

    def settle(self) -> dict[str, Any]:
        """Cakes in small letters."""
        return {**super().settle(), "cake": self.cake.lower()}

    def carry_out(self) -> str:
        """The cake."""
        return f"{self.cake} of {self.tokens}"


bake = as_call(Bake)


def asked_for(line: str) -> Bake:
    """The request that a command line makes."""
    asked: list[Bake] = []
    app = typer.Typer()
    app.callback()(lambda: None)
    command(app, "bake", Bake, lambda request, out: asked.append(request))
    result = CliRunner().invoke(app, ["bake", *shlex.split(line)])
    if result.exception is not None:
        raise result.exception
    return asked[0]


def help_text() -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    command(app, "bake", Bake, lambda request, out: None)
    shown = CliRunner().invoke(app, ["bake", "--help"], env={"COLUMNS": "200"}).output
    return " ".join(shown.split())


def test_help_is_what_stands_below_the_fields() -> None:
    shown = help_text()
    for said in ("Bake a cake.", "And more of it.", "What to bake.", "How many tokens.", "By default 3.5."):
        assert said in shown
    for option in ("--layer", "-l", "--no-oven", "--plate", "--json", "[default: 16]"):
        assert option in shown
    assert "--secret" not in shown
    assert "--progress" not in shown


def test_own_fields_come_first_and_every_field_is_told() -> None:
    names = [field.name for field in fields_of(Bake)]
    assert names[0] == "cake"
    assert names[-2:] == ["tokens", "share"]
    assert all(field.doc() for field in fields_of(Bake))


def test_a_field_that_is_declared_again_is_told_as_before() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Small(Bake):
        """Bake a small one."""

        tokens: Annotated[int, only_with("glaze")] = 2

    tokens = next(field for field in fields_of(Small) if field.name == "tokens")
    assert (tokens.doc(), tokens.default) == ("How many tokens.", 2)
    with pytest.raises(InputError, match="--tokens means nothing without --glaze"):
        Small("rye", tokens=3)


def test_a_line_and_a_call_make_the_same_request() -> None:
    line = asked_for("Rye -l a -l b --no-oven --tokens 9 --share 0.5 --plate here --secret")
    assert asked_for("rye --slices 1,2") == Bake("rye", slices="1,2")
    call = Bake(
        "rye", layers=["a", "b"], oven=False, tokens=np.int64(9), share=0.5, plate=Path("here"), secret=True
    )
    assert line == call
    assert asked_for("rye") == Bake("rye")
    assert bake("Rye", tokens=3) == "rye of 3"


def test_the_call_shows_its_fields() -> None:
    signature = inspect.signature(bake)
    assert next(iter(signature.parameters)) == "cake"
    assert str(signature.parameters["tokens"]) == "tokens: 'int' = 16"
    assert signature.parameters["layers"].annotation == "str | Sequence[str]"
    assert "tokens: How many tokens." in (inspect.getdoc(bake) or "")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"minutes": 2.0, "oven": False}, "--minutes means nothing with --no-oven"),
        ({"glaze": "sugar"}, "--glaze means nothing on rye without layers"),
        ({"gloss": 2}, "--gloss means nothing without --glaze"),
        ({"tokens": 0}, "no tokens"),
        ({"tokens": 1.5}, "tokens cannot be float 1.5"),
        ({"tokens": True}, "tokens cannot be bool True"),
        ({"tokens": 10**16}, "tokens must be 1,000,000,000 at most"),
        ({"share": float("nan")}, "share must be a finite number, not nan"),
        ({"plate": 3}, "plate cannot be int 3"),
        ({"oven": "no"}, "oven cannot be str 'no'"),
    ],
)
def test_what_means_nothing_or_cannot_be_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as refused:
        Bake("rye", **options)
    assert refused.value.what.startswith(what)
    assert refused.value.exit_code == 2


def test_what_is_to_be_added_is_said() -> None:
    with pytest.raises(InputError) as refused:
        asked_for("rye --glaze sugar")
    assert refused.value.where == "--glaze"
    assert refused.value.fix == "add --layer, or leave --glaze out"


def test_the_identity_is_what_changes_the_answer() -> None:
    plain = Bake("rye").identity()
    assert Bake("rye", layers=["a"], progress=True).identity() == plain
    assert "gloss" not in plain
    glazed = Bake("rye", layers=["a"], glaze="sugar", gloss=1).identity()
    assert (glazed["glaze"], glazed["gloss"]) == ("sugar", 1)
    assert Bake("rye", tokens=9).identity() != plain


@given(
    tokens=st.integers(1, 10**6),
    share=st.none() | st.floats(0.0, 1.0).map(lambda share: float(f"{share:g}")),
    layers=st.lists(
        st.text("abc -'\"$", min_size=1).filter(lambda text: not text.startswith("-")), max_size=3
    ),
    oven=st.booleans(),
    glaze=st.none() | st.just("two words"),
)
def test_what_is_given_makes_the_same_request_again(
    tokens: int, share: float | None, layers: list[str], oven: bool, glaze: str | None
) -> None:
    asked = Bake("rye", tokens=tokens, share=share, layers=layers, oven=oven, glaze=glaze if layers else None)
    words = words_of(asked.cake, **asked.given())
    assert asked_for(shlex.join(words)) == asked


@dataclass(frozen=True, kw_only=True)
class Loaf(Request):
    """A loaf."""

    size: int = 2
    """Of all."""
    crust: float | None = None
    """How thick."""


@dataclass(frozen=True, kw_only=True)
class Roll(Request):
    """A roll."""

    size: int = 1500
    """Of all."""
    seeds: Annotated[bool, flags("--seeds/--no-seeds")] = True
    """On it."""


BREADS = Kinds("loaf or roll.", {"loaf": Loaf, "roll": Roll})


def bread(line: str) -> tuple[list[Any], str]:
    """What a command line of one of two kinds asks for, and what it prints."""
    asked: list[Any] = []
    app = typer.Typer()
    app.callback()(lambda: None)
    command(app, "bread", BREADS, lambda request, out: asked.append(request), doc="Bread.")
    result = CliRunner().invoke(app, ["bread", *shlex.split(line)], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return asked, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("", Loaf()),
        ("--crust 0.5 --size 3", Loaf(crust=0.5, size=3)),
        ("--kind roll", Roll()),
        ("--kind roll --no-seeds", Roll(seeds=False)),
    ],
)
def test_a_kind_has_its_own_fields_and_defaults(line: str, request_: Any) -> None:
    assert bread(line)[0] == [request_]


def test_help_says_of_which_kind_a_field_is() -> None:
    shown = bread("--help")[1]
    for said in (
        *("Bread.", "loaf or roll. [default: loaf]", "loaf: How thick.", "roll: On it. By default --seeds."),
        "Of all. By default 2, 1,500 of roll.",
    ):
        assert said in shown
    assert "loaf: Of all." not in shown


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("--seeds", "--seeds means nothing with --kind loaf"),
        ("--no-seeds", "--no-seeds means nothing with --kind loaf"),
        ("--kind roll --crust 1", "--crust means nothing with --kind roll"),
        ("--kind rol", "there is no kind 'rol'"),
        ("--size 0.5", ""),
    ],
)
def test_a_field_of_another_kind_is_refused(line: str, what: str) -> None:
    if not what:
        assert bread(line)[0] == []
        return
    with pytest.raises(InputError) as refused:
        bread(line)
    assert refused.value.what == what
