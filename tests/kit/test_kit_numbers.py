"""How large numbers may be: wherever people give them, and however."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from offramp.cli.command import _kind
from offramp.cli.main import app
from offramp.errors import InputError
from offramp.kit.given_file import Minutes, Number, Positive, Seconds, TomlTable, Whole, checked, read_toml
from offramp.kit.numbers import LARGEST_COUNT, whole_number, whole_runs
from offramp.kit.request import Field, fields_of, missing
from offramp.training.request import GateTraining


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[
            ("7", 7),
            ("007", 7),
            ("0", None),
            ("-1", None),
            ("+1", None),
            ("", None),
            ("1e3", None),
            ("1_0", None),
        ],
        *[("\u0667", None), ("\u00b2", None), ("9" * 5000, None), ("0" * 5000, None)],
        *[(str(LARGEST_COUNT), LARGEST_COUNT), (str(LARGEST_COUNT + 1), None)],
    ],
)
def test_whole_numbers_as_people_write_them(text: str, number: int | None) -> None:
    assert whole_number(text) == number


def commands(of: typer.Typer) -> Iterator[Any]:
    yield from (command.callback for command in of.registered_commands)
    for group in of.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance)


STAND_INS = {"str": "x", "Path": Path("x"), "int": 1, "float": 1.0, "bool": True}


def stand_in(field: Field) -> Any:
    """What a field may be given, as far as its type goes."""
    kind, many = _kind(field.hint)
    return (STAND_INS[kind.__name__],) if many else STAND_INS[kind.__name__]


@pytest.mark.parametrize("number", [2**80, 1e308, math.inf, math.nan])
def test_every_command_refuses_such_numbers_before_it_begins(number: float) -> None:
    options = [
        (request, field)
        for command in commands(app)
        for request in command.requests
        for field in fields_of(request)
        if any(word in str(field.hint) for word in ("int", "float"))
    ]
    assert len(options) > 40
    for request, field in options:
        if number == 2**80 and _kind(field.hint)[0] is not int:
            continue  # which other numbers may be
        needed = {field.name: stand_in(field) for field in fields_of(request) if missing(field)}
        needed |= {"floor": 0.9} if request is GateTraining else {}
        wrong = (number,) if _kind(field.hint)[1] else number
        said = rf"^{field.name.replace('_', '.')} (cannot|must) be|^value must be"
        with pytest.raises(InputError, match=said):
            request(**{**needed, field.name: wrong})


class Numbers(TomlTable):
    """A table of each kind of number."""

    whole: Whole = 0
    number: Number = 0.0
    positive: Positive = 1.0
    minutes: Minutes = 1.0
    seconds: Seconds = 1.0


@pytest.mark.parametrize(
    "entry",
    [
        f"whole = {2**80}",
        "number = 1e308",
        "number = -1e308",
        "number = nan",
        f"number = {10**400}",
        "positive = 0.0",
        "positive = 1e-308",
        "positive = 1e308",
        "minutes = 1e308",
        "seconds = inf",
        "positive = " + "[" * 5000,
    ],
)
def test_numbers_in_files_are_bounded(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "numbers.toml"
    path.write_text(f"\n{entry}\n")
    with pytest.raises(InputError) as refused:
        checked(Numbers, *read_toml(path, "file"))
    assert f"{path}, line 2" in refused.value.where or "[[[" in entry


def test_runs_of_whole_numbers() -> None:
    assert whole_runs([1, 2, 3, 7, 9, 10]) == [(1, 3), (7, 7), (9, 10)]
    assert whole_runs([]) == []
