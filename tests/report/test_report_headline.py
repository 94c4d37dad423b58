"""One plain sentence for every decision."""

from dataclasses import replace

import pytest
from report_examples import example_run

from offramp.policies.cost_breakdown import Gain
from offramp.report.caveats import caveats
from offramp.report.findings import main_verdict, run_decision
from offramp.report.headline import grounds_of, headline, short_answer
from offramp.scoring.estimate import Estimate
from offramp.tuning.certificate import Certificate
from offramp.tuning.verdict import Speed, Verdict


def certificate(*, holds: bool = True, executed: bool = True) -> Certificate:
    return Certificate(
        method="wsr", guarantee="", holds=holds, delta=0.05, documents=96, empirical_risk=0.02,
        risk_bound=0.05, best_floor=0.97, documents_needed=60, tested=1, passed=int(holds), assumption="",
        executed=executed, kv="propagate", prompt_tokens=32, new_tokens=16, stopped_after=61,
    )  # fmt: skip


def verdict(
    decision,
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
        decision=decision,
        reason="because of the reason given",
        missing=(),
        policy=policy,
        kv="propagate",
        certificate=certificate(),
        executed_agreement=Estimate(0.9625),
        speed=None if value is None else Speed(value, low, high, how, "local", True),
        replayed_policy=policy,
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
        "; saves of plain decoding: layers +0.6 %, head +4.7 %, probes 0.0 %; beside plain decoding with its "
        "output head cut to the short list it is 0.6 % faster."
    )
    own = headline(run_with(verdict("pays", 1.12, 1.1, 1.14, gain=Gain(0.11, 0.0, -0.003))))
    assert own.endswith("; saves of plain decoding: layers +11.0 %, head 0.0 %, probes −0.3 %.")


def run_with(*verdicts: Verdict):
    run = example_run()
    workloads = [replace(w, verdicts=(v,)) for w, v in zip(run.workloads, verdicts, strict=False)]
    return replace(run, workloads=tuple(workloads))


@pytest.mark.parametrize(
    ("verdicts", "decision", "sentence"),
    [
        (
            [verdict("pays", 1.08, 1.061, 1.099)],
            "pays",
            "Early exit pays for smollm2 on prose: at 95 % agreement it keeps 96.25 % as executed "
            "(certified ≥ 95 %, 61 documents), measured 1.080 × (1.061 to 1.099 ×): 6.1 to 9.9 % faster; "
            "you count more than 5 % as worth it.",
        ),
        (
            [verdict("pays", 1.2, 1.1, 1.3), verdict("pays", 1.1, 1.08, 1.12)],
            "pays",
            "Early exit pays for smollm2 on prose and code: at 95 % agreement it even on code, the weakest "
            "of them, keeps 96.25 % as executed (certified ≥ 95 %, 61 documents), measured 1.100 × (1.080 "
            "to 1.120 ×): 8.0 to 12.0 % faster; you count more than 5 % as worth it.",
        ),
        (
            [verdict("does not pay", 1.03, 1.02, 1.04)],
            "does not pay",
            "Early exit does not pay for smollm2 on prose: at 95 % agreement the best policy keeps 96.25 % "
            "as executed (certified ≥ 95 %, 61 documents), measured 1.030 × (1.020 to 1.040 ×): 2.0 to 4.0 "
            "% faster; you count more than 5 % as worth it.",
        ),
        (
            [verdict("does not pay", policy="never", certificate=certificate(holds=False))],
            "does not pay",
            "Early exit does not pay for smollm2 on prose: at 95 % agreement nothing faster than plain "
            "decoding keeps the floor as executed.",
        ),
        (
            [verdict("does not pay", policy="never", certificate=None)],
            "does not pay",
            "Early exit does not pay for smollm2 on prose: at 95 % agreement no policy, replayed on the "
            "measurement, is faster than plain decoding.",
        ),
        (
            [
                verdict(
                    "too close to call", 1.09, 1.07, 1.11, how="predicted", certificate=None,
                    executed_agreement=None, missing=("an executed certificate",),
                )
            ],
            "too close to call",
            "It is too close to call whether early exit pays for smollm2 on prose: at 95 % agreement the "
            "best policy keeps 96 % in replay (not executed), predicted for this machine 1.090 × (1.070 to "
            "1.110 ×): 7.0 to 11.0 % faster; you count more than 5 % as worth it; missing: an executed "
            "certificate.",
        ),
        (
            [verdict("too close to call", policy="never", missing=("documents: 12 at hand, 46 needed",))],
            "too close to call",
            "It is too close to call whether early exit pays for smollm2 on prose: at 95 % agreement nothing "
            "could be certified; missing: documents: 12 at hand, 46 needed.",
        ),
        (
            [verdict("pays", 1.12, 1.1, 1.14), verdict("does not pay", policy="never")],
            "depends on the text",
            "For smollm2 at 95 % agreement, early exit pays on prose (keeps 96.25 % as executed (certified "
            "≥ 95 %, 61 documents), measured 1.120 × (1.100 to 1.140 ×)), does not pay on code (nothing "
            "faster is certified).",
        ),
    ],
)  # fmt: skip
def test_sentences(verdicts, decision, sentence):
    run = run_with(*verdicts)
    assert run_decision(run) == decision
    assert headline(run) == sentence
    assert " ".join([short_answer(run), grounds_of(run)]).count("95 %") >= 1
    assert headline(run).startswith(short_answer(run).rstrip(".").split(" on ")[0])


def test_the_answer_alone_is_short_and_its_grounds_stand_below():
    run = run_with(verdict("pays", 1.12, 1.1, 1.14), verdict("does not pay", policy="never"))
    assert short_answer(run) == (
        "For smollm2 at 95 % agreement, early exit pays on prose, does not pay on code."
    )
    assert grounds_of(run) == (
        "prose: keeps 96.25 % as executed (certified ≥ 95 %, 61 documents), measured 1.120 × (1.100 to "
        "1.140 ×); code: nothing faster is certified."
    )


def test_no_verdict_at_all():
    run = replace(example_run(), workloads=tuple(replace(w, verdicts=()) for w in example_run().workloads))
    assert run_decision(run) == "undefined"
    assert headline(run) == "There is no verdict for smollm2: no policy could be judged on these workloads."


def test_the_main_floor_is_the_one_nearest_to_95():
    workload = example_run().workloads[0]
    floors = [verdict("pays", 1.1, floor=floor) for floor in (0.99, 0.94, 0.9)]
    chosen = main_verdict(replace(workload, verdicts=tuple(floors)))
    assert chosen is not None
    assert chosen.floor == 0.94


def test_caveats_name_what_is_missing_lost_documents_and_notes():
    run = run_with(verdict("too close to call", 1.1, missing=("documents",)))
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


def test_a_headline_over_two_texts_says_what_chance_it_spends():
    notes = "\n".join(caveats(run_with(verdict("pays", 1.1, 1.08, 1.12), verdict("pays", 1.2, 1.1, 1.3))))
    assert "each certificate spends a chance of 0.05 to be wrong, all of them together 0.1." in notes


def test_a_verdict_on_few_documents_says_so():
    few = "prose what is replayed rests on 19 documents of 64 tokens; 20 are needed for an interval"
    made = verdict("does not pay", policy="never", report_documents=19)
    assert few in "\n".join(caveats(run_with(made)))
    assert "rests on" not in "\n".join(caveats(run_with(replace(made, report_documents=20))))
