"""Tables of data that the comparison's script sorts and filters, and that read as well without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from offramp.report.formats import NumberFormat, counted, limits_text
from offramp.report.html import Kind, escaped, fragment, paragraph, stack, styled
from offramp.report.names import LENS, heads_name
from offramp.scoring.estimate import Estimate

NOTHING = "–"
NEW_LINE = "\n"
LONG = 22
"""Names of more signs may break over lines."""

FACETS: dict[str, str] = {
    "model": "Model",
    "workload": "Workload",
    "heads": "Exit heads",
    "machine": "Machine",
    "floor": "Floor",
    "basis": "Basis",
}
"""What rows can be narrowed down by: facet and the name that is shown."""


@dataclass(frozen=True)
class DataColumn:
    """A column. key: its name in a link to a sorted view. facet: of `FACETS`, "" for none.

    numeric: whether it is sorted as numbers. kind: where its numbers come from.
    """

    key: str
    name: str
    numeric: bool = False
    facet: str = ""
    kind: Kind | None = None


@dataclass(frozen=True)
class DataCell:
    """A cell. html: what is shown. value: what it is sorted by, None for last, by its text if it has none.

    values: of its facet, where these are not what the cell shows.
    """

    html: Markup | str
    value: float | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataTable:
    """A table with a name of its own in links, its columns, rows of cells, and a caption in words."""

    name: str
    caption: str
    columns: Sequence[DataColumn]
    rows: Sequence[Sequence[DataCell]]
    noun: str = "row"

    def html(self) -> Markup:
        """The count of rows and the table in a frame of its own that scrolls; nothing without rows."""
        if not self.rows:
            return Markup()
        kept = [place for place, column in enumerate(self.columns) if not self._is_idle(place, column)]
        columns = [self.columns[place] for place in kept]
        rows = [self._row(row, kept) for row in self.rows]
        count = counted(len(rows), self.noun)
        return fragment("macros", "data_table", self.name, self.caption, columns, rows, self.noun, count)

    def _row(self, row: Sequence[DataCell], kept: Sequence[int]) -> Markup:
        """A row with what the page's script sorts and narrows down by.

        A page may have thousands of rows, for which a template would take four times as long.
        """
        parts = []
        for place in kept:
            cell, marks = row[place], ""
            if cell.value is not None:
                marks = f' data-v="{cell.value:.6g}"'
            elif self.columns[place].numeric:
                marks = ' data-v=""'
            if cell.values:
                marks += f' data-f="{escape(NEW_LINE.join(cell.values))}"'
            shown = escaped(cell.html)
            parts.append(f"<td{marks}>{shown}</td>" if place else f'<th scope="row"{marks}>{shown}</th>')
        return Markup("".join(parts))

    def _is_idle(self, place: int, column: DataColumn) -> bool:
        """Whether a column says nothing: no number in any row, or no exit heads but the model's own."""
        nothing = LENS if column.facet == "heads" else NOTHING if column.numeric else None
        return all(row[place].html == nothing for row in self.rows)


PLACE_COLUMNS = (
    DataColumn("model", "Model", facet="model"),
    DataColumn("workload", "Workload", facet="workload"),
    DataColumn("heads", "Exit heads", facet="heads"),
)
"""Where a trace stands: with `place_cells` the first columns of most tables."""


def place_cells(model: str, workload: str, heads: str) -> list[DataCell]:
    """The cells of `PLACE_COLUMNS`."""
    return [facet_cell(model), facet_cell(workload), facet_cell(heads_name(heads))]


def facet_cell(shown: str, *values: str, note: str = "") -> DataCell:
    """A name that rows are narrowed down by; note: a second, smaller line."""
    differs = bool(note) or values not in ((), (shown,))
    name = styled(shown, "long") if len(shown) > LONG else shown
    return DataCell(stack(name, note) if note else name, None, (values or (shown,)) if differs else ())


def words(shown: str) -> DataCell:
    """A cell of text, which may be long."""
    return DataCell(paragraph(shown))


def number_cell(value: float | None, number: NumberFormat, missing: str = NOTHING) -> DataCell:
    """A number, or a sign that there is none."""
    return DataCell(missing if value is None else number(value), value)


def estimate_cell(estimate: Estimate, number: NumberFormat, note: str = "") -> DataCell:
    """A value with its interval below; without an interval the reason stands in the notes of the table."""
    if estimate.value is None:
        return DataCell(styled("undefined", "undefined"))
    shown = number(estimate.value)
    limits = limits_text(estimate.low, estimate.high, number)
    return DataCell(stack(shown, limits, note), estimate.value)


def reasons(estimates: Sequence[Estimate]) -> list[str]:
    """Why some of these have no value or no interval, each reason once with how often it holds."""
    found: dict[str, int] = {}
    for estimate in estimates:
        why = f"Undefined: {estimate.undefined}" if estimate.value is None else estimate.no_interval
        if why and not (estimate.value is None and not estimate.undefined):
            why = why if estimate.value is None else f"Without an interval: {why}"
            found[why] = found.get(why, 0) + 1
    return [f"{why} ({counted(count, 'figure')})." for why, count in found.items()]
