"""A terminal table that breaks lines between words and never within one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

WORD = re.compile(r"[\d.,−]+ [%×]|\S+")
"""A number and its unit are one."""

GAPS = (2, 1)
"""Blanks between columns: the first where words fit with so many."""


class WordTable(Table):
    """A table without lines whose columns are at least as wide as their longest word.

    Where the console is too narrow for that, every row becomes a few lines of its own, a cell each.
    """

    def __init__(self, *, title: str | None = None, caption: str | None = None, **options: Any) -> None:
        super().__init__(box=None, pad_edge=False, **options)
        # Rich would wrap these to the table's width, however narrow.
        self.above, self.below = title, caption

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, the table as wide as its words need, the caption."""
        if self.above:
            yield console.render_str(self.above, style="italic")
        columns = [
            [_text(console, cell) for cell in (column.header, *column.cells)] for column in self.columns
        ]
        tried = {gap: fitted(columns, options.max_width - gap * len(columns)) for gap in GAPS}
        fitting = [(gap, widths) for gap, widths in tried.items() if widths is not None]
        if fitting:
            gap, widths = fitting[0]
            self.padding = (0, gap, 0, 0)
            for column, width in zip(self.columns, widths, strict=True):
                column.width = width
            yield from super().__rich_console__(console, options)
        else:
            yield from _records(columns)
        if self.below:
            yield console.render_str(self.below, style="dim")


SHORT = 18
"""A line of so many signs is not broken where there is room for that."""


def fitted(columns: Sequence[Sequence[Text]], room: int) -> list[int] | None:
    """Widths that break no word and make the table as low as can be; None if words do not fit.

    Of two that are as low, one that breaks no short line.
    """
    least = [[max(map(longest, column)) for column in columns] for longest in (_longest_short, _longest_word)]
    tried = [_widened(columns, widths, room - sum(widths)) for widths in least if sum(widths) <= room]
    return min(tried, key=lambda widths: _lines(columns, widths), default=None)


def _widened(columns: Sequence[Sequence[Text]], least: Sequence[int], spare: int) -> list[int]:
    """These widths and what is to spare, given to the columns with the tallest cells."""
    widths = list(least)
    full = [max(map(_longest_line, column)) for column in columns]
    for _ in range(spare):
        narrow = [place for place, width in enumerate(widths) if width < full[place]]
        if not narrow:
            break
        widths[max(narrow, key=lambda place: _height(columns[place], widths[place]))] += 1
    return widths


def _lines(columns: Sequence[Sequence[Text]], widths: Sequence[int]) -> int:
    """About how many lines all rows take."""
    rows = zip(*columns, strict=True)
    return sum(max(map(_lines_of, row, widths)) for row in rows)


def _lines_of(text: Text, width: int) -> int:
    """About how many lines a cell takes."""
    return sum(-(-len(line) // max(width, 1)) for line in text.plain.splitlines())


def _height(column: Sequence[Text], width: int) -> tuple[int, int]:
    """About how many lines the tallest cell takes, and all of them together."""
    cells = [_lines_of(text, width) for text in column]
    return max(cells, default=0), sum(cells)


def _records(columns: Sequence[Sequence[Text]]) -> Iterator[Text]:
    """Every row as lines: what the column is, and the cell; rows apart."""
    heads = [" ".join(column[0].plain.split()) for column in columns]
    for row in range(1, len(columns[0]) if columns else 1):
        for head, column in zip(heads, columns, strict=True):
            cell = " ".join(column[row].plain.split())
            if cell:
                yield Text(f"{head}: {cell}" if head else cell)
        yield Text("")


def _text(console: Console, cell: RenderableType) -> Text:
    return cell if isinstance(cell, Text) else console.render_str(str(cell))


def _longest_word(text: Text) -> int:
    return max((Text(word).cell_len for word in WORD.findall(text.plain)), default=0)


def _longest_short(text: Text) -> int:
    """The longest line that is short, or the longest word."""
    lines = [length for line in text.plain.splitlines() if (length := Text(line).cell_len) <= SHORT]
    return max([*lines, _longest_word(text)])


def _longest_line(text: Text) -> int:
    return max((Text(line).cell_len for line in text.plain.splitlines()), default=0)
