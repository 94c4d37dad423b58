"""The section "Decoded for real", candidates that were tried, and a transformed model."""

from __future__ import annotations

import functools
import io
import re
from dataclasses import replace

import answer_examples as answers
import jsonschema
import numpy as np
import pytest
from decoding_examples import PLAIN, decoded, decoded_run, forecast, with_decoding
from report_examples import CHAT, LAYERS, answered, example_run, first_two, quickly_judged, workload_result
from rich.console import Console

from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.rules.fixed import StaticExit
from offramp.policies.short_names import short_name
from offramp.report.answer_words import REPAIR_NOTE, caveats, headline, reference_line, transform_sentence
from offramp.report.formats import percent
from offramp.report.page import print_summary, render
from offramp.report.run_result import RunProgress, RunResult
from offramp.report.sections.decoded import beside_plot, error_plot, introduction
from offramp.report.summary import summarise, summary_schema
from offramp.report.timing import blame, error_sentence
from offramp.scoring.estimate import Estimate
from offramp.scoring.scoring import score
from offramp.studies.work.decode import DecodedChoice
from offramp.timing.results import PartError
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.floor import Floor
from offramp.tuning.verdict import Speed
from page_reader import Page

DEFINITIONS = {"$defs": summary_schema()["$defs"]}


@pytest.fixture(scope="module")
def run():
    return decoded_run(example_run())


@pytest.fixture(scope="module")
def page(run):
    return Page(render(run))


def test_predicted_stands_beside_measured(run, page):
    assert page.faults == []
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))
    for words in (
        "On prose equivalent within ± 5 %",
        "55.3 ms predicted, 57.5 ms measured per token: 3.8 % too low",
        "the layers were priced at 40.2 ms per token and took 41.3 ms",
        "On code defect",
        "This measurement has a defect; it changes no verdict",
        "the same decoder twice comes out unequal: ratio 1.062",
        "chat was not decoded: its layers keep a state in themselves",
        "2 prompts, 32 new tokens, 3 rounds",
        "Not timed: generate(assistant_early_exit=22): this family runs all 30 layers",
    ):
        assert words in page.text, words
    html = render(run)
    section = html[html.index('id="decoded"') : html.index('id="caveats"')]
    figures = re.findall(r"<figure.*?</figure>", section, re.S)
    assert len(figures) == 4
    assert all("<details><summary>The same as a table" in figure for figure in figures)


def test_policies_are_counted_in_the_number_that_they_have():
    one, other = (decoded("prose", "static:exit=20", others=False) for _ in range(2))
    assert len(one.policies) == 1
    said = introduction(with_decoding(example_run(), one))
    assert said.startswith("One policy generated text here, and the layers that it skipped were not")
    said = introduction(with_decoding(example_run(), one, other))
    assert said.startswith("2 policies generated text here, and the layers that they skipped were not")


def test_a_prompt_stands_with_both_answers_and_where_they_part():
    made = decoded("prose", "static:exit=20", others=False)
    policies = tuple(replace(one, answer="the cat sat </p>on") for one in made.policies)
    made = replace(made, chosen=policies, prompt="Once", plain_answer="the cat slept\x1b[2J\nlong")
    html = render(with_decoding(example_run(), made))
    page = Page(html)
    assert page.faults == []
    assert "At 95 %: always exit 20, which kept 93.8 % of the timed prompts" in page.text
    assert "a token that the policy writes has 1.31 nats, and one of its own 1.22." in page.text
    assert "the cat s<mark>at &lt;/p&gt;on</mark>" in html
    assert '<p class="generated">the cat slept⟨001B⟩[2J\nlong</p>' in html
    without = replace(made, chosen=tuple(replace(one, answer=None) for one in policies))
    assert "The full model" not in Page(render(with_decoding(example_run(), without))).text


def test_not_decoded_is_said_where_nothing_was_and_not_where_something_was(run, page):
    bare = example_run()
    assert caveats(bare)[0].startswith("No policy was decoded for real in this run")
    assert "Every way to decode that was timed" not in Page(render(bare)).text
    notes = "\n".join(caveats(run))
    assert "No policy was decoded" not in notes
    assert "recomputed ones are exact" in REPAIR_NOTE
    assert f"{REPAIR_NOTE} Of the policies decoded" in notes
    measured = "95.4 % replayed and 93.8 % of the text that the policy generated"
    assert f"on prose (propagate) {measured}" in notes
    exact = [replace(d, chosen=tuple(replace(p, kv="recompute") for p in d.policies)) for d in run.decoding]
    assert f"on prose (recompute) {measured}" in "\n".join(caveats(with_decoding(bare, *exact)))
    assert "chat was not decoded" in notes
    unjudged = [
        replace(d, chosen=tuple(replace(p, free_running=None) for p in d.policies)) for d in run.decoding
    ]
    assert REPAIR_NOTE in caveats(with_decoding(bare, *unjudged))


def test_only_reasons_where_nothing_could_be_decoded():
    run = with_decoding(example_run(), prose="no engine", code="no engine", chat="no engine")
    page = Page(render(run))
    assert page.faults == []
    assert "every speed on this page is a prediction" in page.text
    assert "prose was not decoded: no engine." in page.text


def test_a_policy_without_prediction_or_time_has_no_number(run):
    made = run.decoding[0]
    first, second, *others = made.policies
    left_out = replace(
        made.bench.contender(second.contender),
        samples=(),
        seconds_per_token=None,
        ratio=None,
        clusters=(),
        left_out="it fails here",
    )
    contenders = tuple(left_out if c.name == left_out.name else c for c in made.bench.contenders)
    policies = (
        replace(first, forecast=None, free_running=None),
        replace(second, forecast=None, free_running=None),
        replace(others[0], forecast=replace(others[0].forecast, predicted=None, parts=())),
    )
    made = replace(made, chosen=policies, bench=replace(made.bench, contenders=contenders))
    run = with_decoding(example_run(), made)
    page = Page(render(run))
    assert page.faults == []
    assert "it fails here" in page.text
    section = page.text[page.text.index("Every way to decode") : page.text.index("What a check costs")]
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", section)
    jsonschema.validate(summarise(run), summary_schema())


def test_hostile_text_of_a_measurement_stays_text():
    hostile = "</script><img src=x onerror=alert(1)>"
    made = decoded("prose", "static:exit=20", sound=False)
    hostile_policy = replace(made.policies[0], why=hostile, kv=hostile)
    made = replace(made, chosen=(hostile_policy, *made.policies[1:]))
    bench = replace(
        made.bench,
        defects=(hostile,),
        notes=(hostile,),
        circumstances={**made.bench.circumstances, hostile: {hostile: [hostile, None]}},
    )
    made = replace(made, bench=replace(bench, plain=bench.plain))
    run = with_decoding(example_run(), replace(made, bench=bench), code=hostile)
    run = replace(run, progress=RunProgress((hostile,), hostile, (hostile,)))
    page = Page(render(run))
    assert page.faults == []
    assert "img" not in [tag for tag, _, _ in page.elements]
    assert hostile in page.text


def test_the_blame_falls_on_the_larger_error():
    prices = forecast("static:exit=3", "propagate", 0.050, 0.055, priced=0.0505)
    assert "from the prices: the layers were priced at 40.2 ms per token and took 41.3 ms" in blame(prices)
    elsewhere = blame(replace(prices, priced=0.0545))
    assert "10.0 % of the layers skipped on the trace, 8.6 % in decoding" in elsewhere
    overhead = replace(prices, parts=(PartError("layers", 0.04, 0.04), PartError("overhead", 0.001, 0.004)))
    assert "the program around (overhead per token) was priced at 1.00 ms per token" in blame(overhead)
    assert "the parts were not timed apart" in blame(replace(prices, parts=()))
    assert error_sentence(replace(prices, predicted=0.0549)).endswith("right within 0.2 %.")
    assert "no prediction" in error_sentence(replace(prices, predicted=None))


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("never", "never exit"),
        ("static:exit=15", "always exit 15"),
        ("schedule:first=9,last=4,length=12", "exit 9 falling to 4"),
        (
            "threshold:signal=restricted_margin,value=0.83,exits=20+24",
            "exit 20+24 if restricted margin ≥ 0.83",
        ),
        ("threshold:signal=entropy,value=0.5,exits=all", "all exits if entropy ≤ 0.5"),
        ("threshold:signal=max_prob,value=0.9,exits=1+2+3+4+5", "5 exits 1 to 5 if max prob ≥ 0.9"),
        ("thresholds:signal=margin,values=0.9+0.8,exits=4+9", "exit 4+9 if margin ≥ 0.8 to 0.9"),
        ("patience:times=2,exits=4+9+12", "exit 4+9+12 if 3 checks agree"),
        ("sustained:signal=margin,value=0.9,times=2,exits=4+9", "exit 4+9 if 2 times margin ≥ 0.9"),
        (
            "shortlist:policy=[threshold:signal=margin,value=0.9,exits=9]",
            "exit 9 if margin ≥ 0.9, short list",
        ),
        ("shortlist:policy=[never],at=all", "short list at full depth"),
        ("minimum:exit=3,policy=[static:exit=5]", "minimum: always exit 5"),
        (
            "votes:need=all,of=[static:exit=5]+[patience:times=1,exits=4+5]",
            "all of: always exit 5; exit 4+5 if 2 checks agree",
        ),
        ("bandit:signal=margin,value=0.9,exits=4+9", "bandit: exit 4+9 if margin ≥ 0.9"),
        ("oracle:which=saturation", "oracle, saturation"),
        ("no policy <b>", "no policy <b>"),
    ],
)
def test_short_names(policy, name):
    assert short_name(policy) == name


def test_the_reference_line_and_the_marks_lie_where_the_numbers_are():
    policy = DecodedChoice("static", StaticExit(2), "propagate", "chosen", 0.95, contender="a")
    made = replace(forecast("a", "propagate", 0.05, 0.06), measured=Estimate(0.06, 0.058, 0.062))
    svg = beside_plot([(policy, made)], plain=55.0).svg()
    assert Page(svg).faults == []
    measured = float(re.search(r'<circle cx="([\d.]+)"', svg).group(1))
    predicted = float(re.search(r'class="s1"><path d="M([\d.]+)', svg).group(1))
    plain = float(re.search(r'<line class="rule" x1="([\d.]+)"', svg).group(1))
    assert predicted < plain < measured
    assert plain == pytest.approx((measured + predicted) / 2, abs=0.1)


def test_errors_stack_to_both_sides_of_zero():
    policy = DecodedChoice("static", StaticExit(2), "propagate", "chosen", 0.95, contender="a")
    parts = (
        PartError("layers", 0.050, 0.052),
        PartError("probes", 0.001, 0.002),
        PartError("heads", 0.0025, 0.001),
    )
    made = replace(forecast("a", "propagate", None, 0.06), parts=parts)
    svg = error_plot([(policy, made)]).svg()
    assert Page(svg).faults == []
    boxes = [
        (float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    ]
    zero = float(re.search(r'<line class="rule" x1="([\d.]+)"', svg).group(1))
    (layers, layers_width), (probes, probes_width), (heads, heads_width) = boxes
    assert layers + layers_width == pytest.approx(zero, abs=0.2)
    assert probes + probes_width == pytest.approx(layers, abs=0.2)
    assert heads == pytest.approx(zero, abs=0.2)
    assert layers_width / probes_width == pytest.approx(2.0, abs=0.02)
    assert heads_width / probes_width == pytest.approx(1.5, abs=0.02)


def test_the_summary_holds_every_pair(run):
    summary = summarise(run)
    jsonschema.validate(summary, summary_schema())
    validator = jsonschema.Draft202012Validator(summary_schema()["$defs"]["Decoded"] | DEFINITIONS)
    first, second = summary["decoding"]["workloads"]
    for change in ({"answer": "maybe"}, {"policies": [{}]}, {"contenders": []}, {"rounds": 0}):
        assert validator.is_valid(first) > validator.is_valid(first | change), change
    assert (first["answer"], second["answer"]) == ("equivalent", "defect")
    assert (first["defects"], first["stopped"], first["worth"]) == ([], "answered", 0.05)
    timed = next(one for one in first["contenders"] if one["name"] == first["policies"][0]["contender"])
    assert timed["answer"] == "equivalent"
    assert timed["counted"]["layers"] == 30.0
    assert summary["decoding"]["not_decoded"] == {
        "chat": "its layers keep a state in themselves instead of in a cache"
    }
    forecast = first["policies"][0]["forecast"]
    assert (forecast["predicted"], forecast["measured"]["value"]) == (0.0553, 0.0575)
    assert forecast["fastest_plain"] == PLAIN
    assert [part["part"] for part in forecast["parts"]] == [
        "layers",
        "probes",
        "K,V repair",
        "heads",
        "overhead",
    ]
    assert len(first["contenders"][0]["samples"]) == 6
    assert summary["measured"]["measured_seconds_per_token"]["value"] == 0.0575
    named = [entry for entry in summary["predicted"] if entry["measured_seconds_per_token"] is not None]
    assert [(entry["workload"], entry["floor"]) for entry in named] == [("prose", 0.95)]
    assert named[0]["basis"].endswith("; timed")
    assert (named[0]["measured_seconds_per_token"], named[0]["plain_seconds_per_token"]) == (0.0575, PLAIN)


def test_a_page_is_whole_after_every_stage(run):
    bare = replace(run, decoding=(), not_decoded={}, plain_seconds_per_token=None)
    stages = [
        replace(bare, workloads=(), hardware=None, heads=None),
        replace(bare, workloads=()),
        replace(run, workloads=run.workloads[:1], decoding=run.decoding[:1], not_decoded={}),
    ]
    for stage in stages:
        running = replace(stage, progress=RunProgress(("the machine timed",), "tracing prose", ("decoding",)))
        page = Page(render(running))
        assert page.faults == []
        assert "Still running: tracing prose. Done: the machine timed. To come: decoding." in page.text
        ids = {values["id"] for _, values, _ in page.elements if "id" in values}
        links = [v["href"].lstrip("#") for _, v, _ in page.elements if "href" in v]
        assert set(links) <= ids
        assert "Still running" not in Page(render(stage)).text
    first = Page(render(replace(stages[0], progress=RunProgress((), "timing", ()))))
    assert "There is no verdict for smollm2 yet." in first.text


TRIED = Candidate(StaticExit(20), "propagate", 0.98, 0.955, 0.9632, 56, 1.014, False, "time used up")
OPEN = Certificate(
    method="wsr", guarantee="", holds=False, delta=0.1, documents=120, empirical_risk=None, risk_bound=None,
    best_floor=0.95, documents_needed=59, tested=1, passed=0, assumption="", executed=True, kv="propagate",
    prompt_tokens=32, new_tokens=16, stopped_after=56,
)  # fmt: skip


def with_verdicts(run: RunResult, **changes) -> RunResult:
    """All verdicts of the run changed alike."""
    workloads = tuple(
        replace(one, verdicts=tuple(replace(verdict, **changes) for verdict in one.verdicts))
        for one in run.workloads
    )
    return replace(run, workloads=workloads)


def printed(run: RunResult, width: int = 140) -> str:
    """What the terminal shows, within its width, in one line."""
    out = io.StringIO()
    print_summary(run, Console(file=out, width=width))
    assert max(len(line) for line in out.getvalue().splitlines() if " = " not in line) <= width
    return " ".join(out.getvalue().split())


def test_what_was_tried_is_shown_and_not_called_certified() -> None:
    run = with_verdicts(
        example_run(),
        policy=PLAIN_DECODING,
        kv=None,
        outcome="interval",
        certificate=OPEN,
        executed_agreement=None,
        tried=TRIED,
        speed=Speed(1.039, 0.97, 1.11, "measured", "local", True, 20.0),
        missing=("time to decode the documents that are at hand",),
    )
    said = headline(run)
    assert "kept 96.32 % as executed on 56 documents, not certified ≥" in said
    assert "measured 1.039 × (0.970 to 1.110 ×)" in said
    assert "missing: time to decode the documents that are at hand" in said
    page = Page(render(run))
    assert page.faults == []
    for shown in (page.text, printed(run, 300)):
        for words in ("tried: always exit 20", "96.3 %", "56 documents", "not certified", "1.039 ×"):
            assert words in shown
    summary = summarise(run)
    jsonschema.validate(summary, summary_schema())
    assert {one["tried"]["documents"] for one in summary["verdict"]["by_workload"]} == {56}


def test_a_certified_share_is_shown_where_no_time_was_left_for_fresh_documents() -> None:
    run = with_verdicts(
        example_run(),
        policy=StaticExit(20),
        kv="propagate",
        certificate=replace(OPEN, holds=True, empirical_risk=0.021),
        executed_agreement=Estimate(None, undefined="the time was used up"),
    )
    page = Page(render(run))
    for shown in (page.text, printed(run, 300)):
        assert all(words in shown for words in ("97.9 %", "56 documents", "certified"))
        assert "the time was used up" not in shown


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
        verdicts=quickly_judged(trace, (0.9,)),
        league=tuple(replace(entry, reference_agreement=reference) for entry in workload.league),
        machines=tuple(replace(answer, reference_agreement=reference) for answer in workload.machines),
        tuned=tuple(
            replace(tuned, reference_agreement=reference, floor=Floor("reference_agreement", 0.9))
            for tuned in workload.tuned
        ),
    )
    return replace(run, model_name="smollm2 + int8", workloads=(workload,))


@pytest.fixture(scope="module")
def transformed():
    return transformed_run()


def test_what_a_transform_costs_stands_beside_agreement_wherever_people_look(transformed):
    kept = transformed.workloads[0].card.reference_agreement
    said, page = transform_sentence(transformed), Page(render(transformed))
    assert f"the untransformed one says on {percent(kept.value)} of the tokens of prose (95 %" in said
    assert said in caveats(transformed)
    assert page.faults == []
    assert page.text.count(said) == 1
    for verdict in transformed.workloads[0].verdicts:
        assert page.text.count(reference_line(verdict.reference_agreement)) >= 1
    assert "untransformed: 91.0 % (90.0 to 92.0 %)" in page.text
    assert "Agreement with the untransformed model" in page.text  # the curve by layer
    assert "90 % agreement with the original model" in page.text  # the floor of a certificate
    assert "(no interval: 7 documents; an interval needs 20)" in transform_sentence(transformed_run(7))


def test_the_summary_holds_it_under_one_key(transformed):
    summary = summarise(transformed)
    jsonschema.validate(first_two(summary), summary_schema())
    card = transformed.workloads[0].card
    assert summary["scores"][0]["reference_agreement"]["value"] == card.reference_agreement.value
    assert len(summary["scores"][0]["curves"]["values"]["reference_agreement"]) == len(card.curves.exits)
    for part in (summary["verdict"]["by_workload"], summary["league"], summary["tuned"], summary["machines"]):
        assert all(entry["reference_agreement"]["value"] > 0 for entry in part)
    broken = {**first_two(summary), "scores": [{**summary["scores"][0], "reference_agreement": 0.9}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, summary_schema())


def test_a_model_without_transforms_says_nothing_of_it():
    run = plain_run()
    assert transform_sentence(run) is None
    summary = summarise(run)
    assert all(entry["reference_agreement"] is None for entry in summary["verdict"]["by_workload"])
    assert all(entry["reference_agreement"] is None for entry in summary["scores"])
    assert "untransformed:" not in render(run)
