"""Tuning: the fastest policy that keeps a quality floor, with a certificate, or an honest no."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from offramp.costs.machine import Machine
from offramp.policies.binding import base_of, text_caveat
from offramp.policies.charging import machine_for
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.scoring.documents import document_rows
from offramp.tracing.trace import Trace
from offramp.tuning.answers import answer_of
from offramp.tuning.bounds import Method, find_method
from offramp.tuning.certify import (
    Tested,
    losses_in_order,
    make_certificate,
    ordered_candidates,
    require_delta,
    run_sequence,
)
from offramp.tuning.held_out import HeldOut, measure, unmeasured
from offramp.tuning.lockstep import measure_in_lockstep, walk_in_lockstep
from offramp.tuning.losses import make_floor, risk_to_quality, token_losses
from offramp.tuning.pool import Pool, Scored, front_of, require_policies
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.results import Certificate, Floor, FrontPoint, Shift, Tuned
from offramp.tuning.searching import search_pool
from offramp.tuning.shift import shift_of
from offramp.tuning.splits import Roles, digests, require_seed, split_roles, texts

# Points of the front that are kept, spread over its risks.
FRONT_POINTS = 24


def tune(
    trace: Trace,
    floor: Mapping[str, float] | Floor,
    hardware: str | Machine | None = "local",
    *,
    method: str = "wsr",
    delta: float = 0.1,
    batch: int = 1,
    kv: str = "propagate",
    clip: float | None = None,
    seed: int = 0,
) -> Tuned:
    """Search, certify and measure a policy on disjoint documents of one trace.

    floor: {"agreement": 0.99}, {"nll": nats} or {"kl": nats}; of a transformed model also
    {"reference_agreement": 0.95}, agreement with the untransformed one. clip: nats at which a token's loss is
    cut.
    hardware: a machine or its name ("local": this machine's profile of the trace's model); None counts bytes
    moved. method: "wsr", "hb", "crc" or "naive". delta: chance that the certificate is wrong.

    The policy is "never", and the answer says why, if nothing beats the full model, nothing passes, or the
    documents are too few to certify anything.

    Raises InputError for a floor, method, delta, batch or seed out of range, an unknown machine, a trace that
    lacks what the floor needs or that has no exits below L.
    """
    floor = make_floor(floor, clip)
    rule = find_method(method)
    require_delta(delta)
    require_seed(seed)
    require_policies(trace)
    machine = None if hardware is None else machine_for(trace, hardware)
    pricing = pricing_of(trace, machine, batch, kv)
    roles = split_roles(trace, seed)
    job = _Job(trace, floor, pricing, rule, delta, seed, roles)
    return job.result(machine, kv)


@dataclass
class _Job:
    """One tuning, its inputs checked."""

    trace: Trace
    floor: Floor
    pricing: Pricing
    rule: Method
    delta: float
    seed: int
    roles: Roles

    def result(self, machine: Machine | None, kv: str) -> Tuned:
        """Search, certify, measure."""
        pool = self._search()
        candidates = ordered_candidates(pool, self.floor.risk) if pool else []
        tested, certificate = self._certify(candidates)
        chosen = None if tested.chosen is None else candidates[tested.chosen]
        policy: ExitPolicy = Never() if chosen is None else chosen.policy
        held = self._report(policy, machine)
        request = self.trace.request
        return Tuned(
            floor=self.floor,
            policy_text=str(policy),
            answer=answer_of(
                self.floor,
                self.pricing.machine,
                self.pricing.batch,
                len(candidates),
                certificate,
                policy,
                held,
                self.roles.counts(),
            ),
            certificate=certificate,
            quality=held.quality,
            skip_ratio=held.skip_ratio,
            net_speedup=held.net_speedup,
            seconds_per_token=held.cost,
            plain_seconds_per_token=held.plain_cost,
            probe_share=held.probe_share,
            machine=self.pricing.machine,
            batch=self.pricing.batch,
            kv=kv,
            front=self._front(pool) if pool else (),
            shift=self._shift(policy),
            documents=self.roles.counts(),
            document_digests={
                "search": digests(self.trace, self.roles.search),
                "certify": digests(self.trace, self.roles.certify),
            },
            document_texts={
                "search": texts(self.trace, self.roles.search),
                "certify": texts(self.trace, self.roles.certify),
            },
            model=base_of(self.trace),
            workload=dict(request.get("workload", {})),
            provenance={
                "seed": self.seed,
                "offramp": importlib.metadata.version("offramp"),
                "machine": None if machine is None else machine.to_json(),
                "trace": self.trace.provenance.get("request_fingerprint"),
            },
            reference_agreement=held.reference_agreement,
        )

    def _search(self) -> Pool | None:
        """The pool of policies on the search documents, None without any."""
        # Refused here, before anything is searched, if the trace lacks what the floor needs.
        if not len(self.roles.search):
            token_losses(self.trace, self.floor)
            return None
        pool = Pool(self.trace.subset(self.roles.search), self.floor, self.pricing)
        search_pool(pool, self.floor.risk)
        return pool

    def _certify(self, candidates: list[Scored]) -> tuple[Tested, Certificate]:
        """Test the candidates on the certify documents, if those could certify anything at all."""
        documents = self.roles.certify
        enough = len(documents) >= self.rule.needed(self.floor.risk, self.delta)
        policies = [candidate.policy for candidate in candidates] if enough else []
        losses = losses_in_order(self.trace, documents, policies, self.floor)
        costs = [candidate.cost for candidate in candidates]
        tested = run_sequence(losses, costs, self.floor.risk, self.delta, self.rule)
        certificate = make_certificate(
            self.floor, self.rule.name, self.delta, losses, tested, self._assumption()
        )
        return tested, certificate

    def _report(self, policy: ExitPolicy, machine: Machine | None) -> HeldOut:
        """The policy on documents that neither search nor certificate saw, in lockstep if batched."""
        count, batch = len(self.roles.report), self.pricing.batch
        transformed = self.trace.reference_top1 is not None
        if not count:
            why = "no documents are left to report on"
            return unmeasured(why, self.pricing.plain, transformed=transformed)
        held = self.trace.subset(self.roles.report)
        if batch == 1 or machine is None:
            return measure(held, policy, self.pricing, self.floor, self.seed)
        if count < batch:
            why = f"{count} report documents do not fill a batch of {batch}"
            return unmeasured(why, self.pricing.plain, transformed=transformed)
        lockstep = walk_in_lockstep(held, policy, batch, self.seed)
        return measure_in_lockstep(held, lockstep, machine, self.floor, self.seed)

    def _shift(self, policy: ExitPolicy) -> tuple[Shift, ...]:
        """What the policy read on the documents that shaped it."""
        seen = np.concatenate([self.roles.search, self.roles.certify])
        return shift_of(self.trace.subset(seen), policy) if len(seen) else ()

    def _assumption(self) -> str:
        """What the certificate takes for granted."""
        name = self.trace.request.get("workload", {}).get("name", "this workload")
        generated = bool(self.trace.generated.any())
        forced = "teacher-forced on the full model's own answers" if generated else "teacher-forced"
        lengths = document_rows(self.trace).lengths
        tokens = " to ".join(dict.fromkeys((str(lengths.min()), str(lengths.max()))))
        said = f"{forced}, on {tokens} tokens of documents drawn like those of {name}, each counting once"
        if caveat := text_caveat(self.trace):
            said += f"; {caveat}"
        if self.floor.clip is not None:
            said += f"; a token's loss is cut to 0 to {self.floor.clip:g} nats"
        if self.pricing.batch > 1:
            said += "; quality is that of the exits the policy itself asks for, not of a batch that waits"
        return said

    def _front(self, pool: Pool) -> tuple[FrontPoint, ...]:
        """The Pareto front on the search documents, the full model first, thinned to some places."""
        whole = np.full(pool.trace.token_count, pool.trace.layers, dtype=np.int64)
        plain = Scored("full model", Never(), pool.evidence.risk_of(whole), self.pricing.plain, 0.0)
        front = front_of([plain, *pool.found])
        step = max(1, math.ceil(len(front) / FRONT_POINTS))
        kept = front[::step] if (len(front) - 1) % step == 0 else [*front[::step], front[-1]]
        return tuple(
            FrontPoint(
                policy=str(scored.policy),
                risk=scored.risk,
                quality=risk_to_quality(self.floor, scored.risk),
                seconds_per_token=scored.cost,
                net_speedup=self.pricing.plain / scored.cost,
                skip_ratio=scored.skip_ratio,
            )
            for scored in kept
        )
