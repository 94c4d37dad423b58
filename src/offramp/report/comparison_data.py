"""A comparison as data: tables with units in their names and null for what is undefined; links in a page."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.report.curves import CURVES, CurveKind
from offramp.report.findings import CERTIFIED, judged
from offramp.report.formats import counted
from offramp.report.html import fragment
from offramp.report.names import FLOOR, MACHINE, TRACE
from offramp.report.sections.compared import VALIDITY
from offramp.report.sections.leaderboard import leaderboard
from offramp.report.sections.load import UNDER_LOAD
from offramp.report.sections.strategies import STRATEGIES, apart
from offramp.report.sections.training import TRAININGS
from offramp.report.table import Column, Table, attributes
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Basis, Comparison, FloorOn, Row, share_saved
from offramp.studies.comparison.study_reading import answer_text
from offramp.timing.results import Combination, CombineResult

if TYPE_CHECKING:
    import pyarrow as pa
    from markupsafe import Markup

Exit = tuple[Row, int]
"""An exit of a row, by its place among the traced ones."""


def curve_column(kind: CurveKind) -> Column[Exit]:
    """A curve at an exit, with its limits."""
    name = kind.key

    def value(exit: Exit) -> Estimate:
        row, place = exit
        curves = row.card.curves
        if name not in curves.values:
            return Estimate(None)
        value = float(curves.values[name][place])
        if name not in curves.intervals:
            return Estimate(value)
        limits = curves.intervals[name]
        return Estimate(value, float(limits.low[place]), float(limits.high[place]))

    return Column("", value, data=Estimate, key=f"{name}_nats" if kind.unit == "nats" else name)


PROFILES: Table[Exit] = Table(
    (
        *(column.over(lambda exit: exit[0]) for column in TRACE),
        Column("", lambda exit: exit[0].exits[exit[1]], data=int, key="exit"),
        Column(
            "",
            lambda exit: float(exit[0].card.curves.depth_fraction[exit[1]]),
            data=float,
            key="depth_flops_share",
        ),
        *map(curve_column, CURVES.values()),
    )
)


@dataclass(frozen=True)
class Saving:
    """The share of time that a league's choice saves."""

    row: Row
    floor_on: FloorOn
    basis: Basis
    speedup: float


def savings_of(comparison: Comparison) -> Iterator[Saving]:
    """What is saved on every row, predicted and measured."""
    for row in comparison.rows:
        for floor_on, speedup in row.exit_speedup.items():
            yield Saving(row, floor_on, "predicted", speedup)
        for floor_on, speedup in row.measured_speedup.items():
            yield Saving(row, floor_on, "measured", speedup)


SAVINGS: Table[Saving] = Table(
    (
        *(column.over(lambda saving: saving.row) for column in TRACE),
        *attributes(str, "row.model.base"),
        FLOOR.over(lambda saving: saving.floor_on[0]),
        MACHINE.over(lambda saving: saving.floor_on[1]),
        *attributes(str, "basis"),
        Column("", lambda saving: share_saved(saving.speedup), data=float, key="saved_share_of_time"),
    )
)


@dataclass(frozen=True)
class TimedCombination:
    """A combination of accelerations, in its measurement."""

    measured: CombineResult
    combined: Combination


def _quality(timed: TimedCombination) -> Estimate | None:
    quality = timed.combined.quality
    return None if quality is None else quality.forced_agreement


def _seconds(timed: TimedCombination) -> Estimate | None:
    return timed.combined.contender.seconds_per_token


def _answer(timed: TimedCombination) -> str:
    return answer_text(timed.combined.contender, timed.measured.defects)


COMBINED: Table[TimedCombination] = Table(
    (
        *attributes(str, "measured.model", "measured.workload"),
        Column("", lambda timed: timed.combined.name, data=str, key="combination"),
        *attributes(str, "combined.policy"),
        Column("", _answer, data=str, key="answer"),
        *attributes(str, "combined.contender.left_out"),
        Column("", _seconds, data=float, key="seconds_per_token"),
        *attributes(Estimate, "combined.speedup", "combined.product", "combined.interaction"),
        Column("", _quality, data=Estimate, key="forced_agreement"),
    )
)

FAILURES: Table[tuple[str, str]] = Table(
    (
        Column("", lambda failure: failure[0], data=str, key="cell"),
        Column("", lambda failure: failure[1], data=str, key="reason"),
    )
)


def comparison_tables(comparison: Comparison) -> dict[str, pa.Table]:
    """Every table by its name, with its columns even where it has no rows."""
    rows = comparison.rows
    exits = [(row, place) for row in rows for place in range(len(row.exits))]
    timed = [
        TimedCombination(result, combination)
        for result in comparison.combined
        for combination in result.combinations
    ]
    return {
        "leaderboard": leaderboard(rows).arrow(rows),
        "certified": CERTIFIED.arrow(judged(comparison)),
        "trainings": TRAININGS.arrow(comparison.trained),
        "profiles": PROFILES.arrow(exits),
        "strategies": STRATEGIES.arrow(apart(comparison.strategies)),
        "savings": SAVINGS.arrow(savings_of(comparison)),
        "validity": VALIDITY.arrow(comparison.validity),
        "combined": COMBINED.arrow(timed),
        "loads": UNDER_LOAD.arrow(comparison.loads),
        "failures": FAILURES.arrow(comparison.failures.items()),
    }


LARGEST_PLAIN = 1_000_000
"""A table of more bytes is kept compressed, so that the page stays small."""


def downloads_section(comparison: Comparison) -> Markup:
    """A link for each table that has rows, with how large it is."""
    tables = comparison_tables(comparison)
    files = [_file(name, table) for name, table in tables.items() if table.num_rows]
    return fragment("comparison", "downloads", files)


def _file(name: str, table: pa.Table) -> tuple[str, str, str]:
    """A table's file: its name, its content as a link that needs no file and no network, its size."""
    content = csv_bytes(table)
    size = f"{counted(table.num_rows, 'row')}, {file_size(len(content))}"
    file, kind = f"{name}.csv", "text/csv"
    if len(content) > LARGEST_PLAIN:
        content, file, kind = gzip.compress(content, mtime=0), f"{file}.gz", "application/gzip"
    return file, f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}", size


def csv_bytes(table: pa.Table) -> bytes:
    """A table as CSV in UTF-8."""
    import pyarrow as pa
    from pyarrow import csv

    from offramp.kit.spreadsheet import csv_table

    sink = pa.BufferOutputStream()
    csv.write_csv(csv_table(table), sink)
    return bytes(sink.getvalue().to_pybytes())


def file_size(size: int) -> str:
    """Bytes in the unit that suits them: "12 kB", "3.4 MB"."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 0.1):.3g} kB"
