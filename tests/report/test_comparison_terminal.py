"""A comparison in the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

import comparison_examples as examples
from offramp.report.terminal import comparison_terminal
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison


def printed(comparison: Comparison, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    comparison_terminal(comparison, console)
    return console.file.getvalue()


def test_the_answer_first_then_models_strategies_and_what_is_not_claimed():
    text = printed(examples.example_comparison(), 300)
    order = [
        "Early exit is predicted to pay in 12 of 36 cells",
        "The best speed that passed its floor is 1.124 ×",
        "Models, 12 of 18; the page has all",
        "Fastest strategies, 12 of",
        "qwen3-8b → qwen3-8b-it (base ↔ tuned): 4 of 6 differences sure",
        "Nothing is claimed against measured savings: 5 independently trained models",
        "not run: qwen3-32b · prose: the model is not on this machine",
        "6 independently trained models of the 12 that it takes",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "oracle: saturation" not in text  # nobody can follow it


def test_the_fastest_strategies_are_those_that_keep_their_floor():
    comparison = examples.example_comparison()
    model = comparison.strategies[0].model
    here = [one for one in comparison.strategies if one.model == model and one.workload == "prose"]
    quick = replace(here[0], floor="", family="static at 4", net_speedup=Estimate(1.9, 1.9, 1.9))
    quick = replace(quick, agreement=Estimate(0.356, 0.35, 0.36))
    missing = [
        replace(one, agreement=Estimate(0.872, 0.86, 0.88)) if one.floor == "agreement=0.9" else one
        for one in here
    ]
    text = printed(replace(comparison, strategies=(quick, *missing)), 300)
    assert text.index("95 % agreement", text.index("Fastest strategies")) < text.index("static at 4")
    assert text.index("static at 4") < text.index("misses the floor")
    assert "1.900 to 1.900" not in text


def test_a_model_that_was_not_tuned_is_not_called_uncertified():
    comparison = examples.example_comparison()
    bare = replace(comparison.rows[0], savings=())
    text = printed(Comparison("two folders", "", (comparison.rows[1], bare)), 300)
    assert "not asked" in text
    assert "not certifiable" in text


def test_names_are_no_markup():
    comparison = examples.example_comparison()
    row = comparison.rows[0]
    named = replace(row, model=replace(row.model, name="[red]x[/]"))
    text = printed(replace(comparison, rows=(named,), failures={"[b]cell[/]": "[i]why[/]"}), 300)
    assert "[red]x[/]" in text
    assert "[b]cell[/]: [i]why[/]" in text


def test_scores_alone():
    rows = tuple(replace(row, savings=()) for row in examples.example_comparison().rows)
    text = printed(Comparison("scores", "", rows), 80)
    assert "These are scores alone" in text
    assert "Fastest strategies" not in text


def test_accelerations_together_are_an_answer_too():
    comparison = examples.example_comparison()
    rows = tuple(replace(row, savings=()) for row in comparison.rows)
    (found,) = comparison.combined
    text = printed(Comparison("compose", "", rows, combined=(found,)), 300)
    assert "was timed beside other accelerations only, in 1 measurement, none of them with a defect" in text
    assert f"{found['model']} on {found['workload']}: Use int8" in text
    invalid = {**found, "defects": ["a wrong output"]}
    text = printed(Comparison("compose", "", rows, combined=(found, invalid)), 300)
    assert "in 2 measurements, 1 of them with a defect" in text
    assert "Of 2 measurements of accelerations together, with a defect: 1." in text
    assert "No advice: this measurement has a defect: a wrong output." in text
