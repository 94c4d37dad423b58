"""The leaderboard of models: every score with its interval, and the best certified speed at each floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from markupsafe import Markup

from offramp.report.drawing import SERIES_COUNT, Key, drawn, legend
from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    estimate_text,
    listed,
    percent,
    percent_tick,
    plain_tick,
    short_text,
    thousandths,
    times,
)
from offramp.report.html import fragment
from offramp.report.names import (
    LENS,
    TRACE,
    distinct,
    figure_name,
    floor_order,
    floor_shown,
    heads_name,
    machine_shown,
    row_name,
)
from offramp.report.plots import PlotRow, Point, RowPlot, Track
from offramp.report.table import NOTHING, Cell, Column, Table, attributes, estimated, reasons
from offramp.scoring.card import EasVariant
from offramp.scoring.components import SIMILARITIES
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Row
from offramp.tuning.floor import Floor
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import INCONCLUSIVE

OWN_TEXT = "bits per byte of a model's own answers say nothing about a text that others share"
COMPONENTS = ("representation", "increment", "calibration")
EAS_CHARTED = "eas_centred_logit"
On = Literal["", "page", "terminal"]


def score_column(
    name: str, title: str = "", shown: NumberFormat = thousandths, *, key: str = "", on: On = ""
) -> Column[Row]:
    """A score of the card. title: as shown, "" for one that data alone have."""

    def score(row: Row) -> Estimate:
        estimate: Estimate = getattr(row.card, name)
        return estimate

    return Column(title, score, shown, data=Estimate, key=key or name, on=on)


def eas_column(similarity: str) -> Column[Row]:
    """The Early-exit Adaptability Score with a similarity, and the range that it can reach."""

    key, title = f"eas_{similarity}", f"EAS, {similarity.replace('_', ' ')}"

    def cell(row: Row) -> Cell:
        variant, ends = variant_of(row, key), eas_ends(row, key)
        reach = "" if ends is None else f"of {decimal(ends[0])} to {decimal(ends[1])}"
        return Cell(NOTHING) if variant is None else estimated(variant.score, thousandths, reach)

    return Column(title, cell, thousandths, data=Estimate, key=key, on="page")


def variant_of(row: Row, key: str) -> EasVariant | None:
    """The row's variant of EAS, by the key of its column."""
    variants = {f"eas_{variant.similarity}": variant for variant in row.card.eas_variants}
    return variants.get(key)


def eas_ends(row: Row, key: str) -> tuple[float, float] | None:
    """The range that the variant can reach."""
    variant = variant_of(row, key)
    if variant is None or variant.floor is None or variant.ceiling is None:
        return None
    return variant.floor, variant.ceiling


def eas_end(similarity: str, end: Literal["floor", "ceiling"]) -> Column[Row]:
    """An end of that range, for data alone."""

    def value(row: Row) -> float | None:
        found: float | None = getattr(variant_of(row, f"eas_{similarity}"), end, None)
        return found

    return Column("", value, data=float, key=f"eas_{similarity}_{end}")


def bits_cell(row: Row) -> Cell:
    """Bits per byte, without an interval; of what the model wrote itself they cannot be compared."""
    if row.own_text and row.bits_per_byte is not None:
        return estimated(Estimate(None, undefined=OWN_TEXT), thousandths)
    bits = row.bits_per_byte
    return Cell(NOTHING) if bits is None else Cell(thousandths(bits), value=bits)


ABOUT: tuple[Column[Row], ...] = (
    *attributes(str, *(f"model.{name}" for name in ("base", "family", "released", "kind", "stage"))),
    Column("", lambda row: row.workload_fingerprint, data=str, key="workload_sha256"),
    *attributes(str, "source"),
    *attributes(float, "model.generation", "model.parameters"),
    *attributes(int, "card.tokens", "card.documents"),
    *attributes(bool, "own_text"),
)
"""What the model and its text are."""

FIGURES: tuple[Column[Row], ...] = (
    *(score_column(key, figure_name(key), on="page") for key in COMPONENTS),
    score_column("saturation_skip", figure_name("saturation_skip"), percent),
    *map(eas_column, SIMILARITIES),
    Column("Bits per byte", bits_cell, thousandths, key="bits", numeric=True, on="page"),
    score_column("composite", "Composite"),
)
"""The scores that are shown, the composite last: it is not shown to predict."""

FURTHER: tuple[Column[Row], ...] = (
    *map(
        score_column,
        (
            "literal_calibration",
            "first_match_skip",
            "time_ceiling_first_match",
            "time_ceiling_saturation",
        ),
    ),
    score_column("initial_information", key="initial_information_nats"),
    *(eas_end(similarity, end) for similarity in SIMILARITIES for end in ("ceiling", "floor")),
    Column("", lambda row: row.card.candidates.get("block_influence"), data=float, key="block_influence"),
    Column("", lambda row: row.card.candidates.get("mean_kl"), data=float, key="mean_kl_nats"),
    *attributes(float, "bits_per_byte", "bytes_per_token", "characters_per_token"),
)
"""Figures that data alone have."""


def leaderboard(rows: Sequence[Row]) -> Table[Row]:
    """Every model on every workload: certified speeds at each floor that was tuned for, then the scores."""
    floors = floors_of(rows)
    first = "fastest that passed" if floors else "highest composite"
    return Table(
        (*TRACE, *ABOUT, *map(speed_column, floors), *FIGURES, *FURTHER),
        caption=f"Every model on every workload, the {first} first",
        name="leaderboard",
    )


def speed_column(floor: Floor) -> Column[Row]:
    """The best certified net speed at a floor; data have every answer in a table of its own."""
    return Column(
        f"Net speed, {floor_shown(floor)}",
        partial(speed_cell, floor=floor),
        times,
        key=f"speed-{floor}",
        numeric=True,
    )


def floors_of(rows: Sequence[Row]) -> list[Floor]:
    """Every floor that something was tuned for, the strictest first."""
    return sorted({answer.floor for row in rows for answer in row.answers}, key=floor_order)


def best_answer(row: Row, floor: Floor) -> Tuned | None:
    """The row's fastest certified answer at a floor over machines; None if none is certified."""
    certified = [answer for answer in row.answers if answer.floor == floor and answer.certificate.holds]
    return max(certified, key=lambda answer: answer.net_speedup.value or 0.0, default=None)


def speed_at(row: Row, floor: Floor) -> Estimate:
    """The best certified net speed at a floor; undefined if nothing is certified."""
    answer = best_answer(row, floor)
    return Estimate(None) if answer is None else answer.net_speedup


def speed_cell(row: Row, floor: Floor) -> Cell:
    """The best certified net speed at a floor with its machine, or why there is none."""
    answer = best_answer(row, floor)
    if answer is None:
        return Cell(without_speed(row, floor), tone="quiet")
    note = "never exits" if answer.plain else machine_shown(answer.machine)
    return estimated(answer.net_speedup, times, note)


def without_speed(row: Row, floor: Floor) -> str:
    """Why a row has no certified speed at a floor."""
    here = [
        row.verdicts[answer.floor, answer.machine].decision for answer in row.answers if answer.floor == floor
    ]
    if not here:
        return "not asked"
    return INCONCLUSIVE if INCONCLUSIVE in here else "nothing faster keeps it"


def exits_at(rows: Sequence[Row], floor: Floor) -> bool:
    """Whether a policy that exits early is certified at a floor on any row."""
    answers = [best_answer(row, floor) for row in rows]
    return any(answer is not None and not answer.plain for answer in answers)


def leaderboard_section(comparison: Comparison) -> Markup:
    """Charts of speed and components, the means over workloads, and every row."""
    rows = ordered(comparison.rows)
    if not rows:
        return Markup()
    values = [column.cell(row).value for row in rows for column in FIGURES]
    return fragment(
        "comparison",
        "leaderboard",
        introduction=introduction(rows),
        figures=charts(rows),
        means=means_table(rows),
        rows=leaderboard(rows).html(rows),
        notes=reasons([value for value in values if isinstance(value, Estimate)]),
    )


def introduction(rows: Sequence[Row]) -> str:
    """How to read it."""
    said = (
        "From 0 to 1, higher is more suitable for early exit. Intervals are 95 %, over documents. EAS stands "
        "with the range that it can reach. Net speed, over plain decoding, is that of the fastest policy "
        "that passed the test of the floor."
    )
    if not any(row.answers for row in rows):
        return f"{said} No policy was tuned here, so there is no speed at a floor."
    silent = [floor_shown(floor) for floor in floors_of(rows) if not exits_at(rows, floor)]
    return f"{said} At {listed(silent)} no policy that exits early passed." if silent else said


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The fastest certified speed first, then the highest composite; what has neither comes last."""
    return sorted(
        rows,
        key=lambda row: (
            -max((speed_at(row, floor).value or 0.0 for floor in floors_of([row])), default=0.0),
            -(row.card.composite.value or -1.0),
        ),
    )


Traces = tuple[Row, ...]
"""Every row of one model through one kind of heads."""


def means_table(rows: Sequence[Row]) -> Markup:
    """A line for each model: means over the workloads, without intervals; nothing for a single workload."""
    workloads = distinct([row.workload for row in rows])
    if len(workloads) < 2:
        return Markup()
    groups: dict[tuple[str, str], Traces] = {}
    for row in rows:
        model = (row.model.shown, row.heads)
        groups[model] = (*groups.get(model, ()), row)
    speeds = [speed_column(floor) for floor in floors_of(rows)]
    known = [column for column in FIGURES if any(column.cell(row).shown != NOTHING for row in rows)]

    def name(traces: Traces) -> Cell:
        lacking = [name for name in workloads if name not in {row.workload for row in traces}]
        shown = traces[0].model.shown
        return Cell(shown, below=f"without {listed(lacking)}" if lacking else "", facets=(shown,))

    def mean(column: Column[Row]) -> Column[Traces]:
        what = "certified" if column in speeds else "known"
        return Column(
            column.name, partial(mean_cell, column, what, len(workloads)), key=column.key, numeric=True
        )

    means: list[Column[Traces]] = [mean(column) for column in (*speeds, *known)]
    # By the boldest floor's speed first, then by the composite.
    ranked_by = [*reversed(means[: len(speeds)]), *(mean for mean in means if mean.key == "composite")]

    def rank(traces: Traces) -> tuple[float, ...]:
        values = [column.cell(traces).value for column in ranked_by]
        return tuple(-value if isinstance(value, float) else 1.0 for value in values)

    return Table(
        (
            Column("Model", name, facet="model"),
            Column("Exit heads", lambda traces: heads_name(traces[0].heads), facet="heads", idle=LENS),
            *means,
        ),
        caption=f"Means over {counted(len(workloads), 'workload')}, without intervals",
        name="means",
        noun="model",
    ).html(sorted(groups.values(), key=rank))


def value_of(column: Column[Row], row: Row) -> float | None:
    """The number that a column has of a row."""
    value = column.cell(row).value
    value = value.value if isinstance(value, Estimate) else value
    return value if isinstance(value, float) else None


def mean_cell(column: Column[Row], what: str, workloads: int, traces: Traces) -> Cell:
    """The mean over workloads where each has the figure, else how many have it."""
    values = [value for row in traces if (value := value_of(column, row)) is not None]
    if len(values) == len(traces) == workloads:
        mean = sum(values) / len(values)
        return Cell(column.shown(mean), value=mean)
    return Cell(NOTHING, below=f"{len(values)} of {len(traces)} {what}", tone="quiet")


CHARTED_ROWS = 40
LEAST_SPAN, LEAST_SPEED_SPAN = 0.1, 0.04
"""How far an axis of scores and one of speeds reaches at least."""
CHARTED_SCORES: Mapping[str, str] = {
    **dict.fromkeys(COMPONENTS, "From 0 to 1, higher is more suitable."),
    EAS_CHARTED: "Early-exit Adaptability Score. Brackets run from another token's logits to its ceiling.",
    "saturation_skip": "Layers that could be skipped if the full model's answer were known. No policy can "
    "know it.",
    "composite": "Geometric mean of the three components; it is unproven that it predicts savings.",
}
"""Scores that are drawn, by the keys of their columns, with what is said of each."""
CHARTED_SPEEDS = "Over plain decoding, on documents kept apart. Tinted: faster. Hollow: never exits."


@dataclass(frozen=True)
class Chart:
    """A column as a figure: a dot a row, on one axis. floor: of certified speeds, None of scores."""

    column: Column[Row]
    title: str
    note: str
    floor: Floor | None = None

    def point(self, name: str, row: Row, colour: int) -> Point:
        """One dot with its interval: hollow where the policy never exits, EAS in the bracket of its range."""
        estimate, key = self.column.cell(row).value, self.column.key
        assert isinstance(estimate, Estimate), "figures that are drawn are estimates"
        said = f"{name}, {row.workload}: {estimate_text(estimate, self.column.shown)}"
        answer = None if self.floor is None else best_answer(row, self.floor)
        shape = 4 if answer is not None and answer.plain else 0
        reach = eas_ends(row, key) if key == EAS_CHARTED else None
        return Point(estimate, said, colour, shape, reach)


def charts(rows: Sequence[Row]) -> list[Markup]:
    """Certified speed at each floor, then the components, EAS, the oracle and the composite."""
    models, workloads = distinct([row_name(row) for row in rows]), distinct([row.workload for row in rows])
    by_model = len(models) > 1 and len(workloads) <= SERIES_COUNT
    colours = {workload: place for place, workload in enumerate(workloads)} if by_model else {}
    columns = {column.key: column for column in FIGURES}
    speeds = [
        Chart(speed_column(floor), f"Certified net speed, {floor_shown(floor)}", CHARTED_SPEEDS, floor)
        for floor in floors_of(rows)
        if exits_at(rows, floor)
    ]
    scores = [Chart(columns[key], columns[key].name, note) for key, note in CHARTED_SCORES.items()]
    return [Markup("").join(chart_of(chart, rows, colours) for chart in (*speeds, *scores))]


def chart_of(chart: Chart, rows: Sequence[Row], colours: Mapping[str, int]) -> Markup:
    """A chart: a line for each model with its workloads, or for each row; nothing where no row has it.

    colours: of workloads.
    """
    column, note, scored = chart.column, chart.note, chart.floor is None
    if all(column.cell(row).shown == NOTHING for row in rows):
        return Markup()
    lines = plot_rows(chart, rows, colours)
    if len(lines) > CHARTED_ROWS:
        note += f" The first {CHARTED_ROWS} of {len(lines)} are drawn."
    plot = RowPlot(
        chart.title,
        note,
        lines[:CHARTED_ROWS],
        rule=None if scored else (1.0, "plain decoding"),
        better="" if scored else "right",
        number=percent_tick if column.shown is percent else plain_tick,
        # Scores of a hair's breadth apart would all be one dot on an axis from 0 to 1.
        least_span=LEAST_SPAN if scored else LEAST_SPEED_SPAN,
    )
    data = Table((*TRACE, column), caption=chart.title).html(rows)
    key = legend([Key(name, place) for name, place in colours.items()]) if len(colours) > 1 else ""
    return drawn(plot, data, legend=key, kind="measured" if scored else "predicted")


def plot_rows(chart: Chart, rows: Sequence[Row], colours: Mapping[str, int]) -> list[PlotRow]:
    """A row for each model, with a track for each of its workloads in their order, or for each trace."""
    known = [row for row in rows if value_of(chart.column, row) is not None]
    several = len({row_name(row) for row in known}) > 1
    grouped: dict[str, list[Row]] = {}
    for row in known:
        both = f"{row_name(row)} · {row.workload}" if several else row.workload
        grouped.setdefault(row_name(row) if colours else both, []).append(row)
    lines = []
    for name, traces in grouped.items():
        traces.sort(key=lambda row: colours.get(row.workload, 0))
        points = [chart.point(name, row, colours.get(row.workload, 0)) for row in traces]
        first, number = points[0].figure, chart.column.shown
        shown = short_text(points[0].value, first.low, first.high, number) if len(traces) == 1 else ""
        lines.append(PlotRow(name, tuple(Track((point,)) for point in points), shown))
    return lines
