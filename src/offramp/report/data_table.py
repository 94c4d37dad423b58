"""Tables of data that the comparison's script sorts and filters, and that read as well without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.report.comparison_words import LENS, limits_text
from offramp.report.formats import NumberFormat, counted
from offramp.report.markup import Kind, attributes, element, kind_chip, small, text
from offramp.scoring.estimate import Estimate

NOTHING = "–"
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

    html: str
    value: float | None = None
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataTable:
    """A table with a name of its own in links, its columns, rows of cells, and a caption in words."""

    name: str
    caption: str
    columns: tuple[DataColumn, ...]
    rows: Sequence[Sequence[DataCell]]
    noun: str = "row"

    def html(self) -> str:
        """The count of rows and the table in a frame of its own that scrolls; "" without rows."""
        if not self.rows:
            return ""
        kept = [place for place, column in enumerate(self.columns) if not self._is_idle(place, column)]
        head = "".join(_head(self.columns[place]) for place in kept)
        body = "".join(self._row(cells, kept) for cells in self.rows)
        whole = element(
            "table",
            element("caption", text(self.caption))
            + element("thead", element("tr", head))
            + element("tbody", body),
            class_="data",
            id_=f"data-{self.name}",
            data_table=self.name,
        )
        count = element(
            "span",
            text(counted(len(self.rows), self.noun)),
            data_count=self.name,
            data_noun=self.noun,
            role="status",
        )
        above = element("p", element("strong", text(self.caption)) + " · " + count, class_="count")
        frame = element(
            "div", whole, class_="scroll data-frame", tabindex=0, role="region", aria_label=self.caption
        )
        return element("div", above + frame, class_="data-block")

    def _is_idle(self, place: int, column: DataColumn) -> bool:
        """Whether a column says nothing: no number in any row, or no exit heads but the model's own."""
        nothing = text(LENS) if column.facet == "heads" else NOTHING if column.numeric else None
        return all(cells[place].html == nothing for cells in self.rows)

    def _row(self, cells: Sequence[DataCell], kept: Sequence[int]) -> str:
        parts = []
        for place in kept:
            cell, column = cells[place], self.columns[place]
            values: dict[str, str | int | float | bool | None] = {}
            if column.numeric:
                values["data_v"] = "" if cell.value is None else f"{cell.value:.6g}"
            elif cell.value is not None:
                values["data_v"] = f"{cell.value:.6g}"
            if cell.values:
                values["data_f"] = "\n".join(cell.values)
            name = "td" if place else 'th scope="row"'
            parts.append(f"<{name}{attributes(values)}>{cell.html}</{'td' if place else 'th'}>")
        return f"<tr>{''.join(parts)}</tr>"


def _head(column: DataColumn) -> str:
    """A column's heading: its name stands in a span of its own, which the script makes a button."""
    name = element("span", text(column.name), class_="by")
    chip = f" {kind_chip(column.kind)}" if column.kind else ""
    return element(
        "th",
        name + chip,
        scope="col",
        data_key=column.key,
        data_facet=column.facet or None,
        data_numeric=column.numeric,
        class_="number" if column.numeric else None,
    )


def facet_cell(shown: str, *values: str, note: str = "") -> DataCell:
    """A name that rows are narrowed down by; note: a second, smaller line."""
    differs = bool(note) or values not in ((), (shown,))
    name = element("span", text(shown), class_="long") if len(shown) > LONG else text(shown)
    return DataCell(name + small(note), None, (values or (shown,)) if differs else ())


def words(shown: str) -> DataCell:
    """A cell of text, which may be long."""
    return DataCell(element("p", text(shown)))


def number_cell(value: float | None, number: NumberFormat, missing: str = NOTHING) -> DataCell:
    """A number, or a sign that there is none."""
    return DataCell(text(missing) if value is None else text(number(value)), value)


def estimate_cell(estimate: Estimate, number: NumberFormat, note: str = "") -> DataCell:
    """A value with its interval below; without an interval the reason stands in the notes of the table."""
    if estimate.value is None:
        return DataCell(element("span", "undefined", class_="undefined"))
    shown = number(estimate.value)
    limits = limits_text(estimate.low, estimate.high, number)
    return DataCell(text(shown) + small(limits) + small(note), estimate.value)


def reasons(estimates: Sequence[Estimate]) -> list[str]:
    """Why some of these have no value or no interval, each reason once with how often it holds."""
    found: dict[str, int] = {}
    for estimate in estimates:
        why = f"Undefined: {estimate.undefined}" if estimate.value is None else estimate.no_interval
        if why and not (estimate.value is None and not estimate.undefined):
            why = why if estimate.value is None else f"Without an interval: {why}"
            found[why] = found.get(why, 0) + 1
    return [f"{why} ({counted(count, 'figure')})." for why, count in found.items()]
