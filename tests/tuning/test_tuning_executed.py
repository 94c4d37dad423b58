"""The tuner by execution, with a scripted model: what it reruns and decodes is known exactly."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tuning_traces import easy_and_hard

from offramp.costs.machine_registry import find_machine
from offramp.costs.token import TokenCosts
from offramp.errors import InputError
from offramp.kit.typed import from_json, to_json
from offramp.models.shape import EncoderShape
from offramp.policies.charge import Charge, Units, prices_for, run_of
from offramp.policies.decisions import Decisions, probed_facts, replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.replay import replay
from offramp.policies.whole_request import WholeRequest
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import Estimate
from offramp.scoring.text_quality import TextQuality
from offramp.tracing.trace import Trace
from offramp.tuning import proposals as proposals_module
from offramp.tuning.baseline import PLAIN, Baseline
from offramp.tuning.bounds import METHODS, Losses, fewest_documents, refuted, settle
from offramp.tuning.certificate import policy_losses
from offramp.tuning.executed import DecodingLimits
from offramp.tuning.fixed_sequence import Deadline, FixedSequence, Proposal, Rerun, chosen_trial
from offramp.tuning.floor import SHARES, FloorKind, make_floor
from offramp.tuning.proposals import FORETOLD, RERUNS, Proposals
from offramp.tuning.replayed_verdicts import judge
from offramp.tuning.splits import split_roles
from offramp.tuning.tune import tune, tune_floors
from offramp.tuning.tuned import Tuned, read_tuned, write_tuned
from offramp.tuning.verdict import INCONCLUSIVE
from offramp.tuning.verdict import settle as settle_verdict
from offramp.workloads.shared_text import write_sketch

AGREEMENT, REFERENCE = (make_floor({kind: 0.9}) for kind in SHARES)


def rule(policy: ExitPolicy) -> str:
    """A policy without its thresholds, which do not matter for whether a model can decode with it."""
    return re.sub(r"values?=[^,\]]*", "", str(policy))


@dataclass
class Scripted:
    """A model whose approximate K and V multiply a policy's replayed losses by `drift`.

    executed: (policy, kv) to the mean loss that its decoded documents have. kind: of the floor it judges.
    """

    trace: Trace
    executed: Callable[[ExitPolicy, str], float]
    drift: float = 2.0
    strategies: tuple[str, ...] = ("propagate", "recompute", "monotone")
    documents: int = 400
    prompt_tokens: int | None = 32
    new_tokens: int = 16
    left_out: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    kind: FloorKind = "agreement"
    reruns: list[tuple[str, str]] = field(default_factory=list)
    decoded: list[tuple[str, str, int, int]] = field(default_factory=list)
    fresh: list[tuple[int, int]] = field(default_factory=list)
    texts: int | None = None
    """Documents that say what is to be written, None where none does."""
    judged: list[tuple[str, str, int, int]] = field(default_factory=list)

    def tuned(self, floor: float = 0.9, **options: Any) -> Tuned:
        """What tuning the trace for an H100 by this model gives."""
        return tune(self.trace, {self.kind: floor}, "h100", executor=self, **options)

    def certified_on(self, documents: int) -> dict[str, str]:
        return {
            f"opening {number}": write_sketch(np.array([number, 0], np.uint32)) for number in range(documents)
        }

    def can(self, policy: ExitPolicy, kv: str) -> bool:
        refused = {(rule(text), of) for text, of in self.refused}
        return (rule(str(policy)), kv) not in refused and (kv != "monotone" or policy.never_deepens)

    def rerun(self, policy: ExitPolicy, kv: str, documents: NDArray[np.int64]) -> Rerun:
        held = self.trace.subset(documents)
        losses = policy_losses(held, policy, AGREEMENT)
        of_reference = policy_losses(held, policy, REFERENCE) if self.kind != "agreement" else None
        free = kv in ("recompute", "monotone")
        if not free:
            self.reruns.append((str(policy), kv))
            losses = np.minimum(self.drift * losses, 1.0)
        return Rerun(held, replay_decisions(policy, held), losses, free, of_reference)

    def losses(self, policy: ExitPolicy, kv: str, first: int, last: int) -> Losses:
        self.decoded.append((str(policy), kv, first, last))
        rng = np.random.default_rng(len(str(policy)))
        mean = self.executed(policy, kv)
        return (rng.binomial(16, mean, 1000) / 16)[first:last]

    def exits(self, policy: ExitPolicy, kv: str, documents: int) -> list[tuple[int, ...]]:
        exit, layers = min(policy.leaves_at(self.trace.layers), default=1), self.trace.layers
        return [(layers, *([exit] * (1 + place % 2)), layers) for place in range(documents)]

    def fresh_losses(self, policy: ExitPolicy, kv: str, seen: int, most: int) -> Losses:
        self.fresh.append((seen, most))
        return np.full(most, self.executed(policy, kv))

    def text_quality(self, policy: ExitPolicy, kv: str, seen: int, most: int) -> TextQuality | None:
        self.judged.append((str(policy), kv, seen, most))
        if self.texts is None:
            return None
        rate = Estimate(0.25)
        return TextQuality(
            measure="exact match",
            normaliser=None,
            full=rate,
            policy=rate,
            difference=Estimate(0.0),
            documents=min(most, self.texts),
            new_tokens=16,
            full_cut=0,
            policy_cut=0,
        )


@pytest.fixture(scope="module")
def trace() -> Trace:
    return easy_and_hard(100, wrong=0.02)


def lossless(policy: ExitPolicy, kv: str) -> float:
    return 0.0


@pytest.fixture(scope="module")
def passing(trace: Trace) -> tuple[Tuned, Scripted]:
    executor = Scripted(trace, lossless)
    return executor.tuned(), executor


def test_the_gain_is_split_as_the_speed_has_it(passing: tuple[Tuned, Scripted]) -> None:
    tuned, _ = passing
    assert tuned.gain is not None
    assert tuned.net_speedup.value is not None
    assert tuned.gain.total == pytest.approx(1.0 - 1.0 / tuned.net_speedup.value)
    assert tuned.gain.layers > 0 > tuned.gain.probes


def test_what_passes_is_certified_as_executed(passing: tuple[Tuned, Scripted]) -> None:
    tuned, executor = passing
    certificate = tuned.certificate
    assert certificate.holds
    assert certificate.executed
    assert tuned.kv == certificate.kv
    # By hand: with every bet at its limit 23 documents without a loss certify 0.1 at 0.1, and no fewer.
    assert certificate.stopped_after == 23
    assert (certificate.documents, certificate.documents_needed) == (88, 22)
    assert (certificate.prompt_tokens, certificate.new_tokens) == (32, 16)
    assert (certificate.empirical_risk, certificate.risk_bound) == (0.0, pytest.approx(0.1))
    said = f"{tuned.policy}, keys and values by {tuned.kv}, is certified after 23 documents of up to 16 "
    assert said in tuned.answer
    assert "at least 90 % of the tokens it generates are the full model's choice" in tuned.answer
    assert "executed agreement 100.0 % (100.0 to 100.0) on documents that chose nothing" in tuned.answer
    for assumed in (
        "from the first 32 tokens of documents drawn like those of texts, at most 16 new tokens of each",
        f"keys and values of skipped layers by {tuned.kv}",
        "documents of the trace, which an older offramp made, are taken to share no text",
    ):
        assert assumed in certificate.assumption
    # Only documents that no test looked at say what is kept.
    assert executor.fresh == [(23, 8), (23, 16), (23, 24), (23, 32)]
    assert tuned.executed_agreement is not None
    assert tuned.executed_agreement.value == 1.0


def test_candidates_go_from_cautious_to_bold_and_get_faster(passing: tuple[Tuned, Scripted]) -> None:
    tuned, executor = passing
    *tested, contender = tuned.candidates
    speeds = [one.predicted_speed for one in tested]
    assert speeds == sorted(speeds)
    assert speeds[0] > 1.01
    assert all(later > 1.009 * before for before, later in itertools.pairwise(speeds))
    assert [one.rerun for one in tested] == sorted((one.rerun for one in tested), reverse=True)
    assert all(one.passed and one.outcome == "certified" and one.documents == 23 for one in tested)
    assert (tuned.policy, tuned.kv) == (tested[-1].policy, tested[-1].kv)
    assert all(one.rerun >= 0.9 - 1e-12 for one in tested)
    # The lossless contender is priced, and not tested.
    assert (contender.kv, contender.executed, contender.documents) == ("speculate", None, 0)
    searched = executor.trace.subset(split_roles(executor.trace, 0).search)
    speeds = {
        drafts: replay(searched, contender.policy, machine="h100", kv="speculate", draft_length=drafts)
        for drafts in (1, 2, 4)
    }
    best = max(speeds, key=lambda drafts: speeds[drafts].predicted_speedup)
    assert contender.draft_length == best
    assert contender.predicted_speed == pytest.approx(speeds[best].predicted_speedup)
    assert ("speculate", contender.kv) not in [(kv, kv) for _, kv, _, _ in executor.decoded]
    # Documents came in groups, in the drawn order, none beyond what settled it.
    by_candidate = [(first, last) for policy, kv, first, last in executor.decoded[:3]]
    assert by_candidate == [(0, 8), (8, 16), (16, 24)]
    assert len(executor.decoded) == 3 * len(tested)


def test_thresholds_are_calibrated_by_reruns_within_the_budget(passing: tuple[Tuned, Scripted]) -> None:
    tuned, executor = passing
    assert 8 < len(executor.reruns) <= RERUNS + 1  # one of the report documents
    assert {kv for _, kv in executor.reruns} == {"propagate"}
    assert len(set(executor.reruns)) >= len(executor.reruns) - 2
    # What drifts twofold is found where its rerun, not its replay, keeps the floor.
    drifted = [one for one in tuned.candidates if one.kv == "propagate"]
    for one in drifted:
        assert 1 - one.rerun == pytest.approx(2 * (1 - one.replayed))


def test_the_report_is_of_the_rerun_and_of_the_strategys_own_price(trace: Trace) -> None:
    tuned = Scripted(trace, lossless, strategies=("recompute",)).tuned()
    assert tuned.kv == "recompute"
    held = trace.subset(split_roles(trace, 0).report)
    found = replay(held, tuned.policy, machine="h100", kv="recompute")
    assert tuned.skip_ratio.value == pytest.approx(found.skip_ratio, abs=1e-3)
    assert tuned.quality.value == pytest.approx(found.agreement)
    assert tuned.net_speedup.value == pytest.approx(found.predicted_speedup, rel=2e-3)
    assert tuned.probe_share == pytest.approx(found.probe_share, rel=0.02)


def test_the_strategy_that_drifts_too_much_is_not_chosen(trace: Trace) -> None:
    # Under propagation nothing of the trace's policies keeps the floor; exact K and V do.
    executor = Scripted(trace, lossless, drift=1000.0)
    tuned = executor.tuned()
    assert tuned.kv in ("recompute", "monotone")
    clean = Scripted(trace, lossless, drift=1000.0, strategies=("propagate",))
    alone = clean.tuned()
    for one in alone.candidates[:-1]:
        assert one.rerun >= 0.9 - 1e-12
        assert one.replayed > 0.99


def test_a_policy_that_never_deepens_is_tried_as_monotone(trace: Trace) -> None:
    executor = Scripted(trace, lossless, strategies=("monotone",))
    tuned = executor.tuned(0.3)
    assert tuned.kv == "monotone"
    assert tuned.policy.never_deepens


def test_the_first_failure_ends_the_sequence_and_what_passed_before_it_is_chosen(
    trace: Trace, passing: tuple[Tuned, Scripted]
) -> None:
    order = [(one.policy, one.kv) for one in passing[0].candidates[:-1]]
    assert len(order) > 2
    executor = Scripted(trace, lambda policy, kv: 0.5 if (policy, kv) == order[1] else 0.0)
    tuned = executor.tuned()
    assert (tuned.policy, tuned.kv) == order[0]
    assert [one.passed for one in tuned.candidates[:-1]] == [True, False, *[None] * (len(order) - 2)]
    failed, untested = tuned.candidates[1], tuned.candidates[2]
    assert failed.outcome == "too much lost"
    assert failed.documents < 6
    assert failed.executed is not None
    assert failed.executed < 0.9
    assert (untested.outcome, untested.executed) == ("a candidate before it failed", None)
    assert (tuned.certificate.tested, tuned.certificate.passed) == (2, 1)
    # Fresh documents begin after the last that any test looked at.
    assert executor.fresh == [(23, 8), (23, 16), (23, 24), (23, 32)]


def test_nothing_that_passes_is_an_honest_no(trace: Trace) -> None:
    executor = Scripted(trace, lambda policy, kv: 0.4)
    tuned = executor.tuned()
    assert tuned.plain
    assert not tuned.certificate.holds
    assert tuned.certificate.executed
    assert tuned.certificate.risk_bound is None
    assert tuned.executed_agreement is None
    assert tuned.standing == "refuted"
    assert tuned.answer.startswith(f"not certified: {tuned.candidates[0].policy} with keys and values by ")
    assert "% as executed on " in tuned.answer
    assert "The full model stays." in tuned.answer
    assert tuned.certificate.stopped_after is not None


@pytest.mark.parametrize(
    ("documents", "limit", "left_out", "answer"),
    [
        (12, None, "30 left out: too short", "12 documents, 22 needed (at hand to certify on; 30 left out: "),
        (400, 10, "", "10 documents, 22 needed (as many as were allowed). Allow more"),
        # The betting bound needs one more than any test must.
        (22, None, "", "22 documents, 23 needed (at hand to certify on). Choose a workload of"),
    ],
)
def test_too_few_prompts_are_said_before_anything_runs(
    trace: Trace, documents: int, limit: int | None, left_out: str, answer: str
) -> None:
    executor = Scripted(trace, lossless, documents=documents, left_out=left_out)
    tuned = executor.tuned(limits=DecodingLimits(documents=limit))
    assert tuned.answer.startswith(f"not certifiable: {answer}")
    assert (executor.reruns, executor.decoded, executor.fresh) == ([], [], [])
    assert tuned.plain
    assert tuned.certificate.stopped_after is None
    assert tuned.grounds is not None
    assert tuned.grounds.left_out == left_out
    assert tuned.standing == ("too few documents" if limit is None else "not settled")


def test_so_many_documents_are_decoded_as_are_allowed(trace: Trace) -> None:
    executor = Scripted(trace, lambda policy, kv: 0.09)
    tuned = executor.tuned(limits=DecodingLimits(documents=30))
    assert max(last for *_, last in executor.decoded) <= 30
    assert tuned.certificate.documents == 30
    told: list[tuple[int, int]] = []
    watched = DecodingLimits(documents=30, on_documents=lambda done, planned: told.append((done, planned)))
    Scripted(trace, lossless).tuned(limits=watched)
    assert told[:3] == [(8, 30), (16, 30), (24, 30)]


def test_with_time_a_candidate_is_decoded_on_for_as_long_as_it_may_pass(trace: Trace) -> None:
    """Too close to the floor for 88 documents: neither certified nor refuted by these."""

    def close(policy: ExitPolicy, kv: str) -> float:
        return 0.085

    few = Scripted(trace, close, documents=400).tuned()
    limited = Scripted(trace, close, documents=400).tuned(limits=DecodingLimits(seconds=600.0))
    assert (few.certificate.documents, limited.certificate.documents) == (88, 400)
    assert few.tested[0].outcome in ("documents used up", "out of reach")
    assert limited.tested[0].outcome == "certified"
    assert limited.tested[0].documents > 88


def test_a_budget_that_is_used_up_is_said(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Scripted(trace, lossless).tuned(limits=DecodingLimits(seconds=1e-9))
    assert none.answer.startswith(
        "inconclusive: the time was used up before anything with exits was decoded;"
    )
    assert none.plain

    executor = Scripted(trace, lossless)

    class After(Deadline):
        @property
        def over(self) -> bool:
            return len(executor.decoded) >= self.documents

    monkeypatch.setattr(After, "documents", 2, raising=False)
    monkeypatch.setattr("offramp.tuning.executed.Deadline", After)
    tuned = executor.tuned()
    assert tuned.answer.startswith("inconclusive: the time was used up after 16 documents of ")
    assert not tuned.certificate.holds
    # What had passed before is certified.
    monkeypatch.setattr(After, "documents", 5)
    executor.decoded.clear()
    partly = executor.tuned()
    assert partly.certificate.holds
    assert [one.outcome for one in partly.candidates[:2]] == ["certified", "time used up"]
    assert partly.executed_agreement is not None
    assert partly.executed_agreement.undefined == "the time was used up"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_decides_on_executed_losses(trace: Trace, method: str) -> None:
    executor = Scripted(trace, lambda policy, kv: 0.02)
    tuned = executor.tuned(method=method)
    assert not tuned.plain
    assert tuned.certificate.holds == (method != "naive")
    stopped = tuned.certificate.stopped_after
    planned = 4 * METHODS[method].needed(0.1, 0.1)
    # Only bets may be looked at before all documents are in.
    assert stopped == planned if method != "wsr" else stopped is not None and stopped < planned
    if method == "naive":
        assert "without a guarantee" in tuned.answer
        assert "certified" not in tuned.answer


def test_the_sequence_is_that_of_the_losses_by_hand(trace: Trace) -> None:
    losses = {
        "a": np.tile([0.0, 0.125], 100),
        "b": np.tile([0.25, 0.0, 0.0, 0.0], 50),
        "c": np.tile([0.5, 0.0], 100),
    }

    class Known(Scripted):
        def losses(self, policy: Any, kv: str, first: int, last: int) -> Losses:
            return losses[policy][first:last]

    proposals = [
        Proposal(name, "propagate", 0.0, 0.0, 1.0 - place / 10, 1.0, False)
        for place, name in enumerate("abc")
    ]  # type: ignore[arg-type]
    sequence = FixedSequence(
        Known(trace, lossless), 0.15, 0.1, METHODS["wsr"], 120, Deadline(None), lambda done, planned: None
    )
    trials = sequence.run(proposals)
    for trial in trials:
        ended = settle(losses[trial.proposal.policy], 0.15, 0.1, 120)  # type: ignore[index]
        assert (trial.outcome, trial.documents) == ended
    assert [trial.passed for trial in trials] == [True, True, False]
    chosen = chosen_trial(trials)
    assert chosen is not None
    assert chosen.proposal.policy == "b"
    assert chosen_trial(trials[2:]) is None


def test_a_rung_is_sought_where_the_rerun_risk_meets_the_aim(trace: Trace) -> None:
    from offramp.tuning.pool import ScoredPolicy
    from offramp.tuning.proposals import _bracket, _most_promising, _next_rung

    policy = parse_policy("never")
    ladder = tuple(ScoredPolicy("f", policy, 0.01 * n, 1.0 - 0.01 * n, 0.0) for n in range(11))

    def known(*pairs: tuple[int, float]) -> dict[int, Proposal]:
        return {
            n: Proposal(policy, "k", ladder[n].risk, risk, ladder[n].cost, 1.0, False) for n, risk in pairs
        }

    assert _next_rung(ladder, {}, 0.08) == 4  # as if a rerun doubled the risk
    assert _next_rung(ladder, known((4, 0.16)), 0.08) == 2  # it quadrupled it
    assert _next_rung(ladder, known((4, 0.04)), 0.08) == 8  # it did not change it
    assert _next_rung(ladder, known((4, 0.0)), 0.08) == 8  # nothing is known but that more is possible
    assert _bracket(ladder, known((2, 0.05), (6, 0.2)), 0.08) == (2, 6)
    assert _bracket(ladder, {}, 0.08) == (-1, 11)
    # The ladder that may still reach lowest is next; none where nothing could beat what is known.
    short = ladder[:5]
    assert _most_promising([short, ladder], [{}, {}], 0.08) == 1
    assert _most_promising([short, ladder], [{}, known((2, 0.05), (3, 0.2))], 0.08) == 0
    assert _most_promising([short, ladder], [{}, known((9, 0.05), (10, 0.2))], 0.08) is None


def test_reruns_stop_at_their_budget(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals_module, "RERUNS", 5)
    executor = Scripted(trace, lossless, strategies=("propagate",))
    executor.tuned()
    assert len(executor.reruns) <= 5 + 1


def test_what_the_model_cannot_decode_is_no_candidate(trace: Trace, passing: tuple[Tuned, Scripted]) -> None:
    refused = tuple((one.policy, one.kv) for one in passing[0].candidates)
    again = Scripted(trace, lossless, refused=refused).tuned()
    rules = {(rule(policy), kv) for policy, kv in refused}
    assert not rules & {(rule(one.policy), one.kv) for one in again.candidates}
    nothing = Scripted(trace, lossless, strategies=())
    tuned = nothing.tuned()
    assert tuned.plain
    assert "no policy that keeps agreement=0.9 as rerun is faster on h100" in tuned.answer


def test_floors_in_nats_are_not_executed(trace: Trace) -> None:
    executor = Scripted(trace, lossless)
    tuned = tune(trace, {"kl": 0.9}, None, clip=2.0, executor=executor)
    assert not tuned.certificate.executed
    assert executor.decoded == []
    assert "This is a replay bound" in tuned.answer
    assert "Only a floor on agreement is executed." in tuned.answer


def test_a_batch_is_not_executed(trace: Trace) -> None:
    with pytest.raises(InputError, match="one sequence at a time, not a batch of 4"):
        tune(trace, {"agreement": 0.9}, "h100", batch=4, executor=Scripted(trace, lossless))


def test_executed_answers_are_read_back_whole(passing: tuple[Tuned, Scripted], tmp_path: Path) -> None:
    tuned, _ = passing
    write_tuned(tmp_path / "policy.json", tuned)
    found = read_tuned(tmp_path / "policy.json")
    assert found == replace(tuned, provenance=json.loads(json.dumps(tuned.provenance)))
    assert found.certificate.executed
    assert "opening 3" not in str(found.document_digests)
    assert len(found.document_digests["certify"]) == 60 + 23


def test_every_strategy_pays_its_own_price(trace: Trace) -> None:
    policy = parse_policy("threshold:signal=max_prob,value=0.5,exits=2+4")
    run = run_of(trace, policy, replay_decisions(policy, trace))
    each = {}
    for kv in ("propagate", "recompute"):
        at = prices_for(trace, None, kv)
        documents = [Charge.of(unit, kv).breakdown(at) for unit in Units.of(run).canonical()]
        whole, found = Charge.of(run, kv).breakdown(at), replay(trace, policy, kv=kv)
        assert whole.speedup == pytest.approx(found.predicted_speedup)
        plain, cost = sum(one.plain for one in documents), sum(one.total for one in documents)
        assert plain / cost == pytest.approx(found.predicted_speedup, rel=1e-3)
        assert len(documents) == document_rows(trace).count
        each[kv] = whole.per_token
    assert each["propagate"] != each["recompute"]


# -- several floors together, and a worth

TOGETHER = (0.95, 0.99, 0.9)
"""The main floor first."""


def together(executor: Scripted, **limits: Any) -> dict[float, Tuned]:
    """The answers at three floors, strictest first."""
    floors = [{"agreement": floor} for floor in TOGETHER]
    answers = tune_floors(executor.trace, floors, "h100", executor, DecodingLimits(**limits))
    assert [answer.floor.value for answer in answers] == list(TOGETHER)
    return dict(sorted(((answer.floor.value, answer) for answer in answers), reverse=True))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.floats(0.0, 0.2),
    slope=st.floats(0.0, 3.0),
    drift=st.sampled_from([1.0, 3.0]),
    groups=st.integers(0, 40) | st.none(),
    worth=st.sampled_from([None, 0.02, 0.2]),
)
def test_verdicts_are_monotone_in_the_floor(
    trace: Trace, base: float, slope: float, drift: float, groups: int | None, worth: float | None
) -> None:
    """What keeps a floor is a candidate at every looser one, and is certified there as well: whatever is
    decoded, and whenever time ends."""

    @functools.cache
    def loses(policy: ExitPolicy, kv: str) -> float:
        return min(1.0, base + slope * float(np.mean(policy_losses(trace, policy, AGREEMENT))))

    executor = Scripted(trace, loses, drift=drift)
    with pytest.MonkeyPatch.context() as patched:
        if groups is not None:
            over = property(lambda clock: len(executor.decoded) >= groups)
            patched.setattr(Deadline, "over", over)
        answers = list(together(executor, worth=worth, candidates=3).values())
    for stricter, looser in itertools.pairwise(answers):
        texts = [(one.policy, one.kv) for one in looser.candidates]
        assert all((one.policy, one.kv) in texts for one in stricter.candidates if not one.lossless)
        if stricter.standing == "certified":
            assert looser.standing == "certified"
            speeds = {(one.policy, one.kv): one.predicted_speed for one in looser.candidates}
            kept = (stricter.policy, stricter.kv)
            assert speeds[looser.policy, looser.kv] >= speeds[kept]
        if looser.standing == "refuted":
            assert stricter.standing in ("refuted", "not settled")


def test_nothing_is_decoded_twice_for_several_floors(trace: Trace) -> None:
    """A document that was decoded for one floor counts for all: an executor keeps it, and one clock is for
    all floors."""
    executor = Scripted(trace, lossless)
    answers = together(executor)
    assert all(answer.certificate.holds for answer in answers.values())
    fewest = [fewest_documents(1.0 - floor, 0.1) for floor in answers]
    assert [answer.certificate.stopped_after for answer in answers.values()] == fewest
    groups = [one for one in executor.decoded if one[:2] == executor.decoded[0][:2]]
    assert len(groups) == len(set(groups))


def test_what_could_never_pay_is_not_decoded(trace: Trace) -> None:
    executor = Scripted(trace, lossless)
    for answer in together(executor, worth=50.0).values():
        assert answer.standing == "nothing could pay"
        assert answer.grounds is not None
        assert answer.grounds.reach is not None
        assert answer.grounds.reach < 51.0
        assert "could gain 5000 % over the best decoder without exits" in answer.answer
    assert executor.decoded == []


def test_where_nothing_that_keeps_a_floor_could_pay_what_could_is_refuted_as_executed(trace: Trace) -> None:
    """The gain that is asked for lies beyond what keeps 90 %: the most cautious policy that reaches it is
    decoded, and loses too much at every floor, on the same few documents."""
    fastest = Scripted(trace, lossless).tuned(0.9)
    assert fastest.candidates
    reached = max(one.predicted_speed for one in fastest.candidates if not one.lossless) - 1.0
    worth = (reached + 0.02) / FORETOLD
    executor = Scripted(trace, lambda policy, kv: 0.3)
    answers = together(executor, worth=worth)
    challengers = {one.policy for answer in answers.values() for one in answer.tested}
    assert len(challengers) == 1
    for answer in answers.values():
        assert answer.standing == "refuted"
        (tested,) = answer.tested
        assert tested.predicted_speed >= 1.0 + FORETOLD * worth
        assert tested.rerun < 0.9
        assert tested.documents <= 16
    # Where it keeps the floor after all, it is certified like any other.
    assert together(Scripted(trace, lossless), worth=worth)[0.9].standing == "certified"


def test_too_few_documents_refute_what_loses_too_much_and_certify_nothing(trace: Trace) -> None:
    few = together(Scripted(trace, lambda policy, kv: 0.6, documents=20), worth=0.02)
    assert few[0.95].standing == "refuted"
    kept = together(Scripted(trace, lossless, documents=20), worth=0.02)
    assert kept[0.95].standing == "too few documents"
    assert "20 documents, 45 needed (at hand to certify on)" in kept[0.95].answer
    assert not kept[0.95].certificate.holds


def six_policies(trace: Trace, baselines: Sequence[Baseline] = ()) -> Proposals:
    """Of the rerun, each faster than the one before and keeping less."""
    executor = Scripted(trace, lossless)
    proposals = Proposals([], executor, lambda kv: never_priced, np.zeros(0), Deadline(None), 6, baselines)
    for exit, (risk, speed) in enumerate(
        [(0.01, 1.05), (0.02, 1.2), (0.04, 1.4), (0.06, 1.6), (0.09, 2.0), (0.3, 3.0)], start=1
    ):
        policy = parse_policy(f"static:exit={exit}")
        kept = Proposal(policy, "propagate", risk / 2, risk, 1.0 / speed, 1.0, free=False)
        proposals.found[policy, "propagate"] = kept
    return proposals


@pytest.mark.parametrize(
    ("worth", "conceivable", "speeds"),
    [
        (None, math.inf, [1.6, 2.0]),  # half of what the boldest gains, as a test takes documents
        (0.1, 0.06, [1.2, 1.6, 2.0]),  # and the most cautious that is worth it
        (0.3, 0.2, [1.4, 1.6, 2.0]),
        (1.5, 1.1, [3.0]),  # none that keeps the floor is worth it: the most cautious that is may be refuted
        (1.5, 0.9, [2.0, 3.0]),  # but the fastest that keeps it comes near, and is tried before
        (2.5, 1.1, []),
        (2.5, 0.9, [2.0]),
    ],
)
def test_the_candidates_at_a_floor_by_hand(
    trace: Trace, worth: float | None, conceivable: float, speeds: list[float]
) -> None:
    """Six policies of the rerun, each faster than the one before and keeping less."""
    proposals = six_policies(trace)
    proposed = proposals.at(0.1, worth, conceivable=conceivable)
    assert [1.0 / one.relative_cost for one in proposed.candidates] == pytest.approx(speeds)
    assert (proposed.reach, proposed.baseline) == (pytest.approx(2.0), PLAIN)


@pytest.mark.parametrize(
    ("baselines", "best", "speeds"),
    [
        ((Baseline("int4", 0.52, 0.95),), "int4", [3.0]),  # no policy that keeps the floor is faster than it
        ((Baseline("int4", 0.5, 0.89),), "never", [1.2, 1.6, 2.0]),  # it does not keep the floor itself
        ((Baseline("int8", 0.8, 0.99), Baseline("int4", 0.5, 0.89)), "int8", [1.4, 2.0]),
        ((Baseline("slow", 1.5, 1.0),), "never", [1.2, 1.6, 2.0]),
    ],
)
def test_candidates_have_to_be_faster_than_the_best_baseline_that_keeps_the_floor(
    trace: Trace, baselines: tuple[Baseline, ...], best: str, speeds: list[float]
) -> None:
    """The six policies of before at a worth of 10 %."""
    proposals = six_policies(trace, baselines)
    proposed = proposals.at(0.1, 0.1, conceivable=0.06)
    assert [1.0 / one.relative_cost for one in proposed.candidates] == pytest.approx(speeds)
    assert proposed.baseline.name == best
    assert proposed.reach == pytest.approx(2.0 * proposed.baseline.cost)


def test_a_stricter_floors_candidate_that_gains_nothing_at_a_looser_one_is_no_candidate_there(
    trace: Trace,
) -> None:
    """int8 keeps the looser floor alone, and is faster than what was worth a test over plain decoding."""
    proposals = six_policies(trace, [Baseline("int8", 0.6, 0.95)])
    stricter = proposals.at(0.02, 0.1, conceivable=0.06).candidates
    assert [1.0 / one.relative_cost for one in stricter] == pytest.approx([1.2])
    for carried in ((), stricter):
        looser = proposals.at(0.1, 0.1, carried, conceivable=0.06)
        assert [1.0 / one.relative_cost for one in looser.candidates] == pytest.approx([2.0])
    worth_it = proposals.at(0.06, 0.1, conceivable=0.06).candidates  # to be refuted there
    carried_along = proposals.at(0.1, 0.1, worth_it, conceivable=0.06)
    for proposed in (worth_it, carried_along.candidates):
        assert [1.0 / one.relative_cost for one in proposed] == pytest.approx([2.0, 3.0])


def test_what_is_slower_than_a_timed_baseline_is_not_decoded(trace: Trace) -> None:
    """Nothing is 50 times as fast as it is; the same policies are worth a test where it keeps too little."""
    executor = Scripted(trace, lossless)
    for answer in together(executor, worth=0.02, timed=[Baseline("int4", 0.02, 1.0)]).values():
        assert answer.standing == "nothing could pay"
        assert "could gain 2 % over int4, which is 50.000 × as fast as plain decoding" in answer.answer
        assert "(it kept 100 %)" in answer.answer
        assert answer.grounds is not None
        assert (answer.grounds.baseline, answer.grounds.without) == ("int4", 0.02)
    assert executor.decoded == []
    kept = together(Scripted(trace, lossless), worth=0.02, timed=[Baseline("int4", 0.02, 0.5)])
    assert {answer.standing for answer in kept.values()} == {"certified"}


def test_what_was_decoded_for_a_verdict_is_priced_by_where_its_tokens_left(trace: Trace) -> None:
    executor = Scripted(trace, lossless)
    answers = together(executor, worth=0.02)
    priced = [one for answer in answers.values() for one in answer.candidates if one.prices]
    assert priced
    for one in priced:
        assert len(one.prices) == one.documents
        # Of every second answer one token of two left early, of the others two of three.
        exit, layers = min(one.policy.leaves_at(trace.layers)), trace.layers
        run = run_of(
            trace.at_rows(np.zeros(3, dtype=np.int64)),
            one.policy,
            Decisions(np.array([exit, exit, layers]), probed_facts(one.policy, layers)),
        )
        paid = Charge.of(run, one.kv).breakdown(prices_for(trace, find_machine("h100"), one.kv))
        expected = paid.per_token / paid.plain_per_token
        assert one.prices[1::2] == (pytest.approx(expected, rel=1e-3),) * (len(one.prices) // 2)
        assert one.prices[0] > one.prices[1]
    assert not any(one.prices for one in Scripted(trace, lossless).tuned().candidates)


def never_priced(rows: int) -> TokenCosts:
    raise AssertionError("nothing is rerun")


def test_a_verdict_has_its_answer_where_the_floor_is_refuted(trace: Trace) -> None:
    """6 % lost of every document at a floor of 95 %: no certificate is to be had, and a verdict goes on until
    it is refuted as surely as it would be certified."""

    class Steady(Scripted):
        def losses(self, policy: ExitPolicy, kv: str, first: int, last: int) -> Losses:
            return np.full(last - first, 0.06) + 0.05 * (-1.0) ** np.arange(first, last)

    executor = Steady(trace, lossless)
    proposal = Proposal(parse_policy("static:exit=2"), "propagate", 0.0, 0.0, 0.5, 1.0, free=True)
    for refutes in (True, False):
        sequence = FixedSequence(
            executor, 0.05, 0.1, METHODS["wsr"], 400, Deadline(None), lambda *_: None, 45, refutes=refutes
        )
        (trial,) = sequence.run([proposal])
        assert trial.outcome == ("below the floor" if refutes else "out of reach")
        assert 48 < trial.documents < 400
        if refutes:
            assert refuted(trial.losses, 0.05, 0.1, 400)
            assert not refuted(trial.losses[:-8], 0.05, 0.1, 400)


def test_what_a_looser_floor_decodes_may_refute_a_stricter_one(trace: Trace) -> None:
    """95 % kept of 48 documents, of which 60 can certify no more; the 12 others keep 40 %."""

    class Late(Scripted):
        def losses(self, policy: ExitPolicy, kv: str, first: int, last: int) -> Losses:
            return np.where(np.arange(60) < 48, np.tile([0.4, *[0.0] * 7], 8)[:60], 0.6)[first:last]

    answers = together(Late(trace, lossless, documents=60), worth=0.02)
    strict = answers[0.95].tested[-1]
    assert (strict.outcome, strict.documents) == ("out of reach", 56)  # eight at a time
    assert [answers[floor].standing for floor in (0.95, 0.9)] == ["refuted", "too few documents"]


def test_a_floor_that_may_be_missed_by_chance_is_not_refuted(trace: Trace) -> None:
    """94.8 % kept of 104 documents: more documents could tell whether 95 % are."""

    class Near(Scripted):
        def losses(self, policy: ExitPolicy, kv: str, first: int, last: int) -> Losses:
            return np.tile([0.156, 0.052, 0.0, 0.0], 26)[first:last]

    for limit, standing, missing in (
        (None, "too few documents", "more documents: all 104 at hand were decoded, and leave it open"),
        (80, "not settled", "more documents: 80 were allowed to be decoded, and leave it open"),
    ):
        answer = together(Near(trace, lossless, documents=104), worth=0.02, documents=limit)[0.95]
        last = answer.tested[-1]
        assert (last.documents, last.executed) == (limit or 104, pytest.approx(0.948))
        assert answer.standing == standing
        assert "did not pass the test of agreement=0.95 (documents used up after" in answer.answer
        verdict = settle_verdict(judge(trace, (0.95,), worth=0.02)[0], answer)
        assert (verdict.decision == INCONCLUSIVE, verdict.missing[0]) == (True, missing)


def test_nothing_is_searched_or_decoded_where_a_requests_ceiling_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A long source and short answers: on a data sheet the encoder is nearly all of a request."""
    monkeypatch.setattr("offramp.tuning.job.search_pool", None)
    trace = easy_and_hard(100)
    trace.shape = replace(trace.shape, encoder=EncoderShape(10**9, 1500.0))
    executor = Scripted(trace, lossless)
    tuned = executor.tuned(limits=DecodingLimits(worth=0.05))
    assert (tuned.plain, tuned.standing) == (True, "nothing could pay")
    assert (executor.reruns, executor.decoded) == ([], [])
    assert tuned.answer.startswith(
        "Early exit does not pay here: a whole request could become at most 1.000 ×"
    )
    assert executor.tuned().answer == tuned.answer
    verdict = settle_verdict(judge(trace, (0.9,), machine=find_machine("h100"))[0], tuned)
    assert (verdict.decision, verdict.reason) == ("does not pay", tuned.answer)


def test_what_is_tried_may_gain_the_worth_of_a_request() -> None:
    """Half of a request is decoding: 4 % of it are 8 % of its tokens' time and somewhat more in speed."""
    request = WholeRequest(machine="m", tokens=1, once=8.0, how="timed", plain=8.0, halfway=1.0, exit=3)
    limits = DecodingLimits(worth=0.05, request=request)
    assert limits.hoped == pytest.approx(8 / (16 / (1 + FORETOLD * 0.05) - 8) - 1)
    assert limits.hoped is not None
    assert 0.08 < limits.hoped < 0.09
    assert DecodingLimits(worth=0.05).hoped == FORETOLD * 0.05


@pytest.mark.parametrize(
    ("texts", "asked"), [(None, [16]), (10, [16]), (40, [16, 32, 48]), (400, [16, 32, 48, 64])]
)
def test_what_is_judged_writes_texts_of_so_many_documents(
    trace: Trace, texts: int | None, asked: list[int]
) -> None:
    executor = Scripted(trace, lossless, texts=texts)
    tuned = executor.tuned()
    assert executor.judged == [(str(tuned.policy), tuned.kv, 23, most) for most in asked]
    documents = None if tuned.text_quality is None else tuned.text_quality.documents
    assert documents == (None if texts is None else min(texts, 64))
    assert from_json(Tuned, to_json(tuned)).text_quality == tuned.text_quality
    assert ("text_quality" in to_json(tuned)) == (texts is not None)


def test_where_the_time_is_used_up_they_are_as_few_as_an_interval_takes(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Scripted(trace, lossless, texts=400)

    class After(Deadline):
        @property
        def over(self) -> bool:
            return len(executor.decoded) >= 5

    monkeypatch.setattr("offramp.tuning.executed.Deadline", After)
    tuned = executor.tuned()
    assert tuned.certificate.holds
    assert [most for *_, most in executor.judged] == [16, 32]
