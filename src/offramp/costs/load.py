"""How much of a machine others may use while something is timed on it: one rule, for profiles and benches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OTHER_LOAD = "other_load"
"""The detail that says how many processors anything else kept busy meanwhile; older profiles lack it."""
TOLERABLE_LOAD = 0.3
"""Processors that others may keep busy during a timing, beside those that our threads leave free."""


def too_busy(facts: Mapping[str, Any], load: float) -> str | None:
    """What others did beside a timing, if that is too much for it; None if not.

    facts: "cores" of the machine and "threads" of ours. load: processors that others kept busy.
    """
    cores, threads = facts["cores"] or 1, facts["threads"]
    tolerable = max(0, cores - threads) + TOLERABLE_LOAD
    if load <= tolerable:
        return None
    return (
        f"other work kept {load:.1f} of {cores} processors busy, {tolerable:g} are tolerable beside "
        f"{threads} thread{'' if threads == 1 else 's'} of ours"
    )
