"""The one normaliser: what another machine, day or arrangement of the code changes is replaced or rounded.

A golden has two forms. The *exact* one keeps every digit and a hash of every array: it is compared between
two states of the code on one machine. The *tolerant* one is stored, and holds on any machine.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 5
"""Significant digits of a float in the tolerant form."""
FIRST = 6
"""Values at an array's beginning that the tolerant form shows."""
SHOWN = 3
"""Entries at a long list's or table's beginning that the tolerant form shows."""
LONG = 12
"""Entries of a JSON list from which on the tolerant form shows its ends, and what there is to say of all."""
CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00| UTC)?"), "<time>"),
    (re.compile(r"\bofframp-[0-9a-f]{8}\b"), "offramp-<key>"),
    (re.compile(r"\.writing-\d+-"), ".writing-<process>-"),
    (re.compile(r"\b\d+\.\d MiB"), "<memory>"),
    (re.compile(r"· \d+ (files|problems)\b"), r"· <installed> \1"),
)
KEY = re.compile(r"\b(?=[0-9]*[a-f])(?=[a-f]*[0-9])[0-9a-f]{12,64}\b")
"""Fingerprints, whole or shortened. A move of code changes every key of a study."""
LONG_FLOAT = re.compile(r"(?<![\w.])-?\d+\.\d{5,}(?:e[-+]?\d+)?")
MACHINE_FACTS = frozenset(
    [
        "code",
        "code_fingerprint",
        "date",
        "finished",
        "host",
        "libraries",
        "measured_at",
        "offramp",
        "peak_memory_bytes",
        "processor",
        "process",
        "python",
        "timestamps",
        "torch",
        "transformers",
        "version",
        "versions",
        "wall",
    ]
)
"""Keys of JSON objects whose values say when, where and by which versions something was made."""
OF_ROUNDING = frozenset(("all_points",))
"""Keys whose values count how many floats are different ones."""
RULES = re.compile(r"[─━═╭╮╰╯│┃]+")


def processor() -> str:
    """The processor's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@dataclass(frozen=True)
class Normaliser:
    """Of what commands in one folder say and write. exact: which of the two forms it makes."""

    folder: Path
    exact: bool

    def text(self, text: str) -> str:
        """Words of a command, a page or a file."""
        steady = self._steady(text)
        if not self.exact:
            steady = RULES.sub("─", self._rounded(steady))
            steady = "\n".join(re.sub(r"(?<=\S) {2,}", "  ", line).rstrip() for line in steady.splitlines())
        return numbered(steady.strip("\n")) + "\n"

    def json(self, value: Any) -> str:
        """JSON, a line for each value that is no list of numbers or words; keys in order."""
        return numbered("\n".join(lines_of(self._value(value)))) + "\n"

    def json_set(self, values: list[Any]) -> str:
        """JSON of values that lie in no order, such as in folders that are called by their keys."""
        steady = sorted((self._value(value) for value in values), key=lambda value: KEY.sub("", repr(value)))
        return numbered("\n".join(lines_of(steady))) + "\n"

    def arrays(self, arrays: Mapping[str, np.ndarray]) -> str:
        """A line for each array, by its name."""
        lines = (f"{self._steady(name)} {self._array(array)}" for name, array in sorted(arrays.items()))
        return "\n".join(lines) + "\n"

    def page(self, page: str) -> str:
        """The words of an HTML page, a line for each element that ends one."""
        page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
        if not self.exact:
            page = re.sub(r"<svg\b.*?</svg>", "", page, flags=re.DOTALL)
            page = re.sub(r"<tbody\b.*?</tbody>", rows_at_its_ends, page, flags=re.DOTALL)
        page = re.sub(r"</(p|h\d|li|tr|section|details|summary|figure|figcaption|svg|text)>", "\n", page)
        words = html.unescape(re.sub(r"<[^>]*>", " ", page))
        return self.text(
            "\n".join(line for line in (" ".join(line.split()) for line in words.splitlines()) if line)
        )

    def _steady(self, text: str) -> str:
        text = text.replace(str(self.folder), "<folder>").replace(processor(), "<processor>")
        for pattern, name in CHANGING:
            text = pattern.sub(name, text)
        return text

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            changing = MACHINE_FACTS if self.exact else MACHINE_FACTS | OF_ROUNDING
            if "sha256" in value and not self.exact:  # of a file, whose packed size is another everywhere
                changing |= {"bytes"}
            items = [
                (self._steady(str(key)), "<of this machine>" if key in changing else self._value(item))
                for key, item in value.items()
            ]
            return dict(sorted(items, key=lambda item: (KEY.sub("", item[0]), KEY.sub("", repr(item[1])))))
        if isinstance(value, list):
            if len(value) > LONG and not self.exact:
                return self._long(value)
            return [self._value(item) for item in value]
        if isinstance(value, str):
            return self._steady(value) if self.exact else self._rounded(self._steady(value))
        if isinstance(value, float) and not self.exact and math.isfinite(value):
            return float(f"{value:.{DIGITS}g}")
        return value

    def _long(self, values: list[Any]) -> Any:
        """A long list by its ends, and by the numbers in it."""
        told: dict[str, Any] = {"entries": len(values), **numbers_told(values)}
        if any(isinstance(value, dict) for value in values):
            keys = dict.fromkeys(key for value in values if isinstance(value, dict) for key in value)
            columns = {key: numbers_told([value.get(key) for value in values]) for key in keys}
            told["columns"] = {key: column for key, column in sorted(columns.items()) if column}
        told["first"] = [self._value(value) for value in values[:SHOWN]]
        told["last"] = self._value(values[-1])
        return told

    @staticmethod
    def _rounded(text: str) -> str:
        return LONG_FLOAT.sub(lambda match: f"{float(match.group()):.{DIGITS}g}", text)

    def _array(self, array: np.ndarray) -> str:
        named = f"{array.dtype} [{', '.join(map(str, array.shape))}]"
        if self.exact:
            content = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
            return f"{named} {hashlib.sha256(content).hexdigest()}"
        flat = array.ravel()
        if flat.size == 0 or flat.dtype == object:
            return f"{named} {self.text(' '.join(map(str, flat[:FIRST]))).strip()}"
        wide = flat.astype(np.float64)
        known = wide[np.isfinite(wide)]
        low, high = (known.min(), known.max()) if known.size else (math.nan, math.nan)
        size, spread = (np.abs(known).mean(), known.std()) if known.size else (math.nan, math.nan)
        shown = " ".join(f"{number:.{DIGITS}g}" for number in wide[:FIRST])
        told = (
            f"low {low:.{DIGITS}g} high {high:.{DIGITS}g} size {size:.{DIGITS}g} spread {spread:.{DIGITS}g}"
        )
        return f"{named} {told} undefined {wide.size - known.size} first {shown}"


def rows_at_its_ends(table: re.Match[str]) -> str:
    """The body of a table, of a long one its first rows, its last, and how many there are."""
    rows = re.findall(r"<tr\b.*?</tr>", table.group(), flags=re.DOTALL)
    if len(rows) <= LONG:
        return table.group()
    return "".join([*rows[:SHOWN], f"<p>({len(rows)} rows, and last:)</p>", rows[-1]])


def numbers_told(values: list[Any]) -> dict[str, float]:
    """Of the numbers among some values: how many there are, the least, the largest and their mean size."""
    numbers = np.array([value for value in values if type(value) in (int, float)], dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return {}
    told = {"low": numbers.min(), "high": numbers.max(), "size": np.abs(numbers).mean()}
    return {"numbers": numbers.size, **{key: float(f"{number:.{DIGITS}g}") for key, number in told.items()}}


def numbered(text: str) -> str:
    """A text in which fingerprints are `<key 1>` and so on: equal ones are still seen to be equal."""
    known: dict[str, str] = {}
    return KEY.sub(lambda match: known.setdefault(match.group(), f"<key {len(known) + 1}>"), text)


def lines_of(value: Any, indent: str = "", before: str = "", after: str = "") -> Iterable[str]:
    """JSON as lines; a list of plain values is one line."""
    if isinstance(value, dict) and value:
        yield f"{indent}{before}{{"
        last = len(value) - 1
        for place, (key, item) in enumerate(value.items()):
            name = json.dumps(key, ensure_ascii=False)
            yield from lines_of(item, f"{indent} ", f"{name}: ", "," * (place < last))
        yield f"{indent}}}{after}"
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        yield f"{indent}{before}["
        for place, item in enumerate(value):
            yield from lines_of(item, f"{indent} ", "", "," * (place < len(value) - 1))
        yield f"{indent}]{after}"
    else:
        yield f"{indent}{before}{json.dumps(value, ensure_ascii=False)}{after}"
