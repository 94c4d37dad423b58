"""The page: well-formed, self-contained, escaped, reachable by keyboard, honest about what is undefined."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from page_reader import Page, require_self_contained
from report_examples import CHAT, example_run, workload_result

from offramp.report.page import render, write_report
from offramp.scoring.estimate import Estimate


@pytest.fixture(scope="module")
def html():
    return render(example_run())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def undefined_run():
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
    return replace(run, workloads=(workload,), measured=None)


def test_well_formed(page):
    assert page.faults == []
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_anywhere(html, page):
    require_self_contained(html, page, links=("#",))


def test_local_links_lead_somewhere(page):
    ids = {values["id"] for _, values, _ in page.elements if "id" in values}
    for _, values, _ in page.elements:
        for name in ("href", "aria-labelledby", "data-copy"):
            if name in values:
                assert values[name].lstrip("#") in ids


def hostile_answers(workload, hostile):
    """The same answers with hostile text wherever another package's text stands."""
    certificates = [
        replace(t.certificate, method=hostile, guarantee=hostile, assumption=hostile) for t in workload.tuned
    ]
    front = tuple(replace(point, policy=hostile) for point in workload.tuned[0].front)
    return replace(
        workload,
        league=tuple(replace(e, family=hostile + e.family, policy=hostile) for e in workload.league),
        tuned=tuple(
            replace(
                t,
                policy_text=hostile,
                answer=hostile,
                machine=hostile,
                kv=hostile,
                certificate=c,
                front=front,
            )
            for t, c in zip(workload.tuned, certificates, strict=True)
        ),
        machines=tuple(
            replace(a, machine=hostile, source=hostile, policy=hostile) for a in workload.machines
        ),
        break_even=tuple(
            replace(b, policy=hostile, lever=hostile, sentence=hostile) for b in workload.break_even
        ),
    )


def test_hostile_text_stays_text():
    hostile = "</script><img src=x onerror=alert(1)>\"'&<!--"
    run = example_run()
    workload = run.workloads[0]
    tokens = tuple(
        replace(t, piece=hostile, full_prediction=hostile, predictions=(hostile,) * len(t.predictions))
        for t in workload.passage.tokens
    )
    passage = replace(workload.passage, document=hostile, lead=hostile, tokens=tokens)
    grid = workload.grid
    width = len(grid.inputs)
    grid = replace(grid, document=hostile, inputs=(hostile,) * width, targets=(hostile,) * width)
    grid = replace(grid, pieces=((hostile,) * width,) * len(grid.exits))
    verdicts = tuple(replace(v, reason=hostile, policy=hostile) for v in workload.verdicts)
    card = replace(workload.card, notes=(hostile,))
    workload = replace(workload, name=hostile, passage=passage, grid=grid, verdicts=verdicts, card=card)
    workload = replace(workload, notes=(hostile,), trace_folder=hostile)
    clean = Page(render(replace(run, workloads=(replace(workload, name="prose"),))))
    workload = hostile_answers(workload, hostile)
    run = replace(
        run, model_name=hostile, workloads=(workload,), command=hostile, provenance={hostile: hostile}
    )
    run = replace(
        run,
        hardware={**run.hardware, "name": hostile, "source": hostile, "probe_seconds": {hostile: 0.1}},
        heads={**run.heads, "classifiers": {hostile: run.heads["classifiers"]["adainfer"]}},
    )
    page = Page(render(run))
    assert page.faults == []
    tags = [tag for tag, _, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == [tag for tag, _, _ in clean.elements].count("script") == 2
    assert hostile in page.text


def test_script_data_reads_back(html):
    workload = example_run().workloads[0]
    content = re.search(r'<script type="application/json" id="data-prose">(.*?)</script>', html).group(1)
    data = json.loads(content)
    assert tuple(data["exits"]) == workload.passage.exits
    assert len(data["tokens"]) == len(workload.passage.tokens)
    for row, token in zip(data["tokens"], workload.passage.tokens, strict=True):
        assert (row[2], row[3]) == (token.first_match_exit, token.saturation_exit)
        assert row[6] == "".join("01"[agrees] for agrees in token.agrees)
        assert all(abs(a - 1000 * b) <= 0.5 for a, b in zip(row[5], token.max_prob, strict=True))


def test_every_figure_is_also_a_table(html):
    figures = re.findall(r"<figure.*?</figure>", html, re.S)
    assert len(figures) >= 3 * 10
    for figure in figures:
        if '<svg class="chart' in figure:
            assert re.search(r"<details><summary>.*?<table>", figure, re.S)
    outside = re.sub(r"<figure.*?</figure>", "", html, flags=re.S)
    assert '<svg class="chart' not in outside


def test_tables_have_captions_and_headers(html):
    for found in re.findall(r"<table.*?</table>", html, re.S):
        assert "<caption>" in found
        assert 'scope="col"' in found or 'scope="row"' in found


def test_keyboard_reaches_everything(page):
    tokens = [values for _, values, _ in page.elements if (values.get("class") or "").startswith("t e")]
    expected = [len(workload.passage.tokens) for workload in example_run().workloads]
    assert len(tokens) == sum(expected)
    assert sum(values["tabindex"] == "0" for values in tokens) == len(expected)
    assert all(values["role"] == "button" and "layer" in values["aria-label"] for values in tokens)
    scrolling = [values for _, values, _ in page.elements if "scroll" in (values.get("class") or "").split()]
    assert scrolling
    assert all(v["tabindex"] == "0" and v["role"] == "region" and v["aria-label"] for v in scrolling)


def test_everything_is_there_without_scripts(html, page):
    for workload in example_run().workloads:
        section = next(v for _, v, _ in page.elements if v.get("id") == f"workload-{workload.name}")
        assert "hidden" not in section
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.S))
    hidden = [rule for rule in style.split("}") if "display:none" in rule]
    assert hidden
    allowed = (".panel", ".copy", ".js", "thead", ".tabs", "@media print")
    assert all(any(name in rule for name in allowed) for rule in hidden)


def test_the_answer_comes_first(page):
    text = page.text
    order = [
        "arly exit",
        "Certificates",
        "At the quality you would keep",
        "What a check costs on this machine",
        "What was fitted for the checks",
        "Which policy wins, and why",
        "What is kept on documents like these",
        "What a loss buys",
        "On which machine it would pay",
        "What would have to change for it to pay",
        "Where it could have stopped",
        "What each layer would say",
        "Layer by layer",
        "What a policy could gain",
        "How suited this model is",
        "How to repeat this",
        "What the words mean",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_measured_replayed_and_predicted_are_told_apart(page):
    kinds = [
        values["class"] for _, values, _ in page.elements if "kind" in (values.get("class") or "").split()
    ]
    assert {"kind executed", "kind measured", "kind replayed", "kind predicted"} >= set(kinds)
    assert {"kind measured", "kind replayed", "kind predicted"} <= set(kinds)


def test_undefined_figures_show_their_reason_and_no_number():
    page = Page(render(undefined_run()))
    assert page.faults == []
    text = page.text
    assert "Representation quality is undefined. the trace has one document" in text
    assert "Undefined: at every layer fewer than 20 tokens agree" in text
    assert "Undefined on this workload: Brier, recalibrated." in text
    assert "No frontier was computed for this workload." in text
    assert "No layer has tokens to bin." in text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)
    assert "plain decoding was not timed" in text


def test_a_run_without_verdicts_says_so():
    run = example_run()
    run = replace(run, workloads=tuple(replace(w, verdicts=()) for w in run.workloads))
    page = Page(render(run))
    assert page.faults == []
    assert "there is no verdict at any quality floor" in page.text


@pytest.mark.parametrize(("layers", "documents"), [(1, 30), (2, 1), (90, 24)])
def test_small_and_deep_models(layers, documents):
    workload = workload_result("tiny", CHAT, layers=layers, documents=documents, length=24)
    run = replace(example_run(), layers=layers, workloads=(workload,))
    html = render(run)
    page = Page(html)
    assert page.faults == []
    assert len(html) < 1_500_000
    assert "NaN" not in html


def test_workloads_whose_names_differ_in_punctuation_get_ids_of_their_own():
    run = example_run()
    named = tuple(
        replace(w, name=name)
        for w, name in zip(run.workloads, ("txt:a.b", "txt:a b", "txt a.b"), strict=True)
    )
    page = Page(render(replace(run, workloads=named)))
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))


def test_write_report_is_whole_small_and_repeatable(tmp_path, html):
    path = write_report(example_run(), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == html
    assert path.stat().st_size < 1_500_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
