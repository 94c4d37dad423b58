"""A transformed model's run says what the transform costs, and agreement with the untransformed model."""

import functools
import io
from dataclasses import replace

import answer_examples as answers
import jsonschema
import numpy as np
import pytest
from page_reader import Page
from report_examples import CHAT, LAYERS, answered, workload_result
from rich.console import Console

from offramp.report.caveats import caveats
from offramp.report.formats import percent
from offramp.report.page import render
from offramp.report.run_result import RunResult
from offramp.report.summary import summarise, summary_schema
from offramp.report.terminal import print_summary
from offramp.report.verdict_words import reference_line, transform_sentence
from offramp.scoring.estimate import Estimate
from offramp.scoring.scoring import score
from offramp.tuning.floor import Floor
from offramp.tuning.judging import judge


@functools.cache
def plain_run():
    """One small workload, with every answer of league, tuner and machines."""
    workload = workload_result("prose", CHAT, late=0.8, seed=3, documents=44, length=24)
    workload = answered(workload, 0.0, 1.0)
    return RunResult("smollm2", LAYERS, (workload,), {}, None, "offramp run smollm2", answers.HARDWARE)


def transformed_run(documents=44, kept=0.93):
    run = plain_run()
    workload = run.workloads[0]
    trace = workload.trace.subset(np.arange(documents))
    same = np.random.default_rng(0).random(trace.token_count) < kept
    trace.reference_top1 = np.where(same, trace.fact("top1")[:, -1], -1).astype(np.int32)
    reference = Estimate(0.91, 0.9, 0.92)
    workload = replace(
        workload,
        trace=trace,
        card=score(trace, draws=100),
        verdicts=judge(trace, (0.9,)),
        league=tuple(replace(entry, reference_agreement=reference) for entry in workload.league),
        machines=tuple(replace(answer, reference_agreement=reference) for answer in workload.machines),
        tuned=tuple(
            replace(tuned, reference_agreement=reference, floor=Floor("reference_agreement", 0.9))
            for tuned in workload.tuned
        ),
    )
    return replace(run, model_name="smollm2 + int8", workloads=(workload,))


@pytest.fixture(scope="module")
def run():
    return transformed_run()


@pytest.fixture(scope="module")
def page(run):
    return Page(render(run))


def test_one_sentence_says_what_the_transform_itself_costs(run, page):
    kept = run.workloads[0].card.reference_agreement
    said = f"the untransformed one says on {percent(kept.value)} of the tokens of prose (95 % interval "
    assert said in transform_sentence(run)
    assert transform_sentence(run) in caveats(run)
    assert page.text.count(transform_sentence(run)) == 1


def test_few_documents_have_no_interval_and_say_so():
    assert "(no interval: 7 documents; an interval needs 20)" in transform_sentence(transformed_run(7))


def test_it_stands_beside_agreement_where_people_look(run, page):
    assert page.faults == []
    assert "smollm2 + int8" in page.text
    for verdict in run.workloads[0].verdicts:
        assert page.text.count(reference_line(verdict.reference_agreement)) >= 1
    assert page.text.count("untransformed: 91.0 % (90.0 to 92.0 %)") >= len(run.workloads[0].machines)
    assert "agrees with the untransformed one" in page.text  # the curve by layer
    assert "90 % agreement with the untransformed model" in page.text  # the floor of a certificate


def test_the_terminal_shows_it_within_its_width(run):
    console = Console(file=io.StringIO(), width=80)
    print_summary(run, console)
    text = console.file.getvalue()
    assert "untransformed:" in text
    assert max(len(line) for line in text.splitlines() if " = " not in line) <= 80


def test_the_summary_holds_it_under_one_key(run):
    summary = summarise(run)
    jsonschema.validate(summary, summary_schema())
    card = run.workloads[0].card
    assert summary["scores"][0]["reference_agreement"]["value"] == card.reference_agreement.value
    assert len(summary["scores"][0]["curves"]["values"]["reference_agreement"]) == len(card.curves.exits)
    for part in (summary["verdict"]["by_workload"], summary["league"], summary["tuned"], summary["machines"]):
        assert all(entry["reference_agreement"]["value"] > 0 for entry in part)
    broken = {**summary, "scores": [{**summary["scores"][0], "reference_agreement": 0.9}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, summary_schema())


def test_a_model_without_transforms_says_nothing_of_it():
    run = plain_run()
    assert transform_sentence(run) is None
    summary = summarise(run)
    assert all(entry["reference_agreement"] is None for entry in summary["verdict"]["by_workload"])
    assert all(entry["reference_agreement"] is None for entry in summary["scores"])
    assert "untransformed:" not in render(run)
