"""`Must`, `OneOf`, `Beside`, `only_with`, `only_if`: what an annotation says of a value beyond its type.

    exits: Annotated[tuple[int, ...], Must(ascend, "ascending, each once")]
    search: Annotated[str, OneOf("search", lambda: SEARCHES)] = "families"
    last: Annotated[int, Beside(lambda last, given: last <= given.first, "no deeper than {first}")]
    minutes: Annotated[float | None, only_with("decode")] = None

`offramp.kit.arguments` holds arguments, fields of dataclasses and requests against them, so that a refusal is
written where the value is declared.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from offramp.kit.numbers import LIMITS, Count, shown_number, within

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

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

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._read, handler(source))

    def _read(self, value: Any) -> Any:
        """A value of a record in a file (`offramp.kit.typed`)."""
        if not self.holds(value):
            plain = value if isinstance(value, str | int | float) else None
            raise ValueError(f"it must be {self.what}{_not(plain)}")
        return value


@dataclass(frozen=True)
class OneOf:
    """The name of one of the things that there are."""

    what: str
    """They are: "signal"."""
    names: Callable[[], Collection[str]]
    """Of all of them, asked for late."""


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


@dataclass(frozen=True)
class OnlyIf:
    """Where a field means something."""

    holds: Callable[[Any], object]
    """Of the whole request."""
    beside: str
    """Where it does not: "at batch 1", with fields in braces."""
    give: str = ""
    """What to add for it to have a meaning, "" if nothing can give it one."""


def only_if(holds: Callable[[Any], object], beside: str, give: str = "") -> OnlyIf:
    """A field that means nothing unless `holds` is true of the request: refused where it is given then."""
    return OnlyIf(holds, beside, give)


@dataclass(frozen=True)
class OnlyWith:
    """A field that means something beside another one, given or on."""

    other: str


def only_with(other: str) -> OnlyWith:
    """A field that means nothing unless another one is given, or on: refused where it is given then."""
    return OnlyWith(other)


def is_rule(mark: object) -> bool:
    """Whether this says of a value alone what it must be, of what an annotation says."""
    return type(mark) in LIMITS or isinstance(mark, Must | OneOf)


def is_beside(mark: object) -> bool:
    """Whether this says what a value must be beside others."""
    return isinstance(mark, Beside | OnlyIf | OnlyWith)


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
                return Refusal(f"{words} must be {rule.what}{_not(value)}", rule.fix or f"give {rule.what}")
        elif outside := within(value, [rule]):
            what = f"{words} must be {outside}, not {shown_number(value)}"
            return Refusal(what, f"give {'' if 'number' in outside else 'a number that is '}{outside}")
    return None


def refusal_beside(
    name: str,
    given: Any,
    rules: Iterable[Any],
    defaults: Mapping[str, Any],
    option: Callable[[str, Any], str] = lambda name, value: f"{name}=",
) -> Refusal | None:
    """What is wrong with a value beside the others of an object by the rules of its annotation.

    defaults: of all of them that have one, by name. option: how one is given, by its name and value.
    """
    value = getattr(given, name)
    for rule in rules:
        if isinstance(rule, Beside):
            if not rule.holds(value, given):
                what = rule.what.format_map(vars(given)) if isinstance(rule.what, str) else rule.what(given)
                said = f"{name.replace('_', ' ')} must be {what}{_not(value)}"
                return Refusal(said, rule.fix.format_map(vars(given)) or f"give {what}")
        elif isinstance(rule, OnlyIf | OnlyWith) and value != defaults.get(name):
            beside, give = _meaningless(rule, given, defaults, option)
            if beside:
                own = option(name, value)
                fix = f"add {give}, or leave {own} out" if give else f"leave {own} out"
                return Refusal(f"{own} means nothing {beside}", fix)
    return None


def _meaningless(
    rule: OnlyIf | OnlyWith, given: Any, defaults: Mapping[str, Any], option: Callable[[str, Any], str]
) -> tuple[str, str]:
    """Beside what a value means nothing, "" where it means something, and what gives it a meaning."""
    if isinstance(rule, OnlyIf):
        return ("", "") if rule.holds(given) else (rule.beside.format_map(vars(given)), rule.give)
    other = getattr(given, rule.other)
    if other not in (None, False, ()):
        return "", ""
    if defaults.get(rule.other) is True:
        return f"with {option(rule.other, False)}", ""
    return f"without {option(rule.other, True)}", option(rule.other, True)


def _not(value: Any) -> str:
    """What a value is and must not be; nothing of one that was not given."""
    return "" if value is None else f", not {shown(value)}"


def shown(value: Any) -> str:
    """A value of any size in a message."""
    if isinstance(value, int | float):
        return shown_number(value)
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def suggest(name: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown name: the nearest known one, or all of them."""
    names = list(known)
    if not names:
        return "there is none here: install the package that brings it"
    return nearest(name, names) + "choose one of: " + ", ".join(names)


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean ...? " of the name that is most like an unknown one, "" where none is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def near_paths(path: str | Path) -> list[str]:
    """What lies in the folder of a path and is spelt much like it."""
    parent = Path(path).expanduser().parent
    entries = sorted(os.listdir(parent)) if parent.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, entries, cutoff=0.7)
    return [str(parent / entry) for entry in near]


Worth = Annotated[
    float, Must(lambda worth: 0 <= worth < 1, "a share, 0 or more and less than 1", "give 0.05 for 5 %")
]
"""A gain in speed that matters."""
Margin = Annotated[
    float, Must(lambda worth: 0 < worth < 1, "a share above 0 and below 1", "give 0.05 for 5 %")
]
"""The same where what gains less is equivalent: nothing is equivalent within no gain at all."""


Temperature = Annotated[
    float, Must(lambda value: value == 0 or 1e-4 <= value < 1e6, "0 (greedy), or from 0.0001 to below 1e6")
]
TopP = Annotated[float, Gt(0), Le(1)]
"""How text is sampled."""


Rising = Annotated[
    tuple[Annotated[Count, Le(9_999)], ...],
    Must(
        lambda sizes: sizes and list(sizes) == sorted(set(sizes)),
        "rising, each given once",
        "write each size once, the smallest first, as in 1,2,4,8",
    ),
]
"""Sizes, each once, the smallest first."""
