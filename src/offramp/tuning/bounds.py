"""What a sample of documents says about the mean loss of all documents: tests and confidence limits.

Every document has one loss in [0, 1]; documents are independent draws, the tokens of one are not. A method
tests "the mean loss is at least m" and rejects it, which certifies the risk m, at p <= delta. The betting
bound may look after every document, and stops once a floor is certified or out of reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.defaults import METHOD
from offramp.errors import InputError

Losses = NDArray[np.float64]

BET_LIMIT = 0.99
"""c, the share of the largest bet with which no loss can bring the capital below 0."""

# The smallest loss that is told from none.
SMALLEST = 1e-12

# Halvings of [0, 1] when a confidence limit is sought: finer than any loss is counted.
HALVINGS = 40


def wsr_p_values(losses: Losses, risk: float, delta: float) -> NDArray[np.float64]:
    """p-values of "the mean loss is at least `risk`" by betting: [documents, candidates] -> [candidates].

    Waudby-Smith and Ramdas (arXiv 2010.09686, section 4), the one-sided capital process
    K_t = prod_{i <= t} (1 + b_i (m - x_i)) with predictable plug-in bets that do not depend on m but for
    their limit, b_t = min(sqrt(2 ln(1/delta) / (n v_{t-1})), c / (1 - m)), c = 0.99: v_{t-1} is the variance
    of the losses before the t-th about their running means (the bet is the limit while it is 0). Under the
    hypothesis K does not grow in expectation, so by Ville's inequality p = 1 / max_t K_t is valid, whatever
    delta the bets aim at. Rows are bet on in their order, which must not depend on the losses. K rises with
    m, so that confidence limits follow by inversion.

    A sample whose mean exceeds m is never taken for evidence (p = 1), though its first documents might be.
    A document that loses nothing multiplies the capital by 1 + c m / (1 - m) at most, and c below 1 leaves a
    hundredth of it after one that loses everything.
    """
    capital = log_capital(losses, bets(losses, delta), risk)
    p_values = np.exp(-np.maximum(capital.max(axis=0, initial=0.0), 0.0))
    return np.where(losses.mean(axis=0) > risk, 1.0, p_values)


def bets(losses: Losses, delta: float, planned: int | None = None) -> Losses:
    """The bets of `wsr_p_values` before their limit: float64 [documents, candidates].

    planned: n of the formula, by default the documents that there are.
    """
    count = len(losses) if planned is None else planned
    seen = np.arange(1, len(losses) + 1, dtype=np.float64)[:, None]
    # A running mean that knows the loss it is compared with is fine here: the bet looks one document back.
    means = np.cumsum(losses, axis=0) / seen
    variance = np.zeros_like(losses)
    variance[1:] = (np.cumsum((losses - means) ** 2, axis=0) / seen)[:-1]
    with np.errstate(divide="ignore"):
        return np.asarray(np.sqrt(2.0 * math.log(1.0 / delta) / (count * variance)))


def log_capital(losses: Losses, wanted: Losses, risk: float) -> Losses:
    """ln K_t of bets up to their limit: float64 [documents, candidates]; rises with `risk`."""
    # A risk of 1 would allow bets without limit.
    limited = np.minimum(wanted, BET_LIMIT / max(1.0 - risk, SMALLEST))
    with np.errstate(divide="ignore"):
        return np.asarray(np.cumsum(np.log(np.maximum(1.0 + limited * (risk - losses), 0.0)), axis=0))


def hb_p_values(losses: Losses, risk: float, delta: float) -> NDArray[np.float64]:
    """p-values of "the mean loss is at least `risk`", from the mean alone.

    losses: [documents, candidates]; the p-values: [candidates]. Hoeffding-Bentkus, Learn then Test (arXiv
    2110.01052, section 3.1), with r the mean of n losses and h(a, b) = a ln(a/b) + (1-a) ln((1-a)/(1-b)):
    p = min(exp(-n h(min(r, m), m)), e P(Bin(n, m) <= ceil(n r))).
    """
    from scipy.special import bdtr

    count = len(losses)
    mean = losses.mean(axis=0)
    if risk >= 1.0:
        return np.where(mean < 1.0, 0.0, 1.0)
    low = np.minimum(mean, risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(low > 0.0, low * np.log(low / risk), 0.0)
        above = (1.0 - low) * np.log((1.0 - low) / (1.0 - risk))
    hoeffding = np.exp(-count * (below + above))
    # A hair less, so that rounding of a sum of equal shares does not reach the next whole number.
    bentkus = math.e * bdtr(np.ceil(count * mean - 1e-9), count, risk)
    return np.asarray(np.minimum(np.minimum(hoeffding, bentkus), 1.0))


def crc_p_values(losses: Losses, risk: float, delta: float) -> NDArray[np.float64]:
    """0 where conformal risk control accepts a candidate, else 1: [documents, candidates] -> [candidates].

    Candidates in order from cautious to bold. Conformal risk control (arXiv 2208.02814, theorem 1) on the
    loss that was monotonised, the largest of a document's losses so far in that order: the boldest candidate
    with (n r + 1) / (n + 1) <= m has a mean risk of at most m, in expectation over the calibration documents.
    """
    count = len(losses)
    monotone = np.maximum.accumulate(losses, axis=1)
    accepted = (monotone.sum(axis=0) + 1.0) / (count + 1.0) <= risk + 1e-12
    return np.where(accepted, 0.0, 1.0)


def naive_p_values(losses: Losses, risk: float, delta: float) -> NDArray[np.float64]:
    """0 where the sample's mean loss is allowed, else 1: [documents, candidates] -> [candidates]."""
    return np.where(losses.mean(axis=0) <= risk + 1e-12, 0.0, 1.0)


def documents_needed(risk: float, delta: float) -> int:
    """Documents without a loss that certify a risk at `delta`: the smallest n with (1 - risk)^n <= delta.

    230 for a risk of 0.01 at 0.1. No valid test needs fewer: of n - 1 documents with losses of 0 or 1 and
    this mean, none would lose anything with a probability above delta. Hoeffding-Bentkus needs exactly these,
    the betting bound one or two more.
    """
    if risk >= 1.0:
        return 1
    # A hair less, so that a whole quotient is not rounded up.
    return max(1, math.ceil(math.log(delta) / math.log1p(-risk) - 1e-9))


def _crc_needed(risk: float, delta: float) -> int:
    """Documents without a loss for which 1 / (n + 1) <= risk."""
    return max(1, math.ceil(1.0 / risk - 1.0 - 1e-9))


@dataclass(frozen=True)
class Method:
    """One way to decide from a sample whether the mean loss of all documents is at most a risk.

    p_values: (losses [documents, candidates], risk, delta) -> [candidates]. guarantee: in words. confident:
    whether it bounds the risk with probability 1 - delta. sequential: whether a candidate counts only if all
    before it passed. needed: documents without a loss that a risk needs at least (risk, delta).
    """

    name: str
    title: str
    p_values: Callable[[Losses, float, float], NDArray[np.float64]]
    guarantee: str = (
        "with probability {confidence} over the documents drawn, the mean loss over all such documents is at "
        "most {risk}"
    )
    confident: bool = True
    sequential: bool = True
    needed: Callable[[float, float], int] = documents_needed


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("wsr", "the betting bound (Waudby-Smith and Ramdas)", wsr_p_values),
        Method("hb", "Hoeffding-Bentkus", hb_p_values),
        Method(
            "crc",
            "conformal risk control",
            crc_p_values,
            "on average over draws of documents, the mean loss is at most {risk}; one draw may exceed it",
            confident=False,
            needed=_crc_needed,
        ),
        Method(
            "naive",
            "naive: no guarantee",
            naive_p_values,
            "no guarantee: the mean loss of these documents is at most {risk}, other documents may lose more",
            confident=False,
            sequential=False,
            needed=lambda risk, delta: 1,
        ),
    )
}


def best_certifiable(documents: int, delta: float, method: str = METHOD) -> float:
    """The smallest risk that so many documents without one loss certify, 1 if there are none.

    "naive" certifies nothing; what is given is then what a test could certify at best.
    """
    if documents < 1:
        return 1.0
    if method == "crc":
        return 1.0 / (documents + 1.0)
    if method == "wsr":
        growth = math.expm1(-math.log(delta) / documents)
        return growth / (BET_LIMIT + growth)
    return float(-math.expm1(math.log(delta) / documents))


def upper_limit(losses: Losses, delta: float, method: str = METHOD) -> float:
    """Upper confidence limit of the mean loss at `delta`: losses [documents] -> the smallest rejected risk.

    Raises InputError for a method without one.
    """
    chosen = METHODS[method]
    if not chosen.confident:
        raise InputError(f"{method} gives no confidence limit", fix="choose wsr or hb")
    sample = losses[:, None]
    wanted = bets(sample, delta)

    def rejected(risk: float) -> bool:
        if chosen.name == "wsr":  # the bets are made once, not at every halving
            capital = float(log_capital(sample, wanted, risk).max(initial=0.0))
            return bool(losses.mean() <= risk) and capital >= math.log(1.0 / delta)
        return float(chosen.p_values(sample, risk, delta)[0]) <= delta

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if rejected(middle) else (middle, high)
    return high


def two_sided_limits(losses: Losses, delta: float, method: str = METHOD) -> tuple[float, float]:
    """Confidence limits of the mean loss that both hold with probability 1 - delta: losses [documents]."""
    high = upper_limit(losses, delta / 2.0, method)
    return 1.0 - upper_limit(1.0 - losses, delta / 2.0, method), high


Outcome = Literal[
    "certified", "out of reach", "too much lost", "below the floor", "documents used up", "time used up"
]
"""How a test of one candidate ended; only the first certifies it."""
OUT_OF_TIME: Outcome = "time used up"

Capital = NDArray[np.float64]

GIVING_UP = 0.1
"""Share of delta at which a candidate is given up for what it lost: so rarely is a good one lost to this."""

ENOUGH_TO_REFUTE = 48
"""Documents after which a candidate that can no longer be certified, or that is refuted at delta where a
verdict is asked for, is given up; before, it is decoded on until it has lost too much, so that what is
refuted was tried on more than a few tokens."""


def sequential_capital(losses: Losses, risk: float, delta: float, planned: int) -> Capital:
    """ln K_t after each document, against "the mean loss is at least `risk`": losses [documents] -> same.

    The process of `offramp.tuning.bounds.wsr_p_values` with n = `planned`, the documents that may be looked
    at in all, in the size of its bets: b_t then depends on earlier losses alone, so that K may be looked at
    after every document. K_t >= 1/delta at any t rejects at the level delta (Ville's inequality; Waudby-Smith
    and Ramdas, arXiv 2010.09686, section 4).
    """
    column = losses[:, None]
    return np.asarray(log_capital(column, bets(column, delta, planned), risk)[:, 0])


PRIOR_VARIANCE = 0.25
"""Of a loss, before any document: the largest there is, counted as one document (arXiv 2010.09686)."""

FIXED_BETS = BET_LIMIT * 0.5 ** np.arange(8)
"""Shares of the largest bet that parts of the refuting capital make on every document."""


def refuting_capital(losses: Losses, risk: float, delta: float, sized: int) -> Capital:
    """ln K_t against "the mean loss is at most `risk`" after each document: losses [documents] -> same.

    The mean of three capitals that bet apart, which is as valid as each of them. 1. `FIXED_BETS`, in equal
    parts (the grid of bets of arXiv 2010.09686): whatever is lost, one of them is near the best bet, and no
    number of documents is assumed. 2. The bets of the certifying capital at GIVING_UP: quick where every
    document loses much. 3. The same, but little until it has seen how losses vary: not used up by a few
    documents that lose nothing.
    """
    kept = 1.0 - losses[:, None]
    seen = np.arange(1, len(losses) + 1, dtype=np.float64)[:, None]
    squares = np.cumsum((kept - np.cumsum(kept, axis=0) / seen) ** 2, axis=0)
    variance = (PRIOR_VARIANCE + np.concatenate([np.zeros((1, 1)), squares])[: len(losses)]) / seen
    cautious = np.sqrt(2.0 * math.log(1.0 / delta) / (sized * variance))
    fixed = np.broadcast_to(FIXED_BETS / max(risk, SMALLEST), (len(losses), len(FIXED_BETS)))
    grid = log_capital(kept, fixed, 1.0 - risk) - math.log(len(FIXED_BETS))
    others = np.hstack([bets(kept, GIVING_UP * delta, sized), cautious])
    capitals = np.hstack([grid, log_capital(kept, others, 1.0 - risk)])
    return np.asarray(np.logaddexp.reduce(capitals, axis=1) - math.log(3.0))


def refuted(losses: Losses, risk: float, delta: float, sized: int) -> bool:
    """Whether losses of documents refute that all such documents lose at most `risk` on average.

    That is, whether the capital against it has reached 1/delta: a risk that is exceeded by so little that
    chance may have done it is not refuted. sized: for how many documents bets are sized.
    """
    against = refuting_capital(losses, risk, delta, sized).max(initial=0.0)
    return bool(against >= math.log(1.0 / delta) and losses.mean() > risk)


def settle(
    losses: Losses,
    risk: float,
    delta: float,
    planned: int,
    patience: int = 0,
    sized: int | None = None,
    *,
    refutes: bool = False,
) -> tuple[Outcome, int] | None:
    """How a test of "the mean loss is at least `risk`" stands after some documents, in the drawn order.

    The outcome, and the documents after which it was settled; None if it goes on. "certified": K_t has
    reached 1/delta, and the mean so far does not exceed the risk.
    Given up, which costs power and never validity, is a candidate
    - "out of reach": K could not reach 1/delta if no document to come lost anything, at the largest bets;
    - "too much lost": the capital against "the mean loss is at most `risk`" has reached 10/delta;
    - "below the floor": refuted at delta after documents enough, where that is an answer (refutes);
    - "documents used up": all `planned` ones were looked at.
    With refutes a candidate that has lost more than the risk is not out of reach: it may still be refuted.
    patience: documents before which "out of reach" ends no test: it may still be refuted. sized: for how many
    documents bets are sized, None for all planned ones; a test that goes on beyond these stays valid.
    """
    wanted, sized = math.log(1.0 / delta), sized or planned
    seen = np.arange(1, len(losses) + 1)
    capital = sequential_capital(losses, risk, delta, sized)
    mean = np.cumsum(losses) / seen
    against = refuting_capital(losses, risk, delta, sized)
    best, over = capital + (planned - seen) * largest_growth(risk), mean > risk
    below = np.maximum.accumulate(against) >= wanted
    ends: dict[Outcome, NDArray[np.bool_]] = {
        "certified": (capital >= wanted) & ~over,
        "out of reach": (best < wanted) & (seen >= patience) & ~(over & refutes),
        "too much lost": (against >= wanted - math.log(GIVING_UP)) & over,
        "below the floor": below & over & (seen >= ENOUGH_TO_REFUTE) & refutes,
        "documents used up": seen >= planned,
    }
    first = [(outcome, int(np.flatnonzero(met)[0]) + 1) for outcome, met in ends.items() if met.any()]
    return min(first, key=lambda end: end[1], default=None)


def largest_growth(risk: float) -> float:
    """The most that ln K can grow by with one document: ln(1 + c risk / (1 - risk))."""
    return math.log1p(BET_LIMIT * risk / max(1.0 - risk, SMALLEST))


def fewest_documents(risk: float, delta: float) -> int:
    """Documents without a loss that the betting bound certifies a risk with: 46 for 0.05 at 0.1."""
    # A hair less, so that a whole quotient is not rounded up.
    return max(1, math.ceil(math.log(1.0 / delta) / largest_growth(risk) - 1e-9))


BESIDE_CERTIFYING = 2
"""Documents that do not certify, at the least: one is searched on, and one reported."""


def documents_for(floor: float, delta: float) -> int:
    """Documents at the least with which a floor may be certified, if nothing is lost on any of them.

    floor: of agreement. delta: the chance that its certificate is wrong.
    """
    return fewest_documents(1.0 - floor, delta) + BESIDE_CERTIFYING
