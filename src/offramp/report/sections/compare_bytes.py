"""Per byte of text, where models cut the same text into different tokens and figures per token mislead."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.comparison_answers import NEVER, believed, fastest, replayed
from offramp.report.comparison_words import distinct, machine_shown
from offramp.report.data_table import PLACE_COLUMNS, DataCell, DataColumn, DataTable, number_cell, place_cells
from offramp.report.formats import decimal
from offramp.report.html import fragment, stack
from offramp.studies.comparison.per_byte import per_byte_notes
from offramp.studies.comparison.results import Comparison, Row, Strategy

Places = dict[tuple[str, str, str, str], list[Strategy]]


def bytes_section(comparison: Comparison) -> Markup:
    """Bits per byte and characters per second; nothing where all models read the same tokens."""
    if not per_byte_notes(comparison.rows):
        return Markup()
    rows = [row for row in comparison.rows if row.bytes_per_token is not None and not row.own_text]
    places = with_characters(comparison.strategies)
    machines = distinct([machine for *_, machine in places])
    columns = [
        *PLACE_COLUMNS,
        DataColumn("bits", "Bits per byte", numeric=True),
        DataColumn("nll", "NLL per token, nats", numeric=True),
        DataColumn("bytes", "Bytes per token", numeric=True),
        DataColumn("characters", "Characters per token", numeric=True),
    ]
    for machine in machines:
        name = machine_shown(machine)
        columns.append(DataColumn(f"plain-{machine}", f"Characters per second, plain, {name}", numeric=True))
        columns.append(DataColumn(f"best-{machine}", f"… with the fastest strategy, {name}", numeric=True))
    body = [[*_text_cells(row), *_speed_cells(row, machines, places)] for row in rows]
    body.sort(key=lambda cells: (cells[1].html, cells[3].value is None, cells[3].value or 0.0))
    caption = "Every model on every workload, the fewest bits per byte first"
    return fragment("comparison", "bytes", DataTable("bytes", caption, columns, body).html())


def _text_cells(row: Row) -> list[DataCell]:
    nll = row.curves.get("nll", (None,))[-1]
    return [
        *place_cells(row.model.shown, row.workload, row.heads),
        number_cell(row.bits_per_byte, lambda value: decimal(value, 3)),
        number_cell(nll, decimal),
        number_cell(row.bytes_per_token, decimal),
        number_cell(row.characters_per_token, decimal),
    ]


def _speed_cells(row: Row, machines: Sequence[str], places: Places) -> list[DataCell]:
    """On each machine plain decoding's characters per second, and those of the fastest strategy."""
    cells = []
    for machine in machines:
        here = places.get((row.model.shown, row.workload, row.heads, machine), [])
        plain = next((one for one in here if one.policy == NEVER), None)
        best = fastest(replayed(here)) or fastest(believed(here))
        cells.append(number_cell(None if plain is None else plain.characters_per_second, whole))
        found = number_cell(None if best is None else best.characters_per_second, whole)
        said = f"{best.family}, {best.basis}" if best else ""
        cells.append(DataCell(stack(found.html, said), found.value))
    return cells


def with_characters(strategies: Sequence[Strategy]) -> Places:
    """The strategies whose characters per second are known, by model, workload, heads and machine."""
    places: Places = {}
    for one in strategies:
        if one.characters_per_second is not None:
            places.setdefault((one.model, one.workload, one.heads, one.machine), []).append(one)
    return places


def whole(value: float) -> str:
    """A count without decimals."""
    return f"{value:,.0f}"
