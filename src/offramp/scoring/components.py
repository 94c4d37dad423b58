"""The components of the suitability score, as formulas on per-exit means.

Every function takes arrays [..., exits], so that a trace and all its bootstrap draws go through one formula.
x are depth fractions, float64 [exits]: the share of the layers' FLOPs spent up to each exit, x_L = 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INITIAL_INFORMATION_NEEDED = 0.1

Values = NDArray[np.float64]


def step_area(values: Values, depth_fraction: Values, before: Values | float) -> Values:
    """Area under a step curve over x in [0, 1]: values [..., exits], before [...] -> [...].

    A value holds from its exit to the next one; `before` holds from 0 to the first exit. The last exit
    contributes nothing, as x_L = 1.
    """
    widths = np.diff(depth_fraction)
    return np.asarray(values[..., :-1] @ widths + before * depth_fraction[0])


def representation_quality(agreement: Values, depth_fraction: Values) -> Values:
    """Area under A(x): agreement [..., exits] in [0, 1] -> [...] in [0, 1 - x_1].

    A is 0 before the first exit, so that the ceiling 1 - x_1 is reached by a model whose every exit agrees.
    """
    return step_area(agreement, depth_fraction, 0.0)


def remaining_share(remaining: Values, initial: Values) -> Values:
    """min(R, R_0) / R_0: R [..., exits] and R_0 [...] in nats -> share [..., exits] in [0, 1].

    NaN where R_0 is not positive.
    """
    whole = np.where(initial > 0.0, initial, np.nan)[..., np.newaxis]
    return np.asarray(np.clip(remaining / whole, 0.0, 1.0))


def information_increment(remaining: Values, initial: Values, depth_fraction: Values) -> Values:
    """1 - area of min(R, R_0)/R_0: R [..., exits], R_0 [...] in nats -> [...] in [0, 1 - x_1].

    R = R_0 before the first exit. Near 1: all information arrives at once; 0: it arrives at the end.
    """
    return np.asarray(1.0 - step_area(remaining_share(remaining, initial), depth_fraction, 1.0))


def increments(remaining: Values, initial: Values) -> Values:
    """R_{l-1} - R_l in nats, raw (it may be negative): R [..., exits], R_0 [...] -> [..., exits]."""
    return np.asarray(-np.diff(remaining, axis=-1, prepend=initial[..., np.newaxis]))


def calibration_skill(recalibrated_brier: Values, agreement: Values) -> Values:
    """max(0, 1 - sum of Brier / sum of A (1 - A)) over exits below L: both [..., exits below L] -> [...].

    The denominator is the Brier score of predicting each exit's agreement rate A for every token, so this is
    a Brier skill score: 1 = the confidence tells exactly where the exit agrees, 0 = it tells nothing.
    NaN where every exit always agrees or never does.
    """
    uncertainty = np.sum(agreement * (1.0 - agreement), axis=-1)
    uncertainty = np.where(uncertainty > 0.0, uncertainty, np.nan)
    return np.asarray(np.maximum(0.0, 1.0 - np.sum(recalibrated_brier, axis=-1) / uncertainty))


def geometric_mean(first: Values, second: Values, third: Values) -> Values:
    """The composite: geometric mean of the three components, each [...]."""
    return np.asarray(np.cbrt(first * second * third))
