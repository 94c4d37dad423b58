"""The tables of a comparison's page: cells, facets, standings, families, claims."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import comparison_examples as examples
from offramp.report.data_table import DataCell, DataColumn, DataTable, estimate_cell, facet_cell, reasons
from offramp.report.findings import findings_of
from offramp.report.formats import limits_text, times
from offramp.report.names import (
    figure_name,
    floor_order,
    floor_shown,
    heads_name,
    parameters_text,
)
from offramp.report.ranking import Standing, beside, floor_note
from offramp.report.sections.claims import validity_section, validity_words
from offramp.report.sections.leaderboard import (
    best_saving,
    figures_of,
    leaderboard_section,
    means_table,
    ordered,
    without_speed,
)
from offramp.report.sections.strategies import by_floor, bytes_section, families_table, strategies_table
from offramp.scoring.estimate import Estimate
from page_reader import Page


@pytest.fixture(scope="module")
def comparison():
    return examples.example_comparison()


def test_a_table_carries_what_the_script_sorts_and_narrows_down_by():
    columns = (
        DataColumn("model", "Model", facet="model"),
        DataColumn("heads", "Exit heads", facet="heads"),
        DataColumn("speed", "Speed", numeric=True),
        DataColumn("empty", "Empty", numeric=True),
    )
    rows = [
        [facet_cell("a → b", "a", "b"), facet_cell("logit lens"), DataCell("1.1 ×", 1.1), DataCell("–")],
        [facet_cell("<c>"), facet_cell("logit lens"), DataCell("undefined"), DataCell("–")],
    ]
    html = DataTable("speeds", "Speeds", columns, rows).html()
    assert '<th data-f="a\nb" scope="row"' in html or 'data-f="a\nb"' in html
    assert re.findall(r'data-v="([^"]*)"', html) == ["1.1", ""]
    assert "&lt;c&gt;" in html
    assert "Exit heads" not in html  # all are the model's own
    assert "Empty" not in html
    assert ">2 rows<" in html
    assert DataTable("speeds", "Speeds", columns, []).html() == ""


def test_an_estimate_without_a_value_has_no_number_and_its_reason_is_listed_once():
    undefined = Estimate(None, undefined="one document")
    assert estimate_cell(undefined, times).value is None
    assert "undefined" in estimate_cell(undefined, times).html
    few = Estimate(0.5, no_interval="6 documents")
    assert reasons([undefined, undefined, few, Estimate(1.0, 0.9, 1.1)]) == [
        "Undefined: one document (2 figures).",
        "Without an interval: 6 documents (1 figure).",
    ]
    assert "0.900 to 1.100" in estimate_cell(Estimate(1.0, 0.9, 1.1), times).html
    assert limits_text(1.13201, 1.13199, times) == limits_text(None, None, times) == ""
    assert "to" not in estimate_cell(Estimate(1.132, 1.13199, 1.13201), times).html


def test_floors_in_words():
    floors = ("agreement=0.95", "nll=0.05", "", "as fast as can be", "agreement=high")
    assert [floor_shown(floor) for floor in floors] == [
        "95 % agreement",
        "an increase in NLL of at most 0.050 nats",
        "none asked",
        "as fast as can be",
        "agreement=high",
    ]


def test_words():
    floors = ["agreement=0.9", "kl=0.1", "agreement=0.99"]
    assert sorted(floors, key=floor_order) == ["agreement=0.99", "agreement=0.9", "kl=0.1"]
    assert [parameters_text(size) for size in (135e6, 8.2e9, None)] == ["135 M", "8.2 B", "–"]
    assert heads_name("") == heads_name("none") == "logit lens"
    assert figure_name("my_own_figure") == "My own figure"
    assert figure_name("eas_hidden") == "EAS, hidden state"


def test_a_measurement_stands_beside_the_prediction_of_the_same_policy(comparison):
    predicted = next(one for one in comparison.strategies if one.basis == "predicted")
    measured = replace(predicted, basis="measured", net_speedup=Estimate(0.97, 0.96, 0.98), floor="")
    judged = replace(measured, agreement=Estimate(0.717))
    assert "decoded for real 71.7" in strategies_table([Standing(predicted, judged)])
    assert "decoded for real" not in strategies_table([Standing(None, judged)])
    elsewhere = replace(measured, machine="another")
    found = beside([predicted, measured, elsewhere])
    assert [(one.predicted, one.measured) for one in found] == [(predicted, measured), (None, elsewhere)]
    other_floor = replace(measured, floor="agreement=0.5")
    assert len(beside([predicted, other_floor])) == 2
    standings = beside(comparison.strategies)
    held = [one for both in standings for one in (both.predicted, both.measured) if one is not None]
    assert sorted(map(repr, held)) == sorted(map(repr, comparison.strategies))


def test_what_keeps_its_floor_comes_first_and_the_rest_is_marked(comparison):
    known = next(one for one in comparison.strategies if one.floor == "agreement=0.9" and one.reachable)
    fast = Estimate(2.0, 1.9, 2.1)
    kept = replace(known, agreement=Estimate(0.92, 0.91, 0.93))
    perhaps = replace(known, family="b", agreement=Estimate(0.89, 0.87, 0.91), net_speedup=fast)
    missed = replace(known, family="c", agreement=Estimate(0.872, 0.86, 0.89), net_speedup=fast)
    unasked = replace(known, family="d", floor="", agreement=Estimate(0.356), net_speedup=fast)
    oracle = replace(known, family="e", reachable=False, net_speedup=fast)
    order = [kept, perhaps, unasked, missed, oracle]
    standings = sorted((Standing(one, None) for one in reversed(order)), key=lambda standing: standing.rank)
    assert [standing.shown for standing in standings] == order
    assert [floor_note(one) for one in order] == [
        "",
        "below the floor, perhaps by chance",
        "",
        "misses the floor",
        "",
    ]
    html = strategies_table(standings)
    assert html.count('<span class="invalid">misses the floor</span>') == 1
    broken = replace(kept, basis="measured", net_speedup=Estimate(9.0), answer="defect: a wrong output")
    assert Standing(None, replace(broken, answer="slower")).rank < Standing(None, broken).rank
    html = families_table([kept, perhaps, missed, unasked])
    assert "misses the floor in 1 of 1" in html
    assert re.findall(r">(\d+) of 1<", html) == ["0", "1", "0"]  # who asked for no floor wins nothing


def test_what_was_not_asked_is_not_called_uncertified(comparison):
    row = comparison.rows[0]
    floors = ("agreement=0.99", "agreement=0.95")
    refused = replace(row, savings=tuple(replace(one, certified=False, lacks="") for one in row.savings))
    assert [without_speed(row, floors[0]), without_speed(refused, floors[1])] == [
        "not certifiable",
        "nothing faster keeps it",
    ]
    bare = replace(row, savings=())
    assert without_speed(bare, floors[0]) == "not asked"
    page = Page(leaderboard_section(replace(comparison, rows=(row, bare))))
    assert "not asked" in page.text


def test_each_place_has_a_fastest_family(comparison):
    html = families_table(comparison.strategies)
    wins = [tuple(map(int, pair)) for pair in re.findall(r">(\d+) of (\d+)<", html)]
    reachable = [one for one in comparison.strategies if one.basis == "predicted" and one.reachable]
    places = {(one.model, one.workload, one.machine, one.floor) for one in reachable}
    assert sum(won for won, _ in wins) >= len(places)
    assert {total for _, total in wins} == {18}


def test_the_leaderboard_starts_with_the_fastest_certified(comparison):
    rows = ordered(comparison.rows)
    assert rows[0].model.name == "gpt2"
    assert best_saving(rows[0], "agreement=0.99") is None
    best = best_saving(rows[0], "agreement=0.9")
    assert best is not None
    assert best.net_speedup.value == max(one.net_speedup.value for row in rows for one in row.savings)


def test_means_are_of_models_that_have_every_workload(comparison):
    rows = comparison.rows[:-1]  # the last model lacks code
    page = Page(means_table(rows, figures_of(rows)))
    assert "without code" in page.text
    gpt2 = [row for row in rows if row.model.name == "gpt2"]
    mean = sum(row.scores["representation"].value for row in gpt2) / 2
    assert f"{mean:.3f}" in page.text


def test_scores_beside_savings_say_how_many_are_surely_above_chance_or_that_models_are_too_few(comparison):
    (said,) = validity_words(comparison.validity)
    assert said == (
        "Of 10 correlations of a score with measured savings, 3 lie above 0 with the whole interval; that "
        "they are so many is not accounted for."
    )
    few = [entry for entry in comparison.validity if entry.bases < 12]
    assert validity_words(few) == [
        "Which score tells what is saved cannot be told: 5 independently trained models were measured, 12 "
        "are needed."
    ]
    assert validity_words([]) == []
    page = Page(validity_section(comparison))
    assert re.search(
        r"Saturation oracle skips at 100 % agreement\s*local\s*95 % agreement\s*0\.70", page.text
    )
    assert "5 independently trained models; an interval needs 12" in page.text


def test_per_byte_only_where_tokens_differ(comparison):
    assert "Bits per byte" in bytes_section(comparison)
    same = replace(comparison, rows=tuple(row for row in comparison.rows if row.model.family != "GPT"))
    assert bytes_section(same) == ""
    own = replace(comparison, rows=tuple(replace(row, own_text=True) for row in comparison.rows))
    assert bytes_section(own) == ""
    assert "bits per byte of a model's own answers say nothing" in Page(leaderboard_section(own)).text


def test_floors_are_summed_up(comparison):
    answers = findings_of(comparison)
    lines = by_floor(answers)
    assert lines[0] == (
        "99 % agreement: no policy that exits early passed, in 36 answers. "
        "36 not certifiable: 12 documents to certify on, 230 needed for 99 % agreement (trace at least 460 "
        "in all)."
    )
    exit_early = "90 % agreement: 28 of 36 answers are a policy that exits early, and "
    assert lines[2] == f"{exit_early}none of these surely pay.", (
        "nothing was timed beside what needs no exits"
    )
    for answer in [answer for answer in answers if answer.exits and answer.floor == "agreement=0.9"][:12]:
        answers[answers.index(answer)] = replace(answer, decision="pays")
    assert by_floor(answers)[2] == f"{exit_early}12 of these surely pay."
