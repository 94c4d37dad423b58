"""The league: what is saved and spent adds up to the net speed; winners and losers are named."""

import re
from dataclasses import replace
from html import unescape

import answer_examples as answers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import example_run

from offramp.policies import cost_breakdown
from offramp.policies.cost_breakdown import Gain
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.rules.fixed import StaticExit
from offramp.policies.short_names import short_name
from offramp.report.answer_words import credit_sentence, credits_of
from offramp.report.sections.families import (
    PARTS,
    SHOWN,
    Balance,
    BalancePart,
    balance_of,
    families_section,
    parts_of,
    reach_of,
    summary_of,
)
from offramp.report.summary import summarise
from offramp.scoring.estimate import Estimate


def section(*entries):
    return families_section(replace(example_run().workloads[0], league=entries))


@given(
    layers=st.floats(0.01, 0.1),
    probes=st.floats(0.0, 0.5),
    repair=st.floats(0.0, 0.02),
    plain=st.floats(0.01, 0.1),
    apart=st.booleans(),
)
def test_saved_and_spent_add_up_to_the_net_change(layers, probes, repair, plain, apart):
    parts = {"layers": layers, "K,V projection": repair, "probe": probes, "final head": 0.008}
    seconds = sum(parts.values())
    entry = replace(
        answers.league_entry("x", "static:exit=2", 0.95, 0.1, probes),
        net_speedup=Estimate(plain / seconds),
        seconds_per_token=Estimate(seconds),
        probe_seconds=probes,
        probe_share=probes / seconds,
        parts=parts if apart else {},
    )
    balance = balance_of(entry)
    assert balance is not None
    spent = sum(part.cost for part in balance.spent)
    assert balance.change.value == pytest.approx(seconds / plain - 1)
    assert spent - balance.saved == pytest.approx(balance.change.value, abs=1e-9)
    assert balance.saved >= 0
    drawn = {part.name: part.cost for part in parts_of(entry)}
    assert sum(drawn.values()) == pytest.approx(seconds / plain)
    assert drawn["probes"] == pytest.approx(probes / plain)


def test_an_interval_of_speed_becomes_one_of_time():
    entry = replace(
        answers.league_entry("x", "static:exit=2", 0.95, 0.1, 0.0), net_speedup=Estimate(1.25, 1.0, 2.0)
    )
    balance = balance_of(entry)
    assert balance is not None
    change = balance.change
    assert (change.value, change.low, change.high) == pytest.approx((-0.2, -0.5, 0.0))


def test_a_row_by_hand():
    spent = (BalancePart("probes", 0.2, 1),)
    row = Balance("x", 0.1, spent, Estimate(0.1, 0.05, 0.15)).row((-0.2, 0.4))
    bars, net = row.tracks
    assert [(bar.start, bar.end, bar.colour) for bar in bars.bars] == [
        pytest.approx((-0.1, 0.0, 0)),
        pytest.approx((0.0, 0.1 + 0.1, 1)),
    ]
    assert net.points[0].figure == Estimate(0.1, 0.05, 0.15)
    assert row.text == "+10.0 %"


def test_what_remains_beyond_the_axis_is_said_and_not_drawn():
    slow = Balance("x", 0.1, (BalancePart("probes", 5.0, 1),), Estimate(4.9))
    low, high = reach_of([slow])
    assert low <= -0.1  # savings are seen beside a very slow policy
    assert high == pytest.approx(0.3)
    row = slow.row((low, high))
    assert (len(row.tracks), row.text) == (1, "+490.0 %")
    assert reach_of([])[0] < 0 < reach_of([])[1]


def test_every_part_of_a_cost_has_a_colour():
    assert set(cost_breakdown.PARTS) <= set(PARTS)


def test_the_summary_names_the_best_the_slowest_and_their_probes():
    best = replace(
        answers.league_entry("classifier", "static:exit=2", 0.95, 0.1, 0.0),
        net_speedup=Estimate(1.08, 1.06, 1.1),
        skip_ratio=Estimate(0.1),
        probe_share=0.002,
    )
    slow = replace(best, family="full head", net_speedup=Estimate(0.2, 0.19, 0.21), probe_share=0.81)
    said = summary_of([best, slow], 0.95, "time")
    for words in (
        "1 of 2 families is faster than plain decoding. The best, classifier, is 8.0 % faster (+6.0 to +10",
        "spends 0.2 % of its time on probes. The slowest, full head, takes 5.0 × the time",
    ):
        assert words in said
    assert summary_of([slow], 0.95, "time").startswith(
        "At 95 % agreement the one family that exits is not faster"
    )
    never = replace(best, policy=PLAIN_DECODING, net_speedup=Estimate(1.0))
    assert "no family has a policy that beats the full model" in summary_of([never], 0.95, "time")


SHORT = "shortlist:policy=[never],at=all"


def short_entries():
    """A short list at full depth, and an early exit that rides on it."""
    made = answers.league_entry("short list at full depth", SHORT, 0.95, 0.0, 0.0)
    alone = replace(
        made,
        net_speedup=Estimate(1.05, 1.05, 1.05),
        gain=Gain(0.0, 0.047, 0.0),
        full_depth=True,
        rank=2,
    )
    policy = "shortlist:policy=[static:exit=28],at=all"
    exits = replace(
        alone,
        family="short list everywhere: static exit",
        policy=policy,
        net_speedup=Estimate(1.056, 1.05, 1.06),
        gain=Gain(0.006, 0.047, -0.0001),
        full_depth=False,
        rank=1,
    )
    return exits, alone


def test_a_smaller_head_is_no_early_exit_and_is_set_against_it():
    exits, alone = short_entries()
    html = section(exits, alone)
    shown = re.sub("<[^>]*>", " ", html).replace("\u00a0", " ")
    assert "At 95 % agreement the one family that exits is faster than plain decoding." in shown
    assert (
        "In replay, without any early exit, the full model with its output head cut to the short list is 5.0 "
        "% faster. The best early exit, 5.6 % faster than plain decoding, would be credited with what it "
        "adds to that: 0.6 % faster."
    ) in shown
    assert "layers +0.6 %, head +4.7 %, probes 0.0 %" in shown
    alone_too = re.sub("<[^>]*>", " ", section(alone)).replace("\u00a0", " ")
    assert "No early exit holds 95 % agreement" in alone_too
    assert "no family has a policy that beats the full model" in alone_too
    assert "credited" not in section(replace(exits, rank=None), replace(alone, rank=None))


def test_without_a_smaller_head_the_gain_is_early_exits_own():
    exits, _ = short_entries()
    (credit,) = credits_of([replace(exits, policy=StaticExit(28), net_speedup=Estimate(1.02))])
    assert "is its own: 2.0 % faster" in credit_sentence(credit)
    run = example_run()
    short = replace(run, workloads=(replace(run.workloads[0], league=tuple(short_entries())),))
    (value,) = summarise(short)["credit"]
    assert value["ratio"] == pytest.approx(1.056 / 1.05)
    assert (value["without"], value["without_speedup"], value["workload"]) == (SHORT, 1.05, "prose")


def test_rows_are_ranked_and_oracles_stand_apart():
    html = families_section(example_run().workloads[0])
    ranks = [int(rank) for rank in re.findall(r'<th scope="row">(\d+)\. ', html)]
    assert ranks == list(range(1, SHOWN + 1))
    assert f"{SHOWN} of {len(answers.FAMILIES)}; summary.json has all" in html
    apart = html.index("Out of reach")
    assert all(html.rindex(name) > apart for name, _, _ in answers.ORACLES)
    ranked = sorted(
        (e for e in example_run().workloads[0].league if e.floor == 0.95 and e.rank), key=lambda e: e.rank
    )
    for entry in [entry for entry in ranked if entry.reachable][:SHOWN]:
        assert re.sub("([,:+])", r"\1<wbr>", str(entry.policy)) in html
        assert short_name(entry.policy) in unescape(html).replace("\u00a0", " ")


def test_an_undefined_speed_is_a_reason_and_no_bar_and_without_a_league_there_is_nothing():
    entry = replace(
        answers.league_entry("x", "static:exit=2", 0.95, 0.1, 0.0),
        net_speedup=Estimate(None, undefined="no tokens"),
    )
    html = section(entry)
    assert "<svg" not in html
    assert "no tokens" in html
    assert not re.search(r"\bnan\b|\binf\b", html)
    assert section() == ""


def test_a_league_in_bytes_does_not_speak_of_time():
    workload = example_run().workloads[0]
    verdicts = tuple(replace(v, basis="bytes moved") for v in workload.verdicts)
    html = families_section(replace(workload, verdicts=verdicts))
    assert "of its bytes on probes" in html
    assert " time" not in re.sub("<[^>]*>", "", html)
    assert "of its time on probes" in families_section(
        replace(workload, verdicts=tuple(replace(v, basis="local") for v in verdicts))
    )
