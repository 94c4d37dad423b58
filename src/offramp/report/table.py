"""A table, declared once by its columns: page, terminal, CSV, Parquet and JSON are written from its cells."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from markupsafe import Markup

from offramp.files import write_atomically
from offramp.kit.spreadsheet import csv_table
from offramp.report.formats import counted, limits_text
from offramp.report.html import DECISION_SIGNS, Kind, breakable, escaped, fragment, pill, slug, styled
from offramp.scoring.estimate import Estimate, number

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType
    from rich.text import Text

T = TypeVar("T")
Whole = TypeVar("Whole")
Plain = str | float | int | bool | None

NOTHING = "–"
"""What stands where a cell has no value."""
LONG = 22
"""Names of more signs, in a column that rows are narrowed down by, may break over lines."""

TERMINAL_STYLES = {
    "pays": "green",
    "does not pay": "red",
    "good": "green",
    "invalid": "red",
    "open": "yellow",
    "quiet": "dim",
}
"""A cell's tone on a terminal; every other decision is open, and yellow."""


@dataclass(frozen=True)
class Cell:
    """What stands at a row and a column."""

    shown: str = ""
    """The text; "" for nothing."""
    _: KW_ONLY
    below: str | tuple[str, ...] = ()
    """Smaller lines below it; empty ones are left out."""
    wrong: str = ""
    """What is wrong with it: a line below it in red."""
    tone: str = ""
    """Its colour: a decision, "good", "invalid", "open" or "quiet"."""
    value: Plain | Estimate = None
    """What rows are sorted by, and what data hold; None if that is not known."""
    code: str = ""
    """The text in the grammar that `shown` is the name of: folded on a page, left out on a terminal."""
    why: tuple[str, ...] = ()
    """Sentences that a page folds below the rest, and a terminal leaves out."""
    remark: str = ""
    """Why a figure has no value or no interval: cards have it below, sorted tables in notes."""
    html: Markup | None = None
    """What a page shows in place of the text, such as a drawing."""
    facets: tuple[str, ...] = ()
    """What rows are narrowed down by, where it is not what the cell shows."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The smaller lines that are not empty."""
        below = (self.below,) if isinstance(self.below, str) else self.below
        return tuple(line for line in below if line)


Shown = Plain | Estimate | Cell


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of rows of type T. A new one is a line: name, what a row has there, how it is written."""

    name: str
    """Above it; "" for one that data alone have."""
    of: Callable[[T], Shown]
    """A row's value, or its cell where there is more to show than a value."""
    shown: Callable[[Any], str] = str
    """A value as text: of an estimate its value and limits. None is always "–"."""
    _: KW_ONLY
    data: type | None = None
    """Its type in data: str, float, int, bool, or Estimate (three columns); None: data do not have it."""
    key: str = ""
    """Its name in data, and in a link to a sorted view; by default made of its name."""
    kind: Kind | None = None
    """Where its numbers come from."""
    numeric: bool = False
    """Whether it stands on the right, and is sorted as numbers; what data have as numbers always is."""
    facet: str = ""
    """What a page's rows can be narrowed down by: a key of the page's facets."""
    idle: str = ""
    """The text that says nothing: a column of a sorted table with no other is left out."""
    prose: bool = False
    """Whether its texts are sentences."""
    on: Literal["", "page", "terminal"] = ""
    """Where alone it is shown."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "numeric", self.numeric or self.data in (int, float, Estimate))

    @property
    def name_in_data(self) -> str:
        """The key, or one made of the name: "Net speed" -> "net_speed"."""
        return self.key or "_".join(self.name.lower().replace(",", " ").split())

    @property
    def label(self) -> str:
        """The name that each cell carries where rows are cards."""
        return f"{self.name}, {self.kind}" if self.kind else self.name

    @property
    def key_in_links(self) -> str:
        """The key, or one made of the name: "Net speed" -> "net-speed"."""
        return self.key or slug(self.name)

    def over(self, part: Callable[[Whole], T]) -> Column[Whole]:
        """The same column over what has such a row as a part."""
        column: Column[Any] = self
        return dataclasses.replace(column, of=lambda row: self.of(part(row)))

    def cell(self, row: T) -> Cell:
        """A row's cell."""
        shown = self.of(row)
        if isinstance(shown, Cell):
            return shown
        if isinstance(shown, Estimate):
            return estimated(shown, self.shown)
        return Cell(NOTHING if shown is None else self.shown(shown), value=shown)

    def names(self) -> list[tuple[str, type]]:
        """The columns of data, with their types."""
        key = self.name_in_data
        if self.data is None:
            return []
        if self.data is Estimate:
            return [(key, float), (f"{key}_low", float), (f"{key}_high", float)]
        return [(key, self.data)]

    def values(self, row: T) -> list[Plain]:
        """What the columns of data hold; a number that is not finite is None."""
        found = self.of(row)
        value = found.value if isinstance(found, Cell) else found
        if self.data is Estimate:
            if isinstance(value, Estimate):
                return [number(value.value), number(value.low), number(value.high)]
            return [None] * 3
        plain = value.value if isinstance(value, Estimate) else value
        if self.data is str and plain is not None:
            return [str(plain)]
        return [number(plain) if self.data is float and not isinstance(plain, str) else plain]


def attributes(data: type, *paths: str) -> tuple[Column[Any], ...]:
    """Columns that data alone have, each an attribute of rows: "training.kind" under the name "kind"."""
    return tuple(Column("", attrgetter(path), data=data, key=path.rpartition(".")[2]) for path in paths)


def estimated(estimate: Estimate, shown: Callable[[Any], str], *below: str) -> Cell:
    """A figure with its limits below it, or that it is undefined. below: further lines."""
    if estimate.value is None:
        remark = estimate.undefined or ""
        return Cell("undefined", below=below, tone="quiet", value=estimate, remark=remark)
    limits = limits_text(estimate.low, estimate.high, shown)
    known = estimate.low is not None and estimate.high is not None
    remark = "" if known else estimate.no_interval or ""
    return Cell(shown(estimate.value), below=(limits, *below), value=estimate, remark=remark)


def reasons(estimates: Iterable[Estimate]) -> list[str]:
    """Why some of these have no value or no interval, each reason once with how often it holds."""
    counts: dict[str, int] = {}
    for estimate in estimates:
        why = f"Undefined: {estimate.undefined}" if estimate.value is None else estimate.no_interval
        if why and not (estimate.value is None and not estimate.undefined):
            why = why if estimate.value is None else f"Without an interval: {why}"
            counts[why] = counts.get(why, 0) + 1
    return [f"{why} ({counted(count, 'figure')})." for why, count in counts.items()]


@dataclass(frozen=True)
class Table(Generic[T]):
    """Columns over rows of type T, and what is said of them all.

    On a page it is one of three: a plain table; with a style, cards on a phone; with a name, one that the
    page's script sorts and narrows down.
    """

    columns: Sequence[Column[T]]
    _: KW_ONLY
    caption: str = ""
    """What it shows, in words; each writer may be given another, of what is only known with the rows."""
    groups: Column[T] | None = None
    """What heads groups of rows: its values as rows of their own on a page, the first column elsewhere."""
    nothing: str = ""
    """What is said of a group without rows; without it, such a group is left out."""
    style: str = ""
    """Its class, where rows are cards on a phone."""
    words: int | None = None
    """So many columns on the left are words, all others numbers; None: each column says what it is."""
    name: str = ""
    """Its own in links, where it is sorted and narrowed down."""
    noun: str = "row"
    """What a row is, where rows are counted."""

    def only(self, *names: str) -> Table[T]:
        """Those columns alone whose names begin so, in this order, without caption and groups."""
        columns = [column for name in names for column in self.columns if column.name.startswith(name)]
        words = None if self.words is None else 1
        return replace(self, columns=columns, caption="", groups=None, words=words)

    # A page.

    def html(self, rows: Iterable[T], *, caption: str = "", groups: Sequence[str] = ()) -> Markup:
        """The table in a frame that scrolls; nothing without rows, unless there are groups to name.

        groups: headings in their order, of those without rows too.
        """
        named: dict[str, list[list[Cell]]] = {name: [] for name in groups}
        columns = [column for column in self.columns if column.name and column.on != "terminal"]
        count = 0
        for row in rows:
            heading = "" if self.groups is None else str(self.groups.of(row))
            named.setdefault(heading, []).append([column.cell(row) for column in columns])
            count += 1
        columns, named = _without_idle(columns, named, NOTHING if self.name else "")
        bodies = [
            (name, [self._row(columns, cells) for cells in cells_of]) for name, cells_of in named.items()
        ]
        shown = [(name, body) for name, body in bodies if body or self.nothing]
        if not shown:
            return Markup()
        said = caption or self.caption
        return fragment("macros", "table", self, columns, shown, said, counted(count, self.noun))

    def _row(self, columns: Sequence[Column[T]], cells: Sequence[Cell]) -> Markup:
        """A row: made here and not by a macro, which takes several times as long; there may be thousands."""
        parts = []
        for place, (column, cell) in enumerate(zip(columns, cells, strict=True)):
            marks = "" if place else ' scope="row"'
            if self.name:
                marks += _sorted_by(column, cell)
            elif self.style and (place or self.nothing):
                marks += f' data-name="{escaped(column.label)}"'
            elif place and not self.style and self._is_numeric(column):
                marks += ' class="number"'
            tag = "td" if place else "th"
            parts.append(f"<{tag}{marks}>{_html(column, cell, remarks=not self.name)}</{tag}>")
        return Markup("".join(parts))

    def _is_numeric(self, column: Column[T]) -> bool:
        if self.words is None:
            return column.numeric
        return column in self.columns[self.words :]

    # A terminal.

    def rich(self, rows: Iterable[T], *, caption: str = "", most: int | None = None) -> RenderableType:
        """The table as wide as its words need; columns in which nothing stands are left out.

        most: rows that are shown; the caption says of how many.
        """
        from rich.markup import escape
        from rich.text import Text

        from offramp.report.word_table import WordTable

        all_rows = list(rows)
        title = caption or self.caption
        if most is not None and len(all_rows) > most:
            title += f", {most} of {len(all_rows)}; the page has all"
        if not all_rows and self.nothing:
            return Text(self.nothing)
        columns = [column for column in self.columns if column.name and column.on != "page"]
        if self.groups is not None:
            columns.insert(0, self.groups)
        shown = _told_apart([column.cell(row) for column in columns] for row in all_rows[:most])
        cells = [list(map(_text, row)) for row in shown]
        if self.groups is not None:
            _said_once(cells)
        table = WordTable(title=escape(title) or None)
        kept = [
            place
            for place, column in enumerate(columns)
            if not cells or any(row[place].plain not in ("", column.idle) for row in cells)
        ]
        for place in kept:
            column = columns[place]
            head = Text(_head(column))
            table.add_column(head, justify="right" if self._is_numeric(column) else "left")
        table.show_header = any(columns[place].name.strip() for place in kept)
        for row in cells:
            table.add_row(*[row[place] for place in kept])
        return table

    def codes(self, rows: Iterable[T]) -> list[str]:
        """What names on a terminal stand for, each once: "exit 20 if margin ≥ 0.9 = threshold:..."."""
        cells = _told_apart([column.cell(row) for column in self.columns] for row in rows)
        coded = [cell for row in cells for cell in row if cell.code not in ("", cell.shown)]
        return list(dict.fromkeys(f"{cell.shown} = {cell.code}" for cell in coded))

    # Data.

    def json(self, rows: Iterable[T]) -> list[dict[str, Plain]]:
        """Every row as plain values, of the columns that data have; None for what is undefined."""
        columns = self._columns_of_data()
        return [
            {
                name: value
                for column in columns
                for (name, _), value in zip(column.names(), column.values(row), strict=True)
            }
            for row in rows
        ]

    def arrow(self, rows: Iterable[T]) -> pa.Table:
        """The same as an Arrow table, with its columns even where it has no rows."""
        import pyarrow as pa

        types = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
        schema = pa.schema(
            [(name, types[kind]) for column in self._columns_of_data() for name, kind in column.names()]
        )
        return pa.Table.from_pylist(self.json(rows), schema=schema)

    def _columns_of_data(self) -> list[Column[T]]:
        columns = [*([] if self.groups is None else [self.groups]), *self.columns]
        return [column for column in columns if column.data is not None]


def write_tables(tables: Mapping[str, pa.Table], folder: Path) -> tuple[Path, ...]:
    """Write tables by name as CSV and as Parquet; the paths written.

    Each file is put in place in one step. Raises DiskFullError if there is no room.
    """
    from pyarrow import csv, parquet

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in tables.items():
        for ending, write, kept in (
            ("csv", csv.write_csv, csv_table(table)),
            ("parquet", parquet.write_table, table),
        ):
            path = (folder / f"{name}.{ending}").absolute()  # pyarrow takes a relative "a:b" for a URI
            write_atomically(path, functools.partial(write, kept))
            written.append(path)
    return tuple(written)


def pairs(caption: str, *heads: str) -> Table[tuple[str, str]]:
    """A table of names and texts. heads: above them; a terminal has none without."""
    name, text = heads or (" ", " ")
    return Table((Column(name, lambda pair: pair[0]), Column(text, lambda pair: pair[1])), caption=caption)


Named = dict[str, list[list[Cell]]]


def _without_idle(columns: list[Column[T]], named: Named, idle: str) -> tuple[list[Column[T]], Named]:
    """Columns and cells without the columns that say nothing in any row. idle: the text that says nothing."""
    rows = [row for cells in named.values() for row in cells]
    kept = [
        place
        for place, column in enumerate(columns)
        if not rows or any(row[place] != Cell(column.idle or idle, value=row[place].value) for row in rows)
    ]
    fewer = {name: [[row[place] for place in kept] for row in cells] for name, cells in named.items()}
    return [columns[place] for place in kept], fewer


def _sorted_by(column: Column[Any], cell: Cell) -> str:
    """What the page's script sorts and narrows down by."""
    value = cell.value.value if isinstance(cell.value, Estimate) else cell.value
    marks = ""
    if column.numeric:
        marks = ' data-v=""' if value is None or isinstance(value, str) else f' data-v="{value:.6g}"'
    if column.facet and cell.facets not in ((), (cell.shown,)):
        marks += f' data-f="{escaped(chr(10).join(cell.facets))}"'
    elif column.facet and cell.lines:
        marks += f' data-f="{escaped(cell.shown)}"'
    return marks


def _html(column: Column[Any], cell: Cell, *, remarks: bool) -> str:
    """A cell's content on a page."""
    parts = []
    shown = cell.shown
    if cell.html is not None:
        parts.append(str(cell.html))
    elif cell.code and shown:
        parts.append(folded(shown, cell.code))
    elif cell.code:
        parts.append(f"<code>{breakable(cell.code)}</code>")
    elif column.prose:
        parts.append(f"<p>{escaped(shown)}</p>")
    elif cell.tone in DECISION_SIGNS:
        parts.append(pill(cell.tone))
    elif cell.tone:
        parts.append(styled(shown, cell.tone))
    elif column.facet and len(shown) > LONG:
        parts.append(styled(shown, "long"))
    else:
        parts.append(escaped(shown))
    lines = (*cell.lines, cell.remark) if remarks and cell.remark else cell.lines
    parts += [f"<small>{escaped(line)}</small>" for line in lines]
    if cell.wrong:
        parts.append(styled(cell.wrong, "invalid"))
    if cell.why:
        parts.append(fragment("macros", "why", cell.why))
    return "".join(parts)


def folded(name: str, text: str) -> Markup:
    """A policy's name, which folds out to its text."""
    code = f'<code tabindex="0">{breakable(text)}</code>'
    return Markup(f'<details class="policy"><summary>{escaped(name)}</summary>{code}</details>')


def _head(column: Column[Any]) -> str:
    """A column's name on a terminal, where headers are written small: "kept (executed)"."""
    name = column.name.strip()
    small = name[:1].lower() + name[1:] if name[1:2].islower() or len(name) == 1 else name
    return f"{small}\n({column.kind})" if column.kind else small


def _text(cell: Cell) -> Text:
    """A cell on a terminal: its text in its tone, smaller lines dim."""
    from rich.text import Text

    style = TERMINAL_STYLES.get(cell.tone, "yellow" if cell.tone in DECISION_SIGNS else "")
    text = Text(cell.shown or cell.code, style=style)
    for line in cell.lines:
        text.append(f"\n{line}", style="dim")
    if cell.wrong:
        text.append(f"\n{cell.wrong}", style=TERMINAL_STYLES["invalid"])
    return text


def _told_apart(rows: Iterable[Sequence[Cell]]) -> list[list[Cell]]:
    """Cells whose names of different codes are different: the second of a name is "name (2)"."""
    codes: dict[str, str] = {}

    def named(cell: Cell) -> Cell:
        name, place = cell.shown, 1
        while codes.setdefault(name, cell.code) != cell.code:
            place += 1
            name = f"{cell.shown} ({place})"
        return cell if place == 1 else replace(cell, shown=name)

    return [[named(cell) if cell.code else cell for cell in row] for row in rows]


def _said_once(cells: Sequence[list[Text]]) -> None:
    """Leave the first cell of a row out where it is the one above's."""
    said = None
    for row in cells:
        if row[0].plain == said:
            row[0] = type(row[0])()
        else:
            said = row[0].plain
