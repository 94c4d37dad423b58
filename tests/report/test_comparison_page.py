"""The page of a comparison: well-formed, self-contained, escaped, readable without scripts, answer first."""

import base64
import csv
import gzip
import io
import re
from dataclasses import replace

import pytest
from page_reader import Page, require_self_contained

import comparison_examples as examples
from offramp.report.page import NAVIGATION, render_comparison, write_comparison_page
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, ModelFacts
from offramp.studies.comparison.tables import comparison_tables

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--"


@pytest.fixture(scope="module")
def comparison():
    return examples.example_comparison()


@pytest.fixture(scope="module")
def html(comparison):
    return render_comparison(comparison)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def one_model() -> Comparison:
    """What is shipped: one model on four workloads, nothing to pair and no trend."""
    model = examples.Described(ModelFacts("smollm2", "smollm2", parameters=135e6), 0.25, 30)
    made = examples.example_comparison((model,), ("prose", "code", "chat", "math"))
    return replace(made, pairs=(), trends=(), validity=(), combined=(), failures={}, notes=())


def test_well_formed(page):
    assert page.faults == []
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_anywhere(html, page):
    require_self_contained(html, page, links=("#", "data:text/csv", "data:application/gzip"))


def test_links_lead_somewhere(page):
    ids = {values["id"] for _, values, _ in page.elements if "id" in values}
    links = [values["href"] for _, values, _ in page.elements if values.get("href", "").startswith("#")]
    assert {f"#{name}" for name, _ in NAVIGATION} == set(links)
    assert {link[1:] for link in links} <= ids
    assert all(values["data-copy"] in ids for _, values, _ in page.elements if "data-copy" in values)


def test_every_part_is_there_in_the_order_a_reader_needs(page):
    headings = [
        "What is not claimed",
        "What was comparedMade-up figures",
        "2 cells failed or did not runllama3",
        "Leaderboard of models",
        "Ranking of strategies",
        "What was held against a floor",
        "Layer by layer",
        "Matched pairs",
        "Nothing is claimed of the other 2 of 3 trends",
        "Does a score predict what is saved",
        "Beside other accelerations",
        "Per byte of text",
        "Take the tables with you",
        "How to cite and repeat this",
        "What the words mean",
    ]
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "llama3-8b · code · tune · h100 the memory is too small" in page.text
    assert "oracle, out of reach" in page.text
    assert "defect: the same decoder twice" in page.text


@pytest.fixture(scope="module")
def small(comparison):
    """Every part of the page, of few rows."""
    return replace(comparison, rows=comparison.rows[:3], strategies=comparison.strategies[:30])


def test_hostile_text_stays_text(small):
    comparison = small
    rows = tuple(
        replace(
            row,
            model=replace(row.model, name=HOSTILE + row.model.name, family=HOSTILE, released=HOSTILE),
            workload=HOSTILE + row.workload,
            heads=HOSTILE,
            source=HOSTILE,
            trace_folder=HOSTILE,
            notes=(HOSTILE,),
            savings=tuple(
                replace(one, policy=HOSTILE, answer=HOSTILE, machine=HOSTILE) for one in row.savings
            ),
            scores={
                **row.scores,
                "increment": Estimate(None, undefined=HOSTILE),
            },
        )
        for row in comparison.rows
    )
    names = {"model": HOSTILE, "workload": HOSTILE, "heads": HOSTILE, "machine": HOSTILE}
    hostile = replace(
        comparison,
        title=HOSTILE,
        description=HOSTILE,
        rows=rows,
        strategies=tuple(
            replace(one, **names, family=HOSTILE, policy=HOSTILE, floor=HOSTILE, answer=HOSTILE)
            for one in comparison.strategies
        ),
        pairs=tuple(
            replace(one, first=HOSTILE, second=HOSTILE, kind=HOSTILE, figure=HOSTILE, workload=HOSTILE)
            for one in comparison.pairs
        ),
        trends=tuple(
            replace(one, figure=HOSTILE, claim=HOSTILE, points=((HOSTILE, 1.0, 2.0), (HOSTILE, 2.0, 3.0)))
            for one in comparison.trends
        ),
        validity=tuple(
            replace(one, score=HOSTILE, claim=HOSTILE, machine=HOSTILE) for one in comparison.validity
        ),
        failures={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
        provenance={HOSTILE: HOSTILE},
        citation=HOSTILE,
    )
    page = Page(render_comparison(hostile))
    assert page.faults == []
    tags = [tag for tag, _, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == 1
    assert HOSTILE in page.text


def test_tables_have_captions_and_headers(html):
    tables = re.findall(r"<table.*?</table>", html, re.S)
    assert len(tables) > 20
    for found in tables:
        assert "<caption>" in found
        assert 'scope="col"' in found


def test_every_chart_is_also_a_table(html):
    figures = re.findall(r"<figure.*?</figure>", html, re.S)
    assert len(figures) > 20
    for figure in figures:
        if '<svg class="chart' in figure:
            assert re.search(r"<details><summary>.*?<table>", figure, re.S)
    assert '<svg class="chart' not in re.sub(r"<figure.*?</figure>", "", html, flags=re.S)


def test_everything_is_there_without_scripts(html, page):
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.S))
    hidden = [rule for rule in style.split("}") if "display:none" in rule]
    assert any(".filters" in rule for rule in hidden)  # useless without the script
    allowed = (".panel", ".copy", ".js", "thead", ".tabs", "@media print", ".filters", ".data tbody th code")
    assert all(any(name in rule for name in allowed) for rule in hidden)
    assert not any("hidden" in values for _, values, _ in page.elements)
    assert sum(tag == "select" for tag, _, _ in page.elements) == 5  # heads are all alike


def test_keyboard_reaches_what_scrolls(page):
    frames = [values for _, values, _ in page.elements if "scroll" in (values.get("class") or "").split()]
    assert all(v["tabindex"] == "0" and v["role"] == "region" and v["aria-label"] for v in frames)


def test_downloads_hold_the_tables(comparison, page):
    links = {values["download"]: values["href"] for tag, values, _ in page.elements if "download" in values}
    tables = {name: table for name, table in comparison_tables(comparison).items() if table.num_rows}
    assert {name.split(".")[0] for name in links} == set(tables)
    for name, link in links.items():
        content = base64.b64decode(link.partition("base64,")[2])
        content = gzip.decompress(content) if name.endswith(".gz") else content
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        table = tables[name.split(".")[0]]
        assert len(rows) == table.num_rows
        assert list(rows[0]) == table.column_names
    first = next(
        csv.DictReader(io.StringIO(base64.b64decode(links["pairs.csv"].partition("base64,")[2]).decode()))
    )
    assert float(first["difference"]) == pytest.approx(comparison.pairs[0].difference.value)


@pytest.mark.parametrize("part", ["strategies", "pairs", "trends", "validity", "combined"])
def test_a_part_without_content_is_left_out_and_not_linked_to(small, part):
    page = Page(render_comparison(replace(small, **{part: ()})))
    assert page.faults == []
    ids = {values.get("id") for _, values, _ in page.elements}
    assert part not in ids
    assert f"#{part}" not in {values.get("href") for _, values, _ in page.elements}


def test_one_model_is_a_whole_page():
    html = render_comparison(one_model())
    page = Page(html)
    assert page.faults == []
    assert "1 independently trained model of the 12 that it takes" in page.text
    assert "Means over 4 workloads, without intervals" in page.text
    charts = {v["data-chart"] for _, v, _ in page.elements if v.get("class") == "profile-figure"}
    assert charts == {"model: smollm2"}  # one chart whose lines are the workloads
    assert len(html) < 1_500_000


def test_scores_alone_make_a_page(small):
    rows = tuple(replace(row, savings=()) for row in small.rows)
    bare = Comparison(title="scores", description="", rows=rows)
    page = Page(render_comparison(bare))
    assert page.faults == []
    assert "These are scores alone" in page.text
    assert "No policy was tuned here" in page.text


def test_an_empty_comparison_is_a_page():
    page = Page(render_comparison(Comparison(title="nothing", description="", rows=())))
    assert page.faults == []


def test_undefined_figures_show_their_reason_and_no_number(page):
    assert "Undefined: it needs the undefined component increment (2 figures)." in page.text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", page.text)


def test_the_same_comparison_gives_the_same_bytes(tmp_path, comparison, html):
    path = write_comparison_page(comparison, tmp_path / "comparison.html")
    assert path == tmp_path / "comparison.html"
    assert path.read_text(encoding="utf-8") == html
    assert [entry.name for entry in tmp_path.iterdir()] == ["comparison.html"]
