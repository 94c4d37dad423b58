"""Four disjoint roles of documents: fitting heads, searching, certifying, reporting."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.policies.binding import TunedOn, document_digest
from offramp.scoring.documents import document_rows
from offramp.tracing.trace import Trace, heads_documents
from offramp.workloads.shared_text import read_sketch, text_groups

Places = NDArray[np.int64]

SEARCH_SHARE = 0.2
"""Share of the documents to search on: the order of the candidates needs fewer than the certificate."""

REPORT_SHARE = 0.2
"""Share of the documents that neither search nor certificate saw."""


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
    """Roles of a trace's documents, drawn by `seed` from their ids and texts alone; most certify.

    Documents that share text (`offramp.workloads.shared_text`) have one role, so a role may have a few more
    documents than its share. With three such groups or more each of search, certify and report has one. The
    certify documents are in the drawn order, in which a sequential test may look at them; the others ascend.

    Raises InputError for a trace without tokens, or a negative seed.
    """
    documents = document_rows(trace).index
    used = heads_documents(trace)
    fitted = np.array([trace.documents[place].id in used for place in documents], dtype=np.bool_)
    free = documents[~fitted]
    groups = _grouped(trace, np.random.default_rng(seed).permutation(free))
    to_search, to_report = role_sizes(len(free), search_share, report_share)
    search, groups = _take(groups, to_search, leave=2)
    report, groups = _take(groups[::-1], to_report, leave=1)
    return Roles(
        heads=np.sort(documents[fitted]),
        search=np.sort(_joined(search)),
        certify=_joined(groups[::-1]),
        report=np.sort(_joined(report)),
    )


def _grouped(trace: Trace, drawn: Places) -> list[Places]:
    """Documents in drawn order, those that share text together in the place of the first of them."""
    group = _text_groups(tuple(document.text for document in trace.documents))[drawn]
    _, first, of = np.unique(group, return_index=True, return_inverse=True)
    return [drawn[of == place] for place in np.argsort(first)]


@functools.lru_cache(maxsize=8)
def _text_groups(texts: tuple[str | None, ...]) -> Places:
    """The group of every document of a trace by its text; one whose text is not known is one of its own."""
    groups = np.arange(len(texts))
    known = np.array([place for place, text in enumerate(texts) if text is not None], dtype=np.int64)
    groups[known] = known[text_groups([read_sketch(text) for text in texts if text is not None])]
    return groups


def _take(groups: Sequence[Places], documents: int, *, leave: int) -> tuple[list[Places], list[Places]]:
    """The first groups until there are so many documents, and the others, of which some are left."""
    taken = 0
    while sum(map(len, groups[:taken])) < documents and len(groups) - taken > leave:
        taken += 1
    return list(groups[:taken]), list(groups[taken:])


def _joined(groups: Sequence[Places]) -> Places:
    return np.concatenate([np.empty(0, dtype=np.int64), *groups])


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


def split_documents(trace: Trace, seed: int) -> tuple[Places, Places]:
    """Two halves of the documents (places in `Trace.documents`) that share no text.

    They are the same for the same ids, texts and seed. The first is for choosing and the smaller one of an
    odd number, but for documents that share text with it; the second for judging. Documents that the trace's
    exit heads were fitted on are in neither.
    """
    used = heads_documents(trace)
    documents = document_rows(trace).index
    documents = documents[[trace.documents[place].id not in used for place in documents]]
    groups = _grouped(trace, np.random.default_rng(seed).permutation(documents))
    choosing, judging = _take(groups, len(documents) // 2, leave=1)
    return np.sort(_joined(choosing)), np.sort(_joined(judging))


def digests(trace: Trace, places: Iterable[int]) -> tuple[str, ...]:
    """`document_digest` of some documents, sorted."""
    return tuple(sorted(document_digest(trace, int(place)) for place in places))


def texts(trace: Trace, places: Iterable[int]) -> tuple[str, ...]:
    """The sketches of some documents' texts that the trace holds, sorted."""
    sketches = (trace.documents[int(place)].text for place in places)
    return tuple(sorted(text for text in sketches if text is not None))


def seen_documents(trace: Trace, tuned_on: TunedOn) -> dict[str, list[str]]:
    """Ids of the trace's documents that tuning used, or that share text with one that it used, by role."""
    return {
        role: [trace.documents[place].id for place in places]
        for role, places in tuned_on.places(trace).items()
    }


def traced(trace: Trace) -> Places:
    """Documents that have rows."""
    return np.unique(trace.document).astype(np.int64)


def require_disjoint(trace: Trace, tuned_on: TunedOn) -> None:
    """Raise InputError if the trace holds documents that a policy was tuned on, or text that they share."""
    shared = {identity: None for ids in seen_documents(trace, tuned_on).values() for identity in ids}
    if shared:
        raise InputError(
            f"{len(shared)} of the trace's documents were used to tune the policy, or share text with one "
            "that was",
            where=f"document {next(iter(shared))} of {trace.folder or 'the trace'}",
            fix="give unseen=True (--unseen) to judge it on the trace's other documents, or trace others",
        )
