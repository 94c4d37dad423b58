"""The section "Decoded for real", and what of it stands in the summary and on the terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import jsonschema
import pytest
from decoding_examples import PLAIN, decoded, decoded_run, forecast, with_decoding
from page_reader import Page
from report_examples import example_run
from rich.console import Console

from offramp.decoding.measurement.results import Interval, PartError
from offramp.report.caveats import REPAIR_NOTE, caveats
from offramp.report.page import render
from offramp.report.run_result import DecodedPolicy, Progress
from offramp.report.sections.decoded import beside_plot, error_plot
from offramp.report.summary import summarise, summary_schema
from offramp.report.terminal import print_summary
from offramp.report.timing import blame, error_sentence, rule_name

DEFINITIONS = {"$defs": summary_schema()["$defs"]}


@pytest.fixture(scope="module")
def run():
    return decoded_run(example_run())


@pytest.fixture(scope="module")
def page(run):
    return Page(render(run))


def test_predicted_stands_beside_measured(page):
    assert page.faults == []
    ids = [values["id"] for _, values, _ in page.elements if "id" in values]
    assert len(ids) == len(set(ids))
    for words in (
        "On prose equivalent within ± 5 %",
        "On code defect",
        "57.5 ms per token where plain decoding (generate()) took 58.3 ms, a net speed of 1.014 ×",
        "1.014 × (1.008 to 1.020 ×): equivalent within ± 5 %.",
        "55.3 ms predicted, 57.5 ms measured per token: 3.8 % too low",
        "the layers were priced at 40.2 ms per token and took 41.3 ms",
        "This measurement has a defect; it changes no verdict",
        "the same decoder twice comes out unequal: ratio 1.062",
        "chat was not decoded: its layers keep a state in themselves",
        "57.5 ms, predicted 55.3",
        "21.5 of 32",
        "Measured 2026-01-31 12:05 UTC: 2 prompts, 32 new tokens, 3 rounds",
        "3 rounds, in turns of a few tokens; every question was answered after 64 s",
        "The plain decoder against itself came out at 1.002 (0.994 to 1.009 at 99 %)",
        "left out: this family runs all 30 layers",
        "These predictions count",
    ):
        assert words in page.text, words


def test_every_figure_of_the_section_is_also_a_table(run):
    html = render(run)
    section = html[html.index('id="decoded"') : html.index('id="machine"')]
    figures = re.findall(r"<figure.*?</figure>", section, re.S)
    assert len(figures) == 4
    assert all("<details><summary>The same as a table" in figure for figure in figures)


def test_not_decoded_is_said_where_nothing_was_and_not_where_something_was(run, page):
    bare = example_run()
    assert caveats(bare)[0].startswith("No policy was decoded for real in this run")
    assert "Decoded for real measured" not in Page(render(bare)).text
    notes = "\n".join(caveats(run))
    assert "No policy was decoded" not in notes
    assert REPAIR_NOTE not in notes
    assert "on prose 95.4 % replayed and 93.8 % of the text that the policy generated" in notes
    assert "chat was not decoded" in notes
    unjudged = [
        replace(d, policies=tuple(replace(p, free_running=None) for p in d.policies)) for d in run.decoding
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
    made = replace(made, policies=policies, bench=replace(made.bench, contenders=contenders))
    run = with_decoding(example_run(), made)
    page = Page(render(run))
    assert page.faults == []
    assert "not timed: it fails here" in page.text
    section = page.text[page.text.index("Decoded for real measured") : page.text.index("What a check costs")]
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", section)
    jsonschema.validate(summarise(run), summary_schema())


def test_hostile_text_of_a_measurement_stays_text():
    hostile = "</script><img src=x onerror=alert(1)>"
    made = decoded("prose", hostile, sound=False)
    bench = replace(
        made.bench, defects=(hostile,), notes=(hostile,), circumstances={hostile: {hostile: [hostile, None]}}
    )
    made = replace(made, bench=replace(bench, plain=bench.plain))
    run = with_decoding(example_run(), replace(made, bench=bench), code=hostile)
    run = replace(run, progress=Progress((hostile,), hostile, (hostile,)))
    page = Page(render(run))
    assert page.faults == []
    assert "img" not in [tag for tag, _, _ in page.elements]
    assert hostile in page.text


def test_the_blame_falls_on_the_larger_error():
    prices = forecast("static:exit=3", "propagate", 0.050, 0.055, priced=0.0505)
    assert blame(prices) == (
        "Most of it comes from the prices: the layers were priced at 40.2 ms per token and took 41.3 ms."
    )
    elsewhere = replace(prices, priced=0.0545)
    assert blame(elsewhere) == (
        "Most of it comes from exits that were taken elsewhere than on the trace: 10.0 % of the layers "
        "skipped on the trace, 8.6 % in decoding."
    )
    overhead = replace(prices, parts=(PartError("layers", 0.04, 0.04), PartError("overhead", 0.001, 0.004)))
    assert "the program around (overhead per token) was priced at 1.00 ms per token" in blame(overhead)
    assert "the parts were not timed apart" in blame(replace(prices, parts=()))
    assert error_sentence(replace(prices, predicted=0.0549)).endswith("right within 0.2 %.")
    assert error_sentence(replace(prices, predicted=None)) == (
        "There was no prediction to hold against 55.0 ms per token."
    )


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("static:exit=15", "static exit 15"),
        ("threshold:signal=restricted_margin,value=0.83,exits=20+24+27", "restricted margin, exits 20+24+27"),
        ("threshold:signal=max_prob,value=0.9,exits=1+2+3+4+5", "max prob, 5 exits"),
        ("shortlist:policy=[threshold:signal=margin,value=0.9,exits=9]", "margin, exit 9, short list"),
        ("never", "never"),
    ],
)
def test_short_names(policy, name):
    assert rule_name(policy) == name


def test_the_reference_line_and_the_marks_lie_where_the_numbers_are():
    policy = DecodedPolicy("a", "static:exit=2", "propagate", "chosen")
    made = replace(forecast("a", "propagate", 0.05, 0.06), measured=Interval(0.06, 0.058, 0.062))
    svg = beside_plot([(policy, made)], plain=55.0).svg()
    assert Page(svg).faults == []
    measured = float(re.search(r'<circle cx="([\d.]+)"', svg).group(1))
    predicted = float(re.search(r'class="s1"><path d="M([\d.]+)', svg).group(1))
    plain = float(re.search(r'<line class="rule" x1="([\d.]+)"', svg).group(1))
    assert predicted < plain < measured
    assert plain == pytest.approx((measured + predicted) / 2, abs=0.1)


def test_errors_stack_to_both_sides_of_zero():
    policy = DecodedPolicy("a", "static:exit=2", "propagate", "chosen")
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
    first, second = summary["decoding"]["workloads"]
    assert (first["answer"], second["answer"]) == ("equivalent", "defect")
    assert (first["defects"], first["stopped"], first["worth"]) == ([], "answered", 0.05)
    assert first["policies"][0]["answer"] == "equivalent"
    assert first["policies"][0]["counted"]["layers"] == 30.0
    assert summary["decoding"]["not_decoded"] == {
        "chat": "its layers keep a state in themselves instead of in a cache"
    }
    chosen = first["policies"][0]
    assert (chosen["predicted_seconds_per_token"], chosen["measured_seconds_per_token"]) == (0.0553, 0.0575)
    assert chosen["plain_seconds_per_token"] == PLAIN
    assert [part["part"] for part in chosen["error"]["parts"]] == [
        "layers",
        "probes",
        "K,V repair",
        "heads",
        "overhead",
    ]
    assert chosen["error"]["worst_part"] == "layers"
    assert chosen["error"]["cost_model_error"] == pytest.approx(-0.0016)
    assert chosen["error"]["trace_error"] == pytest.approx(0.0553 - (0.0575 - 0.0016))
    assert len(first["contenders"][0]["samples"]) == 6
    assert summary["measured"]["measured_seconds_per_token"]["value"] == 0.0575
    named = [entry for entry in summary["predicted"] if entry["measured_seconds_per_token"] is not None]
    assert [(entry["workload"], entry["floor"]) for entry in named] == [("prose", 0.95)]
    assert named[0]["basis"].endswith("; timed")


def test_a_measurement_of_a_wrong_type_fails(run):
    validator = jsonschema.Draft202012Validator(summary_schema()["$defs"]["MeasurementRecord"] | DEFINITIONS)
    measurement = summarise(run)["decoding"]["workloads"][0]
    validator.validate(measurement)
    for change in (
        {"answer": "maybe"},
        {"policies": [{}]},
        {"contenders": []},
        {"rounds": 0},
        {"circumstances": None},
    ):
        assert not validator.is_valid(measurement | change), change


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_both_times_and_the_badge(run, width):
    console = Console(file=io.StringIO(), width=width)
    print_summary(run, console)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines() if " = " not in line) <= width
    flat = " ".join(text.split())
    for words in ("Decoded for real", "DEFECT", "equivalent", "55.3", "57.5", "1.014 ×", "3.8 % too low"):
        assert words in flat


def test_a_page_is_whole_after_every_stage(run):
    bare = replace(run, decoding=(), not_decoded={}, measured={})
    stages = [
        replace(bare, workloads=(), hardware=None, heads=None),
        replace(bare, workloads=()),
        replace(run, workloads=run.workloads[:1], decoding=run.decoding[:1], not_decoded={}),
    ]
    for stage in stages:
        running = replace(stage, progress=Progress(("the machine timed",), "tracing prose", ("decoding",)))
        page = Page(render(running))
        assert page.faults == []
        assert "Still running: tracing prose. Done: the machine timed. To come: decoding." in page.text
        ids = {values["id"] for _, values, _ in page.elements if "id" in values}
        links = [v["href"].lstrip("#") for _, v, _ in page.elements if "href" in v]
        assert set(links) <= ids
        assert "Still running" not in Page(render(stage)).text
    first = Page(render(replace(stages[0], progress=Progress((), "timing", ()))))
    assert "There is no verdict for smollm2 yet." in first.text
