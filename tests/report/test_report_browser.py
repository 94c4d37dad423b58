"""The page in a real browser: filter, facets, sorting and the choice of a chart, by address and by hand."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from urllib.parse import quote

import pytest
from decoding_examples import decoded_run
from report_examples import example_run

import comparison_examples as examples
from offramp.report.comparison_page import write_comparison_page
from offramp.report.page import render
from offramp.tuning.floor import Floor
from page_reader import VOID, Page

BROWSER = next(
    (found for name in ("chromium", "google-chrome", "chromium-browser") if (found := shutil.which(name))),
    None,
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the path")


@pytest.fixture(scope="module")
def comparison():
    return examples.example_comparison()


@pytest.fixture(scope="module")
def page(comparison, tmp_path_factory):
    return write_comparison_page(comparison, tmp_path_factory.mktemp("page") / "comparison.html")


def opened(page: Path, profile: Path, fragment: str = "") -> str:
    """The page as it stands after its script has run."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", page.as_uri() + fragment]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout


def fragment(**values: str) -> str:
    return "#" + "&".join(f"{name}={quote(value)}" for name, value in values.items())


class Rows(Page):
    """The rows of one table that are shown: the texts and sort values of their cells."""

    def __init__(self, html: str, table: str) -> None:
        self.rows: list[list[tuple[str, str | None]]] = []
        whole = re.search(rf'<table[^>]*data-table="{table}".*?</table>', html, re.S)
        assert whole is not None
        super().__init__(whole.group(0))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "tr":
            self.rows.append([])
            self.skipped = "hidden" in values
            if self.skipped:
                self.rows.pop()
        if tag in ("td", "th") and not getattr(self, "skipped", True):
            self.rows[-1].append(("", values.get("data-v")))
        if tag not in VOID:
            self.open.append(tag)

    def handle_data(self, data):
        if not getattr(self, "skipped", True) and self.rows and self.rows[-1]:
            words, value = self.rows[-1][-1]
            self.rows[-1][-1] = (words + data.replace("\u00a0", " "), value)


def body(html: str, table: str) -> list[list[tuple[str, str | None]]]:
    return Rows(html, table).rows[1:]


def counted(html: str, table: str) -> str:
    found = re.search(rf'data-count="{table}"[^>]*>([^<]*)<', html)
    assert found is not None
    return found.group(1).strip()


def test_a_linked_view_is_filtered_sorted_and_counted(comparison, page, tmp_path):
    view = {"filter": "gpt2", "workload": "code", "floor": "90 % agreement"}
    view |= {"sort": "strategies|agreement|ascending", "curve": "Entropy", "chart": "model: gpt2"}
    html = opened(page, tmp_path / "profile", fragment(**view))
    shown = body(html, "strategies")
    wanted = [
        one
        for one in comparison.strategies
        if (one.place.model, one.place.workload) == ("gpt2", "code") and one.floor == Floor("agreement", 0.9)
    ]
    assert len(shown) == len(wanted) > 0
    assert counted(html, "strategies") == f"{len(wanted)} of {len(comparison.strategies)} rows"
    assert all(any(words == "gpt2" for words, _ in row) for row in shown)
    heading = re.search(r'<th[^>]*data-key="agreement"[^>]*>', html.split('data-table="strategies"')[1])
    assert heading is not None
    assert 'aria-sort="ascending"' in heading.group(0)
    # A facet that a table has no column for leaves it alone; the words are searched everywhere.
    assert counted(html, "leaderboard") == "1 of 18 rows"
    assert len(body(html, "leaderboard")) == 1
    assert 'id="clear" hidden' not in html
    figures = re.findall(
        r'<div class="profile-figure" data-curve="([^"]*)" data-chart="([^"]*)"( hidden="")?', html
    )
    assert [(curve, chart) for curve, chart, hidden in figures if not hidden] == [("Entropy", "model: gpt2")]


def test_numbers_sort_as_numbers_with_nothing_last_and_ties_as_they_were(comparison, page, tmp_path):
    orders = {}
    for order in ("ascending", "descending"):
        view = fragment(sort=f"leaderboard|increment|{order}")
        html = opened(page, tmp_path / order, view)
        place = list(re.findall(r'data-key="([^"]*)"', Rows_head(html, "leaderboard"))).index("increment")
        cells = [row[place][1] for row in body(html, "leaderboard")]
        known = [float(cell) for cell in cells if cell]
        assert cells[len(known) :] == ["", ""]  # two are undefined, and last both ways
        assert known == sorted(known, reverse=order == "descending")
        assert len(cells) == len(comparison.rows)
        orders[order] = [[words for words, _ in row[:2]] for row in body(html, "leaderboard")][-2:]
    assert orders["ascending"] == orders["descending"]


def Rows_head(html: str, table: str) -> str:
    """The heading row of a table."""
    return html.split(f'data-table="{table}"')[1].split("</thead>")[0]


def test_by_hand_clicks_and_typing_end_up_in_the_address(page, tmp_path):
    acts = """<script>addEventListener("load", () => {
      const heading = document.querySelector('#data-leaderboard [data-key="model"] button');
      heading.click();
      const box = document.querySelector("#filters input");
      box.value = "QWEN3 prose";
      box.dispatchEvent(new Event("input", {bubbles: true}));
      document.querySelector(".profile-figure:not([hidden]) .lines button").click();
      document.body.dataset.address = decodeURIComponent(location.hash);
    });</script></body>"""
    acted = tmp_path / "acted.html"
    acted.write_text(page.read_text(encoding="utf-8").replace("</body>", acts), encoding="utf-8")
    html = opened(acted, tmp_path / "profile")
    address = re.search(r'data-address="([^"]*)"', html)
    assert address is not None
    assert "filter=QWEN3+prose" in address.group(1)
    assert "sort=leaderboard|model|ascending" in address.group(1)
    assert "off=gpt2" in address.group(1)
    names = [row[0][0] for row in body(html, "leaderboard")]
    assert names == sorted(names)
    assert len(names) == 3  # qwen3-8b, qwen3-8b + int8, qwen3-8b-it on prose
    assert re.search(r'<li data-line="gpt2" class="off"><button[^>]*aria-pressed="false"', html)


def test_a_long_table_shows_its_first_rows_until_all_are_asked_for(comparison, page, tmp_path):
    html = opened(page, tmp_path / "profile")
    assert len(comparison.strategies) > 200
    assert counted(html, "strategies") == f"{len(comparison.strategies)} rows, the first 200 shown"
    assert len(body(html, "strategies")) == 200


MEASURED = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  frameElement.dataset.wide = document.documentElement.scrollWidth;
});</script></body>"""


def test_no_run_is_wider_than_its_window_with_everything_opened(tmp_path):
    page = escape(str(render(decoded_run(example_run()))).replace("</body>", MEASURED))
    frames = "".join(  # no browser makes a window as narrow as a phone
        f'<iframe style="border:0;width:{width}px;height:900px" data-room="{width}" srcdoc="{page}"></iframe>'
        for width in (400, 1280)
    )
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{frames}</body>")
    html = opened(tmp_path / "frames.html", tmp_path / "profile")
    widths = re.findall(r'data-room="(\d+)"[^>]*data-wide="(\d+)"', html)
    assert [room for room, _ in widths] == ["400", "1280"]
    assert all(int(wide) <= int(room) for room, wide in widths)
