"""Where a key of a TOML file stands: its line, which tomllib does not give."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Location = tuple[str | int, ...]
"""Keys and places in lists (from 0), from the top of the file: ("models", 1, "stage")."""

_BRACKETS = ("", "]", "}", "]]", "]}", "}]", "]}]", "}]}", "]]]")
_CLOSINGS = tuple(quotes + brackets for brackets in _BRACKETS for quotes in ("", '"""', "'''"))
"""What makes the first lines of a file whole: one may end within a list or a text of several lines."""


def line_at(text: str, location: Location) -> int:
    """The line (1 = first) of a location in a file that tomllib has read, or of the nearest one around it.

    A table's line is that of its header; the whole file's, (), is 1.
    """
    location = location[: _depth(tomllib.loads(text), location)]
    lines = text.split("\n")
    first, last = 1, len(lines)
    while first < last:
        middle = (first + last) // 2
        if _depth(_begun(lines[:middle]), location) == len(location):
            last = middle
        else:
            first = middle + 1
    return first


def _begun(lines: Sequence[str]) -> dict[str, Any]:
    """What the first lines of a file say."""
    for end in range(len(lines), 0, -1):
        for closing in _CLOSINGS:
            with contextlib.suppress(tomllib.TOMLDecodeError):
                return tomllib.loads("\n".join(lines[:end]) + "\n" + closing)
    return {}


def places_of(values: Any, location: Location) -> tuple[int, ...]:
    """A location, as far as a file has it, by places in the order of the file."""
    places = []
    for part in location:
        length = len(values) if isinstance(values, dict | list) else 0
        keys: list[str | int] = list(values) if isinstance(values, dict) else list(range(length))
        if part not in keys:
            break
        places.append(keys.index(part))
        values = values[part]
    return tuple(places)


def _depth(values: Any, location: Location) -> int:
    """How many parts of a location a file has."""
    return len(places_of(values, location))


def place_in(path: Path, text: str, location: Location) -> str:
    """A place in a file, for an error: "STUDY.toml, line 12, models[2].stage".

    A key that is missing gets the line of the table it belongs to. text: "" for a file without lines.
    """
    place = f"{path}, line {line_at(text, location)}" if text else str(path)
    return f"{place}, {shown_location(location)}" if location else place


def shown_location(location: Location) -> str:
    """As people write it, places counted from 1: models[2].stage."""
    shown = ""
    for part in location:
        shown += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if shown else str(part)
    return shown
