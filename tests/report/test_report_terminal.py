"""A run and a comparison in the terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from report_examples import example_run
from rich.console import Console

import comparison_examples as examples
from offramp.report.answer_words import short_answer
from offramp.report.comparison_page import comparison_terminal
from offramp.report.page import print_summary
from offramp.report.run_result import RunResult
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison
from offramp.tuning.floor import Floor


def printed(found: RunResult | Comparison, width: int = 100, report: Path | None = None) -> str:
    """What the terminal shows of a run or a comparison."""
    out = io.StringIO()
    console = Console(file=out, width=width)
    if isinstance(found, Comparison):
        comparison_terminal(found, console)
    else:
        print_summary(found, console, report)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_everything_that_matters_is_there(width):
    run = example_run()
    text = printed(run, width, Path("out/report.html"))
    flat = " ".join(text.split())
    assert flat.startswith(short_answer(run))
    for workload in run.workloads:
        assert workload.name in text
    assert "out/report.html" in text
    assert max(len(line) for line in text.splitlines() if " = " not in line) <= width
    assert text.index(run.workloads[0].name) < text.index("out/report.html")


def test_names_are_no_markup_and_undefined_figures_say_why():
    run = example_run()
    workload = run.workloads[0]
    verdicts = tuple(replace(v, speed=None) for v in workload.verdicts)
    workload = replace(workload, name="[red]x[/]", verdicts=verdicts)
    assert "[red]x[/]" in printed(replace(run, workloads=(workload,), plain_seconds_per_token=None), 140)
    comparison = examples.example_comparison()
    row = replace(comparison.rows[0], model=replace(comparison.rows[0].model, name="[red]x[/]"), answers=())
    failures = {"[b]cell[/]": "[i]why[/]"}
    text = printed(replace(comparison, rows=(row, comparison.rows[1]), failures=failures), 300)
    for words in ("[red]x[/]", "[b]cell[/]: [i]why[/]", "not asked", "inconclusive"):
        assert words in text
    card = replace(row.card, composite=Estimate(None, undefined="one class: [b]"))
    text = printed(replace(comparison, rows=(replace(row, card=card), comparison.rows[1])), 300)
    assert text.count("Undefined: one class: [b] (1 figure).") == 1
    unknown = Estimate(None, undefined="it was never decoded")
    strategies = tuple(replace(one, agreement=unknown) for one in comparison.strategies)
    assert "Undefined: it was never decoded (" in printed(replace(comparison, strategies=strategies), 300)
    text = printed(Comparison("scores", "", (row,)), 80)
    assert "These are scores alone" in text
    assert "Fastest strategies" not in text


def test_the_answer_first_then_models_strategies_and_what_is_not_claimed():
    text = printed(examples.example_comparison(), 300)
    order = [
        "It is inconclusive whether early exit pays: certified, it is at best 1.124 ×",
        "Best net speed that passed its floor: 1.124 × plain decoding, 1.109 to 1.139; model gpt2",
        "Models, 12 of 18; the page has all",
        "Fastest strategies, 12 of",
        "Of 10 correlations of a score with measured savings, 3 lie above 0",
        "not run: qwen3-32b · prose: the model is not on this machine",
        "6 independently trained models of the 12 that it takes",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "oracle: saturation" not in text  # nobody can follow it


def test_the_fastest_strategies_are_those_that_keep_their_floor():
    comparison = examples.example_comparison()
    model = comparison.strategies[0].place.model
    here = [one for one in comparison.strategies if (one.place.model, one.place.workload) == (model, "prose")]
    quick = replace(here[0], floor=None, family="static at 4", net_speedup=Estimate(1.9, 1.9, 1.9))
    quick = replace(quick, agreement=Estimate(0.356, 0.35, 0.36))
    missing = [
        replace(one, agreement=Estimate(0.872, 0.86, 0.88)) if one.floor == Floor("agreement", 0.9) else one
        for one in here
    ]
    text = printed(replace(comparison, strategies=(quick, *missing)), 300)
    assert text.index("95 % agreement", text.index("Fastest strategies")) < text.index("static at 4")
    assert text.index("static at 4") < text.index("misses the floor")
    assert "1.900 to 1.900" not in text


def test_accelerations_together_are_an_answer_too():
    comparison = examples.example_comparison()
    rows = tuple(replace(row, answers=()) for row in comparison.rows)
    (found,) = comparison.combined
    text = printed(Comparison("compose", "", rows, combined=(found,)), 300)
    assert "was timed beside other accelerations only, in 1 measurement, none of them with a defect" in text
    assert f"{found.model} on {found.workload}: Use int8" in text
    invalid = replace(found, defects=("a wrong output",))
    text = printed(Comparison("compose", "", rows, combined=(found, invalid)), 300)
    assert "in 2 measurements, 1 of them with a defect" in text
    assert "Of 2 measurements of accelerations together, with a defect: 1." in text
    assert "No advice: this measurement has a defect: a wrong output." in text
