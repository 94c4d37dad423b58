"""Four disjoint roles of documents: fitting heads, searching, certifying, reporting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.policies.binding import document_digest, heads_documents
from offramp.scoring.documents import document_rows
from offramp.tracing.trace import Trace

Places = NDArray[np.int64]

SEARCH_SHARE = 0.2
"""Share of the documents to search on: the order of the candidates needs fewer than the certificate."""

REPORT_SHARE = 0.2
"""Share of the documents that neither search nor certificate saw."""

SAW = ("search", "certify")
"""The roles whose documents shaped a tuned policy."""


@dataclass(frozen=True)
class Roles:
    """The documents of each role, int64 [documents], places in `Trace.documents`, disjoint.

    heads: documents that exit heads were fitted on, which nothing else may use.
    """

    heads: Places
    search: Places
    certify: Places
    report: Places

    def counts(self) -> dict[str, int]:
        """How many documents have each role."""
        return {
            name: len(places)
            for name, places in (
                ("heads", self.heads),
                ("search", self.search),
                ("certify", self.certify),
                ("report", self.report),
            )
        }


def split_roles(
    trace: Trace, seed: int, *, search_share: float = SEARCH_SHARE, report_share: float = REPORT_SHARE
) -> Roles:
    """Roles of a trace's documents, drawn by `seed` from their ids alone; most certify.

    With three documents or more each of search, certify and report has one. The certify documents are in the
    drawn order, in which a sequential test may look at them; the others ascend.

    Raises InputError for a trace without tokens, or a negative seed.
    """
    require_seed(seed)
    documents = document_rows(trace).index
    used = heads_documents(trace)
    fitted = np.array([trace.documents[place].id in used for place in documents], dtype=np.bool_)
    free = documents[~fitted]
    drawn = np.random.default_rng(seed).permutation(free)
    count = len(drawn)
    search, report = role_sizes(count, search_share, report_share)
    return Roles(
        heads=np.sort(documents[fitted]),
        search=np.sort(drawn[:search]),
        certify=drawn[search : count - report],
        report=np.sort(drawn[count - report :]),
    )


def role_sizes(
    count: int, search_share: float = SEARCH_SHARE, report_share: float = REPORT_SHARE
) -> tuple[int, int]:
    """How many of so many documents search, and how many report; the others certify."""
    search = min(max(1, round(search_share * count)), max(count - 2, 0))
    return search, min(max(1, round(report_share * count)), max(count - 1 - search, 0))


def fewest_documents(certify: int) -> int:
    """Fewest documents of which so many certify and at least one searches."""
    count = max(certify, 1)
    while True:
        search, report = role_sizes(count)
        if search and count - search - report >= certify:
            return count
        count += 1


def require_seed(seed: int) -> None:
    """Raise InputError for a seed that draws nothing."""
    if seed < 0:
        raise InputError(f"a seed of {seed} is below 0", where="--seed", fix="choose 0 or more")


def split_documents(trace: Trace, seed: int) -> tuple[Places, Places]:
    """Two disjoint halves of the documents (places in `Trace.documents`), the same for the same ids and seed.

    The first is for choosing and the smaller one of an odd number; the second for judging. Documents that the
    trace's exit heads were fitted on are in neither.
    """
    used = heads_documents(trace)
    documents = document_rows(trace).index
    documents = documents[[trace.documents[place].id not in used for place in documents]]
    shuffled = np.random.default_rng(seed).permutation(documents)
    half = len(documents) // 2
    return np.sort(shuffled[:half]), np.sort(shuffled[half:])


def digests(trace: Trace, places: Iterable[int]) -> tuple[str, ...]:
    """`document_digest` of some documents, sorted."""
    return tuple(sorted(document_digest(trace, int(place)) for place in places))


def seen_documents(trace: Trace, document_digests: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Ids of the trace's documents that tuning used, by role (see `Tuned.document_digests`)."""
    by_digest = {
        document_digest(trace, int(place)): trace.documents[int(place)].id for place in traced(trace)
    }
    return {
        role: [by_digest[digest] for digest in known if digest in by_digest]
        for role, known in document_digests.items()
    }


def traced(trace: Trace) -> Places:
    """Documents that have rows."""
    return np.unique(trace.document).astype(np.int64)


def require_disjoint(trace: Trace, document_digests: Mapping[str, tuple[str, ...]]) -> None:
    """Raise InputError if the trace holds documents that a policy was tuned on, with their number and one id.

    document_digests: see `Tuned.document_digests`.
    """
    shared = [identity for ids in seen_documents(trace, document_digests).values() for identity in ids]
    if shared:
        raise InputError(
            f"{len(shared)} of the trace's documents were used to tune the policy",
            where=f"document {shared[0]} of {trace.folder or 'the trace'}",
            fix="add --unseen to judge it on the other documents of the trace, or trace others",
        )
