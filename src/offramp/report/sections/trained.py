"""Trained exits of a comparison beside the same models untrained: what they took, save and add."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.formats import estimate_text, percent, percent_tick, times, whole_percent
from offramp.report.html import Kind, figure, fragment
from offramp.report.names import distinct, floor_order, line_name, machine_shown
from offramp.report.places import FLOOR, PLACE
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.report.scored import readings_sentence
from offramp.report.sections.training import Bought, answers, minutes, tokens_text, training_sentence
from offramp.report.table import NOTHING, Cell, Column, Table, estimated
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, TrainedSaving
from offramp.studies.comparison.results import Row as Traced

PASSED = {"": NOTHING, "replayed": "by a replay bound", "executed": "certified"}
MOST_DRAWN = 24


def _saved_cell(one: TrainedSaving) -> Cell:
    known = one.saved.value is not None
    return estimated(one.saved, percent) if known else Cell(_saved_text(one), value=one.saved)


def _basis_cell(one: TrainedSaving) -> Cell:
    return Cell(NOTHING if one.saved.value is None else one.basis, value=one.basis)


def _passed_cell(one: TrainedSaving) -> Cell:
    shown = "open" if one.open and one.saved.value is None else PASSED[one.passed]
    return Cell(shown, value=one.passed)


def _credit_cell(one: TrainedSaving) -> Cell:
    credit = one.credit
    return Cell("not measured", value=credit) if credit.value is None else estimated(credit, times)


def _paid_cell(one: TrainedSaving) -> Cell:
    return Cell(NOTHING if one.saved.value is None else _paid(one), value=one.paid_back)


TRAININGS: Table[TrainedSaving] = Table(
    (
        *(column.over(lambda one: one.place) for column in PLACE),
        FLOOR.over(lambda one: one.floor),
        Column("Time saved", _saved_cell, percent, data=Estimate, key="saved_share_of_time", numeric=True),
        Column("Speed is", _basis_cell, data=str, key="basis"),
        Column("Floor is kept", _passed_cell, data=str, key="passed"),
        Column(
            "Saved untrained",
            lambda one: one.untrained,
            percent,
            data=float,
            key="untrained_saved_share_of_time",
            numeric=True,
        ),
        Column(
            "Speed over the best without exits",
            _credit_cell,
            times,
            data=Estimate,
            key="credit",
            numeric=True,
            kind="measured",
        ),
        Column("Paid back after tokens", _paid_cell, data=float, key="paid_back_after_tokens", numeric=True),
        Column(
            "Training took",
            lambda one: one.training.seconds,
            minutes,
            data=float,
            key="training_seconds",
            numeric=True,
        ),
        Column(
            "Tokens read",
            lambda one: one.training.tokens,
            tokens_text,
            data=int,
            key="tokens",
            numeric=True,
        ),
        Column(
            "Rows trained", lambda one: one.training.rows, tokens_text, data=int, key="rows", numeric=True
        ),
        Column("", lambda one: one.training.kind, data=str, key="kind"),
        Column("", lambda one: "+".join(map(str, one.training.exits)), data=str, key="exits"),
        Column("", lambda one: one.training.steps, data=int, key="steps"),
        Column("", lambda one: one.policy, data=str, key="policy"),
        Column("", lambda one: one.plain_seconds, data=float, key="plain_seconds_per_token"),
    ),
    caption="What trained exits save, and what they took",
    name="trainings",
)


def trained_section(comparison: Comparison) -> Markup:
    """What each training took and bought, one chart and one table; nothing without trained exits."""
    if not any(row.training is not None for row in comparison.rows):
        return Markup()
    trained = sorted(comparison.trained, key=lambda one: floor_order(one.floor))
    return fragment(
        "comparison",
        "trained",
        groups=trained_groups(comparison),
        chart=saved_figure(trained[:MOST_DRAWN]) if trained else Markup(),
        rows=TRAININGS.html(trained),
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
    here = [one for one in trained if (one.place.model, one.place.heads) == key]
    several = len({one.place.machine for one in here}) > 1
    return answers([_as_bought(one, several) for one in here])


def _as_bought(one: TrainedSaving, several: bool) -> Bought:
    """The same as the page of a run has it, where only what was executed counts. several: machines."""
    place, executed = one.place, one.passed == "executed"
    return Bought(
        text=f"{place.workload} ({machine_shown(place.machine)})" if several else place.workload,
        floor=one.floor.value,
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
        f"On {row.workload}: {readings_sentence(row.card.readings)}"
        for row in rows
        if row.card.readings is not None
    ]


SAVED: Table[TrainedSaving] = Table(
    (
        Column("Exits, text and floor", lambda one: _name(one)),
        Column("Time saved", lambda one: _saved_text(one), numeric=True),
        Column("Untrained", lambda one: one.untrained, percent, numeric=True),
        Column("Paid back after tokens", lambda one: _paid(one), numeric=True),
    ),
    caption="Time saved by trained exits, and by the same model untrained",
)
"""What the chart shows."""


def saved_figure(trained: Sequence[TrainedSaving]) -> Markup:
    """Time saved, trained and untrained joined, one row a training, text and floor."""
    texts = distinct([one.place.workload for one in trained])
    note = (
        "Of the fastest plain decoder's time, saved at each floor, with its 95 % interval; hollow: the same "
        "model untrained; 0 where nothing faster keeps the floor."
    )
    plot = RowPlot(
        title="Time saved by trained exits",
        description=note,
        rows=[_row(one, texts.index(one.place.workload)) for one in trained],
        include=(0.0, 0.1),
        number=percent_tick,
        style="wide",
    )
    known = {one.basis for one in trained if one.saved.value is not None}
    kind: Kind = "predicted" if known == {"predicted"} else "measured"
    return figure(plot.title, note, plot.svg(), SAVED.html(trained), kind=kind)


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
    return f"{one.place.heads} · {one.place.workload} at {whole_percent(one.floor.value)}"


def _saved_text(one: TrainedSaving, *, short: bool = False) -> str:
    if one.saved.value is None:
        return "open" if one.open else "nothing"
    return percent(one.saved.value) if short else estimate_text(one.saved, percent)


def _paid(one: TrainedSaving) -> str:
    if one.paid_back is not None:
        return tokens_text(one.paid_back)
    return "never" if one.never else "not known"
