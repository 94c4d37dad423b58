"""The answer of a run and of a comparison: findings, ranking, and every way that they come out in words."""

from __future__ import annotations

import re
import typing
from dataclasses import replace
from pathlib import Path

import answer_examples as answers
import pytest
from decoding_examples import decoded_run
from report_examples import example_run

import comparison_examples as examples
from offramp.cli.pages import short_json
from offramp.policies.cost_breakdown import Gain
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import StaticExit
from offramp.policies.short_names import SHORT_HEAD, short_name
from offramp.report.answer_words import caveats, grounds_of, headline, machines_sentence, short_answer
from offramp.report.comparison_page import (
    answer_section,
    cards_of,
    comparison_headline,
    left_over,
    not_claimed,
)
from offramp.report.findings import (
    best_certified,
    certified_section,
    comparison_decision,
    decision_on,
    finding_of_verdict,
    findings_of,
    lacking,
    main_findings,
    main_verdict,
    main_verdicts,
    run_decision,
    speed_of,
)
from offramp.report.run_findings import Findings
from offramp.report.sections.families import families_at
from offramp.report.sections.strategies import fastest, floor_kept, why_no_answer
from offramp.report.timing import ways_of
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Place, StrategyResult
from offramp.timing.results import LOOKUP
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.floor import Floor, parse_floor
from offramp.tuning.ranking import MachineAnswer
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Outcome, Speed, Verdict
from offramp.tuning.verdict_words import CUT


def certificate(*, holds: bool = True, executed: bool = True) -> Certificate:
    return Certificate(
        method="wsr", guarantee="", holds=holds, delta=0.05, documents=96, empirical_risk=0.02,
        risk_bound=0.05, best_floor=0.97, documents_needed=60, tested=1, passed=int(holds), assumption="",
        executed=executed, kv="propagate", prompt_tokens=32, new_tokens=16, stopped_after=61,
    )  # fmt: skip


def verdict(
    outcome,
    value=None,
    low=None,
    high=None,
    *,
    policy="static:exit=20",
    floor=0.95,
    how="measured",
    **changes,
) -> Verdict:
    made = Verdict(
        floor=floor,
        worth=0.05,
        outcome=outcome,
        reason="because of the reason given",
        missing=(),
        policy=parse_policy(policy),
        kv="propagate",
        certificate=certificate(),
        executed_agreement=Estimate(0.9625),
        speed=None if value is None else Speed(value, low, high, how, "local", True),
        replayed_policy=parse_policy(policy),
        agreement=Estimate(0.96, 0.95, 0.97),
        skip_ratio=Estimate(0.1),
        net_speedup=Estimate(1.02),
        net_speedup_flops=Estimate(1.02),
        fit_agreement=0.96,
        fit_documents=32,
        report_documents=32,
        documents_needed=45,
    )
    return replace(made, **changes)


def test_a_gain_is_split_and_a_smaller_head_is_not_early_exits():
    """Speed over plain decoding, its parts, and what of it early exit adds to the cut head."""
    changes = {
        "gain": Gain(0.006, 0.047, -0.0001),
        "without": "shortlist:policy=[never],at=all",
        "credit": Estimate(1.006, 1.001, 1.011),
    }
    refused = headline(run_with(verdict("does not pay", 1.056, 1.05, 1.06, **changes)))
    assert refused.endswith(
        "; saves of plain decoding, by price: layers +0.6 %, head +4.7 %, probes 0.0 %, so that the "
        "gain is the "
        "shortlist's, not early exit's; measured 1.006 × (1.001 to 1.011 ×) over the full model with "
        "its output "
        "head cut to the short list."
    )
    assert refused.startswith("A shortlist, not early exit, makes smollm2 at most 1.011 × as fast")
    own = headline(run_with(verdict("pays", 1.12, 1.1, 1.14, gain=Gain(0.11, 0.0, -0.003))))
    assert own.endswith("; saves of plain decoding, by price: layers +11.0 %, head 0.0 %, probes −0.3 %.")


REFUTED = Candidate(StaticExit(20), "propagate", 0.9, 0.8, 0.8125, 16, 1.2, False, "too much lost")


def run_with(*verdicts: Verdict):
    run = example_run()
    workloads = [replace(w, verdicts=(v,)) for w, v in zip(run.workloads, verdicts, strict=False)]
    return replace(run, workloads=tuple(workloads))


def test_a_speed_stands_beside_the_policy_that_it_is_of():
    """What decodes is plain decoding where nothing is certified; a speed is that of what was tried."""
    run = run_with(verdict("does not pay", 1.1, 1.0, 1.2, policy="never", standing="refuted", tried=REFUTED))
    run = replace(run, workloads=run.workloads[:1])
    findings = Findings(run, Path("run"), Path("run/report.html"), {})
    (found,), (shown,) = findings.to_dicts(), short_json(findings)["verdicts"]
    assert (
        (found["policy"], found["speed_value"])
        == (shown["policy"], shown["speed"]["value"])
        == ("never", 1.1)
    )
    assert (found["tried"], found["tried_kv"]) == ("static:exit=20", "propagate")
    assert (shown["tried"]["policy"], shown["tried"]["kv"]) == ("static:exit=20", "propagate")
    certified = replace(
        run, workloads=(replace(run.workloads[0], verdicts=(verdict("pays", 1.1, 1.0, 1.2),)),)
    )
    (found,) = Findings(certified, Path("run"), Path("run/report.html"), {}).to_dicts()
    assert (found["policy"], found["tried"], found["tried_kv"]) == ("static:exit=20", None, None)


@pytest.mark.parametrize(
    ("verdicts", "decision", "said"),
    [
        (
            [verdict("pays", 1.08, 1.061, 1.099)],
            "pays",
            "Early exit makes smollm2 1.080 × as fast as the best baseline on prose at 95 % agreement: "
            "pays. "
            "It keeps 96.25 % as executed "
            "(certified ≥ 95 %, 61 documents), measured 1.080 × (1.061 to 1.099 ×); a gain counts from "
            "5 % on (--worth).",
        ),
        (
            [verdict("pays", 1.2, 1.1, 1.3), verdict("pays", 1.1, 1.08, 1.12)],
            "pays",
            "makes smollm2 1.100 × as fast as the best baseline on prose and code at 95 % agreement: "
            "pays. It even on "
            "code, the weakest of them, keeps 96.25 %",
        ),
        (
            [verdict("does not pay", 1.03, 1.02, 1.04)],
            "does not pay",
            "makes smollm2 at most 1.040 × as fast on prose at 95 % agreement: does not pay. The best "
            "policy keeps "
            "96.25 % as executed (certified ≥ 95 %, 61 documents), measured 1.030 ×",
        ),
        (
            [verdict("does not pay", policy="never", certificate=certificate(holds=False))],
            "does not pay",
            "as fast on prose at 95 % agreement: does not pay. No policy, replayed on the measurement, "
            "is predicted to gain 5 %; nothing was decoded.",
        ),
        (
            [verdict("does not pay", policy="never", certificate=None)],
            "does not pay",
            "as fast on prose at 95 % agreement: does not pay. No policy, replayed on the measurement, "
            "is predicted to gain 5 %; nothing was decoded.",
        ),
        (
            [verdict("does not pay", policy="never", standing="nothing could pay")],
            "does not pay",
            "less than 1.050 × as fast on prose at 95 % agreement: does not pay. No policy that was "
            "searched is predicted to gain 5 % over the best decoder without exits.",
        ),
        (
            [verdict("does not pay", 1.1, 1.0, 1.2, policy="never", standing="refuted", tried=REFUTED)],
            "does not pay",
            "less than 1.050 × as fast on prose at 95 % agreement: does not pay. The most cautious "
            "policy that could gain enough kept 81.25 % as executed on 16 documents, below "
            "95 %, measured 1.100 × (1.000 to 1.200 ×); a gain counts from 5 % on (--worth).",
        ),
        (
            [
                verdict(
                    "interval", 1.09, 1.07, 1.11, how="predicted", certificate=None,
                    executed_agreement=None, missing=("an executed certificate",),
                )
            ],
            "inconclusive",
            "at most 1.110 × as fast on prose at 95 % agreement: inconclusive, the interval holds the "
            "minimum gain. The best policy keeps 96 % in replay (not executed), predicted for this "
            "machine 1.090 × (1.070 "
            "to 1.110 ×); a gain counts from 5 % on (--worth); missing: an executed certificate.",
        ),
        (
            [verdict("time", policy="never", missing=("documents: 12 at hand, 46 needed",))],
            "inconclusive",
            "inconclusive, it needs more time. Nothing was decoded; missing: documents: 12 at hand, 46 "
            "needed.",
        ),
        (
            [verdict("pays", 1.12, 1.1, 1.14), verdict("does not pay", policy="never")],
            "depends on the text",
            "For smollm2 at 95 % agreement, early exit pays on prose (keeps 96.25 % as executed (certified "
            "≥ 95 %, 61 documents), measured 1.120 × (1.100 to 1.140 ×)) and does not pay on code (nothing "
            "that could gain enough keeps the floor).",
        ),
        ([], "undefined", "There is no verdict for smollm2"),
    ],
)  # fmt: skip
def test_the_answer_of_a_run(verdicts: list[Verdict], decision: str, said: str) -> None:
    run = run_with(*verdicts)
    if not verdicts:
        run = replace(run, workloads=tuple(replace(one, verdicts=()) for one in run.workloads))
    assert run_decision(run) == decision
    assert said in headline(run)
    assert headline(run).startswith(short_answer(run).rstrip(".").split(" on ")[0])
    assert all(part in headline(run) for part in re.findall(r"measured [^;.]*", grounds_of(run)))


@pytest.mark.parametrize("decision", [*typing.get_args(Outcome), "mixed"])
def test_the_short_answer_names_the_floor_in_a_sentence_of_25_words(decision: str) -> None:
    several = [decision] * 2 if decision != "mixed" else ["pays", "does not pay"]
    said = short_answer(run_with(*(verdict(one, floor=0.9) for one in several)))
    assert "at 90 % agreement" in said
    assert len(said.split()) <= 25


@pytest.mark.parametrize(
    ("without", "said"),
    [(LOOKUP, "over prompt lookup."), ("shortlist:policy=[never],at=all", f"over {CUT}.")],
)
def test_a_decoder_without_exits_has_the_name_that_tables_have(without: str, said: str) -> None:
    slower = verdict("does not pay", 1.1, 1.0, 1.2, without=without, credit=Estimate(0.9, 0.8, 0.95))
    assert headline(run_with(slower)).endswith(said)
    assert short_name(without) in ("prompt lookup", SHORT_HEAD)


def test_caveats_name_what_is_missing_lost_documents_and_notes():
    run = run_with(verdict("interval", 1.1, missing=("documents",)))
    workload = run.workloads[0]
    trace = workload.trace.subset(range(64))
    broken = replace(trace.documents[3], valid=False, reason="NaN logit at layer 7, position 12")
    trace.documents = (*trace.documents[:3], broken, *trace.documents[4:])
    run = replace(run, workloads=(replace(workload, trace=trace, notes=("fewer tokens than asked",)),))
    notes = "\n".join(caveats(run))
    assert "On prose the verdict is open; missing: documents." in notes
    assert "document 3 is left out: NaN logit at layer 7, position 12" in notes
    assert "prose: fewer tokens than asked" in notes
    two = (
        replace(run.workloads[0], notes=("of all", "of one")),
        replace(workload, name="code", notes=("of all",)),
    )
    said = caveats(replace(run, workloads=two))
    assert said.count("Of all.") == 1, "what all workloads say is said once"
    assert "prose: of one" in said
    assert not any("of all" in one for one in said)
    pays = run_with(verdict("pays", 1.1, 1.08, 1.12), verdict("pays", 1.2, 1.1, 1.3))
    chance = "each certificate spends a chance of 0.05 to be wrong, all of them together 0.1."
    assert chance in "\n".join(caveats(pays))
    few = "prose what is replayed rests on 19 documents of 64 tokens; 20 are needed for an interval"
    made = verdict("does not pay", policy="never", report_documents=19)
    assert few in "\n".join(caveats(run_with(made)))
    assert "rests on" not in "\n".join(caveats(run_with(replace(made, report_documents=20))))


POLICY = "threshold:signal=margin,value=0.9,exits=10+15"
PLAIN = Estimate(1.0, 1.0, 1.0)


def saving(
    speed: Estimate,
    floor: float | Floor = 0.95,
    policy: str = POLICY,
    certified: bool = True,
    machine: str = "local",
    executed: bool = True,
) -> Tuned:
    """The tuner's answer, certified by decoding where nothing else is said."""
    holds = {"holds": certified, "executed": certified and executed}
    return examples.answer(speed, "as found", floor=floor, machine=machine, policy=policy, **holds)


def nothing(
    lacks: str = "",
    documents: int = 50,
    needed: int = 45,
    floor: float | Floor = 0.95,
    machine: str = "local",
) -> Tuned:
    """No certificate: for a lack of something, or because nothing was faster."""
    counts = {"documents": documents, "documents_needed": needed, "holds": False, "executed": False}
    return examples.answer(PLAIN, "as found", floor=floor, machine=machine, lacks=lacks, **counts)


def compared(*answers: Tuned, strategies: tuple[StrategyResult, ...] = ()) -> Comparison:
    """One row with these answers of the tuner."""
    row = examples.row(examples.models()[0], "prose", 0)
    comparison = Comparison("title", "", (replace(row, answers=answers),), strategies)
    return examples.with_verdicts(comparison)


def strategy(speed: Estimate, basis: str = "measured", **fields: object) -> StrategyResult:
    nothing = Estimate(0.95, 0.94, 0.96)
    place = Place("gpt2", "prose", "", "local")
    known = {
        "policy": POLICY,
        "floor": Floor("agreement", 0.95),
        "agreement": nothing,
        "credit": speed,
        "credit_over": "never exit",
        **fields,
    }
    made = {
        "place": place,
        "family": "margin",
        "kv": "propagate",
        "basis": basis,
        "skip_ratio": nothing,
        "net_speedup": speed,
        **known,
    }
    return StrategyResult(**{**made, "policy": parse_policy(made["policy"])})


UNTIMED = Estimate(None, undefined="not timed beside it: prompt lookup")


@pytest.mark.parametrize(
    ("low", "high", "certified", "decision"),
    [
        (1.06, 1.2, True, "pays"),
        (1.06, 1.2, False, "inconclusive"),
        (0.9, 1.04, True, "does not pay"),
        (0.9, 1.04, False, "does not pay"),
        (1.0, 1.1, True, "inconclusive"),
        (None, None, True, "inconclusive"),
    ],
)
def test_a_decision_is_the_intervals_of_what_is_certified(low, high, certified, decision):
    assert decision_on(speed_of(Estimate(1.1, low, high), measured=True), certified=certified) == decision


@pytest.mark.parametrize(
    ("answers", "decision", "said"),
    [
        ([saving(Estimate(1.2, 1.15, 1.25), executed=False)], "inconclusive", ""),
        (
            [saving(Estimate(1.2, 1.18, 1.22)), saving(PLAIN, policy="never", machine="h100")],
            "inconclusive",
            "1.200 × plain decoding (1.180 to 1.220); missing: its credit: it was not timed.",
        ),
        (
            [saving(Estimate(1.02, 1.01, 1.03))],
            "does not pay",
            "does not pay anywhere here: certified, it is",
        ),
        (
            [nothing(), nothing(machine="h100")],
            "does not pay",
            "no policy that keeps a floor is faster than the full model",
        ),
        (
            [nothing("evidence", documents=50)],
            "inconclusive",
            "It is inconclusive whether early exit pays here; missing: a certificate.",
        ),
        (
            [nothing(), nothing("documents", documents=12, machine="h100")],
            "inconclusive",
            "does not pay in 1 of 2 cells; the others are open; missing: documents: 12 at hand, 45 needed",
        ),
    ],
    ids=["replay bound", "one cell", "too slow", "nothing faster", "failed tests", "part open"],
)
def test_the_answer_of_a_comparison(answers: list[Tuned], decision: str, said: str) -> None:
    found = compared(*answers)
    assert comparison_decision(found) == decision
    assert said in comparison_headline(found)


def test_too_few_documents_are_no_answer():
    found = compared(nothing("documents", 12, floor=0.99, needed=230), nothing("documents", 12))
    assert comparison_decision(found) == "inconclusive"
    few = [f"documents: 12 at hand, {needed} needed if none loses (in 1)" for needed in (230, 45)]
    why = f"missing: {'; '.join(few)}"
    assert comparison_headline(found) == (f"It is inconclusive whether early exit pays here; {why}.")
    assert left_over(found) == [f"2 of 2 answers (a cell at a floor) are open without a certificate; {why}."]
    assert cards_of(found)[0].big == "none"
    assert best_certified(findings_of(found)) is None


def test_what_is_missed_most_comes_first_and_the_rest_is_counted():
    failed = findings_of(compared(nothing("evidence", documents=50)))
    assert lacking(failed) == "missing: a certificate"
    short = [findings_of(compared(nothing("documents", count)))[0] for count in range(10, 13)]
    assert lacking([*short, *failed, *failed]) == (
        "missing: a certificate (in 2); documents: 10 at hand, 45 needed if none loses (in 1); "
        "documents: 11 at hand, 45 needed if none loses (in 1); 1 other thing"
    )


@pytest.mark.parametrize(
    ("refused", "unknown", "decision"),
    [
        ("agreement=0.9", "agreement=0.99", "does not pay"),
        ("agreement=0.99", "agreement=0.9", "inconclusive"),
        ("nll=0.1", "nll=0.05", "does not pay"),
        ("nll=0.05", "nll=0.1", "inconclusive"),
        ("nll=0.1", "agreement=0.99", "inconclusive"),
    ],
)
def test_what_does_not_pay_at_a_loose_floor_does_not_at_a_stricter_one(refused, unknown, decision):
    refused, unknown = (parse_floor(floor) for floor in (refused, unknown))
    found = compared(nothing(floor=refused), nothing("documents", 12, floor=unknown))
    assert comparison_decision(found) == decision
    paying, quick = saving(Estimate(1.2, 1.15, 1.25), floor=refused), strategy(Estimate(1.2, 1.15, 1.25))
    found = compared(
        paying, nothing("documents", 12, floor=unknown), strategies=(replace(quick, floor=refused),)
    )
    assert comparison_decision(found) == ("inconclusive" if refused.value == 0.99 else "pays")


def test_a_policy_predicted_to_pay_but_measured_not_to_does_not():
    speed = Estimate(1.2, 1.18, 1.22)
    slow = strategy(Estimate(0.98, 0.97, 0.99), answer="slower")
    assert comparison_decision(compared(saving(speed), strategies=(slow,))) == "does not pay"
    said = comparison_headline(compared(saving(speed), strategies=(slow,)))
    assert "it is at best 0.980 × plain decoding (0.970 to 0.990), decoded for real" in said
    quick = strategy(Estimate(1.1, 1.08, 1.12), answer="slower")
    timed = compared(saving(speed), strategies=(quick,))
    assert comparison_headline(timed).startswith("Early exit pays here: certified, it is at best 1.100 ×")
    assert dict(cards_of(timed)[0].lines)["predicted"].startswith("1.200 × plain decoding")
    left_out = replace(slow, answer="left out: no time", net_speedup=Estimate(None, undefined="no time"))
    invalid = replace(slow, defect=True)
    for other in (
        invalid,
        replace(slow, place=replace(slow.place, machine="h100")),
        replace(slow, kv="recompute"),
        left_out,
    ):
        assert comparison_decision(compared(saving(speed), strategies=(other,))) == "inconclusive"


@pytest.mark.parametrize(
    ("credit", "decision", "said"),
    [
        (Estimate(1.08, 1.06, 1.1), "pays", "1.080 × (1.060 to 1.100 ×) the best decoder without exits"),
        (Estimate(1.005, 0.99, 1.02), "does not pay", "1.005 × (0.990 to 1.020 ×) the best decoder without"),
        (Estimate(1.05, 1.02, 1.08), "inconclusive", "the best decoder without exits"),
        (UNTIMED, "inconclusive", "missing: its credit: not timed beside it: prompt lookup."),
    ],
)
def test_a_comparison_decides_by_measured_credit_and_never_by_speed_over_plain_decoding(
    credit: Estimate, decision: str, said: str
) -> None:
    quick = strategy(Estimate(1.2, 1.18, 1.22), answer="faster", credit=credit)
    found = compared(saving(Estimate(1.2, 1.18, 1.22)), strategies=(quick,))
    assert comparison_decision(found) == decision
    assert said in comparison_headline(found).replace("\N{NO-BREAK SPACE}", " ")


def test_a_certified_policy_that_missed_its_floor_when_decoded_is_not_said_to_pay():
    speed = Estimate(1.2, 1.18, 1.22)
    missed = strategy(Estimate(1.3, 1.25, 1.35), answer="slower", agreement=Estimate(0.80, 0.75, 0.85))
    found = compared(saving(speed), strategies=(missed,))
    assert comparison_decision(found) == "inconclusive"
    assert "it is at best 1.200 × plain decoding (1.180 to 1.220)" in comparison_headline(found)
    said = "Of 1 answer, certified on given text and below the floor when decoded, and so not said to pay: 1."
    assert said in left_over(found)
    assert "it kept 80.0\N{NO-BREAK SPACE}% of the full model" in certified_section(found)
    # Measured at a looser floor, which it kept: the stricter one it did not.
    looser = replace(missed, floor=Floor("agreement", 0.75))
    assert comparison_decision(compared(saving(speed), strategies=(looser,))) == "inconclusive"
    kept = compared(saving(speed, floor=0.75), strategies=(missed,))
    assert comparison_headline(kept).startswith("Early exit pays here: certified, it is at best 1.300 ×")
    assert "it kept" not in certified_section(kept)
    # Too slow although it kept less than it may.
    slow = strategy(Estimate(0.98, 0.97, 0.99), agreement=missed.agreement)
    assert comparison_decision(compared(saving(speed), strategies=(slow,))) == "does not pay"


def test_only_cells_that_pay_by_the_stopwatch_are_counted():
    speed, quick = Estimate(1.2, 1.18, 1.22), strategy(Estimate(1.3, 1.25, 1.35), answer="slower")
    elsewhere = [saving(speed, machine=name) for name in ("h100", "a100")]
    slow = saving(PLAIN, policy="never", machine="cpu")
    for others, said in ((elsewhere, "pays in 1 of 4 cells: "), ([], "pays in 1 of 2 cells: ")):
        found = compared(saving(speed), *others, slow, strategies=(quick,))
        assert comparison_headline(found).startswith(f"Early exit {said}certified, it is at best 1.3")


def test_one_that_surely_pays_comes_before_a_faster_one_that_may():
    sure, unsure = saving(Estimate(1.1, 1.08, 1.12)), saving(Estimate(1.3, 0.9, 1.7), machine="h100")
    timed = strategy(Estimate(1.1, 1.08, 1.12), answer="faster")
    best = best_certified(findings_of(compared(unsure, sure, strategies=(timed,))))
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
    assert "It is inconclusive whether early exit pays: by replay and without a certificate" in said
    bold = strategy(Estimate(1.3, 1.2, 1.4), "predicted", agreement=Estimate(0.42, 0.4, 0.44))
    assert "the closest agrees on 42.0 % of the tokens" in comparison_headline(compared(strategies=(bold,)))


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
    asked = parse_floor(floor) if floor else None
    one = strategy(Estimate(1.4, 1.3, 1.5), "predicted", floor=asked, agreement=agreement)
    assert (floor_kept(one) in ("kept", "perhaps")) is kept
    assert (fastest([one]) is one) is kept


def test_one_that_reaches_its_floor_comes_before_a_faster_one_that_may_have_missed_it():
    below = strategy(Estimate(1.4), "predicted", agreement=Estimate(0.94, 0.93, 0.96))
    above = strategy(Estimate(1.2), "predicted", agreement=Estimate(0.951, 0.94, 0.96))
    assert [floor_kept(one) for one in (below, above)] == ["perhaps", "kept"]
    assert fastest([below, above]) is above
    assert fastest([below]) is below


def test_what_why_no_answer_is_counted_with_its_reason():
    plain = strategy(Estimate(1.0), policy="never", defect=True)
    invalid = strategy(Estimate(1.4), policy="static:exit=1", defect=True)
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
    assert "certified, it is at best 1.132 × plain decoding; missing" in comparison_headline(found)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("faster", "only what is marked measured was timed"),
        ("defect: a wrong output", "what was timed here has a defect"),
        (None, "none was timed here"),
    ],
)
def test_what_was_timed(answer, said):
    measured = strategy(Estimate(1.1, 1.0, 1.2), answer=answer or "", defect=answer not in ("faster", None))
    found = compared(nothing(), strategies=(measured,) if answer else ())
    assert f"not over these prices; {said}." in " ".join(not_claimed(found))


def test_what_is_not_claimed():
    said = " ".join(not_claimed(examples.example_comparison()))
    assert "6 independently trained models of the 12 that it takes" in said
    assert "2 cells failed or did not run" in said
    assert "gpt2 has another tokenizer" in said
    many = examples.example_comparison(examples.more_models(12, layers=2), ("prose",))
    assert "models in general" not in " ".join(not_claimed(many))


def test_a_run_and_a_comparison_find_the_same_of_the_same_cell():
    speed = Estimate(1.08, 1.061, 1.099)
    mine = finding_of_verdict("gpt2", "prose", replace(verdict("pays", 1.08, 1.061, 1.099), basis="local"))
    measured = strategy(speed, answer="faster", agreement=Estimate(0.9625))
    row = saving(Estimate(1.02), policy="static:exit=20")
    (theirs,) = findings_of(compared(row, strategies=(replace(measured, policy=StaticExit(20)),)))
    for name in (
        "model",
        "workload",
        "machine",
        "floor",
        "decision",
        "policy",
        "certified",
        "kept",
        "measured",
    ):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert mine.timed
    assert theirs.timed
    assert mine.speedup == theirs.speedup == 1.08


@pytest.mark.parametrize(
    ("made", "certified"),
    [
        (certificate(), "executed"),
        (certificate(executed=False), "replayed"),
        (certificate(holds=False), ""),
        (None, ""),
    ],
)
def test_how_a_floor_was_shown_to_be_kept(made, certified):
    found = finding_of_verdict("gpt2", "prose", verdict("interval", certificate=made))
    assert found.certified == certified
    assert found.exits is (certified != "")
    assert (found.speed, found.measured, found.timed) == (None, None, False)


def test_the_main_findings_of_a_run_are_its_verdicts_nearest_to_95_percent():
    run = example_run()
    assert [(one.workload, one.detail) for one in main_findings(run)] == main_verdicts(run)
    floors = tuple(verdict("pays", 1.1, floor=floor) for floor in (0.99, 0.94, 0.9))
    chosen = main_verdict(replace(run.workloads[0], verdicts=floors))
    assert chosen is not None
    assert chosen.floor == 0.94


def test_what_is_certified_keeps_its_floor_whatever_few_prompts_say():
    run = decoded_run(example_run())
    first, workload = run.decoding[0], run.workloads[0]
    policy = replace(first.policies[1], floor=0.99)  # far below that on the prompts of the timing
    first = replace(first, chosen=(policy,))
    sure = replace(
        verdict("pays", 1.1, floor=0.99, policy=str(policy.policy)),
        kv=policy.kv,
        executed_agreement=Estimate(0.995, 0.985, 1.0),
    )
    for verdicts, misses in (((sure,), False), ((), True)):
        found = ways_of(first, replace(workload, verdicts=verdicts))
        assert next(one for one in found if one.exits).misses is misses


def answer(machine: str, batch: int, decision: str, floor: float = 0.95) -> MachineAnswer:
    estimate = Estimate(1.1, 1.0, 1.2)
    return MachineAnswer(
        policy=StaticExit(2), kv="propagate", quality=estimate, agreement=estimate, skip_ratio=estimate,
        net_speedup=estimate, probe_share=0.0, seconds_per_token=estimate, plain_seconds_per_token=0.01,
        machine=machine, source="source", batch=batch, floor=floor, decision=decision,
    )  # fmt: skip


def workload(**changes):
    return replace(example_run().workloads[0], **changes)


def test_ranked_by_net_speed_and_undefined_last():
    entries = answers.league()
    broken = replace(entries[0], family="broken", net_speedup=Estimate(None, undefined="no tokens"))
    found = families_at((broken, *entries), entries[0].floor)
    speeds = [entry.net_speedup.value for entry in found[:-1]]
    assert speeds == sorted(speeds, reverse=True)
    assert found[-1].family == "broken"
    assert {entry.floor for entry in found} == {0.99}


def test_machines_in_words():
    found = (
        answer("local", 1, "does not pay"),
        answer("local", 32, "does not pay"),
        answer("h100", 1, "pays"),
        answer("h100", 32, "does not pay"),
        answer("a100", 1, "pays"),
        answer("a100", 32, "pays"),
        answer("h100", 1, "inconclusive", floor=0.99),
    )
    assert machines_sentence(found) == (
        "on this machine no; on h100 yes at batch 1, no at batch 32; on a100 yes"
    )
