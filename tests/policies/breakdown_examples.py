"""Prices that depend on rows, and random decisions, for the tests of costs, batches and speculation."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from offramp.costs.token import TokenCosts
from offramp.policies.cost_breakdown import Usage, break_down
from offramp.policies.decisions import Decisions
from offramp.policies.steps import count_plain

LAYERS = 4


def at(rows: int) -> TokenCosts:
    """Layers of 100, 110, 120, 130 and 5 for each row beside the first; everything else by rows too."""
    more = rows - 1
    return TokenCosts(
        "bytes",
        np.array([100.0, 110.0, 120.0, 130.0]) + 5 * more,
        1000.0 + 20 * more,
        1100.0 + 20 * more,
        {"full head": 1007.0 + 21 * more, "cosine": 2.0 * rows, "classifier": 3.0},
        np.array([10.0, 11.0, 12.0, 13.0]) + more,
        overhead=7.0 + more,
        batch=rows,
    )


def lines(usage: Usage, tokens: int = 3) -> list[tuple[Any, ...]]:
    breakdown = break_down(usage, count_plain(np.arange(tokens), LAYERS), at, tokens)
    return [(line.part, line.where, line.rows, line.count, line.price) for line in breakdown.lines]


@st.composite
def decisions_of(draw: Any) -> Decisions:
    """Tokens that leave anywhere at or above some checked exits, probed at all of them or at some."""
    tokens = draw(st.integers(1, 30))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    checked = draw(st.sets(st.integers(1, LAYERS - 1)).map(sorted))
    facts = [("margin",), ("hidden_cosine_to_previous",), ("margin", "hidden_cosine_to_previous")]
    needs = {exit: facts[int(generator.integers(3))] for exit in checked}
    exits = generator.integers(1, LAYERS + 1, tokens)
    if draw(st.booleans()):
        return Decisions(exits, needs)
    asked = generator.random((tokens, len(checked))) < 0.6
    reached = exits[:, None] >= np.array(checked, dtype=np.int64)
    return Decisions(exits, needs, asked & reached)
