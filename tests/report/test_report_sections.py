"""The sections of prices, certificates, machines and break-even, read off the page."""

from dataclasses import replace

import answer_examples as answers
import pytest
from report_examples import example_run

from offramp.report.page import render
from offramp.report.run_result import HeadsSummary, PriceList
from offramp.scoring.estimate import Estimate
from offramp.tuning.floor import Floor
from page_reader import Page


@pytest.fixture(scope="module")
def page():
    return Page(render(example_run()))


def test_certificates_are_told_in_words(page):
    assert "Not certifiable: 15 documents, 230 needed" in page.text
    assert "With 300 documents replayed, this policy loses at most 10 % of tokens" in page.text
    # 0.99 ** 64 = 0.526, 0.95 ** 64 = 0.0375, 0.9 ** 64 = 0.00118
    assert (
        "of answers of 64 tokens stay unchanged: 53 % at 99 %, 3.8 % at 95 % and 0.1 % at 90 %" in page.text
    )


def test_floors_in_nats_are_said_in_nats():
    run = example_run()
    floor = Floor("nll", 0.05, clip=4.0)
    made = answers.certificate(True, 300, 45, risk_bound=0.011)
    workload = replace(run.workloads[0], tuned=(answers.tuned(floor, made),))
    page = Page(render(replace(run, workloads=(workload,))))
    assert page.faults == []
    assert "Keep an increase in NLL of at most 0.050 nats" in page.text
    assert "0.044 nats" in page.text  # 0.011 of 4 nats


def test_costs_in_bytes_are_not_called_time():
    run = example_run()
    made = answers.certificate(True, 300, 22)
    front = tuple(replace(p, seconds_per_token=4e9 * p.seconds_per_token) for p in answers.front())
    tuned = answers.tuned(Floor("agreement", 0.9), made, machine="bytes moved", plain_seconds_per_token=538e6)
    tuned = replace(tuned, front=front, seconds_per_token=Estimate(520.25e6, 519e6, 521e6))
    page = Page(render(replace(run, workloads=(replace(run.workloads[0], tuned=(tuned,)),))))
    assert "moved per token, predicted520.2 MB (519.0 to 521.0 MB)" in page.text
    assert "plain decoding there538.0 MB" in page.text


def test_machines_are_a_matrix_with_sources(page):
    tables = [values for _, values, _ in page.elements if values.get("class") == "cards machines"]
    assert len(tables) == len(example_run().workloads)
    cells = [v.get("data-name") for _, v, path in page.elements if path and path[-1] == "tr"]
    for batch in (1, 8, 32):
        assert cells.count(f"batch {batch}") == 3 * 4
    assert "On this machine no; on a100 yes at batch 1, inconclusive at batch 8, no at batch 32" in page.text
    assert "NVIDIA H100 SXM data sheet" in page.text


def test_a_machine_asked_at_other_batch_sizes_leaves_a_gap():
    run = example_run()
    kept = tuple(a for a in run.workloads[0].machines if not (a.machine == "h100" and a.batch == 1))
    page = Page(render(replace(run, workloads=(replace(run.workloads[0], machines=kept),))))
    assert page.faults == []
    assert "not asked" in page.text
    assert "plain, batch 8: 1.03 ms per token" in page.text  # 0.78 ms * 1.32


def test_prices_are_given_in_layers(page):
    # 8.8 ms / 1.56 ms = 5.64 layers; 0.41 / 1.56 = 0.26; 17 µs / 1.56 ms = 0.011
    for words in (
        "5.6 layers · 8.80 ms",
        "0.26 layers · 410 µs",
        "0.011 layers · 17.0 µs",
        "1 layer · 1.56 ms",
    ):
        assert words in page.text
    assert "has spent 17 layers' time before it has saved anything" in page.text
    assert "the stopwatch gave 58.3 ms, a ratio of 0.998" in page.text
    assert "No better than chance at any exit: convergence." in page.text
    assert "undefined: at every exit too few rows of a class" in page.text


def test_a_profile_with_the_least_it_must_hold_and_a_run_without_answers(page):
    run, whole = example_run(), page
    least = PriceList("h100", "data sheet", replace(answers.COSTS, probes={"cosine": 0.0}))
    heads, first = HeadsSummary(12, 29, (), None, {}), run.workloads[:1]
    page = Page(render(replace(run, workloads=first, hardware=least, heads=heads)))
    assert page.faults == []
    bare = tuple(replace(w, league=(), tuned=(), machines=(), break_even=()) for w in first)
    without = Page(render(replace(run, workloads=bare, hardware=None, heads=None)))
    assert without.faults == []
    for words in ("What a check costs", "What was fitted", "Which kind of policy wins", "On which machine"):
        assert words in whole.text
        assert words not in without.text
    assert not any(values.get("href") == "#machine" for _, values, _ in without.elements)
    assert "What a check costs on h100" in page.text
    assert "the stopwatch gave" not in page.text
    assert "nothing that could be used" in page.text
    told = page.text[page.text.index("What a check costs") : page.text.index("How to repeat this")]
    assert not any(word in told for word in ("None", "threads", "load"))


def test_imported_heads_are_not_called_fitted():
    for kind in ("a linear lens", "an output head of its own"):
        imported = HeadsSummary(0, 3, (kind,), None, {}, imported=True)
        page = Page(render(replace(example_run(), workloads=(), heads=imported)))
        assert page.faults == []
        assert f"Others trained {kind} at 3 exits. Which documents they used is not known" in page.text
        assert "What was fitted" not in page.text


def test_break_even_says_what_is_needed(page):
    for words in (
        "1/12.4 of it",
        "5.9 × as much",
        "No price of K,V repair",
        "A layer costs 1.56 ms; at 9.2 ms",
    ):
        assert words in page.text
