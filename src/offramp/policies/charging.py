"""What a policy costs: layers run, K,V left for the skipped ones, every probe, and one head product.

The probe that lets a token leave is its head product; a token that leaves unprobed pays its exit's head, and
one that reaches exit L pays all the probes that did not fire and the final head.
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

from offramp.costs.token import Prices, TokenCosts, token_prices
from offramp.errors import InputError
from offramp.tracing.trace import Trace


def exit_costs(costs: TokenCosts, checked: tuple[int, ...]) -> NDArray[np.float64]:
    """Cost of one token that leaves at exit l = 1..L, in the unit of `costs`: float64 [layers].

    checked: the ascending exits below L where the policy probes.
    """
    probes = probes_made(len(costs.layers), checked)
    fired = np.zeros(len(costs.layers), dtype=np.bool_)
    fired[np.array(checked, dtype=np.int64) - 1] = True
    return costs.until_exit + probes * costs.probe + np.where(fired, 0.0, costs.head)


def exit_costs_without_probes(costs: TokenCosts) -> NDArray[np.float64]:
    """The same bill with checks for free, one head product a token: float64 [layers]."""
    return costs.until_exit + costs.head


def probes_made(layers: int, checked: tuple[int, ...]) -> NDArray[np.int64]:
    """Probes made by a token that leaves at exit l = 1..L: int64 [layers]."""
    return np.array([bisect.bisect_right(checked, exit) for exit in range(1, layers + 1)], dtype=np.int64)


def prices_of(trace: Trace) -> Prices:
    """What a token of this trace costs, at its mean position.

    Raises InputError for a trace without tokens.
    """
    if not trace.token_count:
        raise InputError(
            "the trace has no tokens", where=str(trace.folder or "the trace"), fix="trace more text"
        )
    return token_prices(trace.shape, float(np.mean(trace.position, dtype=np.float64)))
