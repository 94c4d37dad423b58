"""The pages of a run and of a comparison: well-formed, self-contained, escaped, readable, answer first."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from decoding_examples import decoded_run
from report_examples import CHAT, example_run, workload_result

import comparison_examples as examples
from offramp.policies.rules.fixed import Never
from offramp.report.answer_words import short_answer
from offramp.report.comparison_data import comparison_tables
from offramp.report.comparison_page import NAVIGATION, render_comparison, write_comparison_page
from offramp.report.page import render, write_report
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, ModelFacts, Place
from page_reader import Page, require_self_contained

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--"


@dataclass(frozen=True)
class Made:
    """A page with what it may link to, the style rules that hide something, and how many charts it has."""

    html: str
    links: tuple[str, ...]
    hiding: tuple[str, ...]
    charts: int

    @property
    def page(self) -> Page:
        """The page read back."""
        return Page(self.html)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return examples.example_comparison()


@pytest.fixture(scope="module")
def of_run() -> Made:
    hiding = (".panel", ".copy", ".js", "thead", ".tabs", "@media print")
    return Made(render(example_run()), ("#",), hiding, 30)


@pytest.fixture(scope="module")
def of_comparison(comparison: Comparison, of_run: Made) -> Made:
    links = ("#", "data:text/csv", "data:application/gzip")
    hiding = (*of_run.hiding, ".filters", ".data tbody th code")
    return Made(render_comparison(comparison), links, hiding, 21)


@pytest.fixture(params=["of_run", "of_comparison"])
def made(request: pytest.FixtureRequest) -> Made:
    """Either page."""
    found: Made = request.getfixturevalue(request.param)
    return found


def test_it_is_well_formed_loads_nothing_and_its_links_lead_somewhere(made: Made) -> None:
    page = made.page
    assert page.faults == []
    require_self_contained(made.html, page, links=made.links)
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))
    for _, values, _ in page.elements:
        for name in ("href", "aria-labelledby", "data-copy"):
            if name in values and not str(values[name]).startswith("data:"):
                assert str(values[name]).lstrip("#") in ids


def test_every_chart_is_also_a_table_and_tables_have_captions_and_headers(made: Made) -> None:
    figures = re.findall(r"<figure.*?</figure>", made.html, re.S)
    assert len(figures) >= made.charts
    for figure in figures:
        if '<svg class="chart' in figure:
            assert re.search(r"<details><summary>.*?<table>", figure, re.S)
    assert '<svg class="chart' not in re.sub(r"<figure.*?</figure>", "", made.html, flags=re.S)
    for found in re.findall(r"<table.*?</table>", made.html, re.S):
        assert "<caption>" in found
        assert 'scope="col"' in found or 'scope="row"' in found


def test_everything_is_there_without_scripts_and_by_keyboard(made: Made) -> None:
    page = made.page
    style = "".join(re.findall(r"<style>(.*?)</style>", made.html, re.S))
    rules = [rule for rule in style.split("}") if "display:none" in rule]
    assert rules
    assert all(any(name in rule for name in made.hiding) for rule in rules)
    sections = [v for _, v, _ in page.elements if str(v.get("id", "")).startswith("workload-")]
    assert not any("hidden" in values for values in sections)
    scrolling = [v for _, v, _ in page.elements if "scroll" in (v.get("class") or "").split()]
    assert scrolling
    assert all(v["tabindex"] == "0" and v["role"] == "region" and v["aria-label"] for v in scrolling)


def test_the_same_result_gives_one_file_of_the_same_bytes(
    of_run: Made, of_comparison: Made, comparison: Comparison, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    path = write_report(example_run(), tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8") == of_run.html
    assert path.stat().st_size < 1_500_000
    other = write_comparison_page(comparison, tmp_path / "comparison.html")
    assert other.read_text(encoding="utf-8") == of_comparison.html
    assert {entry.name for entry in tmp_path.rglob("*")} == {"run", "report.html", "comparison.html"}


def require_text_alone(html: str, scripts: int) -> None:
    """The hostile text stands on the page, and nothing came of it."""
    page = Page(html)
    assert page.faults == []
    tags = [tag for tag, _, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == scripts
    assert HOSTILE in page.text


def test_the_answer_of_a_run_comes_first(of_run: Made) -> None:
    text = of_run.page.text
    order = [
        "Do early exits make smollm2 more than 5 % faster",
        short_answer(example_run()),
        "At each quality floor",
        "What a floor means to a reader",
        "Before you quote this",
        "What was tried, and what is certified",
        "Which kind of policy wins, and why",
        "On which machine it would pay",
        "What would have to change for it to pay",
        "Where it could have stopped",
        "Layer by layer",
        "How suited this model is",
        "What a check costs on this machine",
        "What was fitted for the checks",
        "How to repeat this",
        "What the words mean",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_every_part_of_a_comparison_is_there_in_order(of_comparison: Made) -> None:
    page = of_comparison.page
    headings = [
        "What is not claimed",
        "What was comparedMade-up figures",
        "2 cells failed or did not runllama3",
        "Leaderboard of models",
        "What training cost, and what it bought",
        "Ranking of strategies",
        "What was held against a floor",
        "Layer by layer",
        "Does a score tell what is saved",
        "Beside other accelerations",
        "At which requests per second exits pay",
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
    assert {f"#{name}" for name, _ in NAVIGATION} <= {v.get("href") for _, v, _ in page.elements}
    assert sum(tag == "select" for tag, _, _ in page.elements) == 5  # heads are all alike
    assert "Undefined: it needs the undefined component increment (2 figures)." in page.text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", page.text)


def test_a_page_can_be_read() -> None:
    page = Page(render(decoded_run(example_run())))
    assert len(page.text.split()) < 25_000
    closed = re.sub(r"<details.*?</details>", "", render(decoded_run(example_run())), flags=re.S)
    assert len(Page(closed).text.split()) < 12_000
    first = page.text[: page.text.index("At each quality floor")]
    assert len(first.split()) < 1_000


def test_measured_replayed_and_predicted_are_told_apart(of_run: Made) -> None:
    kinds = [
        values["class"]
        for _, values, _ in of_run.page.elements
        if "kind" in (values.get("class") or "").split()
    ]
    assert {"kind executed", "kind measured", "kind replayed", "kind predicted"} >= set(kinds)
    assert {"kind measured", "kind replayed", "kind predicted"} <= set(kinds)


def test_every_token_of_a_passage_is_a_button_reached_by_arrows(of_run: Made) -> None:
    elements = of_run.page.elements
    tokens = [values for _, values, _ in elements if (values.get("class") or "").startswith("t e")]
    expected = [len(workload.passage.tokens) for workload in example_run().workloads]
    assert len(tokens) == sum(expected)
    assert sum(values["tabindex"] == "0" for values in tokens) == len(expected)
    assert all(values["role"] == "button" and "layer" in str(values["aria-label"]) for values in tokens)


def test_script_data_reads_back(of_run: Made) -> None:
    workload = example_run().workloads[0]
    content = re.search(r'<script type="application/json" id="data-prose">(.*?)</script>', of_run.html).group(
        1
    )
    data = json.loads(content)
    assert tuple(data["exits"]) == workload.passage.exits
    assert len(data["tokens"]) == len(workload.passage.tokens)
    for row, token in zip(data["tokens"], workload.passage.tokens, strict=True):
        assert (row[2], row[3]) == (token.first_match_exit, token.saturation_exit)
        assert row[6] == "".join("01"[agrees] for agrees in token.agrees)
        assert all(abs(a - 1000 * b) <= 0.5 for a, b in zip(row[5], token.max_prob, strict=True))


def undefined_run() -> RunResult:
    """One workload in which nothing that can be undefined is defined."""
    run = example_run()
    workload = run.workloads[2]
    nothing = Estimate(None, undefined="the trace has one document")
    card = workload.card
    nan = np.full(len(card.curves.exits), math.nan)
    values = {**card.curves.values, "auroc": nan, "aurc": nan}
    del values["recalibrated_brier"]
    variants = tuple(replace(v, score=nothing, floor=None, ceiling=None) for v in card.eas_variants)
    card = replace(
        card,
        representation=nothing,
        calibration=nothing,
        saturation_skip=nothing,
        eas_variants=variants,
        reliability=(),
        curves=replace(card.curves, values=values, intervals={}),
    )
    verdicts = tuple(
        replace(v, net_speedup=nothing, agreement=nothing, skip_ratio=nothing) for v in workload.verdicts
    )
    workload = replace(workload, card=card, frontiers=(), verdicts=verdicts)
    return replace(run, workloads=(workload,), plain_seconds_per_token=None)


def test_undefined_figures_show_their_reason_and_no_number() -> None:
    page = Page(render(undefined_run()))
    assert page.faults == []
    text = page.text
    assert "Representation quality is undefined. the trace has one document" in text
    assert "Undefined: at every layer fewer than 20 tokens agree" in text
    assert "Undefined on this workload: Brier score, recalibrated." in text
    assert "No layer has tokens to bin." in text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)


def test_a_run_without_verdicts_says_so() -> None:
    run = example_run()
    run = replace(run, workloads=tuple(replace(w, verdicts=()) for w in run.workloads))
    page = Page(render(run))
    assert page.faults == []
    assert "there is no verdict at any quality floor" in page.text


@pytest.mark.parametrize(("layers", "documents"), [(1, 8), (2, 1), (90, 6)])
def test_small_and_deep_models(layers: int, documents: int) -> None:
    workload = workload_result("tiny", CHAT, layers=layers, documents=documents, length=24)
    run = replace(example_run(), layers=layers, workloads=(workload,))
    html = render(run)
    page = Page(html)
    assert page.faults == []
    assert len(html) < 1_500_000
    assert "NaN" not in html


def test_workloads_whose_names_differ_in_punctuation_get_ids_of_their_own() -> None:
    run = example_run()
    named = tuple(
        replace(w, name=name)
        for w, name in zip(run.workloads, ("txt:a.b", "txt:a b", "txt a.b"), strict=True)
    )
    page = Page(render(replace(run, workloads=named)))
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))


class Hostile(Never):
    """A plug-in's policy whose text holds more than a policy's."""

    def __str__(self) -> str:
        return f"never:{HOSTILE}"


def hostile_answers(workload: WorkloadResult, hostile: str) -> WorkloadResult:
    """The same answers with hostile text wherever another package's text stands."""
    certificates = [
        replace(t.certificate, method=hostile, guarantee=hostile, assumption=hostile) for t in workload.tuned
    ]
    front = tuple(replace(point, policy=Hostile()) for point in workload.tuned[0].front)
    return replace(
        workload,
        league=tuple(replace(e, family=hostile + e.family, policy=Hostile()) for e in workload.league),
        tuned=tuple(
            replace(
                t,
                policy=Hostile(),
                answer=hostile,
                machine=hostile,
                kv=hostile,
                certificate=c,
                front=front,
            )
            for t, c in zip(workload.tuned, certificates, strict=True)
        ),
        machines=tuple(
            replace(a, machine=hostile, source=hostile, policy=Hostile()) for a in workload.machines
        ),
        break_even=tuple(
            replace(b, policy=hostile, lever=hostile, sentence=hostile) for b in workload.break_even
        ),
    )


def test_hostile_text_of_a_run_stays_text() -> None:
    hostile = HOSTILE
    run = example_run()
    workload = run.workloads[0]
    tokens = tuple(
        replace(t, piece=hostile, full_prediction=hostile, predictions=(hostile,) * len(t.predictions))
        for t in workload.passage.tokens
    )
    passage = replace(workload.passage, document=hostile, lead=hostile, tokens=tokens)
    verdicts = tuple(replace(v, reason=hostile, policy=Hostile()) for v in workload.verdicts)
    card = replace(workload.card, notes=(hostile,))
    workload = replace(workload, name=hostile, passage=passage, verdicts=verdicts, card=card)
    workload = replace(workload, notes=(hostile,), trace_folder=hostile)
    workload = hostile_answers(workload, hostile)
    run = replace(
        run, model_name=hostile, workloads=(workload,), command=hostile, provenance={hostile: hostile}
    )
    run = replace(
        run,
        hardware=replace(
            run.hardware,
            name=hostile,
            source=hostile,
            costs=replace(run.hardware.costs, probes={hostile: 0.1}),
        ),
        heads=replace(run.heads, classifiers={hostile: run.heads.classifiers["adainfer"]}),
    )
    require_text_alone(render(run), scripts=2)


@pytest.fixture(scope="module")
def small(comparison: Comparison) -> Comparison:
    """Every part of the page, of few rows."""
    return replace(comparison, rows=comparison.rows[:3], strategies=comparison.strategies[:30])


def test_hostile_text_of_a_comparison_stays_text(small: Comparison) -> None:
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
            answers=tuple(
                replace(one, machine=HOSTILE, policy=Hostile(), answer=HOSTILE) for one in row.answers
            ),
            card=replace(row.card, increment=Estimate(None, undefined=HOSTILE)),
        )
        for row in comparison.rows
    )
    hostile = replace(
        comparison,
        title=HOSTILE,
        description=HOSTILE,
        rows=rows,
        strategies=tuple(
            replace(one, place=Place(*[HOSTILE] * 4), family=HOSTILE, policy=Hostile(), answer=HOSTILE)
            for one in comparison.strategies
        ),
        validity=tuple(replace(one, score=HOSTILE, machine=HOSTILE) for one in comparison.validity),
        failures={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
        provenance={HOSTILE: HOSTILE},
        citation=HOSTILE,
    )
    require_text_alone(render_comparison(examples.with_verdicts(hostile)), scripts=1)


def test_downloads_hold_the_tables(comparison: Comparison, of_comparison: Made) -> None:
    links = {
        str(values["download"]): str(values["href"])
        for _, values, _ in of_comparison.page.elements
        if "download" in values
    }
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
        csv.DictReader(io.StringIO(base64.b64decode(links["validity.csv"].partition("base64,")[2]).decode()))
    )
    assert float(first["kendall"]) == pytest.approx(comparison.validity[0].kendall.value)


@pytest.mark.parametrize("part", ["strategies", "validity", "combined"])
def test_a_part_without_content_is_left_out_and_not_linked_to(small: Comparison, part: str) -> None:
    page = Page(render_comparison(replace(small, **{part: ()})))
    assert page.faults == []
    ids = {values.get("id") for _, values, _ in page.elements}
    assert part not in ids
    assert f"#{part}" not in {values.get("href") for _, values, _ in page.elements}


def one_model() -> Comparison:
    """What is shipped: one model on four workloads."""
    model = examples.Described(ModelFacts("smollm2", "smollm2", parameters=135e6), 0.25, 30)
    made = examples.example_comparison((model,), ("prose", "code", "chat", "math"))
    return replace(made, validity=(), combined=(), failures={}, notes=())


def test_one_model_is_a_whole_page() -> None:
    html = render_comparison(one_model())
    page = Page(html)
    assert page.faults == []
    assert "1 independently trained model of the 12 that it takes" in page.text
    assert "Means over 4 workloads, without intervals" in page.text
    charts = {v["data-chart"] for _, v, _ in page.elements if v.get("class") == "profile-figure"}
    assert charts == {"model: smollm2"}  # one chart whose lines are the workloads
    assert len(html) < 1_500_000


def test_scores_alone_make_a_page(small: Comparison) -> None:
    rows = tuple(replace(row, answers=()) for row in small.rows)
    bare = Comparison(title="scores", description="", rows=rows)
    page = Page(render_comparison(bare))
    assert page.faults == []
    assert "These are scores alone" in page.text
    assert "No policy was tuned here" in page.text
    assert Page(render_comparison(Comparison(title="nothing", description="", rows=()))).faults == []
