"""Ridge regression from sums: the penalty picked on held-out sums in closed form, then a refit on all.

Minimise mean |y - b - A x|^2 + penalty |A|^2. With the covariance X = V diag(e) V^T of the fit documents and
their cross covariance C = X,y in that basis, the weights of a penalty p are V diag(1 / (e + p)) V^T C; the
held-out error is a quadratic form in g = 1 / (e + p), so that any number of penalties costs one
eigendecomposition (Hoerl and Kennard, "Ridge Regression", Technometrics 12, 1970, section 2). Mapping an
exit's output to the last layer's by least squares: "Jump to Conclusions: Short-Cutting Transformers With
Linear Transformations" (arXiv 2303.09435), section 3; trained by gradient descent it is the tuned lens (arXiv
2303.08112), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offramp.tracing.fitting.sums import Matrix, NormalEquations

PENALTIES = np.logspace(-10, 1, 23)
"""Penalties tried, relative to the mean eigenvalue. The range is wide because a few features of a hidden
state are often thousands of times larger than all others."""


@dataclass(frozen=True)
class AffineMap:
    """y = weight x + bias; weight: float64 [hidden, hidden], rows are outputs; bias: float64 [hidden]."""

    weight: Matrix
    bias: Matrix


@dataclass(frozen=True)
class PenaltyChoice:
    """The penalty of least held-out error. explained: share of the held-out variance explained with it."""

    penalty: float
    explained: float


def fit_ridge(sums: NormalEquations, penalty: float) -> AffineMap:
    """The ridge solution; the intercept is not penalised. penalty: as in the module's formula, per token."""
    from scipy.linalg import solve

    mean_x, mean_y = sums.means
    centred = sums.moments(mean_x, mean_y)
    system = centred.xx + penalty * np.eye(len(mean_x))
    weight = solve(system, centred.xy, assume_a="pos").T
    return AffineMap(weight, mean_y - weight @ mean_x)


def candidate_penalties(sums: NormalEquations) -> Matrix:
    """Penalties to try, relative to the mean eigenvalue of the covariance of x: float64 [penalties]."""
    mean_x, mean_y = sums.means
    return np.asarray(PENALTIES * np.trace(sums.moments(mean_x, mean_y).xx) / len(mean_x))


def held_out_errors(fit: NormalEquations, held_out: NormalEquations, penalties: Matrix) -> Matrix:
    """Mean |y - b - A x|^2 over the held-out rows for the fit of each penalty: float64 [penalties]."""
    from scipy.linalg import eigh

    mean_x, mean_y = fit.means
    own, other = fit.moments(mean_x, mean_y), held_out.moments(mean_x, mean_y)
    values, vectors = eigh(own.xx)
    rotated = vectors.T @ own.xy
    linear = (rotated * (vectors.T @ other.xy)).sum(1)
    quadratic = (vectors.T @ other.xx @ vectors) * (rotated @ rotated.T)
    # Eigenvalues of a covariance are not negative; rounding makes some so.
    gains = 1.0 / (np.maximum(values, 0.0) + penalties[:, None])
    return np.asarray(other.yy - 2.0 * gains @ linear + ((gains @ quadratic) * gains).sum(1))


def choose_penalty(fit: NormalEquations, held_out: NormalEquations) -> PenaltyChoice:
    """The candidate penalty of least held-out error, and the held-out variance it explains.

    The variance is taken about the held-out mean. Where nothing varies on the held-out rows, it explains 0.
    """
    penalties = candidate_penalties(fit)
    errors = held_out_errors(fit, held_out, penalties)
    best = int(errors.argmin())
    variance = held_out.moments(*held_out.means).yy
    explained = 1.0 - errors[best] / variance if variance > 0 else 0.0
    return PenaltyChoice(float(penalties[best]), float(explained))
