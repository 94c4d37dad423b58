"""What is wrong with a study file, in words, with the line, the key and the nearest known name."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from offramp.errors import InputError
from offramp.records.toml_lines import Location, line_at, place_in

LINE_OF_ERROR = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown name: the nearest known one, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose one of: {', '.join(names)}"


def not_toml(path: Path, error: Exception) -> InputError:
    """The error for a file that tomllib does not read."""
    found = LINE_OF_ERROR.search(str(error))
    what = str(error)[: found.start()] if found else str(error)
    line = f", line {found[1]}" if found and found[1] else ""
    return InputError(
        f"the study file is not TOML: {what}", where=f"{path}{line}", fix="correct the line (see toml.io)"
    )


def invalid_file(
    path: Path, lines: Mapping[Location, int], kind: type[BaseModel], error: ValidationError
) -> InputError:
    """The error for the first value that does not fit, in the file's order.

    kind: of the whole file.
    """
    found = {tuple(one["loc"]): one for one in error.errors()}
    # A list is called too short, too, when an entry of it does not fit.
    innermost = [loc for loc in found if not any(loc == other[: len(loc)] for other in found if other != loc)]
    first = min(innermost, key=lambda loc: (line_at(lines, loc), -len(loc)))
    if found[first]["type"] == "missing":
        # It may be there, mistyped: an unknown key of the same table says more.
        alike = [loc for loc in innermost if loc[:-1] == first[:-1] and _is_unknown(found[loc])]
        first = min(alike, key=lambda loc: line_at(lines, loc), default=first)
    details = found[first]
    unknown = _is_unknown(details)
    location: Location = tuple(part for part in details["loc"] if unknown or not _is_alternative(part))
    what, fix = _words(location, kind, details)
    return InputError(what, where=place_in(path, lines, location), fix=fix)


def _is_unknown(details: ErrorDetails) -> bool:
    """Whether a key is one that its table does not have."""
    return details["type"] == "extra_forbidden"


def _is_alternative(part: str | int) -> bool:
    """Whether a part of a location names one of several types instead of a key, as pydantic puts it in."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int"))


def _words(location: Location, kind: type[BaseModel], details: ErrorDetails) -> tuple[str, str]:
    """What is wrong and what to do."""
    key = str(location[-1]) if location else "the file"
    table = _table_of(kind, location[:-1])
    if _is_unknown(details):
        what = f"the study has no axis or table {key!r}" if len(location) == 1 else f"unknown key {key!r}"
        return what, did_you_mean(key, _keys_of(table))
    if details["type"] == "missing":
        needed = ", ".join(name for name, needed in _keys_of(table).items() if needed)
        return f"{key!r} is missing", f"add it; needed are: {needed}"
    value, message = details["input"], details["msg"].replace("Input should", "it should")
    message = MESSAGES.get(details["type"], message)
    if details["type"] == "string_type":
        message = PATTERNS.get(key, "write a text in quotes")
    if details["type"] == "literal_error":
        choices = re.findall(r"'([^']+)'", details["msg"])
        return f"{key} is {value!r}", did_you_mean(str(value), choices)
    if details["type"] == "string_pattern_mismatch":
        return f"{key} is {value!r}, which does not fit", PATTERNS.get(key, "write a text that is not empty")
    if isinstance(location[-1] if location else "", int):
        key = f"an entry of {location[-2]}"
    return f"{key} is {_shown(value)}, which does not fit", message


def _shown(value: Any) -> str:
    """A value of the file, in an error."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return str(value) if isinstance(value, datetime.date | datetime.time) else repr(value)


MESSAGES = {
    "model_type": "write a name in quotes, or a table",
    "tuple_type": "write a list in square brackets",
    "too_short": "give at least 1",
}
"""What to do about a value that does not fit, by pydantic's name for it, where its own words are odd."""
PATTERNS = {
    "name": "write small letters, digits and single hyphens in the study's name, any text in another",
    "released": 'write year and month: released = "2024-11"',
}
"""What to do about a text that does not fit, by key."""


def _table_of(kind: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The model that a location's table is of."""
    table: Any = kind
    for part in location:
        if isinstance(part, int):
            continue
        fields = {field.alias or name: field for name, field in table.model_fields.items()}
        table = _model_in(fields[part].annotation) if part in fields else None
        if table is None:
            return None
    return table  # type: ignore[no-any-return]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _keys_of(table: type[BaseModel] | None) -> dict[str, bool]:
    """The keys of a table, and whether each must be given."""
    if table is None:
        return {}
    alike = getattr(table, "named_alike", ())
    return {
        field.alias or name: field.is_required() and name not in alike
        for name, field in table.model_fields.items()
    }
