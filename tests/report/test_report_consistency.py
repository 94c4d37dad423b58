"""Page, terminal and summary of made-up runs with each combination of missing evidence say the same."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace

import pytest
from decoding_examples import decoded, with_decoding
from report_examples import example_run
from rich.console import Console

from consistency import contradictions, require_consistent
from offramp.kit.typed import to_json
from offramp.policies.grammar import parse_policy
from offramp.report.page import print_summary, render
from offramp.report.run_result import RunResult
from offramp.report.summary import summarise
from offramp.scoring.estimate import Estimate
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.verdict import Speed, Verdict

POLICY, KV = "threshold:signal=margin,value=0.9,exits=20+25", "propagate"
MEASUREMENT = decoded("prose", POLICY, others=False)
TIMED = MEASUREMENT.bench.main.ratio
assert TIMED is not None
OPEN = Certificate(
    method="wsr", guarantee="", holds=False, delta=0.1, documents=120, empirical_risk=None, risk_bound=None,
    best_floor=0.95, documents_needed=59, tested=1, passed=0, assumption="", executed=True, kv=KV,
    prompt_tokens=32, new_tokens=16, stopped_after=56,
)  # fmt: skip
CERTIFICATES = {
    "none": None,
    "bound": replace(OPEN, executed=False, holds=True, stopped_after=None),
    "untested": replace(OPEN, tested=0, stopped_after=None),
    "few": replace(OPEN, documents=12, tested=0, stopped_after=None),
    "open": OPEN,
    "holds": replace(OPEN, holds=True, passed=1, empirical_risk=0.02),
}
SPEEDS = {
    "none": None,
    "predicted": Speed(1.12, 1.1, 1.14, "predicted", "local", True),
    "measured": Speed(TIMED.value, TIMED.low, TIMED.high, "measured", "local", True, 60.0),
}


def made(certificate: str, speed: str, *, tried: bool, outcome: str) -> RunResult:
    """One text at its floors, with so much evidence."""
    run = example_run()
    workload = run.workloads[0]
    settled = CERTIFICATES[certificate]
    candidate = Candidate(parse_policy(POLICY), KV, 0.98, 0.955, 0.9632, 56, 1.12, False, "time used up")

    def verdict(one: Verdict) -> Verdict:
        exits = certificate in ("none", "bound", "holds")
        return replace(
            one,
            outcome=outcome,
            policy=parse_policy(POLICY if exits else "never"),
            kv=KV if exits and settled is not None else None,
            certificate=settled,
            executed_agreement=Estimate(0.981, 0.97, 0.99) if certificate == "holds" else None,
            speed=SPEEDS[speed] if exits or tried else None,
            credit=Estimate(1.06) if speed != "none" and (exits or tried) else None,
            tried=candidate if tried else None,
            missing=() if outcome == "does not pay" else ("time to decode the documents that are at hand",),
        )

    workload = replace(workload, verdicts=tuple(map(verdict, workload.verdicts)), tuned=())
    run = replace(run, workloads=(workload,))
    if speed != "measured":
        return with_decoding(run, prose="the time was used up")
    return with_decoding(run, MEASUREMENT)


EVIDENCE = [
    (certificate, speed, tried, outcome)
    for certificate, speed, tried in itertools.product(CERTIFICATES, SPEEDS, (False, True))
    for outcome in ("does not pay", "interval", "data")
    if not (tried and certificate != "open")
    and not (speed == "measured" and certificate in ("none", "bound", "untested", "few"))
]


@pytest.mark.parametrize(("certificate", "speed", "tried", "outcome"), EVIDENCE)
def test_no_text_says_more_than_the_records(certificate: str, speed: str, tried: bool, outcome: str) -> None:
    require_consistent(made(certificate, speed, tried=tried, outcome=outcome))


def test_the_made_up_run_is_consistent() -> None:
    require_consistent(example_run())


@pytest.mark.parametrize("recorded", [Estimate(0.5), None])
def test_what_the_page_says_of_the_untransformed_model_is_the_record(recorded: Estimate | None) -> None:
    run = example_run()
    workload = run.workloads[0]
    kept = tuple(replace(one, reference_agreement=Estimate(0.113)) for one in workload.verdicts)
    run = replace(run, workloads=(replace(workload, verdicts=kept), *run.workloads[1:]))
    require_consistent(run)
    other = json.loads(json.dumps(summarise(run)))
    for row in other["verdict"]["by_workload"]:
        row["reference_agreement"] = None if recorded is None else to_json(recorded)
    out = io.StringIO()
    print_summary(run, Console(file=out, width=2000))
    assert any("untransformed" in found for found in contradictions(other, render(run), out.getvalue()))
