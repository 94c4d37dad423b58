"""Tables for spreadsheets, which take the text of a cell for a formula where it begins like one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from offramp.errors import printable

if TYPE_CHECKING:
    import pyarrow as pa

FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def cell(value: Any) -> Any:
    """What stands in a cell for a value: a text as it is, with the codes of control characters, and behind an
    apostrophe where it would be taken for a formula."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if FORMULA.match(value) and not NUMBER.fullmatch(value) else shown


def csv_table(table: pa.Table) -> pa.Table:
    """A table as its CSV file has it."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            cells = [cell(value) for value in table.column(place).to_pylist()]
            table = table.set_column(place, field, pa.array(cells, field.type))
    return table
