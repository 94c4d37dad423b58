"""The tuner with a model: policy and K,V strategy chosen by what executes, certified on decoded documents."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.policies.binding import text_caveat
from offramp.policies.charge import Charge, Units, prices_for, prices_of_answers, run_of
from offramp.policies.decisions import task_of
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.kv import PROPAGATE, STRATEGIES
from offramp.policies.policy import ExitPolicy
from offramp.policies.whole_request import WholeRequest
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import DOCUMENTS_NEEDED, Estimate, document_bootstrap
from offramp.tracing.trace import Trace
from offramp.tuning.baseline import PLAIN, Baseline
from offramp.tuning.bounds import OUT_OF_TIME, Losses, fewest_documents, refuted
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.fixed_sequence import (
    DOCUMENTS_AT_ONCE,
    Deadline,
    Executor,
    FixedSequence,
    OnDocuments,
    Proposal,
    Tried,
    chosen_trial,
)
from offramp.tuning.floor import REFERENCE, Floor, FloorKind
from offramp.tuning.held_out import TUNED_DRAWS, HeldOut, unmeasured
from offramp.tuning.job import TuningJob
from offramp.tuning.pool import Pool, front_of
from offramp.tuning.proposals import FORETOLD, TARGETS, PricesOf, Proposals, Proposed
from offramp.tuning.tuned import FloorStanding, Grounds, Tuned
from offramp.tuning.verdict import CONCEIVABLE, judged_policy
from offramp.tuning.verdict_words import executed_answer

PER_NEEDED = 4
"""Documents that bets are sized for, over those that are needed if none loses anything; where no time limits
it, a candidate is decoded on no more."""

FRESH = 32
"""Documents that the chosen policy is decoded on once more, which did not choose it, if time allows."""

TEXTS, TEXTS_AT_ONCE = 64, 16
"""Documents whose answers are held against the texts that were to be written, at most, and before the clock
is looked at again. What an interval takes is done whatever it says."""

DRAFT_LENGTHS = (1, 2, 4)
"""Drafts before a verification that are tried."""

DRAFTERS = 12
"""Policies whose outputs are tried as drafts, spread over the front."""


EXECUTED_FIELDS: dict[FloorKind, str] = {
    "agreement": "executed_agreement",
    REFERENCE: "executed_reference_agreement",
}
"""Of `Tuned`: where the share that was kept as executed stands, by the kind of floor."""


@dataclass(frozen=True)
class DecodingLimits:
    """How much may be decoded."""

    documents: int | None = None
    """For one candidate's test, at most; None for as many as there is time for, and without a limit of time
    (or where a bound looks at all documents at once) four times the fewest that could certify a floor."""
    seconds: float | None = None
    """For reruns and decoding at all floors together; None for as long as it takes."""
    candidates: int | None = None
    """Tested at a floor at most, spread from cautious to bold over the allowed risk; None for six."""
    on_documents: OnDocuments = lambda done, planned: None
    """Told of each candidate's progress."""
    worth: float | None = None
    """The gain in speed over the best decoder without exits from which on it is worth its trouble: what is
    tested is predicted to reach four fifths of it; half, if it is the fastest that keeps the floor and none
    that does reaches more. None to look for the fastest at the floor."""

    timed: Sequence[Baseline] = ()
    """Baselines that were timed before, whatever they keep."""
    request: WholeRequest | None = None
    """Of a model with an encoder: the worth is of a request, what is predicted of decoding."""

    @property
    def hoped(self) -> float | None:
        """The gain in decoding from which on a candidate is tried, by prediction; None without a worth."""
        return None if self.worth is None else self._of_decoding(FORETOLD * self.worth)

    @property
    def conceivable(self) -> float:
        """The gain by prediction from which on something is tried at all; none without a worth."""
        return 0.0 if self.worth is None else self._of_decoding(CONCEIVABLE * self.worth)

    def _of_decoding(self, gain: float) -> float:
        return gain if self.request is None else self.request.needed(gain)


RERUN_SHARE = 0.35
"""Of the time given, reruns take so much at most: the rest is for decoding."""


def tune_by_execution(jobs: Sequence[TuningJob], executor: Executor, limits: DecodingLimits) -> list[Tuned]:
    """Search on the trace, rerun what it proposes, and test that on documents that are really decoded.

    jobs: one for each floor of one kind, the main one first; of one trace and machine. Floors share searches,
    reruns and what is decoded: what keeps a floor is a candidate at every looser one.

    1. Search at every floor, and rerun on the search documents. 2. Fix each floor's candidates. 3. Test them,
    floor by floor, each for its share of the time; what one leaves goes to the next, and then to those that
    are not settled. At a floor that the full model itself may break, it is tested first, as the most cautious
    candidate: where it does not pass, no other is tried. 4. Where documents say what is to be written, hold
    the answers of what was judged against that, and the full model's.
    """
    clock = Deadline(limits.seconds)
    first = jobs[0]
    refused, limits = first.refusal(limits.worth), replace(limits, request=first.request)
    hoped = limits.hoped
    pools: dict[Floor, Pool | None] = {}
    for job in () if refused else jobs:
        pools[job.floor] = job.search(next((pool for pool in pools.values() if pool is not None), None))
    prices = functools.cache(functools.partial(prices_for, first.trace, first.machine))
    proposals = Proposals(
        [pool for pool in pools.values() if pool is not None],
        executor,
        prices,
        first.roles.search,
        clock.share(RERUN_SHARE),
        limits.candidates or TARGETS,
        limits.timed,
    )
    known: dict[tuple[ExitPolicy, str], Losses] = {}
    floors = [_Floor(job, pools.get(job.floor), executor, limits, known) for job in jobs]
    for floor in floors:
        floor.test_full_model(clock)
    open_floors = [floor for floor in floors if floor.can_be_answered]
    if open_floors and hoped is not None:
        proposals.challenge(hoped, [floor.job.floor.risk for floor in open_floors])
    for floor in open_floors:
        reach = proposals.replayed_reach(floor.job.floor.risk)
        if hoped is None or (reach is not None and reach >= 1.0 + limits.conceivable):
            proposals.calibrate(floor.job.floor.risk)
    stricter: tuple[Proposal, ...] = ()
    for floor in sorted(open_floors, key=lambda floor: floor.job.floor.risk):
        floor.proposed = proposals.at(floor.job.floor.risk, hoped, stricter, limits.conceivable)
        stricter = floor.proposed.candidates
    for number, floor in enumerate(floors):
        floor.test(clock.share(1 / (len(floors) - number)))
    for floor in floors:
        if floor.out_of_time:  # with what was decoded for the others since, and the time that they left
            floor.test(clock)
    searched = first.trace.subset(first.roles.search)
    drafting = _drafting(searched, first.machine)

    @functools.cache  # floors share candidates, and what was decoded with them
    def priced(policy: ExitPolicy, kv: str, documents: int) -> tuple[float, ...]:
        if not documents:
            return ()
        exits = executor.exits(policy, kv, documents)
        return tuple(prices_of_answers(searched, policy, kv, exits, prices(kv)))

    answers = [floor.answer(prices, priced, drafting, clock) for floor in floors]
    return [floor.with_text_quality(tuned, clock) for floor, tuned in zip(floors, answers, strict=True)]


class _Floor:
    """One floor while it is answered.

    proposed: None until candidates are fixed. trials: of the last test; losses of decoded documents are kept
    in `known`, for all floors, so that a test that was cut short goes on when it is made again. out_of_time:
    whether the last test ended for want of time.
    """

    def __init__(
        self,
        job: TuningJob,
        pool: Pool | None,
        executor: Executor,
        limits: DecodingLimits,
        known: dict[tuple[ExitPolicy, str], Losses],
    ) -> None:
        self.job, self.pool, self.executor, self.limits = job, pool, executor, limits
        self.known = known
        self.needed, self.planned, self.sized = _documents(job, executor, limits)
        self.proposed: Proposed | None = None
        self.alone: list[Tried] = []
        self.trials: list[Tried] = []
        self.out_of_time = False

    def test_full_model(self, clock: Deadline) -> None:
        """Test the full model itself, where it may break the floor."""
        if self.pool is not None and self.job.floor.kind == REFERENCE and self.planned >= self.needed:
            risk = self.pool.full_model().risk
            full_model = Proposal(PLAIN_DECODING, PROPAGATE.name, risk, risk, 1.0, 1.0, free=True)
            self.trials = self.alone = self._sequence(clock).run([full_model])

    def test(self, clock: Deadline) -> None:
        """Test the candidates until the sequence ends or the time is used up."""
        candidates = () if self.proposed is None else self.proposed.candidates
        self.trials = self._sequence(clock).run(candidates, self.alone)
        self.out_of_time = clock.over and (not self.trials or self.trials[-1].outcome == OUT_OF_TIME)

    def _sequence(self, clock: Deadline) -> FixedSequence:
        job = self.job
        return FixedSequence(
            self.executor,
            job.floor.risk,
            job.delta,
            job.rule,
            self.planned,
            clock,
            self.limits.on_documents,
            self.needed,
            self.sized,
            refutes=self.limits.worth is not None,
            known=self.known,
        )

    @property
    def can_be_answered(self) -> bool:
        """Whether there is anything to search on, and documents enough to certify; with a worth a candidate
        may be refuted on fewer."""
        enough = self.planned >= self.needed or self.limits.worth is not None
        return self.pool is not None and enough and all(trial.passed for trial in self.alone)

    def _standing(self, proposed: Proposed) -> FloorStanding:
        """How the floor stands where nothing passed."""
        if self.job.refusal(self.limits.worth):
            return "nothing could pay"
        too_few = self.planned < self.needed
        limited = self.planned < self.executor.documents
        shortage: FloorStanding = "not settled" if limited else "too few documents"
        tested = [trial for trial in self.trials if trial not in self.alone and trial.documents]
        if not tested:
            if too_few and (proposed.candidates or self.limits.worth is None):
                return shortage
            hoped, reach = self.limits.hoped, proposed.reach
            reaches = hoped is not None and reach is not None and reach >= 1.0 + self.limits.conceivable
            passed = all(trial.passed for trial in self.alone)
            if not proposed.complete or self.out_of_time or reaches or not passed:
                return "not settled"
            return "nothing faster" if hoped is None else "nothing could pay"
        last = tested[-1]
        if last.outcome == OUT_OF_TIME:
            return "not settled"
        # On all that was decoded, for whichever floor.
        job, decoded = self.job, self.known.get((last.proposal.policy, last.proposal.kv), last.losses)
        losses = max(last.losses, decoded, key=len)
        return "refuted" if refuted(losses, job.floor.risk, job.delta, self.sized) else shortage

    def answer(self, prices: PricesOf, priced: Priced, drafting: Drafting, clock: Deadline) -> Tuned:
        """What came out, and why."""
        job, executor, trials = self.job, self.executor, self.trials
        proposed = self.proposed or Proposed((), None, PLAIN, complete=False)
        chosen = chosen_trial(trials)
        looked_at = max((trial.documents for trial in trials), default=0)
        agreement = None
        if chosen is not None:
            agreement = _executed_agreement(job, executor, chosen.proposal, looked_at, clock)
        certificate = _certificate(job, executor, trials, chosen, self.needed, self.planned)
        # Of a verdict one policy has one figure, whichever floor its documents were decoded for.
        known = {} if self.limits.worth is None else self.known
        candidates = tuple(_candidates(proposed.candidates, trials, known))
        if self.limits.worth is not None:  # a verdict asks for their speed
            candidates = tuple(
                replace(one, prices=priced(one.policy, one.kv, one.documents)) for one in candidates
            )
        by_itself = tuple(_candidates([trial.proposal for trial in self.alone], trials, known))
        contender = _lossless(job, executor, drafting, self.pool, by_itself)
        held = _held(job, executor, prices, None if chosen is None else chosen.proposal)
        every = (*by_itself, *candidates, *(() if contender is None else (contender,)))
        grounds = Grounds(
            standing="certified" if chosen is not None else self._standing(proposed),
            complete=proposed.complete and not self.out_of_time,
            reach=proposed.reach,
            without=proposed.baseline.cost,
            baseline=proposed.baseline.name,
            baseline_kept=proposed.baseline.kept,
            worth=self.limits.worth,
            at_hand=executor.documents,
            left_out=executor.left_out,
        )
        return job.tuned(
            held,
            answer=executed_answer(job, certificate, held, every, grounds, agreement),
            certificate=certificate,
            pool=self.pool,
            certified_on=executor.certified_on(looked_at),
            grounds=grounds,
            **{EXECUTED_FIELDS[job.floor.kind]: agreement},
            candidates=every,
        )

    def with_text_quality(self, tuned: Tuned, clock: Deadline) -> Tuned:
        """The answer with how good the texts are that its policy writes, or the one that was tried last."""
        judged = judged_policy(tuned)
        if judged is None:
            return tuned
        looked_at, quality = max((trial.documents for trial in self.trials), default=0), None
        for most in range(TEXTS_AT_ONCE, TEXTS + 1, TEXTS_AT_ONCE):
            quality = self.executor.text_quality(*judged, looked_at, most)
            if quality is None or quality.documents < most:
                break
            self.limits.on_documents(most, TEXTS)
            if clock.over and most >= DOCUMENTS_NEEDED:
                break
        return replace(tuned, text_quality=quality)


def _documents(job: TuningJob, executor: Executor, limits: DecodingLimits) -> tuple[int, int, int]:
    """Documents without a loss that the floor needs, those that a candidate may be decoded on, and those that
    bets are sized for."""
    risk, delta = job.floor.risk, job.delta
    needed = job.rule.needed(risk, delta)
    sized = PER_NEEDED * needed if limits.documents is None else limits.documents
    # A bound that may be looked at after each document loses nothing by going on.
    open_ended = limits.documents is None and limits.seconds is not None and job.rule.name == "wsr"
    planned = executor.documents if open_ended else min(executor.documents, sized)
    # The betting bound needs one or two more than any test must.
    if job.rule.name == "wsr" and needed <= planned < fewest_documents(risk, delta):
        needed = fewest_documents(risk, delta)
    return needed, planned, min(sized, planned)


def _certificate(
    job: TuningJob,
    executor: Executor,
    trials: Sequence[Tried],
    chosen: Tried | None,
    needed: int,
    planned: int,
) -> Certificate:
    """What is certified of the chosen candidate, or how far the last one got."""
    last = chosen or (trials[-1] if trials else None)
    return job.certificate(
        None if chosen is None else chosen.losses,
        documents=planned,
        documents_needed=needed,
        tested=len(trials),
        passed=sum(trial.passed for trial in trials),
        assumption=_assumption(job, executor, None if chosen is None else _kv_of(chosen)),
        executed=True,
        kv=None if last is None else _kv_of(last),
        prompt_tokens=executor.prompt_tokens,
        new_tokens=executor.new_tokens,
        stopped_after=None if last is None else last.documents,
    )


def _kv_of(trial: Tried) -> str | None:
    """The strategy of its keys and values; none of the full model's, which skips no layer."""
    return None if trial.proposal.policy == PLAIN_DECODING else trial.proposal.kv


def _assumption(job: TuningJob, executor: Executor, kv: str | None) -> str:
    """What the certificate takes for granted."""
    name = task_of(job.trace) or "this workload"
    prompt = (
        f"whole prompts drawn like those of {name}"
        if executor.prompt_tokens is None
        else f"the first {executor.prompt_tokens} tokens of documents drawn like those of {name}"
    )
    decoded = "" if kv is None else f", keys and values of skipped layers by {kv}"
    caveat = text_caveat(job.trace)
    return (
        f"decoded greedily and freely from {prompt}, at most {executor.new_tokens} new tokens of each"
        f"{decoded}, one sequence at a time, each document counting once" + (f"; {caveat}" if caveat else "")
    )


def _executed_agreement(
    job: TuningJob, executor: Executor, chosen: Proposal, looked_at: int, clock: Deadline
) -> Estimate:
    """Mean executed agreement, of the floor's kind, of documents that chose nothing, and its interval."""
    if clock.over:
        return Estimate(None, undefined="the time was used up")
    losses = np.zeros(0)
    for most in range(DOCUMENTS_AT_ONCE, FRESH + 1, DOCUMENTS_AT_ONCE):
        losses = executor.fresh_losses(chosen.policy, chosen.kv, looked_at, most)
        if clock.over or len(losses) < most:
            break
    if not len(losses):
        return Estimate(None, undefined="no documents are left that chose nothing")
    return _kept(job, losses)


def _kept(job: TuningJob, losses: Losses) -> Estimate:
    """The mean of what each document keeps: losses float64 [documents]."""
    bootstrap = document_bootstrap(len(losses), draws=TUNED_DRAWS, seed=job.seed)
    return bootstrap.estimate(bootstrap.means(1.0 - losses, np.ones(len(losses))))


def _candidates(
    proposals: Sequence[Proposal],
    trials: Sequence[Tried],
    known: Mapping[tuple[ExitPolicy, str], Losses],
) -> Iterator[Candidate]:
    """Every candidate of the sequence with what became of it. known: losses of all that was decoded."""
    tested = {id(trial.proposal): trial for trial in trials}
    for proposal in proposals:
        trial, losses = tested.get(id(proposal)), np.zeros(0)
        if trial is not None:
            # What did not pass shows all that was decoded, for whichever floor: one policy has one figure.
            decoded = known.get((proposal.policy, proposal.kv), losses)
            losses = trial.losses if trial.passed or len(decoded) < trial.documents else decoded
        yield Candidate(
            policy=proposal.policy,
            kv=proposal.kv,
            replayed=1.0 - proposal.replayed,
            rerun=1.0 - proposal.risk,
            executed=1.0 - float(losses.mean()) if len(losses) else None,
            documents=len(losses),
            predicted_speed=1.0 / proposal.relative_cost,
            passed=None if trial is None else trial.passed,
            outcome="a candidate before it failed" if trial is None else trial.outcome,
        )


Priced = Callable[[ExitPolicy, str, int], tuple[float, ...]]
"""Prices of so many documents that were decoded with a policy and a strategy, as of a `Candidate`."""

Drafting = Callable[[ExitPolicy, str], tuple[float, int]]
"""What a policy's outputs take as drafts with a strategy, over plain cost, at the length that takes least."""


def _drafting(searched: Trace, machine: Machine | None) -> Drafting:
    """By price on the search documents; each policy once, for all floors."""
    prices = functools.cache(functools.partial(prices_for, searched, machine))

    @functools.cache
    def cheapest(policy: ExitPolicy, kv: str) -> tuple[float, int]:
        run = run_of(searched, policy)
        runs = [replace(run, draft_length=length) for length in DRAFT_LENGTHS]
        paid = [Charge.of(drafts, kv).breakdown(prices(kv)) for drafts in runs]
        return min(
            zip(
                (breakdown.per_token / breakdown.plain_per_token for breakdown in paid),
                DRAFT_LENGTHS,
                strict=True,
            )
        )

    return cheapest


def _lossless(
    job: TuningJob,
    executor: Executor,
    drafting: Drafting,
    pool: Pool | None,
    alone: Sequence[Candidate],
) -> Candidate | None:
    """The policy whose outputs, as drafts that the full model verifies, take the least; by price alone.

    alone: the full model as it was tested, where it may lose something: then it is none unless that passed.
    """
    if pool is None or (job.floor.kind == REFERENCE and not any(full.passed for full in alone)):
        return None
    priced: list[tuple[float, str, str, int, ExitPolicy]] = []
    for kv in (name for name, strategy in STRATEGIES.items() if strategy.lossless):
        front = [scored for scored in front_of(pool.found) if executor.can(scored.policy, kv)]
        for scored in front[:: max(1, len(front) // DRAFTERS)]:
            relative, length = drafting(scored.policy, kv)
            priced.append((relative, str(scored.policy), kv, length, scored.policy))
    if not priced:
        return None
    relative, _, kv, length, policy = min(priced, key=lambda drafts: drafts[:4])
    outcome = "lossless: every token is the full model's"
    drafts = Candidate(policy, kv, 1.0, 1.0, None, 0, 1.0 / relative, True, outcome, length)
    for full in alone:
        drafts = replace(drafts, replayed=full.replayed, rerun=full.rerun, executed=full.executed)
    return drafts


def _held(job: TuningJob, executor: Executor, prices: PricesOf, chosen: Proposal | None) -> HeldOut:
    """The chosen policy rerun on the report documents, each charged as its strategy runs."""
    if chosen is None or chosen.policy == PLAIN_DECODING:
        return job.report(PLAIN_DECODING)
    if not len(job.roles.report):
        return replace(job.report(PLAIN_DECODING), policy=chosen.policy, kv=chosen.kv)
    again = executor.rerun(chosen.policy, chosen.kv, job.roles.report)
    if not again.trace.token_count:
        why = "the report documents are one token each"
        return unmeasured(chosen.policy, why, job.pricing.plain, kv=chosen.kv)
    run, at = run_of(again.trace, chosen.policy, again.decisions), prices(chosen.kv)
    charges = [Charge.of(document, chosen.kv) for document in Units.of(run).canonical()]
    sums = [
        (paid.total, charge.breakdown(at, checks_free=True).total, paid.plain, charge.layers)
        for charge in charges
        for paid in [charge.breakdown(at)]
    ]
    cost, free, plain, layers = np.array(sums, dtype=np.float64).T
    rows = document_rows(again.trace)
    bootstrap = document_bootstrap(rows.count, draws=TUNED_DRAWS, seed=job.seed)

    def mean(sums: NDArray[np.float64]) -> Estimate:
        return bootstrap.estimate(bootstrap.means(sums, rows.tokens))

    reference = again.reference_losses
    probes = float(cost.sum() - free.sum())
    return HeldOut(
        policy=chosen.policy,
        kv=chosen.kv,
        reachable=chosen.policy.reachable,
        quality=_kept(job, again.losses_at(job.floor.kind)),
        agreement=_kept(job, again.losses),
        skip_ratio=mean(rows.tokens - layers / job.trace.layers),
        net_speedup=bootstrap.estimate(bootstrap.totals(plain) / bootstrap.totals(cost)),
        seconds_per_token=mean(cost),
        plain_seconds_per_token=job.pricing.plain,
        probe_share=max(0.0, probes / float(cost.sum())),
        reference_agreement=None if reference is None else _kept(job, reference),
        gain=Charge.of(run, chosen.kv).breakdown(at).gain,
    )
