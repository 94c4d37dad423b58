"""Searches made once: they are a function of documents, floor and prices, and most tests ask for the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from offramp.files import canonical_json
from offramp.kit.typed import to_json
from offramp.tuning.pool import Pool, ScoredPolicy
from offramp.tuning.search import search_pool


def key_of(pool: Pool) -> str:
    """SHA-256 of what a search reads."""
    trace, digest = pool.trace, hashlib.sha256()
    for name in sorted(trace.fact_names):
        digest.update(name.encode() + trace.fact(name).tobytes())
    for column in (trace.document, trace.position, trace.reference_top1, trace.exits):
        digest.update(b"none" if column is None else column.tobytes())
    asked = [str(trace.shape), str(trace.request), to_json(pool.floor), to_json(pool.pricing)]
    ids = [document.id for document in trace.documents]
    return digest.hexdigest() + canonical_json([asked, ids])


@pytest.fixture(scope="session", autouse=True)
def searched_once() -> Iterator[None]:
    found: dict[tuple[str, float, int | None], list[ScoredPolicy]] = {}

    def remembered(pool: Pool, risk: float, evolution_seed: int | None = None) -> None:
        key = (key_of(pool), risk, evolution_seed)
        if key in found:
            pool.found = list(found[key])
            return
        search_pool(pool, risk, evolution_seed)
        found[key] = list(pool.found)

    with pytest.MonkeyPatch.context() as patched:
        for module in ("job", "replayed_verdicts"):
            patched.setattr(f"offramp.tuning.{module}.search_pool", remembered)
        yield
