"""Trained exits of a comparison beside the same models untrained: what they took, save and add."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.data_table import (
    PLACE_COLUMNS,
    DataCell,
    DataColumn,
    DataTable,
    estimate_cell,
    facet_cell,
    number_cell,
    place_cells,
)
from offramp.report.formats import estimate_text, percent, percent_tick, times, whole_percent
from offramp.report.html import Kind, figure, fragment, table, text
from offramp.report.names import distinct, floor_order, floor_shown, line_name, machine_shown
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.report.scored import readings_sentence
from offramp.report.sections.training import Bought, answers, minutes, tokens_text, training_sentence
from offramp.studies.comparison.results import Comparison, TrainedSaving
from offramp.studies.comparison.results import Row as Traced

COLUMNS = (
    *PLACE_COLUMNS,
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("saved", "Time saved", numeric=True),
    DataColumn("how", "Speed is"),
    DataColumn("passed", "Floor is kept"),
    DataColumn("untrained", "Saved untrained", numeric=True),
    DataColumn("credit", "Speed over the best without exits", numeric=True, kind="measured"),
    DataColumn("paid", "Paid back after tokens", numeric=True),
    DataColumn("took", "Training took", numeric=True),
    DataColumn("tokens", "Tokens read", numeric=True),
    DataColumn("rows", "Rows trained", numeric=True),
)
PASSED = {"": "–", "replayed": "by a replay bound", "executed": "certified"}
MOST_DRAWN = 24


def trained_section(comparison: Comparison) -> Markup:
    """What each training took and bought, one chart and one table; nothing without trained exits."""
    if not any(row.training is not None for row in comparison.rows):
        return Markup()
    found = sorted(comparison.trained, key=lambda one: floor_order(one.floor))
    return fragment(
        "comparison",
        "trained",
        groups=trained_groups(comparison),
        chart=saved_figure(found[:MOST_DRAWN]) if found else Markup(),
        rows=DataTable(
            "trainings",
            "What trained exits save, and what they took",
            COLUMNS,
            [_cells(one) for one in found],
        ).html(),
    )


def trained_groups(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Each training of each model by name, with what is said of it, one sentence after another."""
    groups: dict[tuple[str, str], list[Traced]] = {}
    for row in comparison.rows:
        if row.training is not None:
            groups.setdefault((row.model.shown, row.heads), []).append(row)
    return [
        (line_name(*key), [*_took(rows), *_bought(comparison.trained, key), *_read(rows)])
        for key, rows in groups.items()
    ]


def _took(rows: Sequence[Traced]) -> list[str]:
    """What the training took, once for texts that share one."""
    said = {row.workload: training_sentence(row.training) for row in rows if row.training is not None}
    if len(set(said.values())) == 1:
        return [next(iter(said.values()))]
    return [f"For {workload}: {sentence}" for workload, sentence in said.items()]


def _bought(trained: Sequence[TrainedSaving], key: tuple[str, str]) -> list[str]:
    """A sentence a floor."""
    here = [one for one in trained if (one.model, one.heads) == key]
    several = len({one.machine for one in here}) > 1
    return answers([_as_bought(one, several) for one in here])


def _as_bought(one: TrainedSaving, several: bool) -> Bought:
    """The same as the page of a run has it, where only what was executed counts. several: machines."""
    where = f"{one.workload} ({machine_shown(one.machine)})" if several else one.workload
    executed = one.passed == "executed"
    return Bought(
        text=where,
        floor=_floor(one),
        policy=one.policy,
        how=one.basis,
        saved=one.saved.value if executed else None,
        low=one.saved.low,
        high=one.saved.high,
        tokens=one.paid_back,
        open=one.open or one.passed == "replayed",
        credit=one.credit.value,
    )


def _read(rows: Sequence[Traced]) -> list[str]:
    """What the exits hold beside what the own head reads of them, where both were traced."""
    return [
        f"On {row.workload}: {readings_sentence(row.readings)}" for row in rows if row.readings is not None
    ]


def saved_figure(found: Sequence[TrainedSaving]) -> Markup:
    """Time saved, trained and untrained joined, one row a training, text and floor."""
    texts = distinct([one.workload for one in found])
    note = (
        "Of the fastest plain decoder's time, saved at each floor, with its 95 % interval; hollow: the same "
        "model untrained; 0 where nothing faster keeps the floor."
    )
    rows = [_row(one, texts.index(one.workload)) for one in found]
    plot = RowPlot(
        title="Time saved by trained exits",
        description=note,
        rows=rows,
        include=(0.0, 0.1),
        number=percent_tick,
        style="wide",
    )
    lines = [
        [_name(one), _saved_text(one), "–" if one.untrained is None else percent(one.untrained), _paid(one)]
        for one in found
    ]
    header = ["Exits, text and floor", "Time saved", "Untrained", "Paid back after tokens"]
    data = table(header, lines, caption="Time saved by trained exits, and by the same model untrained")
    known = {one.basis for one in found if one.saved.value is not None}
    kind: Kind = "predicted" if known == {"predicted"} else "measured"
    return figure(plot.title, note, plot.svg(), data, kind=kind)


def _row(one: TrainedSaving, colour: int) -> Row:
    said, saved = f"{_name(one)}: {_saved_text(one)}", one.saved
    points = [Point(saved.value or 0.0, said, saved.low, saved.high, colour, 0)]
    if one.untrained is not None:
        points.insert(0, Point(one.untrained, f"untrained: {percent(one.untrained)}", colour=colour, shape=4))
    paid = "" if one.paid_back is None else f", paid in {_paid(one)}"
    # What nobody executed is drawn, and not said to be paid.
    shown = _saved_text(one, short=True) + (", replayed only" if one.passed == "replayed" else paid)
    return Row(_name(one), (Track(points=tuple(points)),), shown)


def _name(one: TrainedSaving) -> str:
    return f"{one.heads} · {one.workload} at {whole_percent(_floor(one))}"


def _saved_text(one: TrainedSaving, *, short: bool = False) -> str:
    if one.saved.value is None:
        return "open" if one.open else "nothing"
    return percent(one.saved.value) if short else estimate_text(one.saved, percent)


def _paid(one: TrainedSaving) -> str:
    if one.paid_back is not None:
        return tokens_text(one.paid_back)
    return "never" if one.credit.value is not None or one.saved.value is None else "not known"


def _floor(one: TrainedSaving) -> float:
    return float(one.floor.partition("=")[2])


def _cells(one: TrainedSaving) -> list[DataCell]:
    training, known = one.training, one.saved.value is not None
    return [
        *place_cells(one.model, one.workload, one.heads),
        facet_cell(floor_shown(one.floor)),
        facet_cell(machine_shown(one.machine)),
        estimate_cell(one.saved, percent) if known else DataCell(text(_saved_text(one))),
        DataCell(text(one.basis if known else "–")),
        DataCell(text("open" if one.open and not known else PASSED[one.passed])),
        number_cell(one.untrained, percent),
        DataCell(text("not measured")) if one.credit.value is None else estimate_cell(one.credit, times),
        number_cell(one.paid_back, tokens_text, _paid(one) if known else "–"),
        number_cell(training.seconds, minutes),
        number_cell(float(training.tokens), tokens_text),
        number_cell(None if training.rows is None else float(training.rows), tokens_text),
    ]
