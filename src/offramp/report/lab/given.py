"""The page and table of a study of the lab whose models were given: the same endpoints, beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

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
from offramp.report.html import Kind, figure, fragment, table
from offramp.report.lab.charts import correlations_figure
from offramp.report.lab.page import choice_sentences, text_part
from offramp.report.lab.tables import TABLES
from offramp.report.lab.words import endpoint_name
from offramp.report.names import in_sentence
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.scoring.rank_correlation import BASES_NEEDED
from offramp.studies.lab_rows import GIVEN, lab_table

TITLE = "How early do these models know?"
FACTS = ("model", *GIVEN)
"""Columns of models.csv before those of endpoints."""
SHOWN = (SKIPPED, SKIPPED_LENS, REPRESENTATION, REPRESENTATION_LENS, CALIBRATION)
PAIRS: tuple[tuple[str, str, Kind, str], ...] = (
    (
        SKIPPED,
        SKIPPED_LENS,
        "executed",
        "Share of layers that did not run at 95 % agreement, as decoded.",
    ),
    (REPRESENTATION, REPRESENTATION_LENS, "measured", "Area under agreement over depth, the text given."),
)
HEAD_OR_LENS = "Circle: as the model's own head reads its exits; square: through a lens that was trained."

Measured = Mapping[str, Any]
"""A model: FACTS, and what was measured of it: "values" by endpoint, None for one that cannot be told,
"untold" why, "executed" with what is behind layers skipped."""


def write_given_report(
    models: Sequence[Measured],
    folder: Path,
    *,
    text: TextRecord | None,
    absent: Mapping[str, str],
    command: str,
) -> None:
    """Write `models.csv` among the tables, and the page. absent: why others were not measured, by name."""
    lines = [{**{key: model[key] for key in FACTS}, **model["values"]} for model in models]
    (folder / TABLES).mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / TABLES / "models.csv", lab_table(lines, FACTS))
    write_text_atomically(folder / REPORT_FILE, render_given(models, text, absent, command))


def render_given(
    models: Sequence[Measured], text: TextRecord | None, absent: Mapping[str, str], command: str
) -> str:
    """The whole page as HTML."""
    validity, notes = validity_of(models)
    return fragment(
        "lab_given",
        "page",
        title=TITLE,
        headline=headline(models),
        figures=[one for one in (_pair_figure(models, *pair) for pair in PAIRS) if one],
        scores=correlations_figure(validity) if validity else Markup(),
        said=[*(choice_sentences(validity) if validity else ()), *notes],
        models=_models_table(models),
        notes=[note for model in models for note in notes_of(model)],
        absent=[f"{name}: {why}" for name, why in absent.items()],
        text=text_part(text),
        command=command,
    )


def skips_layers(model: Measured) -> bool:
    """Whether layers above where tokens left need not run; recurrent ones do, on the state they are given."""
    found = model["executed"].get(SKIPPED)
    return found is None or bool(found["above"] <= found["share"])


def notes_of(model: Measured) -> list[str]:
    """What must be known to read a model's figures."""
    name = model["model"]
    found = [f"{name}, {in_sentence(endpoint_name(one))}: {why}" for one, why in model["untold"].items()]
    for one, executed in model["executed"].items():
        if executed["bound"]:
            known = in_sentence(endpoint_name(one))
            found.append(f"{name}, {known}: at least; the smallest threshold keeps 95 % already")
    if not skips_layers(model):
        found.append(
            f"{name}: recurrent layers run whatever exits say: layers skipped are a fact about caches; "
            f"{thousandths(model['executed'][SKIPPED]['above'])} of its layers lay above where tokens left"
        )
    return found


def headline(models: Sequence[Measured]) -> str:
    """The answer in one sentence: the least and the most that was skipped, where layers can be."""
    known = sorted(
        (value, str(model["model"]))
        for model in models
        if (value := model["values"].get(SKIPPED)) is not None and skips_layers(model)
    )
    if not known:
        return "What these models skip was not measured."
    least, most = known[0], known[-1]
    if len(known) == 1:
        return f"{most[1]} skips {thousandths(most[0])} of its layers at 95 % agreement."
    return (
        f"At 95 % agreement {counted(len(known), 'model')} skip from {thousandths(least[0])} of their layers "
        f"({least[1]}) to {thousandths(most[0])} ({most[1]})."
    )


def validity_of(models: Sequence[Measured]) -> tuple[ScoreValidity | None, list[str]]:
    """What scores on prose tell of what is skipped on code, and what must be known to read it.

    A base is one training, whatever number of its models there are: the mean of them. None with fewer bases
    than a table needs, or without scores.
    """
    there = [one for one in models if one["values"].get(SKIPPED_CODE) is not None and skips_layers(one)]
    notes = [f"{one['model']} does not count: {_why_out(one)}" for one in models if one not in there]
    names = {key for one in there for key in one["values"] if key.startswith(SCORE) or key == ORACLE}
    scores = sorted(name for name in names if all(one["values"].get(name) is not None for one in there))
    notes += [f"{name} was not measured on all of them" for name in sorted(names - set(scores))]
    bases: dict[str, list[Measured]] = {}
    for one in there:
        bases.setdefault(str(one["base"]), []).append(one)
    if not scores:
        return None, ["Whether a score tells savings was not measured."]
    if len(bases) < BASES_NEEDED:
        few = counted(len(bases), "independent training")
        said = f"Whether a score tells savings cannot be told: {few} here, a table needs {BASES_NEEDED}."
        return None, [said, *notes]

    def mean(name: str) -> NDArray[np.float64]:
        return np.array([np.mean([one["values"][name] for one in of_base]) for of_base in bases.values()])

    of_scores = {name.removeprefix(SCORE): mean(name) for name in scores}
    return score_validity(list(bases), of_scores, mean(SKIPPED_CODE)), notes


def _why_out(model: Measured) -> str:
    if skips_layers(model):
        return "layers skipped on code were not measured"
    return "its recurrent layers all run"


def _pair_figure(models: Sequence[Measured], own: str, lens: str, kind: Kind, note: str) -> Markup:
    """An endpoint of each model, by its own head and through a lens; nothing where none was measured."""
    rows, cells = [], []
    for model in sorted(models, key=lambda one: (str(one["family"] or ""), str(one["released"] or ""))):
        found = [(model["values"].get(name), shape) for name, shape in ((own, 0), (lens, 1))]
        name = str(model["model"])
        tracks = tuple(
            Track((Point(value, f"{name}: {thousandths(value)}", colour=shape, shape=shape),))
            for value, shape in found
            if value is not None
        )
        rows.append(Row(name, tracks))
        cells.append([name, *(_cell(value) for value, _ in found)])
    title = endpoint_name(own)
    note = f"{note} {HEAD_OR_LENS}"
    drawn = RowPlot(title, note, rows, include=(0.0,), number=thousandths).svg()
    data = table(["Model", "Own head", "Lens"], cells, caption=title)
    return figure(title, note, drawn, data, kind=kind) if drawn else Markup()


def _models_table(models: Sequence[Measured]) -> Markup:
    header = ["Model", "Base", "Kind", "Layers", *map(endpoint_name, SHOWN)]
    rows = [
        [
            *(str(model[key] or "–") for key in ("model", "base", "kind", "layers")),
            *(_cell(model["values"].get(name)) for name in SHOWN),
        ]
        for model in models
    ]
    return table(header, rows, caption="Every model", numeric_from=3)


def _cell(value: float | None) -> str:
    return "–" if value is None else thousandths(value)
