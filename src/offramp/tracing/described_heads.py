"""What a trace keeps of the exit heads that it was made with."""

from __future__ import annotations

from typing import Any

from offramp.tracing.exit_heads import ExitHeads, seal_of
from offramp.tracing.key_value_maps import KeyValueMaps


def describe_heads(heads: ExitHeads) -> dict[str, Any]:
    """What a trace's request keeps of the heads it was made with, in JSON values.

    Where there are K,V maps also "reading", the fingerprint without them, and `describe_maps`.
    """
    maps = {} if heads.kv_maps is None else describe_maps(heads.kv_maps)
    reading = {} if heads.kv_maps is None else {"reading": heads.reading_fingerprint}
    return {
        "fingerprint": heads.fingerprint,
        "lens": heads.lens is not None,
        "output": heads.output is not None,
        "imported": "imported" in heads.provenance,
        "candidate_exit": heads.candidate_exit,
        "documents": {workload: list(ids) for workload, ids in heads.seen_documents.items()},
        "facts": sorted(heads.classifiers),
        **reading,
        **maps,
    }


def describe_maps(maps: KeyValueMaps) -> dict[str, Any]:
    """{"kv_maps": {"fingerprint": of the maps alone, "ranks": {exit: rank, None for whole maps}}}."""
    ranks = {str(exit): rank for exit, rank in maps.ranks.items()}
    return {"kv_maps": {"fingerprint": seal_of(maps.header(), maps.arrays()), "ranks": ranks}}
