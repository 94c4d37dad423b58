"""The answer of a comparison in words, for every way that it can come out."""

from __future__ import annotations

from dataclasses import replace

import pytest

import comparison_examples as examples
from offramp.report.caveats import lacking, left_over, not_claimed
from offramp.report.findings import best_certified, comparison_decision, decision_on, findings_of, speed_of
from offramp.report.headline import best_sentences, comparison_headline
from offramp.report.ranking import fastest, floor_kept, keeps_floor, why_no_answer
from offramp.report.sections.strategies import certified_section
from offramp.report.sections.verdict import answer_section
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Saving, Strategy

POLICY = "threshold:signal=margin,value=0.9"
PLAIN = Estimate(1.0, 1.0, 1.0)


def saving(
    speed: Estimate,
    *,
    floor: str = "agreement=0.95",
    policy: str = POLICY,
    certified: bool = True,
    machine: str = "local",
    **fields: object,
) -> Saving:
    made = Saving(floor, machine, policy, speed, certified, "as found", executed=certified)
    return replace(made, **fields)


def nothing(lacks: str = "", documents: int = 12, needed: int = 45, **fields: object) -> Saving:
    """No certificate: for a lack of something, or because nothing was faster."""
    counts = {"documents": documents, "documents_needed": needed, "documents_in_all": 2 * needed}
    return saving(PLAIN, policy="never", certified=False, lacks=lacks, **counts, **fields)


def compared(*savings: Saving, strategies: tuple[Strategy, ...] = ()) -> Comparison:
    """One row with these answers of the tuner."""
    row = examples.row(examples.models()[0], "prose", 0)
    return Comparison("title", "", (replace(row, savings=savings),), strategies)


def strategy(speed: Estimate, basis: str = "measured", **fields: object) -> Strategy:
    nothing = Estimate(0.95, 0.94, 0.96)
    made = Strategy("gpt2", "prose", "", "local", "margin", POLICY, "propagate", "agreement=0.95", basis,
                    nothing, nothing, speed)  # fmt: skip
    return replace(made, **fields)


@pytest.mark.parametrize(
    ("low", "high", "certified", "decision"),
    [
        (1.06, 1.2, True, "pays"),
        (1.06, 1.2, False, "too close to call"),
        (0.9, 1.04, True, "does not pay"),
        (0.9, 1.04, False, "does not pay"),
        (1.0, 1.1, True, "too close to call"),
        (None, None, True, "too close to call"),
    ],
)
def test_a_decision_is_the_intervals_of_what_is_certified(low, high, certified, decision):
    assert decision_on(speed_of(Estimate(1.1, low, high), measured=True), certified=certified) == decision


def test_a_replay_bound_never_pays():
    found = compared(saving(Estimate(1.2, 1.15, 1.25), executed=False))
    assert [answer.decision for answer in findings_of(found)] == ["too close to call"]


def test_it_pays_in_so_many_cells():
    found = compared(
        saving(Estimate(1.2, 1.18, 1.22)), saving(Estimate(1.0, 1.0, 1.0), policy="never", machine="h100")
    )
    assert comparison_decision(found) == "pays"
    assert comparison_headline(found) == (
        "Early exit is predicted to pay in 1 of 2 cells: certified, it is at best 1.200 × plain decoding "
        "(1.180 to 1.220)."
    )


def test_that_it_does_not_pay_is_an_answer():
    found = compared(saving(Estimate(1.02, 1.01, 1.03)))
    assert comparison_decision(found) == "does not pay"
    assert comparison_headline(found).startswith(
        "Early exit does not pay anywhere here: certified, it is at best 1.020 ×"
    )
    found = compared(nothing(), nothing(machine="h100"))
    assert comparison_decision(found) == "does not pay"
    assert comparison_headline(found) == (
        "Early exit does not pay anywhere here: no policy that keeps a floor is faster than the full model."
    )
    assert best_certified(findings_of(found)) is None
    assert left_over(found) == []


def test_too_few_documents_are_no_answer():
    found = compared(nothing("documents", floor="agreement=0.99", needed=230), nothing("documents"))
    assert comparison_decision(found) == "not certifiable"
    why = "12 documents to certify on, 45 needed for 95 % agreement (trace at least 90 in all)"
    assert comparison_headline(found) == f"Whether early exit pays is not certifiable here: {why}."
    assert left_over(found) == [f"2 of 2 answers (a cell at a floor) are not certifiable: {why}."]
    assert best_sentences(found) == []


def test_a_test_that_every_policy_failed_why_no_answer():
    found = compared(nothing("evidence", documents=50))
    assert comparison_decision(found) == "not certifiable"
    assert comparison_headline(found).endswith(
        "not certifiable here: every faster policy failed the test of its floor."
    )
    searched = lacking([*findings_of(found), *findings_of(compared(nothing("documents", documents=50)))])
    assert searched == (
        "no document is left to search on for 95 % agreement (trace at least 90 in all); elsewhere every "
        "faster policy failed the test of its floor"
    )


def test_what_does_not_pay_is_told_apart_from_what_is_not_certifiable():
    found = compared(nothing(), nothing("documents", machine="h100"))
    assert comparison_decision(found) == "not certifiable"
    assert comparison_headline(found).startswith(
        "Early exit does not pay in 1 of 2 cells; in 1 it is not certifiable: 12 documents to certify on"
    )


@pytest.mark.parametrize(
    ("refused", "unknown", "decision"),
    [
        ("agreement=0.9", "agreement=0.99", "does not pay"),
        ("agreement=0.99", "agreement=0.9", "not certifiable"),
        ("nll=0.1", "nll=0.05", "does not pay"),
        ("nll=0.05", "nll=0.1", "not certifiable"),
        ("nll=0.1", "agreement=0.99", "not certifiable"),
    ],
)
def test_what_does_not_pay_at_a_loose_floor_does_not_at_a_stricter_one(refused, unknown, decision):
    found = compared(nothing(floor=refused), nothing("documents", floor=unknown))
    assert comparison_decision(found) == decision
    paying = saving(Estimate(1.2, 1.15, 1.25), floor=refused)
    assert comparison_decision(compared(paying, nothing("documents", floor=unknown))) == "pays"


def test_a_policy_predicted_to_pay_but_measured_not_to_does_not():
    speed = Estimate(1.2, 1.18, 1.22)
    slow = strategy(Estimate(0.98, 0.97, 0.99), answer="slower")
    assert comparison_decision(compared(saving(speed), strategies=(slow,))) == "does not pay"
    assert comparison_headline(compared(saving(speed), strategies=(slow,))).startswith(
        "Early exit does not pay anywhere here: certified, it is at best 0.980 × plain decoding (0.970 to "
        "0.990), decoded for real, and 5 % are"
    )
    quick = replace(slow, net_speedup=Estimate(1.1, 1.08, 1.12))
    timed = compared(saving(speed), strategies=(quick,))
    assert comparison_headline(timed).startswith("Early exit pays here: certified, it is at best 1.100 ×")
    assert "decoded for real; predicted were 1.200 ×" in best_sentences(timed)[0]
    invalid = replace(slow, answer="defect: a wrong output")
    assert comparison_decision(compared(saving(speed), strategies=(invalid,))) == "pays"
    elsewhere = replace(slow, machine="h100")
    assert comparison_decision(compared(saving(speed), strategies=(elsewhere,))) == "pays"
    otherwise = replace(slow, kv="recompute")
    assert comparison_decision(compared(saving(speed), strategies=(otherwise,))) == "pays"
    left_out = replace(slow, answer="left out: no time", net_speedup=Estimate(None, undefined="no time"))
    assert comparison_decision(compared(saving(speed), strategies=(left_out,))) == "pays"


def test_a_certified_policy_that_missed_its_floor_when_decoded_is_not_said_to_pay():
    speed = Estimate(1.2, 1.18, 1.22)
    missed = strategy(Estimate(1.3, 1.25, 1.35), answer="slower", agreement=Estimate(0.80, 0.75, 0.85))
    found = compared(saving(speed), strategies=(missed,))
    assert comparison_decision(found) == "too close to call"
    assert comparison_headline(found).endswith(
        "certified, it is at best 1.200 × plain decoding (1.180 to 1.220)."
    )
    said = "Of 1 answer, certified on given text and below the floor when decoded, and so not said to pay: 1."
    assert said in left_over(found)
    assert "it kept 80.0\N{NO-BREAK SPACE}% of the full model" in certified_section(found)
    # Measured at a looser floor, which it kept: the stricter one it did not.
    looser = replace(missed, floor="agreement=0.75")
    assert comparison_decision(compared(saving(speed), strategies=(looser,))) == "too close to call"
    kept = compared(saving(speed, floor="agreement=0.75"), strategies=(missed,))
    assert comparison_headline(kept).startswith("Early exit pays here: certified, it is at best 1.300 ×")
    assert "it kept" not in certified_section(kept)
    # Too slow although it kept less than it may.
    slow = replace(missed, net_speedup=Estimate(0.98, 0.97, 0.99))
    assert comparison_decision(compared(saving(speed), strategies=(slow,))) == "does not pay"


def test_cells_that_pay_by_the_stopwatch_are_counted_apart_from_predicted_ones():
    speed, quick = Estimate(1.2, 1.18, 1.22), strategy(Estimate(1.3, 1.25, 1.35), answer="slower")
    elsewhere = [saving(speed, machine=name) for name in ("h100", "a100")]
    slow = saving(Estimate(1.0), policy="never", machine="cpu")
    found = compared(saving(speed), *elsewhere, slow, strategies=(quick,))
    assert comparison_headline(found).startswith(
        "Early exit pays in 1 of 4 cells, and is predicted to pay in 2 more: certified, it is at best 1.300 ×"
    )
    faster = saving(Estimate(1.5, 1.4, 1.6), machine="h100")
    assert comparison_headline(compared(saving(speed), faster, slow, strategies=(quick,))).startswith(
        "Early exit pays in 1 of 3 cells, and is predicted to pay in 1 more: certified, it is at best 1.500 ×"
    )
    assert comparison_headline(compared(saving(speed), slow, strategies=(quick,))).startswith(
        "Early exit pays in 1 of 2 cells: "
    )


def test_one_that_surely_pays_comes_before_a_faster_one_that_may():
    sure, unsure = saving(Estimate(1.1, 1.08, 1.12)), saving(Estimate(1.3, 0.9, 1.7))
    best = best_certified(findings_of(compared(unsure, sure)))
    assert best is not None
    assert best.detail == sure


def test_without_a_tuner_the_stopwatch_answers_and_an_oracle_never():
    oracle = strategy(Estimate(2.0, 1.9, 2.1), "predicted", reachable=False)
    slow = strategy(Estimate(0.97, 0.96, 0.98))
    quick = strategy(Estimate(1.3, 1.2, 1.4), "predicted")
    assert comparison_decision(compared(strategies=(oracle,))) == "undefined"
    said = comparison_headline(compared(strategies=(oracle, slow, quick)))
    assert said.startswith("Early exit does not pay anywhere here: decoded for real")
    assert "0.970 ×" in said
    said = comparison_headline(compared(strategies=(oracle, quick)))
    assert said.startswith(
        "Whether early exit pays is too close to call: by replay and without a certificate"
    )


@pytest.mark.parametrize(
    ("floor", "agreement", "kept"),
    [
        ("agreement=0.95", Estimate(0.94, 0.93, 0.96), True),
        ("agreement=0.95", Estimate(0.90, 0.89, 0.91), False),
        ("agreement=0.95", Estimate(0.94), False),
        ("agreement=0.95", Estimate(0.95), True),
        ("nll=0.05", Estimate(0.5), True),
        ("", Estimate(1.0), False),
    ],
)
def test_speed_counts_only_where_a_floor_is_kept(floor, agreement, kept):
    one = strategy(Estimate(1.4, 1.3, 1.5), "predicted", floor=floor, agreement=agreement)
    assert keeps_floor(one) is kept
    assert (fastest([one]) is one) is kept


def test_one_that_reaches_its_floor_comes_before_a_faster_one_that_may_have_missed_it():
    below = strategy(Estimate(1.4), "predicted", agreement=Estimate(0.94, 0.93, 0.96))
    above = strategy(Estimate(1.2), "predicted", agreement=Estimate(0.951, 0.94, 0.96))
    assert [floor_kept(one) for one in (below, above)] == ["perhaps", "kept"]
    assert fastest([below, above]) is above
    assert fastest([below]) is below


def test_what_why_no_answer_is_counted_with_its_reason():
    plain = strategy(Estimate(1.0), policy="never", answer="defect: a wrong output")
    invalid = strategy(Estimate(1.4), policy="static:exit=1", answer="defect: a wrong output")
    missed = strategy(Estimate(1.3), policy="static:exit=2", answer="slower", agreement=Estimate(0.8))
    silent = strategy(
        Estimate(None, undefined="it failed"), policy="static:exit=3", answer="left out: it failed"
    )
    kept = strategy(Estimate(1.2), policy="static:exit=4", answer="slower", agreement=Estimate(0.99))
    replayed = strategy(Estimate(1.5), "predicted", agreement=Estimate(0.1))
    all_of_them = (plain, invalid, missed, silent, kept, replayed)
    said = "1 with a defect, 1 below their floor, 1 without a speed"
    assert why_no_answer(all_of_them) == said
    assert f"Of 4 measurements of policies decoded for real, left out: {said}." in left_over(
        compared(nothing(), strategies=all_of_them)
    )
    assert why_no_answer((plain, kept, replayed)) == ""
    without = compared(nothing(), strategies=(plain, invalid, missed, silent))
    # In its card, and among what is not claimed.
    assert answer_section(without).count(said) == 2
    assert said not in answer_section(compared(nothing(), strategies=(kept,)))


def test_an_interval_without_width_is_no_precision():
    found = compared(saving(Estimate(1.132, 1.132, 1.132)))
    assert comparison_headline(found).endswith("certified, it is at best 1.132 × plain decoding.")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("faster", "only what is marked measured was timed"),
        ("defect: a wrong output", "what was timed here has a defect"),
        (None, "none was timed here"),
    ],
)
def test_what_was_timed(answer, said):
    measured = strategy(Estimate(1.1, 1.0, 1.2), answer=answer or "")
    found = compared(nothing(), strategies=(measured,) if answer else ())
    assert f"not over these prices; {said}." in " ".join(not_claimed(found))


def test_what_is_not_claimed():
    said = " ".join(not_claimed(examples.example_comparison()))
    assert "6 independently trained models of the 12 that it takes" in said
    assert "2 cells failed or did not run" in said
    assert "gpt2 has another tokenizer" in said
    many = examples.example_comparison(examples.more_models(12, layers=2), ("prose",))
    assert "models in general" not in " ".join(not_claimed(many))


def test_answers_stand_for_every_row_floor_and_machine():
    comparison = examples.example_comparison()
    assert len(findings_of(comparison)) == 9 * 2 * 3 * 2


def test_policies_that_all_miss_their_floor_are_an_answer():
    bold = strategy(Estimate(1.3, 1.2, 1.4), "predicted", agreement=Estimate(0.42, 0.4, 0.44))
    assert comparison_headline(compared(strategies=(bold,))).startswith(
        "None of the 1 policies that were tried keeps its floor: the closest agrees on 42.0 % of the tokens, "
        "and 95 % agreement was asked for"
    )
