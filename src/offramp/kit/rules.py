"""`Must`, `OneOf` and `Beside`: what an annotation says of a value beyond its type and limits.

    exits: Annotated[tuple[int, ...], Must(ascend, "ascending, each once")]
    search: Annotated[str, OneOf("search", lambda: SEARCHES)] = "families"
    last: Annotated[int, Beside(lambda last, given: last <= given.first, "no deeper than {first}")]

`offramp.kit.arguments` holds arguments, fields of dataclasses and requests against them, so that a refusal is
written where the value is declared.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from offramp.kit.numbers import LIMITS, shown_number, within

SHOWN = 60
"""Characters that a message repeats of what was given."""


@dataclass(frozen=True)
class Refusal:
    """What is wrong with a value, and what to give instead."""

    what: str
    fix: str


@dataclass(frozen=True)
class Must:
    """A value that is refused unless `holds` is true of it. what: it must be, in words."""

    holds: Callable[[Any], object]
    what: str
    fix: str = ""
    """By default what it must be."""


@dataclass(frozen=True)
class OneOf:
    """The name of one of the things that there are. what: they are; names: of all of them, asked for late."""

    what: str
    names: Callable[[], Collection[str]]


@dataclass(frozen=True)
class Beside:
    """A value that is refused unless `holds` is true of it and all that are given with it.

    holds: of the value, and of an object with all of them by name. what: it must be, in words, with any of
    them in braces, or what says it of that object.
    """

    holds: Callable[[Any, Any], object]
    what: str | Callable[[Any], str]
    fix: str = ""
    """By default what it must be; with names in braces as well."""


def is_rule(mark: object) -> bool:
    """Whether this says of a value alone what it must be, of what an annotation says."""
    return type(mark) in LIMITS or isinstance(mark, Must | OneOf)


def refusal(name: str, value: Any, rules: Iterable[Any]) -> Refusal | None:
    """What is wrong with a value by the rules of its annotation; None if it keeps them all."""
    words = name.replace("_", " ")
    for rule in rules:
        if isinstance(rule, OneOf):
            names = rule.names()
            if value not in names:
                return Refusal(f"unknown {rule.what} {shown(value)}", suggest(value, names))
        elif isinstance(rule, Must):
            if not rule.holds(value):
                return Refusal(
                    f"{words} must be {rule.what}, not {shown(value)}", rule.fix or f"give {rule.what}"
                )
        elif outside := within(value, [rule]):
            return Refusal(
                f"{words} must be {outside}, not {shown_number(value)}", f"give a number that is {outside}"
            )
    return None


def refusal_beside(name: str, given: Any, rules: Iterable[Any]) -> Refusal | None:
    """What is wrong with a value beside the others of an object by the rules of its annotation."""
    for rule in rules:
        if isinstance(rule, Beside) and not rule.holds(value := getattr(given, name), given):
            what = rule.what.format_map(vars(given)) if isinstance(rule.what, str) else rule.what(given)
            said = f"{name.replace('_', ' ')} must be {what}, not {shown(value)}"
            return Refusal(said, rule.fix.format_map(vars(given)) or f"give {what}")
    return None


def shown(value: Any) -> str:
    """A value of any size in a message."""
    if isinstance(value, int | float):
        return shown_number(value)
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def suggest(name: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown name: the nearest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    choices = "choose one of: " + ", ".join(names)
    return f"did you mean {near[0]!r}? {choices}" if near else choices
