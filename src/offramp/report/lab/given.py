"""The page and table of a study of the lab whose models were given: the same endpoints, beside each other."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from offramp.files import write_text_atomically
from offramp.lab.effects.runs import (
    CALIBRATION,
    ORACLE,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SCORE,
    SKIPPED,
    SKIPPED_CODE,
    SKIPPED_LENS,
)
from offramp.lab.effects.score_validity import ScoreValidity, score_validity
from offramp.lab.text.folder import TextRecord
from offramp.report import REPORT_FILE
from offramp.report.formats import counted, thousandths
from offramp.report.html import figure, fragment, table
from offramp.report.lab.charts import correlations_figure
from offramp.report.lab.page import choice_sentences, text_part
from offramp.report.lab.words import endpoint_name
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.tuning.from_scores import BASES_NEEDED

TITLE = "How early do these models know?"
FACTS = ("model", "base", "family", "generation", "released", "kind", "stage", "parameters", "layers")
"""Columns of models.csv before those of endpoints."""
SHOWN = (SKIPPED, SKIPPED_LENS, REPRESENTATION, REPRESENTATION_LENS, CALIBRATION)
PAIRS = (
    (
        SKIPPED,
        SKIPPED_LENS,
        "executed",
        "Share of layers that did not run at 95 % agreement, decoding freely.",
    ),
    (REPRESENTATION, REPRESENTATION_LENS, "measured", "Area under agreement over depth, the text given."),
)
HEAD_OR_LENS = "Circle: as the model's own head reads its exits; square: through a lens that was trained."

Line = Mapping[str, Any]
"""A model by column: its facts, and the endpoints that were measured; None for one that cannot be told."""


def write_given_report(
    lines: Sequence[Line],
    folder: Path,
    *,
    text: TextRecord,
    absent: Mapping[str, str],
    command: str,
) -> None:
    """Write `models.csv` among the tables, and the page. absent: why models could not be had, by name."""
    endpoints = dict.fromkeys(key for line in lines for key in line if key not in FACTS)
    written = io.StringIO()
    writer = csv.DictWriter(written, [*FACTS, *endpoints], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in line.items()} for line in lines)
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / "tables" / "models.csv", written.getvalue())
    write_text_atomically(folder / REPORT_FILE, render_given(lines, text, absent, command))


def render_given(lines: Sequence[Line], text: TextRecord, absent: Mapping[str, str], command: str) -> str:
    """The whole page as HTML."""
    validity = validity_of(lines)
    return fragment(
        "lab_given",
        "page",
        title=TITLE,
        headline=headline(lines),
        figures=[one for one in (_pair_figure(lines, *pair) for pair in PAIRS) if one],
        scores=correlations_figure(validity) if validity else Markup(),
        said=choice_sentences(validity) if validity else [_too_few(lines)],
        models=_models_table(lines),
        absent=[f"{name}: {why}" for name, why in absent.items()],
        text=text_part(text),
        command=command,
    )


def headline(lines: Sequence[Line]) -> str:
    """The answer in one sentence: the least and the most that was skipped."""
    known = sorted((line[SKIPPED], line["model"]) for line in lines if line.get(SKIPPED) is not None)
    if not known:
        return "What these models skip was not measured."
    least, most = known[0], known[-1]
    if len(known) == 1:
        return f"{most[1]} skips {thousandths(most[0])} of its layers at 95 % agreement."
    return (
        f"At 95 % agreement {counted(len(known), 'model')} skip from {thousandths(least[0])} of their layers "
        f"({least[1]}) to {thousandths(most[0])} ({most[1]})."
    )


def validity_of(lines: Sequence[Line]) -> ScoreValidity | None:
    """What scores on prose tell of what is skipped on code; None with fewer trainings than a table needs.

    A base is one training, whatever number of its models there are: the mean of them.
    """
    scores = sorted({key for line in lines for key in line if key.startswith(SCORE) or key == ORACLE})
    bases: dict[str, list[Line]] = {}
    for line in lines:
        if all(line.get(name) is not None for name in (SKIPPED_CODE, *scores)):
            bases.setdefault(str(line["base"]), []).append(line)
    if len(bases) < BASES_NEEDED or not scores:
        return None

    def mean(name: str) -> Any:
        return np.array([np.mean([line[name] for line in of_base]) for of_base in bases.values()])

    return score_validity(
        list(bases), {name.removeprefix(SCORE): mean(name) for name in scores}, mean(SKIPPED_CODE)
    )


def _too_few(lines: Sequence[Line]) -> str:
    bases = len({line["base"] for line in lines})
    return (
        f"Whether a score tells savings cannot be told: {counted(bases, 'independent training')} here, "
        f"{BASES_NEEDED} are needed."
    )


def _pair_figure(lines: Sequence[Line], own: str, lens: str, kind: Any, note: str) -> Markup:
    """An endpoint of each model, by its own head and through a lens; nothing where none was measured."""
    rows, cells = [], []
    for line in sorted(lines, key=lambda one: (str(one["family"] or ""), str(one["released"] or ""))):
        found = [(line.get(name), shape) for name, shape in ((own, 0), (lens, 1))]
        tracks = tuple(
            Track((Point(value, f"{line['model']}: {thousandths(value)}", colour=shape, shape=shape),))
            for value, shape in found
            if value is not None
        )
        rows.append(Row(str(line["model"]), tracks))
        cells.append([str(line["model"]), *(_cell(value) for value, _ in found)])
    title = endpoint_name(own)
    note = f"{note} {HEAD_OR_LENS}"
    drawn = RowPlot(title, note, rows, include=(0.0,), number=thousandths).svg()
    data = table(["Model", "Own head", "Lens"], cells, caption=title)
    return figure(title, note, drawn, data, kind=kind) if drawn else Markup()


def _models_table(lines: Sequence[Line]) -> Markup:
    header = ["Model", "Base", "Kind", "Layers", *map(endpoint_name, SHOWN)]
    rows = [
        [
            *(str(line[key] or "–") for key in ("model", "base", "kind", "layers")),
            *(_cell(line.get(name)) for name in SHOWN),
        ]
        for line in lines
    ]
    return table(header, rows, caption="Every model", numeric_from=3)


def _cell(value: float | None) -> str:
    return "–" if value is None else thousandths(value)
