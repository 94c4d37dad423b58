"""A table is declared once: page, terminal and data have the same cells; a column is a line."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace

import pyarrow.csv
import pyarrow.parquet
import pytest
from rich.console import Console

from offramp.report.formats import limits_text, percent, times
from offramp.report.table import Cell, Column, Table, estimated, pairs, reasons, write_tables
from offramp.scoring.estimate import Estimate
from page_reader import Page


@dataclass(frozen=True)
class Timed:
    model: str
    text: str
    decision: str
    speed: Estimate
    kept: float | None


ROWS = (
    Timed("<small>", "prose", "pays", Estimate(1.2, 1.1, 1.3), 0.954),
    Timed("large", "prose", "does not pay", Estimate(None, undefined="one document"), None),
    Timed("large", "code", "inconclusive", Estimate(1.01, no_interval="6 documents"), float("nan")),
)
COLUMNS: tuple[Column[Timed], ...] = (
    Column("Model", lambda row: row.model, key="model", data=str, facet="model"),
    Column(
        "Answer", lambda row: Cell(row.decision, tone=row.decision, value=row.decision, why=("so it is",))
    ),
    Column("Speed", lambda row: row.speed, times, key="net_speed", data=Estimate, numeric=True),
    Column("", lambda row: row.kept, key="kept", data=float),
)
TEXT = Column[Timed]("Text", lambda row: row.text, data=str)
SPEEDS = Table(COLUMNS, caption="Speeds", groups=TEXT, nothing="nothing was timed")


def printed(shown, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return console.file.getvalue()


def cells(html: str) -> list[str]:
    return [Page(cell).text for cell in re.findall(r"<t[dh][ >].*?</t[dh]>", html, re.S)]


def test_page_terminal_and_data_have_the_same_rows(tmp_path):
    page, terminal, data = Page(SPEEDS.html(ROWS)), printed(SPEEDS.rich(ROWS)), SPEEDS.json(ROWS)
    for row, line in zip(ROWS, data, strict=True):
        for text in (row.model, row.text, row.decision):
            assert text in page.text
            assert text in terminal
        assert (line["text"], line["model"], line["net_speed"]) == (row.text, row.model, row.speed.value)
    assert "1.100 to 1.300" in page.text
    assert "1.100 to 1.300" in terminal
    assert [line["kept"] for line in data] == [0.954, None, None]
    written = write_tables({"speeds": SPEEDS.arrow(ROWS)}, tmp_path)
    assert [path.name for path in written] == ["speeds.csv", "speeds.parquet"]
    columns = ["text", "model", "net_speed", "net_speed_low", "net_speed_high", "kept"]
    assert list(data[0]) == columns
    for read in (pyarrow.csv.read_csv(written[0]), pyarrow.parquet.read_table(written[1])):
        assert read.column_names == columns
        assert read["net_speed_high"].to_pylist() == [1.3, None, None]


def test_a_new_column_is_one_line_everywhere():
    column: Column[Timed] = Column("Kept share", lambda row: row.kept, percent, data=float, numeric=True)
    wider = replace(SPEEDS, columns=(*COLUMNS, column))
    assert "95.4 %" in Page(wider.html(ROWS)).text.replace("\u00a0", " ")
    assert "95.4 %" in printed(wider.rich(ROWS))
    assert wider.json(ROWS)[0]["kept_share"] == 0.954
    assert wider.arrow([]).column_names[-1] == "kept_share"


def test_a_group_heads_its_rows_and_says_where_it_has_none():
    html = SPEEDS.html(ROWS, groups=("chat", "prose", "code"))
    assert re.findall(r'scope="rowgroup"[^>]*>(\w+)<', html) == ["chat", "prose", "code"]
    assert html.index("nothing was timed") < html.index(">prose<")
    assert replace(SPEEDS, nothing="").html([], groups=("chat",)) == ""
    assert printed(SPEEDS.rich([])).strip() == "nothing was timed"
    said = [line.split()[0] for line in printed(SPEEDS.rich(ROWS)).splitlines() if "large" in line]
    assert said == ["large", "code"]  # the text of the row above is not said again


def test_cards_have_names_and_remarks_and_folded_sentences():
    html = replace(SPEEDS, style="floors").html(ROWS)
    assert 'data-name="Speed"' in html
    assert "one document" in Page(html).text
    assert "6 documents" in Page(html).text
    assert html.count("<p>so it is</p>") == 3
    assert "so it is" not in printed(SPEEDS.rich(ROWS))
    assert Page(html).faults == []


def test_a_sorted_table_carries_what_the_script_sorts_and_narrows_down_by():
    columns: tuple[Column[tuple[Cell, Estimate]], ...] = (
        Column("Model", lambda row: row[0], facet="model"),
        Column("Exit heads", lambda row: "logit lens", facet="heads", idle="logit lens"),
        Column("Speed", lambda row: row[1], times, numeric=True),
        Column("Empty", lambda row: None, numeric=True),
    )
    rows = [
        (Cell("a → b", facets=("a", "b")), Estimate(1.1)),
        (Cell("<c>", below="a note"), Estimate(None, undefined="one document")),
    ]
    table = Table(columns, caption="Speeds", name="speeds")
    html = table.html(rows)
    assert 'data-f="a\nb"' in html
    assert 'data-f="&lt;c&gt;"' in html
    assert re.findall(r'data-v="([^"]*)"', html) == ["1.1", ""]
    assert "Exit heads" not in html  # all are the model's own
    assert "Empty" not in html
    assert "one document" not in html  # it stands in the notes
    assert ">2 rows<" in html
    assert table.html([]) == ""
    assert Page(html).faults == []


@pytest.mark.parametrize("name", ["", "exit 20 if margin ≥ 0.9"])
def test_a_policys_text_folds_out_of_its_name(name):
    text = "threshold:signal=margin,value=0.9,exits=20"
    table: Table[str] = Table((Column("Policy", lambda row: Cell(name, code=row)),))
    assert text in Page(table.html([text])).text
    assert ("<summary>" in table.html([text])) == bool(name)
    assert (name or text) in printed(table.rich([text]))


def test_a_terminal_shows_so_many_rows_and_says_of_how_many():
    shown = printed(SPEEDS.rich(ROWS, most=1))
    assert "Speeds, 1 of 3; the page has all" in shown
    assert "code" not in shown


def test_pairs_have_no_header_on_a_terminal():
    lines = printed(pairs("Facts").rich([("name", "[value]")])).splitlines()
    assert [line.split() for line in lines] == [["Facts"], ["name", "[value]"]]


def test_an_estimate_without_a_value_has_no_number_and_its_reason_is_listed_once():
    undefined = Estimate(None, undefined="one document")
    assert estimated(undefined, times).shown == "undefined"
    few = Estimate(0.5, no_interval="6 documents")
    assert reasons([undefined, undefined, few, Estimate(1.0, 0.9, 1.1)]) == [
        "Undefined: one document (2 figures).",
        "Without an interval: 6 documents (1 figure).",
    ]
    assert estimated(Estimate(1.0, 0.9, 1.1), times).lines == ("0.900 to 1.100 ×",)
    assert limits_text(1.13201, 1.13199, times) == limits_text(None, None, times) == ""
    assert estimated(Estimate(1.132, 1.13199, 1.13201), times).lines == ()
