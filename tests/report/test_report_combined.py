"""What is said and shown of combined accelerations: the advice for every outcome, the section, the page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator, ValidationError
from report_examples import example_run

from combine_cases import combined_result, quality
from offramp.report.combined import (
    advice,
    combined_section,
    credit_sentences,
    effect_sentences,
    keeps,
    product_plot,
    product_row,
    render_combined,
    write_combined_page,
)
from offramp.report.drawing import Scale
from offramp.report.page import links, render
from offramp.report.plots import LEFT, RIGHT
from offramp.report.summary import summarise, summary_schema
from offramp.scoring.estimate import Estimate
from offramp.timing.results import CombineResult, Contender
from page_reader import Page

ADDS_NOTHING = {"plain": 60.0, "int8": 40.0, "exits": 60.2, "int8 + exits": 40.1}
MULTIPLIES = {"plain": 60.0, "int8": 40.0, "exits": 50.0, "int8 + exits": 33.3}
IN_THE_WAY = {"plain": 60.0, "int8": 40.0, "exits": 50.0, "int8 + exits": 36.0}
NOTHING_PAYS = {"plain": 60.0, "int8": 66.0, "exits": 60.1, "int8 + exits": 67.0}


def test_one_alone_where_the_other_changes_nothing() -> None:
    said = advice(combined_result(ADDS_NOTHING, {"int8": 0.98, "int8 + exits": 0.97}))
    assert said.startswith("Use int8 alone, 1.50 × (1.4")
    assert "at 98.0 % of the full model's tokens (6 answers, too few for an interval)" in said
    assert said.endswith(": exits on top change nothing (1.00, 0.99 to 1.01).")
    slower = combined_result(ADDS_NOTHING | {"exits": 70.0, "int8 + exits": 50.0})
    assert "exits on top cost time (0.80, 0." in advice(slower)


def test_both_where_each_adds() -> None:
    said = advice(combined_result(MULTIPLIES))
    assert said.startswith("Use int8 + exits together, 1.80 × (")
    assert "they multiply (1.00, 0.98 to 1.02 of the product of their gains)." in said
    said = advice(combined_result(IN_THE_WAY))
    assert said.startswith("Use int8 + exits together, 1.67 × (")
    assert "they get in each other's way (0.93, 0." in said


def test_what_is_faster_but_changes_the_answers_is_not_advised() -> None:
    kept = {"exits": 0.6, "int8 + exits": 0.55}
    said = advice(combined_result(MULTIPLIES, kept))
    assert said.startswith("Use int8 alone, 1.50 × (")
    assert "exits on top would add speed (1.20, 1." in said
    assert "and keep only 55.0 % of the tokens" in said
    said = advice(combined_result(MULTIPLIES, kept | {"int8": 0.9}))
    assert said.startswith(
        "Use plain decoding: everything that is faster changes the answers, and int8 (1.50 ×"
    )
    assert "chooses 90.0 % of the full model's tokens" in said
    assert said.endswith("where 95 % were asked for.")


def test_nothing_pays_is_an_answer() -> None:
    said = advice(combined_result(NOTHING_PAYS))
    assert said.startswith(
        "Use plain decoding: nothing is surely faster, and the best of it, exits, comes to 1.00 ×"
    )


def test_two_prompts_give_no_advice_however_narrow_the_interval() -> None:
    few = replace(combined_result(MULTIPLIES), prompts=2)
    assert advice(few).startswith(
        "Inconclusive: 2 prompts timed, and advice needs 6. Next: give more --seconds"
    )
    assert effect_sentences(few) == credit_sentences(few) == []


def test_a_defect_or_nothing_timed_gives_no_advice() -> None:
    broken = combined_result(MULTIPLIES, defects=("int8 must give the full model's output",))
    assert advice(broken).startswith("No advice: this measurement has a defect: int8 must give the full")
    result = combined_result({"plain": 60.0, "int8": 40.0})
    plain, int8 = result.combinations
    missing = replace(int8, contender=Contender("int8", "combination", left_out="no kernel"), quality=None)
    assert "none of these accelerations" in advice(replace(result, combinations=(plain, missing)))


def test_the_floor_is_held_by_the_lower_limit() -> None:
    (_, int8) = combined_result({"plain": 60.0, "int8": 40.0}).combinations
    assert keeps(replace(int8, quality=quality(0.96)), 0.95)
    assert not keeps(replace(int8, quality=quality(0.96, low=0.94, high=0.98)), 0.95)
    assert not keeps(replace(int8, quality=None), 0.95)


@pytest.mark.parametrize(
    ("interaction", "said"),
    [
        (Estimate(0.9, 0.85, 0.95), "In each other's way: int8 + exits (0.90, 0.85 to 0.95) of the product"),
        (Estimate(1.1, 1.05, 1.2), "They help each other: int8 + exits (1.10, 1.05 to 1.20) of the"),
        (
            Estimate(1.0, 0.95, 1.05),
            "They multiply: int8 + exits (1.00, 0.95 to 1.05) of",
        ),
        (Estimate(1.0, 0.8, 1.2), "Not known well enough to say: int8 + exits (1.00, 0.80 to 1.20) of the"),
        (Estimate(0.8), "Not known well enough to say: int8 + exits (0.80) of the product"),
    ],
)
def test_the_interaction_in_words(interaction: Estimate[float], said: str) -> None:
    found = combined_result(MULTIPLIES)
    *others, together = found.combinations
    changed = replace(found, combinations=(*others, replace(together, interaction=interaction)))
    (sentence,) = effect_sentences(changed)
    assert sentence.startswith(said)
    assert effect_sentences(replace(changed, defects=("wrong",))) == []


@pytest.fixture
def result() -> CombineResult:
    """With one combination left out, one excluded, and names that need escaping."""
    found = combined_result(
        IN_THE_WAY, {"int8": 0.98}, excluded=("int8 and int4: <they> round",), notes=("a & b",)
    )
    int8 = found.combinations[1]
    missing = Contender("int4", "combination", left_out="no kernel here")
    left_out = replace(int8, name="int4", parts=("int4",), contender=missing, quality=None)
    return replace(found, combinations=(*found.combinations, left_out))


def test_the_section_shows_every_combination(result: CombineResult) -> None:
    page = Page(combined_section(result))
    assert page.faults == []
    for part in (
        "Beside other accelerations",
        "every question was answered after 61 s",
        "faster",
        advice(result),
        "In each other's way: int8 + exits (0.93, ",
        "1.67 ×, product 1.80",
        "not timed: no kernel here",
        "Not combined: int8 and int4: <they> round.",
        "A & b.",
        "Plain decoding is generate().",
        "modelsint8: fingerprint",
    ):
        assert part.replace(" ×", "\u00a0×") in page.text.replace(" ×", "\u00a0×"), part
    charts = [attributes for name, attributes, _ in page.elements if name == "svg" and attributes.get("role")]
    assert len(charts) == 1
    assert combined_section(None) == ""
    untimed = Page(combined_section(combined_result({"plain": 60.0})))
    assert untimed.faults == []
    assert not any(name == "svg" for name, _, _ in untimed.elements)


def test_the_page_stands_alone(result: CombineResult, tmp_path) -> None:
    path = write_combined_page(result, tmp_path / "combined.html")
    html = path.read_text(encoding="utf-8")
    assert html == render_combined(result)
    page = Page(html)
    assert page.faults == []
    assert "Do the gains add up on smollm2?" in page.text
    assert not any(
        "http" in str(value) for _, attributes, _ in page.elements for value in attributes.values()
    )


def test_a_runs_page_and_summary_show_it(result: CombineResult) -> None:
    run = example_run()
    assert summarise(run)["combined"] is None
    assert ("combined", "Combined") not in links(run)
    shown = replace(run, combined=result)
    page = Page(render(shown))
    assert page.faults == []
    assert any(attributes.get("href") == "#combined" for _, attributes, _ in page.elements)
    assert any(attributes.get("id") == "combined" for _, attributes, _ in page.elements)
    summary = summarise(shown)
    Draft202012Validator(summary_schema()).validate(json.loads(json.dumps(summary, allow_nan=False)))
    assert summary["combined"]["advice"] == advice(result)
    names = [one["name"] for one in summary["combined"]["combinations"]]
    assert names == [one.name for one in result.combinations]
    del summary["combined"]["combinations"][0]["interaction"]
    with pytest.raises(ValidationError):
        Draft202012Validator(summary_schema()).validate(summary)


def test_points_lie_where_the_numbers_are() -> None:
    chart = product_plot([product_row("both", "1.5", Estimate(1.5, 1.4, 1.6), Estimate(2.0))]).svg()
    scale = Scale(1.0, 2.0, LEFT, RIGHT)
    assert f'cx="{scale(1.5):.1f}"' in chart
    assert f'x1="{scale(1.4):.1f}"' in chart
    assert f'x2="{scale(1.6):.1f}"' in chart
    assert f'class="faster" x="{scale(1.0):.1f}"' in chart
    assert "both, product of single gains: 2.00\u00a0×" in chart
    slow = product_plot([product_row("slow", "0.5", Estimate(0.5), None)]).svg()
    assert "both" not in slow
    assert 'text-anchor="end" class="rule-name"' in slow  # plain decoding is at the right end
