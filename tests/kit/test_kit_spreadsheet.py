"""Tables for spreadsheets: no text of others is a formula there."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.kit.spreadsheet import cell, csv_table
from offramp.report.comparison_data import csv_bytes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("-0.5", "-0.5"),
        ("+1e-05", "+1e-05"),
        ("a=b", "a=b"),
        ("red \x1b[31m", "red \\x1b[31m"),
        ("", ""),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_a_text_that_begins_like_a_formula_is_marked_as_text(text: object, shown: object) -> None:
    assert cell(text) == shown


@given(st.text())
def test_no_cell_begins_like_a_formula(text: str) -> None:
    shown = cell(text)
    assert shown[:1] not in ("=", "@", "\t", "\r")
    assert shown[:1] not in ("+", "-") or isinstance(float(shown), float)
    assert "\x1b" not in shown


def test_every_table_that_is_written_keeps_to_it() -> None:
    table = pa.table({"workload": ["=1+1", None], "saving": [-0.5, 0.5]})
    assert csv_table(table).column("workload").to_pylist() == ["'=1+1", None]
    assert b'"\'=1+1",-0.5' in csv_bytes(table)
