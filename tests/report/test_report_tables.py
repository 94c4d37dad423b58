"""The tables of a comparison's page: cells, facets, standings, families, claims."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import comparison_examples as examples
from offramp.report.findings import by_floor, findings_of
from offramp.report.names import (
    figure_name,
    floor_order,
    floor_shown,
    heads_name,
    parameters_text,
)
from offramp.report.sections.compared import bytes_section, validity_section, validity_words
from offramp.report.sections.leaderboard import (
    best_answer,
    leaderboard_section,
    means_table,
    ordered,
    without_speed,
)
from offramp.report.sections.strategies import STRATEGIES, Paired, beside, families_table, floor_note
from offramp.scoring.estimate import Estimate
from offramp.tuning.floor import Floor
from page_reader import Page


@pytest.fixture(scope="module")
def comparison():
    return examples.example_comparison()


def test_floors_in_words():
    floors = (Floor("agreement", 0.95), Floor("nll", 0.05, 1.0), None)
    assert [floor_shown(floor) for floor in floors] == [
        "95 % agreement",
        "an increase in NLL of at most 0.050 nats",
        "none asked",
    ]


def test_words():
    loose, loss, strict = Floor("agreement", 0.9), Floor("kl", 0.1, 1.0), Floor("agreement", 0.99)
    assert sorted([None, loose, loss, strict], key=floor_order) == [strict, loose, loss, None]
    assert [parameters_text(size) for size in (135e6, 8.2e9, None)] == ["135 M", "8.2 B", "–"]
    assert heads_name("") == heads_name("none") == "logit lens"
    assert figure_name("my_own_figure") == "My own figure"
    assert figure_name("eas_hidden") == "EAS, hidden state"


def test_a_measurement_stands_beside_the_prediction_of_the_same_policy(comparison):
    predicted = next(one for one in comparison.strategies if one.basis == "predicted")
    measured = replace(predicted, basis="measured", net_speedup=Estimate(0.97, 0.96, 0.98), floor=None)
    judged = replace(measured, agreement=Estimate(0.717))
    assert "decoded for real 71.7" in STRATEGIES.html([Paired(predicted, judged)])
    assert "decoded for real" not in STRATEGIES.html([Paired(None, judged)])
    elsewhere = replace(measured, place=replace(measured.place, machine="another"))
    found = beside([predicted, measured, elsewhere])
    assert [(one.predicted, one.measured) for one in found] == [(predicted, measured), (None, elsewhere)]
    other_floor = replace(measured, floor=Floor("agreement", 0.5))
    assert len(beside([predicted, other_floor])) == 2
    standings = beside(comparison.strategies)
    held = [one for both in standings for one in (both.predicted, both.measured) if one is not None]
    assert sorted(map(repr, held)) == sorted(map(repr, comparison.strategies))


def test_what_keeps_its_floor_comes_first_and_the_rest_is_marked(comparison):
    known = next(
        one for one in comparison.strategies if one.floor == Floor("agreement", 0.9) and one.reachable
    )
    fast = Estimate(2.0, 1.9, 2.1)
    kept = replace(known, agreement=Estimate(0.92, 0.91, 0.93))
    perhaps = replace(known, family="b", agreement=Estimate(0.89, 0.87, 0.91), net_speedup=fast)
    missed = replace(known, family="c", agreement=Estimate(0.872, 0.86, 0.89), net_speedup=fast)
    unasked = replace(known, family="d", floor=None, agreement=Estimate(0.356), net_speedup=fast)
    oracle = replace(known, family="e", reachable=False, net_speedup=fast)
    order = [kept, perhaps, unasked, missed, oracle]
    standings = sorted((Paired(one, None) for one in reversed(order)), key=lambda standing: standing.rank)
    assert [standing.shown for standing in standings] == order
    assert [floor_note(one) for one in order] == [
        "",
        "below the floor, perhaps by chance",
        "",
        "misses the floor",
        "",
    ]
    html = STRATEGIES.html(standings)
    assert html.count('<span class="invalid">misses the floor</span>') == 1
    broken = replace(kept, basis="measured", net_speedup=Estimate(9.0), defect=True)
    assert Paired(None, replace(broken, defect=False)).rank < Paired(None, broken).rank
    html = families_table([kept, perhaps, missed, unasked])
    assert "misses the floor in 1 of 1" in html
    assert re.findall(r">(\d+) of 1<", html) == ["0", "1", "0"]  # who asked for no floor wins nothing


def test_what_was_not_asked_is_not_called_uncertified(comparison):
    row = comparison.rows[0]
    strict, floor = Floor("agreement", 0.99), Floor("agreement", 0.95)
    answer = examples.answer(Estimate(1.0), "nothing faster", holds=False, executed=False)
    verdicts = {(answer.floor, answer.machine): examples.decided(answer)}
    refused = replace(row, answers=(answer,), verdicts=verdicts)
    assert [without_speed(row, strict), without_speed(refused, floor)] == [
        "inconclusive",
        "nothing faster keeps it",
    ]
    bare = replace(row, answers=())
    assert without_speed(bare, strict) == "not asked"
    page = Page(leaderboard_section(replace(comparison, rows=(row, bare))))
    assert "not asked" in page.text


def test_each_place_has_a_fastest_family(comparison):
    html = families_table(comparison.strategies)
    wins = [tuple(map(int, pair)) for pair in re.findall(r">(\d+) of (\d+)<", html)]
    reachable = [one for one in comparison.strategies if one.basis == "predicted" and one.reachable]
    places = {(one.place, one.floor) for one in reachable}
    assert sum(won for won, _ in wins) >= len(places)
    assert {total for _, total in wins} == {18}


def test_the_leaderboard_starts_with_the_fastest_certified(comparison):
    rows = ordered(comparison.rows)
    assert rows[0].model.name == "gpt2"
    assert best_answer(rows[0], Floor("agreement", 0.99)) is None
    best = best_answer(rows[0], Floor("agreement", 0.9))
    assert best is not None
    assert best.net_speedup.value == max(one.net_speedup.value for row in rows for one in row.answers)


def test_means_are_of_models_that_have_every_workload(comparison):
    rows = comparison.rows[:-1]  # the last model lacks code
    page = Page(means_table(rows))
    assert "without code" in page.text
    gpt2 = [row for row in rows if row.model.name == "gpt2"]
    mean = sum(row.card.representation.value for row in gpt2) / 2
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
        "36 open without a certificate; missing: documents: 12 at hand, 230 needed if none loses."
    )
    exit_early = "90 % agreement: 28 of 36 answers are a policy that exits early, and "
    assert lines[2] == f"{exit_early}none of these surely pay.", (
        "nothing was timed beside what needs no exits"
    )
    for answer in [answer for answer in answers if answer.exits and answer.floor == Floor("agreement", 0.9)][
        :12
    ]:
        answers[answers.index(answer)] = replace(answer, decision="pays")
    assert by_floor(answers)[2] == f"{exit_early}12 of these surely pay."
