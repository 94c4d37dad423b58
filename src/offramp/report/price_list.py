"""A machine's prices at batch size 1, as the page and `summary.json` hold them."""

from __future__ import annotations

from typing import Any

from offramp.costs.machine import Machine
from offramp.costs.token import TokenCosts
from offramp.errors import InputError


def price_list(
    machine: Machine,
    costs: TokenCosts,
    *,
    self_check_ratio: float | None = None,
    threads: int | None = None,
    load: float | None = None,
    note: str | None = None,
) -> dict[str, Any]:
    """`RunResult.hardware` of a machine whose prices of one token are `costs`, in seconds.

    self_check_ratio: predicted over measured seconds of plain decoding. threads, load: when it was measured.
    note: how the timings were come by, None where nothing needs to be said.

    Raises InputError for prices in another unit, or of a step of several sequences.
    """
    if costs.unit != "seconds" or costs.batch != 1:
        raise InputError(
            f"a price list in {costs.unit} at batch {costs.batch} cannot be shown in seconds per token",
            where=machine.name,
            fix="give the machine's token costs in seconds at batch 1",
        )
    return {
        "name": machine.name,
        "source": machine.source,
        "layer_seconds": float(costs.layers.mean()),
        "head_seconds": float(costs.head),
        "probe_seconds": {kind: float(seconds) for kind, seconds in costs.probes.items()},
        "overhead_seconds": float(costs.overhead),
        "plain_seconds_per_token": float(costs.plain),
        "key_value_seconds": float(costs.key_value.mean()),
        "self_check_ratio": self_check_ratio,
        "threads": threads,
        "load": load,
        "note": note,
    }
