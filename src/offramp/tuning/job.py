"""One tuning, its inputs checked: what a replay bound and an executed certificate share."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from offramp.costs.machine import Machine, profile_of
from offramp.defaults import WORTH
from offramp.policies.binding import base_of, digest_of
from offramp.policies.charge import Units, run_of
from offramp.policies.figures import shared_fields
from offramp.policies.policy import ExitPolicy
from offramp.policies.whole_request import WholeRequest, request_of
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import Losses, Method, best_certifiable
from offramp.tuning.certificate import Certificate
from offramp.tuning.floor import Floor, loss_text, risk_to_quality, token_losses
from offramp.tuning.held_out import HeldOut, measure, measure_in_lockstep, unmeasured
from offramp.tuning.pool import Pool, front_of
from offramp.tuning.pricing import Pricing
from offramp.tuning.search import search_pool
from offramp.tuning.splits import Roles, digests, texts
from offramp.tuning.tuned import LAYERS, FrontPoint, Tuned, shift_of
from offramp.tuning.verdict_words import refusal_words

# Points of the front that are kept, spread over its risks.
FRONT_POINTS = 24


@dataclass(frozen=True)
class TuningJob:
    """What is asked: of which trace, at which floor, on which machine (None: bytes moved).

    evolves: whether evolution searches too.
    """

    trace: Trace
    floor: Floor
    pricing: Pricing
    machine: Machine | None
    rule: Method
    delta: float
    seed: int
    roles: Roles
    evolves: bool = False

    @cached_property
    def request(self) -> WholeRequest | None:
        """A request of the trace on the machine, None where nothing is encoded."""
        return request_of(self.trace, self.machine, self.pricing.batch)

    def refusal(self, worth: float | None) -> str:
        """Why nothing need be searched, "" where something may pay. worth: None for that of a verdict."""
        return refusal_words(self.request, WORTH if worth is None else worth)

    def search(self, before: Pool | None = None) -> Pool | None:
        """The pool of policies on the search documents, None without any.

        before: of another floor of the same kind; what policies do there is not computed again.
        """
        # Refused here, before anything is searched, if the trace lacks what the floor needs.
        if not len(self.roles.search):
            token_losses(self.trace, self.floor)
            return None
        if before is None:
            pool = Pool(self.trace.subset(self.roles.search), self.floor, self.pricing)
        else:
            pool = Pool(before.trace, self.floor, self.pricing, before.evidence)
        search_pool(pool, self.floor.risk, self.seed if self.evolves else None)
        return pool

    def certificate(
        self, chosen: Losses | None, *, documents: int, assumption: str, **found: Any
    ) -> Certificate:
        """What is certified of the chosen policy, whose losses are float64 [documents]; None without one.

        documents: at hand to test on. found: further fields of the certificate.

        The bound is the allowed risk itself: it holds whichever candidate the sequence chose. A confidence
        limit of the chosen one alone would be smaller, but not valid, since the same documents chose it.
        """
        rule, floor = self.rule, self.floor
        said = {"confidence": f"{1.0 - self.delta:g}", "risk": loss_text(floor, floor.risk)}
        return Certificate(
            **{
                "method": rule.name,
                "guarantee": rule.guarantee.format(**said),
                "holds": chosen is not None and rule.name != "naive",
                "delta": self.delta if rule.confident else None,
                "documents": documents,
                "empirical_risk": None if chosen is None else float(chosen.mean()),
                "risk_bound": None if chosen is None or not rule.confident else floor.risk,
                "best_floor": risk_to_quality(floor, best_certifiable(documents, self.delta, rule.name)),
                "documents_needed": rule.needed(floor.risk, self.delta),
                "assumption": assumption,
                **found,
            }
        )

    def report(self, policy: ExitPolicy, kv: str = "propagate") -> HeldOut:
        """The policy replayed on documents that nothing was chosen on, in lockstep if batched."""
        count, batch = len(self.roles.report), self.pricing.batch
        transformed = self.trace.reference_top1 is not None
        if not count:
            why = "no documents are left to report on"
            return unmeasured(policy, why, self.pricing.plain, kv=kv, transformed=transformed)
        held = self.trace.subset(self.roles.report)
        if batch == 1 or self.machine is None:
            return measure(held, policy, self.pricing, self.floor, self.seed, kv)
        if count < batch:
            why = f"{count} report documents do not fill a batch of {batch}"
            return unmeasured(policy, why, self.pricing.plain, kv=kv, transformed=transformed)
        units = Units.of(run_of(held, policy, batch=batch, seed=self.seed))
        return measure_in_lockstep(units, policy, self.machine, self.floor, self.seed, kv)

    def tuned(
        self,
        held: HeldOut,
        *,
        answer: str,
        certificate: Certificate,
        pool: Pool | None,
        certified_on: Mapping[str, str] | None = None,
        **executed: Any,
    ) -> Tuned:
        """The answer as it is kept.

        held: what was chosen, on the report documents. certified_on: documents that shaped the choice, of the
        trace or beyond it: sketches of their texts by their ids. executed: further fields of `Tuned`.
        """
        seen = np.concatenate([self.roles.search, self.roles.certify])
        further = {} if certified_on is None else certified_on
        certify = {
            *digests(self.trace, self.roles.certify),
            *(digest_of(self.trace, document) for document in further),
        }
        return Tuned(
            **shared_fields(held, HeldOut),
            floor=self.floor,
            answer=answer,
            certificate=certificate,
            machine=self.pricing.machine,
            batch=self.pricing.batch,
            front=self._front(pool) if pool else (),
            shift=shift_of(self.trace.subset(seen), held.policy) if len(seen) else (),
            documents=self.roles.counts(),
            document_digests={
                "search": digests(self.trace, self.roles.search),
                "certify": tuple(sorted(certify)),
            },
            document_texts={
                "search": texts(self.trace, self.roles.search),
                "certify": tuple(sorted({*texts(self.trace, self.roles.certify), *further.values()})),
            },
            model=base_of(self.trace),
            workload=dict(self.trace.request.get("workload", {})),
            provenance={
                "seed": self.seed,
                LAYERS: self.trace.layers,
                "offramp": importlib.metadata.version("offramp"),
                "machine": None if self.machine is None else profile_of(self.machine),
                "trace": self.trace.provenance.get("request_fingerprint"),
            },
            request=self.request,
            **executed,
        )

    def _front(self, pool: Pool) -> tuple[FrontPoint, ...]:
        """The Pareto front on the search documents, the full model first, thinned to some places."""
        front = front_of([pool.full_model(), *pool.found])
        step = max(1, math.ceil(len(front) / FRONT_POINTS))
        kept = front[::step] if (len(front) - 1) % step == 0 else [*front[::step], front[-1]]
        return tuple(
            FrontPoint(
                policy=scored.policy,
                risk=scored.risk,
                quality=risk_to_quality(self.floor, scored.risk),
                seconds_per_token=scored.cost,
                net_speedup=self.pricing.plain / scored.cost,
                skip_ratio=scored.skip_ratio,
            )
            for scored in kept
        )
