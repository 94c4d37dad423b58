"""What a tuned policy is bound to: the model, and the exit heads through which its trace was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offramp.errors import InputError, PolicyError
from offramp.files import canonical_json, sha256_of_text
from offramp.heads.described import reading_of, reads_exits
from offramp.heads.exit_heads import ExitHeads
from offramp.policies.decisions import task_of
from offramp.policies.policy import ExitPolicy
from offramp.tracing.facts import HEAD_FACTS, SIGNAL_FACTS
from offramp.tracing.trace import Trace, heads_documents
from offramp.workloads.shared_text import read_sketch, shares_text

# Facts that fitted heads give, or whose short list of tokens comes with them.
OF_HEADS = frozenset(fact.name for fact in (*HEAD_FACTS, *SIGNAL_FACTS["restricted"]))

HEADS_OF_OTHERS = (
    "the exit heads were imported: offramp does not know which documents they were trained on, and on these "
    "they look better than on new text"
)


def base_of(trace: Trace) -> dict[str, Any]:
    """What a policy that is tuned on a trace is bound to, in JSON values.

    The model, "dtype", and "heads": the "fingerprint" and "lens" of the exit heads, "output" if exits have
    output heads of their own, "reading" and "kv_maps" if there are K,V maps, None without any.
    """
    request = trace.request
    heads = request.get("heads")
    kept = {name: heads.get(name) for name in ("fingerprint", "lens")} if heads else None
    if kept and heads and heads.get("output"):
        kept["output"] = True
    if kept and heads and "kv_maps" in heads:
        kept |= {name: heads.get(name) for name in ("reading", "kv_maps")}
    return {**(request.get("model") or {}), "dtype": request.get("dtype"), "heads": kept}


@dataclass(frozen=True)
class TunedOn:
    """The documents that shaped a policy, by role ("search", "certify").

    digests: what `document_digest` says of each. texts: sketches of their texts as traces keep them, by which
    documents of any workload that share text with one are known; none where they were not kept.
    """

    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def places(self, trace: Trace) -> dict[str, list[int]]:
        """Places of the trace's documents that are these, or share text with one, by role."""
        traced = np.unique(trace.document).tolist()
        kept = [place for place in traced if trace.documents[place].text is not None]
        sketches = [read_sketch(str(trace.documents[place].text)) for place in kept]
        by_role = {}
        for role, digests in self.digests.items():
            known = set(digests)
            seen = {place for place in traced if document_digest(trace, place) in known}
            shared = shares_text(sketches, [read_sketch(text) for text in self.texts.get(role, ())])
            seen.update(place for place, shares in zip(kept, shared, strict=True) if shares)
            by_role[role] = sorted(seen)
        return by_role


def document_digest(trace: Trace, place: int) -> str:
    """SHA-256 of a document's id and workload, by which a tuned policy knows what it was tuned on."""
    return digest_of(trace, trace.documents[place].id)


def digest_of(trace: Trace, document: str) -> str:
    """The same of any document of the trace's workload, traced or not, by its id."""
    workload = trace.request.get("workload", {}).get("fingerprint")
    return sha256_of_text(canonical_json([workload, document]))


def text_caveat(trace: Trace) -> str | None:
    """What is not known about text that the trace's documents share, None if all is."""
    heads = trace.request.get("heads") or {}
    own = trace.request.get("workload", {}).get("fingerprint")
    others = sum(len(ids) for workload, ids in (heads.get("documents") or {}).items() if workload != own)
    if others and not heads.get("texts"):
        return (
            f"the exit heads were fitted on {others} documents of other workloads, taken to share no text "
            "with these"
        )
    if trace.request and any(document.text is None for document in trace.documents):
        return (
            "documents of the trace, which an older offramp made, are taken to share no text with each other"
        )
    return None


def seen_notes(trace: Trace, tuned_on: TunedOn) -> tuple[str, ...]:
    """What must be said of a trace with documents that a policy was tuned on, or its heads fitted on."""
    places = np.unique(trace.document).tolist()
    fitted = heads_documents(trace)
    counts = {
        "the policy was tuned on": len({place for seen in tuned_on.places(trace).values() for place in seen}),
        "the exit heads were fitted on": sum(trace.documents[place].id in fitted for place in places),
    }
    unknown = (HEADS_OF_OTHERS,) if (trace.request.get("heads") or {}).get("imported") else ()
    return unknown + tuple(
        f"{what} {count} of the trace's {len(places)} documents, or on text that they share: on these it "
        "looks better than on new text"
        for what, count in counts.items()
        if count
    )


def require_base(tuned_for: Mapping[str, Any], policy: ExitPolicy, trace: Trace) -> None:
    """Refuse a trace of another model than a policy was tuned for, or one read through other exit heads.

    tuned_for: the `base_of` the trace that it was tuned on. Raises PolicyError.
    """
    base, where = base_of(trace), str(trace.folder or "the trace")
    named = f"{where} is of {base.get('name', 'a model without a name')}"
    require_model(tuned_for, base.get("fingerprint"), named)
    before, now = tuned_for.get("heads") or {}, base["heads"] or {}
    if heads_matter(before, now, policy.for_task(task_of(trace)), trace.layers):
        raise PolicyError(
            f"the policy was tuned on a trace made {_with(before)}, this one was made {_with(now)}",
            where=where,
            fix="trace again with the same heads=FILE (--heads FILE), or tune on a trace made with these",
        )


def require_model(tuned_for: Mapping[str, Any], fingerprint: object, where: str) -> None:
    """Refuse another model than a policy was tuned for. Raises PolicyError."""
    if tuned_for.get("fingerprint") != fingerprint:
        raise PolicyError(
            f"the policy was tuned for another model, {tuned_for.get('name', 'without a name')}",
            where=where,
            fix="tune a policy on a trace of this model: offramp trace, then offramp tune",
        )


def heads_matter(before: Mapping[str, Any], now: Mapping[str, Any], policy: ExitPolicy, layers: int) -> bool:
    """Whether exits are read by other heads than before, and the policy decides by them.

    before, now: described exit heads, empty without any. Others matter to a policy that leaves early if
    either's exits are read through them, and to one that reads a fact, or the short list, that comes with
    heads.
    """
    if reading_of(before) == reading_of(now):
        return False
    if policy.short_list or facts_read(policy, layers) & OF_HEADS:
        return True
    return bool(policy.needs(layers)) and (reads_exits(before) or reads_exits(now))


def facts_read(policy: ExitPolicy, layers: int) -> frozenset[str]:
    """Every fact that a policy reads on a model of so many layers, at exit L included.

    Raises PolicyError, with the policy's text, if the policy does not fit.
    """
    try:
        needs = policy.needs(layers)
    except PolicyError as error:
        error.where = error.where or str(policy)
        raise
    return frozenset(fact for facts in needs.values() for fact in facts) | set(policy.final_facts)


def check_same_maps(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None, where: str) -> None:
    """Refuse other K,V maps than those that a policy with mapped K and V was tuned with.

    before, now: described exit heads. No maps now are no other maps. Raises PolicyError.
    """
    tuned, current = ((heads or {}).get("kv_maps") for heads in (before, now))
    if tuned and current and tuned["fingerprint"] != current["fingerprint"]:
        raise PolicyError(
            f"the policy was tuned with the K,V maps {tuned['fingerprint'][:12]}, and these are "
            f"{current['fingerprint'][:12]}",
            where=where,
            fix="give the file of exit heads that it was tuned with, or tune it again with these",
        )


def _with(heads: Mapping[str, Any]) -> str:
    reading = reading_of(heads)
    return f"with the exit heads {reading[:12]}" if reading else "without exit heads"


def require_heads(trace: Trace, heads: ExitHeads | None) -> None:
    """Raise InputError for other exit heads than a trace was read through, if exits are read through any."""
    before = base_of(trace)["heads"] or {}
    if reading_of(before) == (None if heads is None else heads.reading_fingerprint):
        return
    if reads_exits(before) or (heads is not None and heads.reads_exits):
        made = "with other exit heads than are given" if before else "without exit heads, and some are given"
        raise InputError(
            f"the trace was made {made}",
            where=f"heads= for {trace.folder or 'the trace'}",
            fix="give the file that the trace was made with, or trace again with these",
        )
