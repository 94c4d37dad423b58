"""The betting bound looked at after every document: it stops once a floor is certified, or out of reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.tuning.bounds import BET_LIMIT, SMALLEST, Losses, bets, log_capital

Outcome = Literal["certified", "out of reach", "too much lost", "documents used up", "time used up"]
"""How a test of one candidate ended; only the first certifies it."""

Capital = NDArray[np.float64]

GIVING_UP = 0.1
"""Share of delta at which a candidate is given up for what it lost: so rarely is a good one lost to this."""


@dataclass(frozen=True)
class Settled:
    """How a sequential test ended, and the number of documents after which it was settled."""

    outcome: Outcome
    documents: int


def sequential_capital(losses: Losses, risk: float, delta: float, planned: int) -> Capital:
    """ln K_t after each document, against "the mean loss is at least `risk`": losses [documents] -> same.

    The process of `offramp.tuning.bounds.wsr_p_values` with n = `planned`, the documents that may be looked
    at in all, in the size of its bets: b_t then depends on earlier losses alone, so that K may be looked at
    after every document. K_t >= 1/delta at any t rejects at the level delta (Ville's inequality; Waudby-Smith
    and Ramdas, arXiv 2010.09686, section 4).
    """
    column = losses[:, None]
    return np.asarray(log_capital(column, bets(column, delta, planned), risk)[:, 0])


def settle(losses: Losses, risk: float, delta: float, planned: int) -> Settled | None:
    """How a test of "the mean loss is at least `risk`" stands after some documents, in the drawn order.

    None if it goes on. "certified": K_t has reached 1/delta, and the mean so far does not exceed the risk.
    Given up, which costs power and never validity, is a candidate
    - "out of reach": K could not reach 1/delta if no document to come lost anything, at the largest bets;
    - "too much lost": the same process against "the mean loss is at most `risk`" has reached 10/delta;
    - "documents used up": all `planned` ones were looked at.
    """
    wanted = math.log(1.0 / delta)
    seen = np.arange(1, len(losses) + 1)
    capital = sequential_capital(losses, risk, delta, planned)
    mean = np.cumsum(losses) / seen
    against = sequential_capital(1.0 - losses, 1.0 - risk, GIVING_UP * delta, planned)
    best = capital + (planned - seen) * largest_growth(risk)
    ends: dict[Outcome, NDArray[np.bool_]] = {
        "certified": (capital >= wanted) & (mean <= risk),
        "out of reach": best < wanted,
        "too much lost": (against >= wanted - math.log(GIVING_UP)) & (mean > risk),
        "documents used up": seen >= planned,
    }
    first = [Settled(outcome, int(np.flatnonzero(met)[0]) + 1) for outcome, met in ends.items() if met.any()]
    return min(first, key=lambda one: one.documents, default=None)


def largest_growth(risk: float) -> float:
    """The most that ln K can grow by with one document: ln(1 + c risk / (1 - risk))."""
    return math.log1p(BET_LIMIT * risk / max(1.0 - risk, SMALLEST))


def fewest_documents(risk: float, delta: float) -> int:
    """Documents without a loss that the betting bound certifies a risk with: 46 for 0.05 at 0.1."""
    # A hair less, so that a whole quotient is not rounded up.
    return max(1, math.ceil(math.log(1.0 / delta) / largest_growth(risk) - 1e-9))
