"""Predicting a model's saving from its score alone, from a file of other models whose saving is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from offramp.errors import InputError
from offramp.files import JsonError, parse_json, read_given_text
from offramp.policies.signals import suggest
from offramp.records.typed import InvalidRecordError, from_json
from offramp.scoring.card import ScoreCard

EXAMPLE = (
    '{"model": "a-7b-chat", "base": "a-7b", "scores": {"composite": 0.41}, "saving": 0.08, '
    '"floor": "agreement=0.99", "machine": "h100"}'
)

Text = Annotated[str, Field(strict=True, pattern=r"\S")]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(frozen=True)
class ScoreCell:
    """One model at one quality floor on one machine.

    base: the independent training it comes from; its tuned variants have the same. scores: value by name, as
    `ScoreCard.candidates`. saving: share of the full model's time that its best policy saved, at most 1;
    negative if it was slower.
    """

    model: Text
    base: Text
    scores: Mapping[str, Finite]
    saving: Annotated[Finite, Field(le=1.0)]
    floor: Text
    machine: Text


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
        for place, value in enumerate(_parsed(text, str(path), list), start=1):
            yield f"cell {place}", value
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"line {number}", _parsed(line, f"{path}, line {number}", dict)


def _parsed(text: str, where: str, kind: type) -> Any:
    try:
        return parse_json(text, kind)
    except JsonError as error:
        raise InputError(
            f"the cells cannot be read: {error}",
            where=where,
            fix="write a JSON list, or one object per line",
        ) from error


def _cell(value: Any, where: str) -> ScoreCell:
    if isinstance(value, dict) and isinstance(value.get("scores"), dict):
        scores = {name: score for name, score in value["scores"].items() if score is not None}
        value = {**value, "scores": scores}
    try:
        return from_json(ScoreCell, value)
    except InvalidRecordError as error:
        raise InputError(
            f"a cell does not fit: {error}", where=where, fix=f"write cells like {EXAMPLE}"
        ) from error


BASES_NEEDED = 12
"""Independently trained models below which nothing is said."""

LOWER_IS_BETTER = frozenset({"mean_kl", "block_influence"})

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A straight line through (score, saving)."""

    slope: float
    intercept: float

    def at(self, score: float) -> float:
        """The saving on the line."""
        return self.intercept + self.slope * score


@dataclass(frozen=True)
class ScorePrediction:
    """The saving of a model whose policies were never replayed, from its score and other models' cells.

    score: which score; value: the model's. saving: predicted share of time saved. low, high: at least `level`
    of models drawn like the bases fall between them. bases: independently trained models the interval rests
    on; cells: with their variants. without_score: the same interval if the score is ignored.
    """

    score: str
    value: float
    saving: float
    low: float
    high: float
    level: float
    bases: int
    cells: int
    floor: str
    machine: str
    without_score: tuple[float, float]
    notes: tuple[str, ...]


def predict_from_score(
    cells: Iterable[ScoreCell],
    card_or_value: ScoreCard | float,
    score: str = "composite",
    level: float = 0.9,
    *,
    floor: str | None = None,
    machine: str | None = None,
) -> ScorePrediction:
    """The share of time that early exit would save on a model of which only the score is known.

    cells: savings of other models; those at `floor` on `machine` are used, all if these are None and agree.
    card_or_value: the model's score card, or the score's value. level: share of models whose saving the
    interval must hold.

    A Theil-Sen line (median of the slopes between all pairs; a slope against the score's meaning counts as 0)
    is fitted without each base in turn, which is then judged by the largest of its cells' errors: models of
    one base are not independent. With q the ceil(level (n + 1))-th smallest of these n errors and m_b(x) the
    lines at the new score, the interval is [min m_b(x) - q, max m_b(x) + q]: the jackknife-minmax of Barber,
    Candes, Ramdas and Tibshirani (arXiv 1905.02928, section 2), which holds at least `level` of new models if
    the bases and the new model are exchangeable. No saving exceeds 1.

    Raises InputError with fewer than 12 bases or too few for the level, cells of several floors or machines
    of which none is chosen, a score that is unknown, undefined or not finite, or a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise InputError(
            f"a level of {level} is no share", fix="choose a number between 0 and 1, such as 0.9"
        )
    chosen = _only(_only(tuple(cells), "floor", floor), "machine", machine)
    value = _value(card_or_value, score)
    scored = [cell for cell in chosen if score in cell.scores]
    if not scored:
        raise InputError(
            f"no cell has the score {score!r}",
            where="the cells",
            fix=suggest(score, sorted({name for cell in chosen for name in cell.scores})),
        )
    bases = sorted({cell.base for cell in scored})
    rank = math.ceil(level * (len(bases) + 1) - 1e-9)
    needed = max(BASES_NEEDED, math.ceil(level / (1.0 - level) - 1e-9))
    if len(bases) < needed:
        raise InputError(
            f"not predictable: {len(bases)} independently trained models, {needed} needed",
            where=f"the cells at {scored[0].floor} on {scored[0].machine}",
            fix="measure more base models; variants of one base count once",
        )
    sign = -1.0 if score in LOWER_IS_BETTER else 1.0
    low, high = _interval(scored, score, value, rank, sign)
    ignored = _interval(scored, score, value, rank, 0.0)
    line = fit_line(*_points(scored, score), sign)
    return ScorePrediction(
        score=score,
        value=value,
        saving=min(line.at(value), 1.0),
        low=low,
        high=high,
        level=level,
        bases=len(bases),
        cells=len(scored),
        floor=scored[0].floor,
        machine=scored[0].machine,
        without_score=ignored,
        notes=tuple(_notes(scored, score, value, (low, high), ignored)),
    )


def fit_line(scores: Values, savings: Values, sign: float = 1.0) -> Line:
    """The Theil-Sen line (Sen 1968): median slope of all pairs with different scores, then median intercept.

    sign: 1 if a higher score means more saving, -1 if less, 0 to ignore the score. A slope of the other sign
    becomes 0, as it is where all scores are equal.
    """
    first, second = np.triu_indices(len(scores), k=1)
    run = scores[second] - scores[first]
    rise = savings[second] - savings[first]
    apart = run != 0.0
    slope = float(np.median(rise[apart] / run[apart])) if apart.any() else 0.0
    slope = slope if slope * sign > 0.0 else 0.0
    return Line(slope, float(np.median(savings - slope * scores)))


def _interval(
    cells: Sequence[ScoreCell], score: str, value: float, rank: int, sign: float
) -> tuple[float, float]:
    """Limits of the jackknife-minmax, one base left out at a time; rank: of the error kept, from 1."""
    errors, lines = [], []
    for base in sorted({cell.base for cell in cells}):
        line = fit_line(*_points([cell for cell in cells if cell.base != base], score), sign)
        own = [cell for cell in cells if cell.base == base]
        errors.append(max(abs(cell.saving - line.at(cell.scores[score])) for cell in own))
        lines.append(line.at(value))
    kept = sorted(errors)[rank - 1]
    return min(min(lines) - kept, 1.0), min(max(lines) + kept, 1.0)


def _points(cells: Sequence[ScoreCell], score: str) -> tuple[Values, Values]:
    return (
        np.array([cell.scores[score] for cell in cells], dtype=np.float64),
        np.array([cell.saving for cell in cells], dtype=np.float64),
    )


def _only(cells: tuple[ScoreCell, ...], key: str, wanted: str | None) -> tuple[ScoreCell, ...]:
    """The cells with this floor or machine; all of them if there is only one kind."""
    known = sorted({str(getattr(cell, key)) for cell in cells})
    if not known:
        raise InputError("there are no cells", fix="measure some models first")
    if wanted is None and len(known) > 1:
        raise InputError(
            f"the cells are of {len(known)} {key}s: {', '.join(known)}",
            where="the cells",
            fix=f"choose one {key} with --{'hardware' if key == 'machine' else key}",
        )
    if wanted is not None and wanted not in known:
        raise InputError(f"no cell has the {key} {wanted!r}", where="the cells", fix=suggest(wanted, known))
    return tuple(cell for cell in cells if getattr(cell, key) == (wanted or known[0]))


def _value(card_or_value: ScoreCard | float, score: str) -> float:
    if not isinstance(card_or_value, ScoreCard):
        value: float | None = float(card_or_value)
    elif score in card_or_value.candidates:
        value = card_or_value.candidates[score]
    else:
        raise InputError(f"there is no score {score!r}", fix=suggest(score, card_or_value.candidates))
    if value is None or not math.isfinite(value):
        raise InputError(
            f"the model's {score} is {'undefined' if value is None else value}",
            fix="choose another score, or trace more text",
        )
    return value


def _notes(
    cells: Sequence[ScoreCell],
    score: str,
    value: float,
    interval: tuple[float, float],
    ignored: tuple[float, float],
) -> list[str]:
    known = [cell.scores[score] for cell in cells]
    notes = [
        "The interval takes the new model as one more draw from the same kind of models as the cells' bases."
    ]
    if not min(known) <= value <= max(known):
        notes.append(
            f"The score {value:.3g} lies outside those of the cells, {min(known):.3g} to {max(known):.3g}: "
            "the line is carried on beyond what was measured."
        )
    if interval[1] - interval[0] >= ignored[1] - ignored[0]:
        notes.append(f"The {score} says nothing here: ignoring it gives an interval that is no wider.")
    return notes
