"""Cells: what early exit saved on models whose scores are known, in a JSON or JSON Lines file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import read_given_text

TEXTS = ("model", "base", "floor", "machine")
EXAMPLE = (
    '{"model": "a-7b-chat", "base": "a-7b", "scores": {"composite": 0.41}, "saving": 0.08, '
    '"floor": "agreement=0.99", "machine": "h100"}'
)


@dataclass(frozen=True)
class ScoreCell:
    """One model at one quality floor on one machine.

    base: the independent training it comes from; its tuned variants have the same. scores: value by name, as
    `ScoreCard.candidates`. saving: share of the full model's time that its best policy saved, at most 1;
    negative if it was slower.
    """

    model: str
    base: str
    scores: Mapping[str, float]
    saving: float
    floor: str
    machine: str


def read_cells(path: Path) -> tuple[ScoreCell, ...]:
    """The cells of a file: a JSON list of objects, or one object per line.

    Raises InputError, with the file and the place in it, for a file that cannot be read, or for a cell with a
    missing key or a value that is no text or no finite number. A score may be null: it is left out.
    """
    try:
        text = read_given_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the cells cannot be read: {error}", where=str(path), fix="check the path"
        ) from error
    cells = tuple(_cell(value, f"{path}, {place}") for place, value in _values(text, path))
    if not cells:
        raise InputError("the file holds no cells", where=str(path), fix=f"write cells like {EXAMPLE}")
    return cells


def _values(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Every cell's JSON value with its place in the file."""
    if text.lstrip().startswith("["):
        for place, value in enumerate(_parsed(text, str(path)), start=1):
            yield f"cell {place}", value
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"the cells are no JSON: {error}", where=where, fix="write a JSON list, or one object per line"
        ) from error


def _cell(value: Any, where: str) -> ScoreCell:
    if not isinstance(value, dict):
        raise InputError("a cell is no object", where=where, fix=f"write cells like {EXAMPLE}")
    missing = [key for key in (*TEXTS, "scores", "saving") if key not in value]
    if missing:
        raise InputError(f"a cell has no {missing[0]!r}", where=where, fix=f"write cells like {EXAMPLE}")
    for key in TEXTS:
        if not isinstance(value[key], str) or not value[key].strip():
            raise InputError(f"a cell's {key!r} is no text", where=where, fix=f"write cells like {EXAMPLE}")
    if not isinstance(value["scores"], dict):
        raise InputError("a cell's 'scores' are no object", where=where, fix=f"write cells like {EXAMPLE}")
    scores = {
        name: _number(score, name, where) for name, score in value["scores"].items() if score is not None
    }
    saving = _number(value["saving"], "saving", where)
    if saving > 1.0:
        raise InputError(
            f"a saving of {saving:g} is more than all the time",
            where=where,
            fix="write the share of time saved: 0.08 for 8 %",
        )
    return ScoreCell(value["model"], value["base"], scores, saving, value["floor"], value["machine"])


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}, no finite number", where=where, fix="write a number")
    return float(value)
