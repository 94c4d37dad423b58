"""Certificates: what they state, and the test of candidates ordered on the search documents, on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.kit.numbers import Count, Number, Positive, Share, Whole
from offramp.policies.decisions import replay_decisions, task_of
from offramp.policies.figures import PositiveOf, ShareOf
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.short_list import seen_by
from offramp.scoring.documents import Lengths, document_rows, lengths_text
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import Losses, Method
from offramp.tuning.floor import Floor, document_losses, token_losses
from offramp.tuning.pool import ROUNDING, Pool, ScoredPolicy


@dataclass(frozen=True)
class Certificate:
    """A statement about documents that tuning never saw, and what it rests on."""

    method: str
    """ "wsr", "hb", "crc" or "naive"."""
    guarantee: str
    """What is stated, in one plain sentence; for "naive", that nothing is."""
    holds: bool
    """Whether it holds for the policy at the floor."""
    delta: Share | None
    """The chance that the statement is wrong, None where the method has none."""
    documents: Whole
    """At hand to test on."""
    empirical_risk: ShareOf[float] | None
    """Mean loss on those that settled it."""
    risk_bound: ShareOf[float] | None
    """What the mean loss of all such documents does not exceed, but for a chance of delta, although these
    documents chose the policy: the allowed risk; None without such a bound."""
    best_floor: Number
    """That so many documents without one loss could certify at best."""
    documents_needed: Whole
    """Without one loss, for the floor that was asked for."""
    tested: Whole
    """Candidates, in sequence."""
    passed: Whole
    assumption: str
    """What it takes for granted, in words."""
    executed: bool = False
    """Whether the losses are of texts that were really decoded; else it is a *replay bound*, which says
    nothing of what the policy's own K and V and its own tokens do to later tokens."""
    kv: str | None = None
    """Of an executed one, as what follows: the strategy for K and V that was decoded with."""
    prompt_tokens: Count | None = None
    """Of each text's opening, None for prompts taken whole."""
    new_tokens: Count | None = None
    """Of an answer, at most."""
    stopped_after: Whole | None = None
    """Documents of the chosen candidate, or of the last one tested, after which its test was settled, None if
    none was tested."""
    document_tokens: Lengths | None = None
    """Of a document that was replayed, None where none was."""

    def __post_init__(self) -> None:
        if self.passed > self.tested:
            raise ValueError(f"of {self.tested} candidates that were tested {self.passed} passed")

    @property
    def of_tokens(self) -> str:
        """How long its documents are, to follow "documents": " of 16 tokens"; nothing if not known."""
        if self.new_tokens is None:
            return lengths_text(self.document_tokens)
        return f" of up to {self.new_tokens:,} new token{'' if self.new_tokens == 1 else 's'}"


@dataclass(frozen=True)
class Candidate:
    """One policy with a K,V strategy that was to be certified, or the lossless contender."""

    policy: ExitPolicy
    kv: str
    replayed: ShareOf[float]
    """Agreement, of the floor's kind, with the full model's K and V: mean over the search documents."""
    rerun: ShareOf[float]
    """The same with K and V as the strategy leaves them."""
    executed: ShareOf[float] | None
    """The same on the documents that it was decoded on, None if on none."""
    documents: Whole
    """How many these are."""
    predicted_speed: PositiveOf[float]
    """Plain cost over its own, on the search documents."""
    passed: bool | None
    """Whether it is certified (of a lossless strategy, whose output is the full model's: true), None if it
    was not tested."""
    outcome: str
    """How its test ended, or why there was none."""
    draft_length: Whole | None = None
    """Of a strategy that drafts."""
    prices: tuple[Positive, ...] = ()
    """What a token of each of these documents takes over one of the full model, by price; none where that is
    not known."""

    @property
    def lossless(self) -> bool:
        """Whether it only drafts: its output is the full model's, and nothing is left to certify."""
        return self.draft_length is not None


TARGETS = 21
"""Targets of the search risk, evenly spread from 0 to the allowed risk."""


def search_targets(risk: float) -> tuple[float, ...]:
    """Search risks at which the fastest policy becomes a candidate: from 0 up to the allowed risk."""
    return tuple(float(target) for target in np.linspace(0.0, risk, TARGETS))


def ordered_candidates(pool: Pool, risk: float) -> list[ScoredPolicy]:
    """The candidates of the fixed sequence among a pool's policies (see `order_places`)."""
    risks = np.array([scored.risk for scored in pool.found])
    costs = np.array([scored.cost for scored in pool.found])
    return [pool.found[place] for place in order_places(risks, costs, pool.pricing.plain, risk)]


def order_places(
    risks: NDArray[np.float64],
    costs: NDArray[np.float64],
    plain: float,
    risk: float,
    *,
    targets: Sequence[float] | None = None,
    step: float = 0.0,
) -> list[int]:
    """The candidates of the fixed sequence, from cautious to bold, each faster than all before it: places.

    risks, costs: float64 [policies], on the search documents. At every target of the search risk the fastest
    policy; dropped are those that are not faster than a more cautious one, or than the full model (`plain`),
    by a share `step` of its cost. The order depends on the search documents alone.
    """
    ordered: list[int] = []
    for target in search_targets(risk) if targets is None else targets:
        within = np.flatnonzero(risks <= target + ROUNDING)
        if not within.size:
            continue
        best = int(within[np.lexsort((risks[within], costs[within]))[0]])
        if costs[best] < (1.0 - step) * (costs[ordered[-1]] if ordered else plain):
            ordered.append(best)
    return ordered


def losses_in_order(
    trace: Trace, places: NDArray[np.int64], policies: list[ExitPolicy], floor: Floor
) -> Losses:
    """Each document's loss under each policy: float64 [documents, policies], documents as in `places`."""
    held = trace.subset(places)
    token_losses(held, floor)  # refuses a trace that lacks what the floor needs
    rows = document_rows(held)
    where = {int(place): position for position, place in enumerate(rows.index)}
    order = np.array([where[int(place)] for place in places], dtype=np.int64)
    columns = [policy_losses(held, policy, floor)[order] for policy in policies]
    return np.stack(columns, axis=1) if columns else np.zeros((len(order), 0))


def policy_losses(trace: Trace, policy: ExitPolicy, floor: Floor) -> NDArray[np.float64]:
    """Mean loss of each document's tokens under a policy, in [0, 1]: float64 [documents], canonical order."""
    seen = seen_by(policy.for_task(task_of(trace)), trace)
    return document_losses(seen, token_losses(seen, floor), replay_decisions(policy, seen).exits)


@dataclass(frozen=True)
class Tested:
    """The outcome of a sequence: how many were tested and passed, and the place of the chosen one, if any."""

    tested: int
    passed: int
    chosen: int | None


def run_sequence(losses: Losses, costs: list[float], risk: float, delta: float, method: Method) -> Tested:
    """Test candidates from cautious to bold: losses [documents, candidates], their search costs.

    Fixed-sequence testing (Learn then Test, arXiv 2110.01052, section 4): each candidate is tested at the
    whole delta, and at the first that fails all stops, so that a wrong certificate has a probability of at
    most delta however many are tested. The fastest of those that passed is chosen. A method without a
    sequence tests all.
    """
    if not losses.size:
        return Tested(0, 0, None)
    passes = method.p_values(losses, risk, delta) <= delta
    failed = np.flatnonzero(~passes)
    tested = int(failed[0]) + 1 if method.sequential and failed.size else len(passes)
    passed: list[int] = np.flatnonzero(passes[:tested]).tolist()
    return Tested(tested, len(passed), min(passed, key=lambda place: (costs[place], place), default=None))
