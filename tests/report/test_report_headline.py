"""One plain sentence for every decision."""

from dataclasses import replace

import pytest
from report_examples import example_run

from offramp.report.basis import REPAIR_NOTE
from offramp.report.headline import caveats, headline, main_verdict, overall_decision
from offramp.scoring.estimate import Estimate
from offramp.tuning.results import Verdict


def verdict(
    decision, value, low=None, high=None, *, policy="static:exit=20", floor=0.95, **changes
) -> Verdict:
    made = Verdict(
        floor=floor,
        decision=decision,
        reason="because of the reason given",
        policy=policy,
        agreement=Estimate(0.96, 0.95, 0.97),
        skip_ratio=Estimate(0.1),
        net_speedup=Estimate(
            value, low, high, None if value is not None else "no tokens", changes.pop("none", None)
        ),
        net_speedup_flops=Estimate(value),
        fit_agreement=0.96,
        fit_documents=32,
        report_documents=32,
        documents_needed=45,
        floor_held=True,
    )
    return replace(made, **changes)


def run_with(*verdicts: Verdict):
    run = example_run()
    workloads = [replace(w, verdicts=(v,)) for w, v in zip(run.workloads, verdicts, strict=False)]
    return replace(run, workloads=tuple(workloads))


@pytest.mark.parametrize(
    ("verdicts", "decision", "sentence"),
    [
        (
            [verdict("does not pay", 1.013, 1.01, 1.016)],
            "does not pay",
            "Early exit would not pay for smollm2 on prose: at 95 % agreement the best policy is "
            "predicted to decode "
            "only 1.3 % faster, less than the 5 % that would make it worth the trouble.",
        ),
        (
            [verdict("does not pay", 1.0, policy="never")],
            "does not pay",
            "Early exit would not pay for smollm2 on prose: at 95 % agreement no policy replayed on the "
            "measurement "
            "moves fewer bytes per token than the full model, so the best choice is never to exit.",
        ),
        (
            [verdict("does not pay", 1.0, policy="never", basis="local")],
            "does not pay",
            "Early exit would not pay for smollm2 on prose: at 95 % agreement no policy replayed on the "
            "measurement is predicted to take less time per token than the full model, so the best choice is "
            "never to exit.",
        ),
        (
            [verdict("does not pay", 0.98, 0.97, 0.99)],
            "does not pay",
            "Early exit would not pay for smollm2 on prose: at 95 % agreement even the best policy is "
            "predicted to be "
            "2.0 % slower than plain decoding.",
        ),
        (
            [verdict("pays", 1.12, 1.1, 1.14)],
            "pays",
            "Early exit would pay for smollm2 on prose: at 95 % agreement, replayed on unseen documents, "
            "the best "
            "policy is predicted to decode 12.0 % faster (10.0 to 14.0 %).",
        ),
        (
            [verdict("pays", 1.2, 1.1, 1.3), verdict("pays", 1.1, 1.08, 1.12)],
            "pays",
            "Early exit would pay for smollm2 on prose and code: at 95 % agreement, replayed on unseen "
            "documents, the "
            "best policy is even on code, the weakest of them, predicted to decode 10.0 % faster (8.0 to "
            "12.0 %).",
        ),
        (
            [verdict("too close to call", 1.06, 1.02, 1.1)],
            "too close to call",
            "It is too close to call whether early exit would pay for smollm2 on prose: at 95 % "
            "agreement the best "
            "policy is predicted to decode 6.0 % faster, but anything from 2.0 to 10.0 % fits the "
            "documents seen.",
        ),
        (
            [verdict("too close to call", 1.06, none="12 documents, 20 needed")],
            "too close to call",
            "It is too close to call whether early exit would pay for smollm2 on prose: at 95 % "
            "agreement the best "
            "policy is predicted to decode 6.0 % faster, without an interval: 12 documents, 20 needed.",
        ),
        (
            [
                verdict(
                    "too close to call",
                    1.2,
                    1.1,
                    1.3,
                    agreement=Estimate(0.931, 0.92, 0.94),
                    floor_held=False,
                )
            ],
            "too close to call",
            "It is too close to call whether early exit would pay for smollm2 on prose: the best policy is "
            "predicted to decode 20.0 % faster (10.0 to 30.0 %), but it kept 93.1 % agreement on unseen "
            "documents where 95 % was asked for.",
        ),
        (
            [verdict("too close to call", None)],
            "too close to call",
            "It is too close to call whether early exit would pay for smollm2 on prose: its speed at 95 % "
            "agreement is undefined: no tokens.",
        ),
        (
            [verdict("pays", 1.12, 1.1, 1.14), verdict("does not pay", 1.0, policy="never")],
            "depends on the text",
            "For smollm2, early exit would pay on prose (12.0 % faster), would not pay on code (never "
            "exits): "
            "predicted decoding speed at 95 % agreement.",
        ),
    ],
)
def test_sentences(verdicts, decision, sentence):
    run = run_with(*verdicts)
    assert overall_decision(run) == decision
    assert headline(run) == sentence


def test_no_verdict_at_all():
    run = replace(example_run(), workloads=tuple(replace(w, verdicts=()) for w in example_run().workloads))
    assert overall_decision(run) == "undefined"
    assert headline(run) == "There is no verdict for smollm2: no policy could be judged on these workloads."


def test_the_main_floor_is_the_one_nearest_to_95():
    workload = example_run().workloads[0]
    floors = [verdict("pays", 1.1, floor=floor) for floor in (0.99, 0.94, 0.9)]
    chosen = main_verdict(replace(workload, verdicts=tuple(floors)))
    assert chosen is not None
    assert chosen.floor == 0.94


def test_caveats_name_broken_floors_lost_documents_and_notes():
    run = run_with(verdict("pays", 1.1, floor_held=False, agreement=Estimate(0.931)))
    workload = run.workloads[0]
    trace = workload.trace.subset(range(64))
    broken = replace(trace.documents[3], valid=False, reason="NaN logit at layer 7, position 12")
    trace.documents = (*trace.documents[:3], broken, *trace.documents[4:])
    run = replace(run, workloads=(replace(workload, trace=trace, notes=("fewer tokens than asked",)),))
    notes = "\n".join(caveats(run))
    assert "not decoded" in notes.lower() or "No policy was decoded" in notes
    assert "not held on unseen ones: 93.1 %" in notes
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


@pytest.mark.parametrize(
    ("basis", "words"),
    [
        ("bytes moved", "predicted from the bytes each token moves through memory."),
        ("local", "predicted from the times of layers, probes and head measured on this machine."),
        ("h100", "predicted from the times of layers, probes and head that the profile of h100 gives."),
    ],
)
def test_the_first_caveat_says_what_the_speed_rests_on(basis, words):
    first = caveats(run_with(verdict("pays", 1.1, basis=basis)))[0]
    assert first.startswith("No policy was decoded for real")
    assert first.endswith(words)


def test_a_verdict_on_few_documents_says_so():
    few = "prose the verdict rests on 19 documents; 20 are needed for an interval"
    made = verdict("does not pay", 1.0, policy="never", report_documents=19)
    assert few in "\n".join(caveats(run_with(made)))
    assert REPAIR_NOTE in caveats(run_with(replace(made, policy="static:exit=4")))
    assert REPAIR_NOTE not in caveats(run_with(made))
    assert "rests on" not in "\n".join(caveats(run_with(replace(made, report_documents=20))))
