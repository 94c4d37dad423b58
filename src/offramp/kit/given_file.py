"""Files that people write in TOML: tables with the types of their entries, and every error with its line."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from offramp.errors import InputError
from offramp.files import read_given_text
from offramp.kit import numbers
from offramp.kit.rules import suggest

Location = tuple[str | int, ...]
"""Keys and places in lists (from 0), from the top of the file: ("models", 1, "stage")."""

MOST_PARTS = 64
"""Of a dotted key: tomllib takes time by the square of their number."""
MOST_DIGITS = 600
"""Of a whole number: Python reads no more than some thousand, and 640 where it is told to read the fewest."""

_TOKENS = re.compile(
    r"""#[^\n]*|\n|[\[\]{}]"""
    r"""|"{3}(?:[^\\]|\\.)*?(?:"{3,5}|\Z)|'{3}.*?(?:'{3,5}|\Z)|"(?:[^"\\\n]|\\.)*+"?|'[^'\n]*+'?""",
    re.DOTALL,
)
"""Comments, ends of lines, brackets and texts."""
_BEYOND = {
    rf"(?:\.[ \t]*+[\w-]++[ \t]*+){{{MOST_PARTS}}}": f"a key has more than {MOST_PARTS} parts",
    rf"(?<![\w.])\d[\d_]{{{MOST_DIGITS}}}": f"a number has more than {MOST_DIGITS} digits",
}


def line_at(text: str, location: Location) -> int:
    """The line (1 = first) of a location in a file that tomllib has read, or of the nearest one around it.

    A table's line is that of its header; the whole file's, (), is 1.
    """
    location = location[: _depth(tomllib.loads(text), location)]
    lines, closings = text.split("\n"), _closings(text)
    first, last = 1, len(lines)
    while first < last:
        middle = (first + last) // 2
        begun = "\n".join([*lines[:middle], closings[middle - 1]])
        if _depth(tomllib.loads(begun), location) == len(location):
            last = middle
        else:
            first = middle + 1
    return first


def _closings(text: str) -> list[str]:
    """What makes the first lines of a file whole, by their number: one may end within a list or a text."""
    closings, brackets = list[str](), ""
    for token in _TOKENS.findall(text):
        if token in "[{":
            brackets = {"[": "]", "{": "}"}[token] + brackets
        elif token in "]}":
            brackets = brackets[1:]
        else:
            closings += [brackets if token == "\n" else token[:3] + brackets] * token.count("\n")
    return [*closings, brackets]


def _require_readable(text: str) -> None:
    """Raise ValueError, with the line as tomllib says it, for what Python reads slowly or not at all."""
    apart = {"#": "", "\n": "", '"': "text", "'": "text"}
    plain = _TOKENS.sub(lambda token: apart.get(token[0][0], token[0]) + "\n" * token[0].count("\n"), text)
    for pattern, what in _BEYOND.items():
        if (found := re.search(pattern, plain)) is not None:
            raise ValueError(f"{what} (at line {plain.count(chr(10), 0, found.start()) + 1}, column 1)")


def places_of(values: Any, location: Location) -> tuple[int, ...]:
    """A location, as far as a file has it, by places in the order of the file."""
    places = []
    for part in location:
        keys: Sequence[str | int] = list(values) if isinstance(values, dict) else range(0)
        if isinstance(values, list):
            keys = range(len(values))
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


STRICT, FINITE = Field(strict=True), Field(strict=True, allow_inf_nan=False)

LINE_OF_ERROR = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")

Count = Annotated[numbers.Count, STRICT]
Layers = Annotated[numbers.Layers, STRICT]
Threads = Annotated[numbers.Threads, STRICT]
Whole = Annotated[numbers.Whole, STRICT]
Truth = Annotated[bool, STRICT]
Number = Annotated[numbers.Number, FINITE]
Positive = Annotated[numbers.Positive, FINITE]
NotNegative = Annotated[numbers.NotNegative, FINITE]
Minutes = Annotated[numbers.Minutes, FINITE]
Seconds = Annotated[numbers.Seconds, FINITE]
Share = Annotated[numbers.Share, FINITE]
Text = Annotated[str, Field(pattern=r"\S")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$")]
"""A text of one line without control characters, which a terminal may be shown."""


class TomlTable(BaseModel):
    """One table of a file; a key that it does not have is refused.

    hints: what to write in a text that does not fit, by key. former: keys that it had once, and what to use
    instead of each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    hints: ClassVar[Mapping[str, str]] = {}
    former: ClassVar[Mapping[str, str]] = {}


Given = TypeVar("Given", bound=TomlTable)


@dataclass(frozen=True)
class Source:
    """A file that somebody wrote."""

    path: Path
    what: str
    """What it is called in errors ("study file")."""
    text: str = ""
    """Of TOML, which has lines to name."""

    def where(self, *location: str | int) -> str:
        """A place in the file, for an error: "STUDY.toml, line 12, models[2].stage"."""
        return place_in(self.path, self.text, location)

    def refused(self, what: str, fix: str, *location: str | int) -> InputError:
        """The error for something at a place of the file."""
        return InputError(what, where=self.where(*location), fix=fix)


def read_toml(path: Path, what: str) -> tuple[dict[str, Any], Source]:
    """The entries of a TOML file, and where they stand. what: the file is called in errors.

    Raises InputError for a file that cannot be read, and, with the line, for one that is no TOML.
    """
    text = read_given_text(path, what)
    try:
        _require_readable(text)
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits, too
        raise _not_toml(path, what, error) from error
    return values, Source(path, what, text)


def checked(kind: type[Given], values: Mapping[str, Any], source: Source) -> Given:
    """The entries of a file as a table of this kind.

    Raises InputError, with the line and the key, for the first entry that is missing, unknown or wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _invalid(source, kind, values, error) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown name: the nearest known one, and all of them."""
    return suggest(name, sorted(known))


def _not_toml(path: Path, what: str, error: Exception) -> InputError:
    found = LINE_OF_ERROR.search(str(error))
    said = str(error)[: found.start()] if found else str(error)
    line = f", line {found[1]}" if found and found[1] else ""
    return InputError(
        f"the {what} is not TOML: {said}", where=f"{path}{line}", fix="correct the line (see toml.io)"
    )


def _invalid(
    source: Source, kind: type[TomlTable], values: Mapping[str, Any], error: ValidationError
) -> InputError:
    """The error for the first value that does not fit, in the file's order. kind, values: of the whole."""
    found = {tuple(fault["loc"]): fault for fault in error.errors()}
    # A list is called too short, too, when an entry of it does not fit.
    around = {loc[:length] for loc in found for length in range(len(loc))}
    innermost = [loc for loc in found if loc not in around]
    first = min(innermost, key=lambda loc: (places_of(values, loc), -len(loc)))
    if found[first]["type"] == "missing":
        # It may be there, mistyped: an unknown key of the same table says more.
        alike = [loc for loc in innermost if loc[:-1] == first[:-1] and _is_unknown(found[loc])]
        first = min(alike, key=lambda loc: places_of(values, loc), default=first)
    details = found[first]
    misplaced = [
        loc for loc in innermost if _is_unknown(found[loc]) and loc[-1] == first[-1] and loc != first
    ]
    if details["type"] == "missing" and len(first) == 1 and misplaced:
        # TOML gives what follows a table's header to that table.
        above = f"write it above the first [table]: there it belongs to that, not to the whole {source.what}"
        return source.refused(f"{first[0]!r} stands in a table", above, *misplaced[0])
    unknown = _is_unknown(details)
    location: Location = tuple(part for part in details["loc"] if unknown or not _is_alternative(part))
    what, fix = _words(location, kind, details, source)
    return source.refused(what, fix, *location)


def _is_unknown(details: ErrorDetails) -> bool:
    """Whether a key is one that its table does not have."""
    return details["type"] == "extra_forbidden"


def _is_alternative(part: str | int) -> bool:
    """Whether a part of a location names one of several types instead of a key, as pydantic puts it in."""
    return isinstance(part, str) and (
        "[" in part or part.removeprefix("constrained-") in ("str", "int", "float")
    )


def _words(
    location: Location, kind: type[TomlTable], details: ErrorDetails, source: Source
) -> tuple[str, str]:
    """What is wrong and what to do."""
    key = str(location[-1]) if location else "the file"
    table = _table_of(kind, location[:-1])
    if _is_unknown(details):
        if table is not None and key in table.former:
            return f"{key} is no longer read here", table.former[key]
        what = f"the {source.what} has no entry {key!r}" if len(location) == 1 else f"unknown key {key!r}"
        return what, did_you_mean(key, _keys_of(table))
    if details["type"] == "missing":
        needed = ", ".join(name for name, needed in _keys_of(table).items() if needed)
        return f"{key!r} is missing", f"add it; needed are: {needed}"
    value, message = (
        details["input"],
        details["msg"].replace("Input should", "it should"),
    )
    message = MESSAGES.get(details["type"], message)
    if details.get("ctx", {}).get("ge") == numbers.SMALLEST_NUMBER:
        message = "it should be greater than 0"
    if details["type"] == "model_type" and hasattr(_table_of(kind, location), "named_alike"):
        message = "write a name in quotes, or a table"
    elif details["type"] == "model_type" and len(location) == 1:
        message = f"write a table: a line [{key}], and its keys below it"
    hints = {} if table is None else table.hints
    if details["type"] == "string_type":
        message = hints.get(key, "write a text in quotes")
    if details["type"] == "literal_error":
        choices = re.findall(r"'([^']+)'", details["msg"])
        return f"{key} is {value!r}", did_you_mean(str(value), choices)
    if details["type"] == "string_pattern_mismatch":
        usual = (
            "write a text without control characters" if value.strip() else "write a text that is not empty"
        )
        return f"{key} is {value!r}, which does not fit", hints.get(key, usual)
    if isinstance(location[-1] if location else "", int):
        key = f"an entry of {location[-2]}"
    return f"{key} is {_shown(value)}, which does not fit", hints.get(key, message)


def _shown(value: Any) -> str:
    """A value of the file, in an error."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return str(value) if isinstance(value, datetime.date | datetime.time) else repr(value)


MESSAGES = {
    "model_type": "write a table",
    "tuple_type": "write a list in square brackets",
    "too_short": "give at least 1",
}
"""What to do about a value that does not fit, by pydantic's name for it, where its own words are odd."""


def _table_of(kind: type[TomlTable], location: Location) -> type[TomlTable] | None:
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


def _model_in(annotation: Any) -> type[TomlTable] | None:
    if isinstance(annotation, type) and issubclass(annotation, TomlTable):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _keys_of(table: type[TomlTable] | None) -> dict[str, bool]:
    """The keys of a table, and whether each must be given."""
    if table is None:
        return {}
    alike = getattr(table, "named_alike", ())
    return {
        field.alias or name: field.is_required() and name not in alike
        for name, field in table.model_fields.items()
    }
