"""Where each key of a TOML file stands: line numbers, which tomllib does not give."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

Location = tuple[str | int, ...]
"""Keys and places in lists (from 0), from the top of the file: ("models", 1, "stage")."""

_BLANK = re.compile(r"(?:[\s]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?!")|' + r"'''(?:.)*?'''(?!')|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'",
    re.DOTALL,
)
_PLAIN = re.compile(r"[^,\]}#\n]+")


def lines_of(text: str) -> dict[Location, int]:
    """The line (1 = first) of every table, key and list entry of a file that tomllib has read.

    A table's line is that of its header; the whole file's, (), is 1.
    """
    scanner = _Scanner(text)
    scanner.scan()
    return scanner.lines


def line_at(lines: Mapping[Location, int], location: Location) -> int:
    """The line of a location, or of the nearest one around it that the file has."""
    around = (location[:end] for end in range(len(location), -1, -1))
    return next((lines[outer] for outer in around if outer in lines), 1)


def place_in(path: Path, lines: Mapping[Location, int], location: Location) -> str:
    """A place in a file, for an error: "STUDY.toml, line 12, models[2].stage".

    A key that is missing gets the line of the table it belongs to. lines: none for a file without such.
    """
    place = f"{path}, line {line_at(lines, location)}" if lines else str(path)
    return f"{place}, {shown_location(location)}" if location else place


def shown_location(location: Location) -> str:
    """As people write it, places counted from 1: models[2].stage."""
    shown = ""
    for part in location:
        shown += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if shown else str(part)
    return shown


class _Scanner:
    """Goes once through a valid TOML text. place: of the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.lines: dict[Location, int] = {(): 1}
        self.entries: dict[Location, int] = {}  # of arrays of tables, how many there are so far

    def scan(self) -> None:
        table: Location = ()
        self.skip_blank()
        while self.place < len(self.text):
            if self.text.startswith("[", self.place):
                table = self.header()
            else:
                self.entry(table)
            self.skip_blank()

    def header(self) -> Location:
        """`[a.b]` or `[[a.b]]`: the table that the following keys belong to."""
        brackets = 2 if self.text.startswith("[[", self.place) else 1
        line = self.line()
        self.place += brackets
        *outer, last = self.key()
        self.place += brackets
        table = self.resolved(tuple(outer))
        table = (*table, last)
        if brackets == 2:
            self.lines.setdefault(table, line)
            self.entries[table] = number = self.entries.get(table, -1) + 1
            table = (*table, number)
        self.lines.setdefault(table, line)
        return table

    def resolved(self, keys: Location) -> Location:
        """A table's location: where a key names an array of tables, its last entry is meant."""
        table: Location = ()
        for key in keys:
            table = (*table, key)
            if table in self.entries:
                table = (*table, self.entries[table])
        return table

    def entry(self, table: Location) -> None:
        """`key = value`."""
        line = self.line()
        for key in self.key():
            table = (*table, key)
            self.lines.setdefault(table, line)
        self.place = self.text.index("=", self.place) + 1
        self.value(table)

    def key(self) -> list[str]:
        """A key in parts: a.b."c d"."""
        parts: list[str] = []
        while True:
            self.skip_blank()
            found = _STRING.match(self.text, self.place) or _BARE.match(self.text, self.place)
            assert found is not None, "tomllib has read the text"
            parts.append(next(iter(tomllib.loads(f"{found[0]} = 0"))))
            self.place = found.end()
            self.skip_blank()
            if not self.text.startswith(".", self.place):
                return parts
            self.place += 1

    def value(self, location: Location) -> None:
        self.skip_blank()
        if self.text.startswith("[", self.place):
            self.items(location, "]")
        elif self.text.startswith("{", self.place):
            self.items(location, "}")
        else:
            found = _STRING.match(self.text, self.place) or _PLAIN.match(self.text, self.place)
            assert found is not None, "tomllib has read the text"
            self.place = found.end()

    def items(self, location: Location, closing: str) -> None:
        """What a list or an inline table holds."""
        self.place += 1
        number = 0
        self.skip_blank()
        while not self.text.startswith(closing, self.place):
            if closing == "}":
                self.entry(location)
            else:
                self.lines[(*location, number)] = self.line()
                self.value((*location, number))
                number += 1
            self.skip_blank()
            if self.text.startswith(",", self.place):
                self.place += 1
                self.skip_blank()
        self.place += 1

    def skip_blank(self) -> None:
        found = _BLANK.match(self.text, self.place)
        assert found is not None, "it matches nothing at least"
        self.place = found.end()

    def line(self) -> int:
        return self.text.count("\n", 0, self.place) + 1
