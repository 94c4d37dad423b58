"""What a trace keeps of the exit heads that it was made with, and of texts that they may have seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from offramp.defaults import SHORTLIST
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.kit.sealed_tensors import seal_of

RAW = "the model's own norm and head"
"""What reads exits if nothing else does."""


def describe_heads(heads: ExitHeads) -> dict[str, Any]:
    """What a trace's request keeps of the heads it was made with, in JSON values.

    Where there are K,V maps also "reading", the fingerprint without them, and `describe_maps`.
    """
    maps = {} if heads.kv_maps is None else describe_maps(heads.kv_maps)
    trained = {"trained": True} if "trained" in heads.provenance else {}
    listed = unusual_length(heads)
    short_list = {} if listed is None else {"short_list": listed}
    reading = {} if heads.kv_maps is None else {"reading": heads.reading_fingerprint}
    return {
        "fingerprint": heads.fingerprint,
        **read_by(heads),
        "imported": "imported" in heads.provenance,
        "candidate_exit": heads.candidate_exit,
        "documents": {workload: list(ids) for workload, ids in heads.seen_documents.items()},
        "texts": heads.seen_texts is not None,
        "facts": sorted(heads.classifiers),
        **trained,
        **short_list,
        **reading,
        **maps,
    }


def read_by(heads: ExitHeads) -> dict[str, Any]:
    """Of which parts their reading of exits is, in JSON values (see `reading_parts`)."""
    rank = None if heads.lens is None else heads.lens.rank
    alone = heads.output is not None and heads.output.weight is None
    bare = alone and heads.output is not None and heads.output.norm == "none"
    return {
        "lens": heads.lens is not None,
        "output": heads.output is not None,
        **({} if rank is None else {"lens_rank": rank}),
        **({} if heads.mlp is None else {"mlp_units": heads.mlp.units}),
        **({"norms_alone": True} if alone else {}),
        **({"no_norm": True} if bare else {}),
    }


def unusual_length(heads: ExitHeads) -> int | None:
    """Tokens of the short list, where it has another length than usual; None otherwise."""
    if heads.shortlist is None:
        return None
    listed = len(np.unique(heads.shortlist))
    return None if listed == min(SHORTLIST, int(heads.model["vocabulary_size"])) else listed


def describe_maps(maps: KeyValueMaps) -> dict[str, Any]:
    """{"kv_maps": {"fingerprint": of the maps alone, "ranks": {exit: rank, None for whole maps}}}."""
    ranks = {str(exit): rank for exit, rank in maps.ranks.items()}
    return {"kv_maps": {"fingerprint": seal_of(maps.header(), maps.arrays()), "ranks": ranks}}


def reads_exits(heads: Mapping[str, Any] | None) -> bool:
    """Whether exits are read through lens, networks, norms or output heads of described exit heads."""
    return bool(reading_parts(heads or {}))


def reading_parts(heads: Mapping[str, Any]) -> list[str]:
    """What described exit heads read each exit through, one after the other; nothing where the model's own.

    "a linear lens", "a linear lens of rank 16", "a network of 512 units", "a norm of its own", "an output
    head of its own" or, by the model's own head, "a reading without a norm".
    """
    parts = []
    if heads.get("lens"):
        parts.append("a linear lens" + (f" of rank {heads['lens_rank']:,}" if heads.get("lens_rank") else ""))
    if heads.get("mlp_units"):
        parts.append(f"a network of {heads['mlp_units']:,} units")
    if heads.get("output"):
        own = "a norm of its own" if heads.get("norms_alone") else "an output head of its own"
        parts.append("a reading without a norm" if heads.get("no_norm") else own)
    return parts


def read_through(heads: Mapping[str, Any] | None) -> str:
    """What reads the exits of a trace with described exit heads, in words.

    `RAW`, "a linear lens", "a trained linear lens and a network of 512 units".
    """
    parts = reading_parts(heads or {})
    if not heads or not parts:
        return RAW
    made = "an imported" if heads.get("imported") else "a trained" if heads.get("trained") else ""
    first = f"{made} {parts[0].split(maxsplit=1)[1]}" if made else parts[0]
    return " and ".join([first, *parts[1:]])


def reading_of(heads: Mapping[str, Any] | None) -> str | None:
    """What exits are read by: described heads' fingerprint without K,V maps, None as without heads."""
    if not heads:
        return None
    reading = heads.get("reading") if "reading" in heads else heads.get("fingerprint")
    return None if reading is None else str(reading)
