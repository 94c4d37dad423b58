"""Ranking, certificate and machines in one line each."""

from dataclasses import replace

import answer_examples as answers
from report_examples import example_run

from offramp.report.headline import certificate_answer, families_answer, machines_answer, machines_sentence
from offramp.report.ranking import best_family, families_at
from offramp.scoring.estimate import Estimate
from offramp.tuning.ranking import MachineAnswer
from offramp.tuning.verdict import from_main


def answer(machine: str, batch: int, decision: str, floor: float = 0.95) -> MachineAnswer:
    estimate = Estimate(1.1, 1.0, 1.2)
    return MachineAnswer(machine, "source", batch, floor, "static:exit=2", decision, estimate, estimate, 0.01)


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


def test_the_best_is_never_an_oracle():
    entries = answers.league()
    best = best_family(workload(league=entries))
    assert best is not None
    assert best.reachable
    assert best.floor == 0.95
    fastest = max(e.net_speedup.value for e in entries if e.floor == 0.95 and e.reachable)
    assert best.net_speedup.value == fastest
    oracles = tuple(entry for entry in entries if not entry.reachable)
    assert best_family(workload(league=oracles)) is None
    # The one that was chosen, though another was faster on the documents that judge.
    slower = next(
        entry for entry in entries if entry.reachable and entry.floor == best.floor and entry != best
    )
    chosen = [replace(entry, chosen=entry == slower) for entry in entries]
    assert best_family(workload(league=chosen)) == replace(slower, chosen=True)


def test_league_in_words():
    entry = answers.league_entry("patience", "patience:times=2", 0.9, 0.1, 0.0)
    entry = replace(entry, net_speedup=Estimate(1.05, 1.01, 1.09), probe_share=0.125)
    assert families_answer(workload(league=(entry,))) == (
        "patience, 1.050 × (1.010 to 1.090 ×) at 90 % agreement, probes are 12.5 % of its cost"
    )
    never = replace(entry, policy="never")
    assert families_answer(workload(league=(never,))) == "nothing beats plain decoding at 90 % agreement"
    undefined = replace(entry, net_speedup=Estimate(None, undefined="no tokens"))
    assert families_answer(workload(league=(undefined,))) == "no speed at 90 % agreement: no tokens"
    assert families_answer(workload(league=())) is None


def test_the_floor_nearest_to_95():
    assert min([0.99, 0.9, 0.94], key=from_main) == 0.94


def test_machines_in_words():
    found = (
        answer("local", 1, "does not pay"),
        answer("local", 32, "does not pay"),
        answer("h100", 1, "pays"),
        answer("h100", 32, "does not pay"),
        answer("a100", 1, "pays"),
        answer("a100", 32, "pays"),
        answer("h100", 1, "too close to call", floor=0.99),
    )
    assert machines_sentence(found) == (
        "on this machine no; on h100 yes at batch 1, no at batch 32; on a100 yes"
    )
    assert machines_answer(workload(machines=found)) == (
        "on this machine no; yes on h100 at batch 1, a100 at batch 1 and 32"
    )


def test_machines_in_words_without_a_yes():
    found = (
        answer("h100", 1, "too close to call"),
        answer("l4", 1, "too close to call"),
        answer("l4", 8, "does not pay"),
    )
    assert machines_answer(workload(machines=found)) == "too close to call on h100 and l4 at batch 1"
    refused = (answer("local", 1, "does not pay"), answer("l4", 8, "does not pay"))
    assert machines_answer(workload(machines=refused)) == "on this machine no; no on l4"
    assert machines_answer(workload(machines=())) is None


def test_every_floor_tried_is_named():
    assert certificate_answer(example_run().workloads[0]) == (
        "99 % agreement: not certifiable (15 documents, 230 needed); 90 % agreement: replay bound on 300 "
        "documents, 3.4 % faster"
    )
    assert certificate_answer(workload(tuned=())) is None
