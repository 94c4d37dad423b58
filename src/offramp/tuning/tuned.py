"""What tuning holds: its answer, the certificate, and what was to be certified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.policies.binding import TunedOn
from offramp.policies.cost_breakdown import Gain
from offramp.scoring.documents import Lengths, lengths_text
from offramp.scoring.estimate import Estimate
from offramp.tuning.floor import Floor

HEADS_FILE = "heads_file"
"""In a tuned policy's provenance: where its exit heads lie, absolute once it is read."""

LAYERS = "layers"
"""In its provenance: of the model that it was tuned on."""


@dataclass(frozen=True)
class Certificate:
    """A statement about documents that tuning never saw, and what it rests on.

    executed: whether the losses are of texts that were really decoded; else it is a *replay bound*, which
    says nothing of what the policy's own K and V and its own tokens do to later tokens.
    method: "wsr", "hb", "crc" or "naive". guarantee: what is stated in one plain sentence; for "naive",
    that nothing is. holds: whether it holds for the policy at the floor. delta: the chance that the statement
    is wrong, None where the method has none. documents: at hand to test on. empirical_risk: mean loss on
    those that settled it.
    risk_bound: what the mean loss of all such documents does not exceed, but for a chance of delta, although
    these documents chose the policy: the allowed risk; None without such a bound. best_floor: the floor that
    so many documents without one loss could certify at best. documents_needed: documents without one loss
    that the asked floor needs. tested, passed: how many candidates, in sequence. assumption: in words.
    document_tokens: fewest, median and most tokens of a document that was replayed, None where none was.
    Of an executed one: kv: the strategy for K and V that was decoded with. prompt_tokens: of each text's
    opening, None for prompts taken whole. new_tokens: of an answer, at most. stopped_after: documents of the
    chosen candidate, or of the last one tested, after which its test was settled, None if none was tested.
    """

    method: str
    guarantee: str
    holds: bool
    delta: float | None
    documents: int
    empirical_risk: float | None
    risk_bound: float | None
    best_floor: float
    documents_needed: int
    tested: int
    passed: int
    assumption: str
    executed: bool = False
    kv: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    stopped_after: int | None = None
    document_tokens: Lengths | None = None

    @property
    def of_tokens(self) -> str:
        """How long its documents are, to follow "documents": " of 16 tokens"; nothing if not known."""
        return certified_lengths(self.document_tokens, self.new_tokens)


def certified_lengths(document_tokens: Sequence[int] | None, new_tokens: int | None) -> str:
    """How long the documents of a certificate are, of these of its fields."""
    if new_tokens is None:
        return lengths_text(document_tokens)
    return f" of up to {new_tokens:,} new token{'' if new_tokens == 1 else 's'}"


@dataclass(frozen=True)
class Candidate:
    """One policy with a K,V strategy that was to be certified, or the lossless contender.

    replayed, rerun: agreement on the search documents, means over documents: with the full model's K and V,
    and as the strategy leaves them. executed: mean agreement on the documents that it was decoded on, None if
    on none. documents: how many. predicted_speed: plain cost over its own, on the search documents.
    passed: whether it is certified (of a lossless strategy, whose output is the full model's: true), None if
    it was not tested. outcome: how its test ended, or why there was none. draft_length: of a strategy that
    drafts.
    """

    policy: str
    kv: str
    replayed: float
    rerun: float
    executed: float | None
    documents: int
    predicted_speed: float
    passed: bool | None
    outcome: str
    draft_length: int | None = None

    @property
    def lossless(self) -> bool:
        """Whether it only drafts: its output is the full model's, and nothing is left to certify."""
        return self.draft_length is not None


@dataclass(frozen=True)
class FrontPoint:
    """One candidate of the Pareto front on the search documents, from cautious to bold.

    risk: mean loss over documents. quality: in the floor's own unit. seconds_per_token, net_speedup:
    predicted on the machine.
    """

    policy: str
    risk: float
    quality: float
    seconds_per_token: float
    net_speedup: float
    skip_ratio: float


@dataclass(frozen=True)
class Shift:
    """How the tuning documents look to a policy at one of its checks, kept to compare other texts with.

    quantiles: of the first signal that the policy reads there, at `QUANTILES`. agreement: share of tokens on
    which this exit agrees with the full model. calibration: mean of max_prob less that share.
    """

    exit: int
    fact: str | None
    quantiles: tuple[float, ...]
    agreement: float
    calibration: float | None


@dataclass(frozen=True)
class Tuned:
    """The answer of the tuner: the fastest policy that passed, or the full model and why.

    policy_text: "never" if nothing passed or nothing beats the full model. answer: one plain sentence.
    quality, skip_ratio, net_speedup, seconds_per_token, reference_agreement: on report documents that neither
    search nor certificate saw (None values if there are none): as rerun with an executed certificate, else
    replayed; of the exits taken in lockstep at a batch above 1, where bound and front are of each token
    alone. executed_agreement: share of the tokens it generates that are the full model's choice on the same
    prefix, of documents that did not choose the policy, mean over documents; None if nothing was decoded.
    candidates: what was to be certified, in the order of the tests, the lossless contender last.
    plain_seconds_per_token: the full model on
    the same machine. probe_share: probes' share of the policy's seconds. front: on the search documents.
    documents: how many of each role ("heads", "search", "certify", "report"). document_digests: SHA-256 of
    the ids and workload of the search and certify documents, by role; document_texts: sketches of their texts
    (`offramp.workloads.shared_text`), by role. model: what the policy is bound to, as
    `offramp.policies.binding.base_of` gives it. provenance: the seed, offramp's version, the machine's whole
    profile (None without a machine) and the fingerprint of the trace. gain: what each part of a step saves on
    the report documents, None without any.
    """

    floor: Floor
    policy_text: str
    answer: str
    certificate: Certificate
    quality: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    seconds_per_token: Estimate
    plain_seconds_per_token: float
    probe_share: float
    machine: str
    batch: int
    kv: str
    front: tuple[FrontPoint, ...]
    shift: tuple[Shift, ...]
    documents: Mapping[str, int]
    document_digests: Mapping[str, tuple[str, ...]]
    model: Mapping[str, Any] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    reference_agreement: Estimate | None = None
    executed_agreement: Estimate | None = None
    candidates: tuple[Candidate, ...] = ()
    gain: Gain | None = None
    document_texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Tuned({self.policy_text} at {self.floor}: {self.answer})"

    @property
    def heads_file(self) -> Path | None:
        """Where its exit heads lay when it was written; None without any, or if that is not known."""
        kept = self.provenance.get(HEADS_FILE)
        return None if kept is None else Path(str(kept))

    @property
    def tuned_on(self) -> TunedOn:
        """The documents that shaped the policy."""
        return TunedOn(self.document_digests, self.document_texts)

    @property
    def policy(self) -> Any:
        """The policy object."""
        from offramp.policies.grammar import parse_policy

        return parse_policy(self.policy_text)
