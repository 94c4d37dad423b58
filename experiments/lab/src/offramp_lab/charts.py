"""The charts of a page, each with the same numbers as a table below it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from offramp_lab.families import Findings
from offramp_lab.runs import (
    CORNERS,
    DENSE,
    DEPTH,
    MIXTURE,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SKIPPED,
    SKIPPED_LENS,
    in_corner,
)
from offramp_lab.scores import ScoreValidity

FOREST = ("corners", "1", "3", "4", "5", "sizes")
"""Families whose effects stand beside each other."""

COLOURS = {
    **dict(zip(CORNERS, ("#b3541e", "#1f6f8b"), strict=True)),
    "other cells": "#8a8f98",
    "mixtures of experts": "#6b8e23",
    "state spaces": "#7b4f9d",
}
MARKERS = dict(zip(COLOURS, "os^Dv", strict=True))

Name = Callable[[str], str]
Part = dict[str, Any]
"""Of the page: a heading, a sentence about it, and charts with their titles and tables."""


def figures_of(findings: Findings, effect_name: Name, endpoint_name: Name, score_name: Name) -> list[Part]:
    """The parts of the page that draw; those without a chart are left out."""
    runs = grouped(findings)
    parts = (
        (
            "What each thing does",
            "The first less the second, with its 95 % interval: by the error of a seed, or over the bases "
            "where both go on from one. Filled: lower or higher, all conditions met; hollow: not.",
            forests(findings, effect_name, endpoint_name),
        ),
        (
            "Over training",
            "Mean of so many runs (in brackets), at the kept models at which it was measured on all of them.",
            over_training(findings, runs, endpoint_name),
        ),
        (
            "Readout or representation",
            "The head's own reading of the middle layers beside what a lens finds there, a point a run, at "
            "the loss that all runs of its block reach. What moves the first and not the second changes the "
            "reading, not what is held.",
            readings(findings, runs, endpoint_name),
        ),
        (
            "Required against used depth",
            "Layers that one more step takes: slope of the exit from which an answer is said on its steps.",
            required(findings, runs),
        ),
        (
            "Does a score tell savings?",
            "Spearman's correlation of a score on prose with layers skipped on code; intervals hold for all "
            "scores together in 95 %. The table claims nothing.",
            score_charts(findings.validity, score_name),
        ),
    )
    made = [{"name": name, "note": note, "charts": [*drawn]} for name, note, drawn in parts]
    return [part for part in made if part["charts"]]


def grouped(findings: Findings) -> pd.DataFrame:
    """The runs that count of blocks 1 to 3, with the group that each is shown in."""
    runs = findings.study.of("1", "2", "3")
    group = pd.Series("other cells", index=runs.index).mask(runs["kind"] != DENSE, "state spaces")
    group = group.mask(runs["kind"] == MIXTURE, "mixtures of experts")
    for corner in CORNERS:
        group = group.mask(runs.index.isin(in_corner(runs, corner).index), corner)
    return runs.assign(group=group)


def chart(title: str, drawn: Figure, table: pd.DataFrame) -> Part:
    """A chart with its numbers."""
    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        drawn.savefig(written, format="svg", bbox_inches="tight", metadata={"Date": None}, transparent=True)
    svg = written.getvalue()
    numbers = table.to_html(index=False, border=0, na_rep="–", float_format=lambda value: f"{value:.3f}")
    return {"title": title, "svg": Markup(svg[svg.index("<svg") :]), "table": Markup(numbers)}


def rows_chart(
    rows: Sequence[tuple[str, float, float, float, bool, str]],
    *,
    zero: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Values with their intervals below each other: label, value, low, high, whether it is sure, colour."""
    figure = Figure(figsize=(7, 0.9 + 0.28 * len(rows)))
    axes = figure.subplots()
    axes.axvline(0, color="#b9bec6", linewidth=1, label=zero)
    for place, (_, value, low, high, sure, colour) in enumerate(rows):
        if np.isfinite(low):
            axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
        axes.plot([value], [place], "o", color=colour, markerfacecolor=colour if sure else "none")
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"0: {zero}")
    if limits is not None:
        axes.set_xlim(*limits)
    return figure


def forests(findings: Findings, effect_name: Name, endpoint_name: Name) -> Iterator[Part]:
    """Every effect with its interval, a chart for each endpoint."""
    effects = findings.effects
    effects = effects[effects["family"].isin(FOREST)]
    palette = dict(
        zip(FOREST, ("#222831", "#1f6f8b", "#6b8e23", "#b3541e", "#7b4f9d", "#8a6d1b"), strict=True)
    )
    for endpoint, some in effects.groupby("endpoint", sort=False):
        sure = some["word"].isin(["lower", "higher"])
        names = some["name"].map(effect_name)
        rows = [
            (name, row.value, row.low, row.high, bool(filled), palette[row.family])
            for name, row, filled in zip(names, some.itertuples(), sure, strict=True)
        ]
        table = some.assign(name=names).drop(columns=["family", "endpoint"])
        title = endpoint_name(str(endpoint))
        yield chart(title[0].upper() + title[1:], rows_chart(rows, zero="no difference"), table)


def over_training(findings: Findings, runs: pd.DataFrame, endpoint_name: Name) -> Iterator[Part]:
    """Representation and layers skipped after every kept model, the mean of each group of runs."""
    for endpoint in (REPRESENTATION, SKIPPED):
        figure, means = Figure(figsize=(7, 3.4)), {}
        axes = figure.subplots()
        for group, some in runs.groupby("group"):
            models = [findings.study.models_of(run).set_index("tokens") for _, run in some.iterrows()]
            columns = [one[endpoint] for one in models if endpoint in one and one[endpoint].notna().any()]
            alike = [one for one in columns if one.index.equals(columns[0].index)]
            mean = pd.concat(alike, axis=1).mean(axis=1, skipna=False).dropna() if alike else pd.Series()
            if len(mean) > 1:
                name = str(group)
                means[name] = mean
                style: dict[str, Any] = {"color": COLOURS[name], "marker": MARKERS[name]}
                axes.plot(mean.index / 1e6, mean, label=f"{name} ({len(alike)})", **style)
        if means:
            axes.set_xscale("log", base=2)
            axes.set_xlabel("million tokens")
            axes.set_ylabel(endpoint_name(endpoint))
            axes.legend(frameon=False)
            table = pd.concat(means, names=["group", "tokens"]).rename(endpoint).reset_index()
            yield chart(f"{endpoint_name(endpoint)} over training", figure, table)


def readings(findings: Findings, runs: pd.DataFrame, endpoint_name: Name) -> Iterator[Part]:
    """Layers skipped against representation, by the head itself and through a lens."""
    for x, y in ((REPRESENTATION, SKIPPED), (REPRESENTATION_LENS, SKIPPED_LENS)):
        some = []
        for key, blocks in (("1", ("1", "2")), ("3", ("3",))):
            block = findings.families[key].block
            if block is not None and {x, y} <= {*block.endpoints}:
                values = pd.DataFrame(block.matched, columns=[*block.endpoints], index=block.runs.index)[
                    [x, y]
                ]
                some.append(block.runs[["run", "block"]].join(values)[block.runs["block"].isin(blocks)])
        if not some:
            continue
        points = pd.concat(some).join(runs["group"])
        figure = Figure(figsize=(7, 3.8))
        axes = figure.subplots()
        for group, own in points.groupby("group"):
            style: dict[str, Any] = {"color": COLOURS[str(group)], "marker": MARKERS[str(group)]}
            axes.scatter(own[x], own[y], label=group, **style)
        axes.set_xlabel(endpoint_name(x))
        axes.set_ylabel(endpoint_name(y))
        axes.legend(frameon=False)
        yield chart(f"{endpoint_name(y)} against representation", figure, points[["run", "group", x, y]])


def required(findings: Findings, runs: pd.DataFrame) -> Iterator[Part]:
    """By how many layers later an answer is there that takes a step more; nothing without any."""
    known = runs[(runs["kind"] == DENSE) & runs.reindex(columns=[DEPTH])[DEPTH].notna()]
    if known.empty:
        return
    rows = [
        (f"{row.run}, {row.group}", getattr(row, DEPTH), np.nan, np.nan, True, COLOURS[row.group])
        for row in known.sort_values(["group", DEPTH]).itertuples()
    ]
    for effect in findings.families["8"].effects.itertuples():
        rows.append(("mean of the cells", effect.value, effect.low, effect.high, True, "#222831"))
    table = known[["run", "group", DEPTH]]
    yield chart("Layers that one more step takes", rows_chart(rows, zero="no later"), table)


def score_charts(validity: ScoreValidity | None, score_name: Name) -> Iterator[Part]:
    """Every candidate's correlation with what is saved, over all trainings, and without recurrent ones."""
    which = ((validity, ""), (validity and validity.without_recurrent, ", without recurrent models"))
    for found, said in which:
        if found is None or found.table.empty:
            continue
        chosen = found.choice.score if found.choice else ""
        ranked = found.table.sort_values("value", ascending=False)
        rows = [
            (
                f"{score_name(row.score)}{' (chosen)' if row.score == chosen else ''}",
                *(row.value, row.low, row.high, row.low > 0, "#1f6f8b"),
            )
            for row in ranked.itertuples()
        ]
        title = f"Scores on prose against layers skipped on code, {sum(found.halves)} trainings{said}"
        table = ranked.assign(score=ranked["score"].map(score_name))
        yield chart(title, rows_chart(rows, zero="chance", limits=(-1.0, 1.0)), table)
