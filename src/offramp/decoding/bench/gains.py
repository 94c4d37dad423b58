"""Do the gains add up: the product of single speedups held against the speedup of all together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.decoding.bench.ratios import median, paired_ratios
from offramp.decoding.bench.results import Interval

Seconds = Sequence[float]
"""Of one decoder, per token, one per round and prompt; equal places of several were side by side."""


@dataclass(frozen=True)
class Gains:
    """Medians over pairs, with intervals.

    product: of the speedups of each part alone over the plain decoder. interaction: the measured speedup of
    all parts together over that product. Each is taken within a round and prompt, so that the plain decoder's
    noise there cancels as far as it can; medians are taken last, so that interaction is not exactly the ratio
    of the other two.
    """

    product: Interval
    interaction: Interval


def gains_of(plain: Seconds, singles: Sequence[Seconds], together: Seconds) -> Gains:
    """Product and interaction of two parts or more.

    With seconds t: product = Π t_plain / t_part, interaction = (t_plain / t_together) / product.
    """
    products = product_of_gains(plain, singles)
    interactions = paired_ratios(plain, together) / products
    return Gains(median(products.tolist()), median(interactions.tolist()))


def product_of_gains(plain: Seconds, singles: Sequence[Seconds]) -> NDArray[np.float64]:
    """Product of the single speedups, pair by pair: float64 [samples]."""
    ratios = np.stack([paired_ratios(plain, single) for single in singles])
    return np.asarray(ratios.prod(axis=0))
