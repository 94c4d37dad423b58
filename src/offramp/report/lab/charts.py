"""The charts of the lab's page, each with the same numbers as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from offramp.lab.effects.effect import Effect
from offramp.lab.effects.factorial import CORNERS
from offramp.lab.effects.runs import (
    DENSE,
    DEPTH,
    MIXTURE,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SKIPPED,
    SKIPPED_LENS,
    Run,
)
from offramp.lab.effects.score_validity import ScoreValidity
from offramp.lab.effects.study import LabFindings
from offramp.report.formats import decimal, interval_text, plain_tick, thousandths
from offramp.report.html import Kind, figure, table
from offramp.report.lab.words import effect_name, effect_text, endpoint_name, number, score_name
from offramp.report.names import in_sentence
from offramp.report.plot.plot import Axis, Plot, Series
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.report.sections.claims import probability, signed

FOREST = ("corners", "1", "3", "4", "5", "sizes")
"""Families whose effects stand beside each other."""

GROUPS = (*CORNERS, "other cells", "mixtures of experts", "state spaces")
FAINT = 4
"""A hollow marker: nothing sure."""


def forests(findings: LabFindings) -> list[Markup]:
    """Every effect with its interval, a chart for each endpoint."""
    effects = [one for key in FOREST for one in findings.families[key].effects]
    endpoints = dict.fromkeys(one.endpoint for one in effects)
    return [_forest(endpoint, [one for one in effects if one.endpoint == endpoint]) for endpoint in endpoints]


def _forest(endpoint: str, effects: Sequence[Effect]) -> Markup:
    families = list(dict.fromkeys(one.family for one in effects))
    rows = []
    for one in effects:
        sure = one.word in ("lower", "higher")
        said = f"{effect_name(one.name)}: {effect_text(one)}, {one.word}"
        shape = 0 if sure else FAINT
        point = Point(one.value, said, one.low, one.high, families.index(one.family), shape)
        rows.append(Row(effect_name(one.name), (Track((point,)),), one.word if sure else ""))
    note = (
        "The first less the second, with its 95 % interval: by the error of a seed, or over the bases where "
        "both go on from one. Filled: lower or higher, all conditions met; hollow: not."
    )
    plot = RowPlot(
        endpoint_name(endpoint),
        note,
        rows,
        rule=(0.0, "no difference"),
        number=signed(plain_tick),
        least_span=0.1,
    )
    data = table(
        ["Compared", "Effect", "95 %", "p, adjusted", "With loss", "Detectable", "Word"],
        [
            [
                effect_name(one.name),
                number(one.value),
                interval_text(one.low, one.high, thousandths) or "none",
                probability(one.adjusted),
                "–"
                if one.with_loss is None
                else f"{number(one.with_loss)} (p {probability(one.p_with_loss)})",
                "–" if one.detectable is None else thousandths(one.detectable),
                one.word,
            ]
            for one in effects
        ],
        caption=endpoint_name(endpoint),
    )
    return figure(plot.title, note, plot.svg(), data, kind=_kind(endpoint))


def _kind(endpoint: str) -> Kind:
    return "executed" if endpoint.startswith(SKIPPED) else "measured"


def _group(run: Run) -> str:
    if run.kind != DENSE:
        return GROUPS[3] if run.kind == MIXTURE else GROUPS[4]
    return next((name for name, signs in CORNERS.items() if run.signs == signs), GROUPS[2])


def training_figures(findings: LabFindings) -> list[Markup]:
    """Representation and layers skipped after every kept model, the mean of each group of runs."""
    found = [_over_training(endpoint, findings) for endpoint in (REPRESENTATION, SKIPPED)]
    return [one for one in found if one]


def _over_training(endpoint: str, findings: LabFindings) -> Markup:
    series, rows = [], []
    for place, name in enumerate(GROUPS):
        runs = [run for run in findings.of("1", "2", "3") if _group(run) == name]
        alike = [run for run in runs if run.tokens == runs[0].tokens and np.isfinite(run.at(endpoint)).any()]
        means = np.mean([run.at(endpoint) for run in alike], axis=0) if alike else np.array([])
        there = np.isfinite(means)
        if there.sum() > 1:
            tokens = np.array(alike[0].tokens)[there]
            label = f"{name} ({len(alike)})"
            series.append(Series(label, np.log2(tokens / 1e6), means[there], place, place, markers=8))
            rows += [[name, f"{at:,}", thousandths(y)] for at, y in zip(tokens, means[there], strict=True)]
    title = f"{endpoint_name(endpoint)} over training"
    note = "Mean of so many runs (in brackets), at the kept models at which it was measured on all of them."
    x_axis = Axis("million tokens, doubling", number=_power_of_two)
    plot = Plot(title, note, x_axis, Axis(in_sentence(endpoint_name(endpoint))), tuple(series))
    data = table(["Runs", "Tokens", endpoint_name(endpoint)], rows, caption=title)
    drawn = figure(title, note, plot.svg(), data, legend=plot.legend(), kind=_kind(endpoint))
    return drawn if series else Markup()


def _power_of_two(exponent: float) -> str:
    """A tick; below 1 with three digits after the point, else with one."""
    value = float(2**exponent)
    return plain_tick(round(value, 1 if value >= 1.0 else 3))


def reading_figures(findings: LabFindings) -> list[Markup]:
    """Layers skipped against representation, by the head itself and through a lens."""
    found = []
    for x, y in ((REPRESENTATION, SKIPPED), (REPRESENTATION_LENS, SKIPPED_LENS)):
        points: dict[str, list[tuple[str, float, float]]] = {}
        for key, blocks in (("1", ("1", "2")), ("3", ("3",))):
            block = findings.families[key].block
            if block is None or not {x, y} <= set(block.endpoints):
                continue
            at = [block.endpoints.index(one) for one in (x, y)]
            for run, row in zip(block.runs, block.matched[:, at], strict=True):
                if run.block in blocks:
                    points.setdefault(_group(run), []).append((run.name, float(row[0]), float(row[1])))
        if points:
            found.append(_scatter(x, y, points))
    return found


def _scatter(x: str, y: str, points: dict[str, list[tuple[str, float, float]]]) -> Markup:
    title = f"{endpoint_name(y)} against representation"
    note = "A point is a run, at the validation loss that all runs of its block reach."
    series = []
    for place, name in enumerate(GROUPS):
        here = points.get(name, [])
        if here:
            columns = np.array([one[1:] for one in here]).T
            said = [f"{run}: {thousandths(a)}, {thousandths(b)}" for run, a, b in here]
            series.append(
                Series(name, columns[0], columns[1], place, place, style="", markers=len(here), said=said)
            )
    x_axis, y_axis = (Axis(in_sentence(endpoint_name(one))) for one in (x, y))
    plot = Plot(title, note, x_axis, y_axis, tuple(series))
    rows = [[run, name, thousandths(a), thousandths(b)] for name in points for run, a, b in points[name]]
    data = table(["Run", "Of", endpoint_name(x), endpoint_name(y)], rows, caption=title, numeric_from=2)
    return figure(title, note, plot.svg(), data, legend=plot.legend(), kind="executed")


def depth_figure(findings: LabFindings) -> Markup:
    """By how many layers later an answer is there that takes a step more; nothing without any."""
    runs = [run for run in findings.of("1", "2") if np.isfinite(run.at(DEPTH)[-1])]
    if not runs:
        return Markup()
    rows = []
    for place, name in enumerate(GROUPS[:3]):
        here = sorted((float(run.at(DEPTH)[-1]), run.name) for run in runs if _group(run) == name)
        if here:
            points = tuple(
                Point(value, f"{run}: {number(value)}", colour=place, shape=place) for value, run in here
            )
            rows.append(Row(f"{name} ({len(here)})", (Track(points),)))
    for one in findings.families["8"].effects:
        point = Point(one.value, effect_text(one), one.low, one.high, None)
        rows.append(Row("mean of the cells", (Track((point,)),), effect_text(one)))
    title = "Layers that one more step takes"
    note = "Slope of the exit from which an answer is said on the steps that it takes; a point is a run."
    plot = RowPlot(
        title, note, rows, rule=(0.0, "no later"), number=signed(plain_tick), unit="layers", least_span=0.4
    )
    data = table(
        ["Run", "Of", "Layers per step"],
        [[run.name, _group(run), number(float(run.at(DEPTH)[-1]))] for run in runs],
        caption=title,
        numeric_from=2,
    )
    return figure(title, note, plot.svg(), data, kind="measured")


def score_figures(findings: LabFindings) -> list[Markup]:
    """Every candidate's correlation with what is saved, over all trainings, and without recurrent ones."""
    if findings.validity is None:
        return []
    made = [correlations_figure(findings.validity)]
    if (without := findings.validity.without_recurrent) is not None:
        made.append(correlations_figure(without, ", without recurrent models"))
    return made


def correlations_figure(validity: ScoreValidity, which: str = "") -> Markup:
    """Every candidate's correlation with what is saved; nothing without any. which: of the trainings."""
    if not validity.table:
        return Markup()
    ranked = sorted(validity.table, key=lambda one: -one.value)
    rows = [
        Row(
            score_name(one.score),
            (
                Track(
                    (
                        Point(
                            one.value,
                            f"{decimal(one.value)}",
                            one.low,
                            one.high,
                            0,
                            0 if one.low > 0 else FAINT,
                        ),
                    )
                ),
            ),
            "chosen on the first half" if validity.choice and one.score == validity.choice.score else "",
        )
        for one in ranked
    ]
    title = f"Scores on prose against layers skipped on code{which}"
    note = (
        f"Spearman's correlation over {sum(validity.halves)} trainings; intervals hold for all scores "
        "together in 95 %. The table claims nothing."
    )
    plot = RowPlot(title, note, rows, axis=(-1.0, 1.0), rule=(0.0, "chance"), number=signed(plain_tick))
    data = table(
        ["Score", "Correlation", "95 %, all together"],
        [
            [score_name(one.score), decimal(one.value), interval_text(one.low, one.high, decimal)]
            for one in ranked
        ],
        caption=title,
    )
    return figure(title, note, plot.svg(), data, kind="executed")
