"""The options of a transform: the fields of its class, and how a text becomes the value of one."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

LONGEST_NUMBER = 9
"""Digits of a number at most: far more than layers, tokens or weights in a group."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a transform.

    read: from its text to the value; raises ValueError for a text that does not fit. wanted: what it takes,
    in words. default: the value if it is left out. required: it must be given.
    """

    name: str
    read: Callable[[str], Any]
    wanted: str
    default: Any = None
    required: bool = False

    @property
    def shown(self) -> str:
        """The option with its default, for lists: "group=32", or "drop=…" if it has none."""
        empty = self.default is None or self.default == ()
        return f"{self.name}=…" if empty else f"{self.name}={text_of(self.default)}"


def options_of(kind: type[Any]) -> tuple[Option, ...]:
    """The options of a transform's class: its dataclass fields, read by their types.

    Types: str, int, bool, and tuples of whole numbers, each also `| None`. Raises TypeError for a class that
    is no dataclass or has a field of another type.
    """
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is no dataclass")
    hints = typing.get_type_hints(kind)
    return tuple(_option(field, hints[field.name]) for field in dataclasses.fields(kind) if field.init)


def text_of(value: Any) -> str:
    """The value of an option as the grammar writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _option(field: dataclasses.Field[Any], hint: Any) -> Option:
    kinds = [kind for kind in _alternatives(hint) if kind is not types.NoneType]
    known = READERS.get(kinds[0]) if len(kinds) == 1 else None
    if known is None:
        raise TypeError(f"the field {field.name} has the type {hint}, which no text is read as")
    read, wanted = known
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = None if field.default is dataclasses.MISSING else field.default
    return Option(field.name, read, wanted, default, required)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return typing.get_args(hint)
    return (hint,)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER):
        raise ValueError(text)
    return int(text)


def _wholes(text: str) -> tuple[int, ...]:
    return tuple(_whole(item) for item in text.split("+"))


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "a word"),
    int: (_whole, "a whole number"),
    bool: (_truth, "true or false"),
    tuple[int, ...]: (_wholes, 'whole numbers joined by "+", as in 20+21'),
}
"""Readers by the type of the field, and what they take."""
