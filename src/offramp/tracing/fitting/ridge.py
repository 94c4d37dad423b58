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
    """The penalty of least held-out error, of all targets together.

    explained: float64 [targets], share of each target's held-out variance that is explained with it.
    """

    penalty: float
    explained: Matrix


def fit_ridge(sums: NormalEquations, penalty: float) -> list[AffineMap]:
    """The ridge solution of every target; the intercept is not penalised.

    penalty: as in the module's formula, per token.
    """
    from scipy.linalg import cho_factor, cho_solve

    mean_x = sums.mean_x
    system = cho_factor(sums.moments_xx(mean_x) + penalty * np.eye(len(mean_x)))
    maps = []
    for target, mean_y in enumerate(sums.mean_y):
        weight = cho_solve(system, sums.moments_xy(target, mean_x, mean_y)).T
        maps.append(AffineMap(weight, mean_y - weight @ mean_x))
    return maps


def candidate_penalties(sums: NormalEquations) -> Matrix:
    """Penalties to try, relative to the mean eigenvalue of the covariance of x: float64 [penalties]."""
    mean = sums.mean_x
    return np.asarray(PENALTIES * np.trace(sums.moments_xx(mean)) / len(mean))


def held_out_errors(fit: NormalEquations, held_out: NormalEquations, penalties: Matrix) -> Matrix:
    """Mean held-out |y - b - A x|^2 for the fit of each penalty: float64 [targets, penalties]."""
    from scipy.linalg import eigh

    mean_x = fit.mean_x
    values, vectors = eigh(fit.moments_xx(mean_x))
    # Eigenvalues of a covariance are not negative; rounding makes some so.
    gains = 1.0 / (np.maximum(values, 0.0) + penalties[:, None])
    other = vectors.T @ held_out.moments_xx(mean_x) @ vectors
    errors = []
    for target, mean_y in enumerate(fit.mean_y):
        rotated = vectors.T @ fit.moments_xy(target, mean_x, mean_y)
        linear = (rotated * (vectors.T @ held_out.moments_xy(target, mean_x, mean_y))).sum(1)
        quadratic = other * (rotated @ rotated.T)
        constant = held_out.moment_yy(target, mean_y)
        errors.append(constant - 2.0 * gains @ linear + ((gains @ quadratic) * gains).sum(1))
    return np.array(errors)


def choose_penalty(fit: NormalEquations, held_out: NormalEquations) -> PenaltyChoice:
    """The candidate penalty of least held-out error, and the held-out variance it explains.

    Of several targets, the least sum of their errors, each over its own variance, which is taken about the
    held-out mean. Where nothing varies on the held-out rows, it explains 0.
    """
    penalties = candidate_penalties(fit)
    errors = held_out_errors(fit, held_out, penalties)
    variance = variances(held_out)
    best = int((errors / np.where(variance > 0, variance, 1.0)[:, None]).sum(0).argmin())
    return PenaltyChoice(float(penalties[best]), explained_by(errors[:, best], held_out))


def variances(sums: NormalEquations) -> Matrix:
    """Mean |y - mean y|^2 of every target: float64 [targets]."""
    return np.array([sums.moment_yy(target, mean) for target, mean in enumerate(sums.mean_y)])


def explained_by(errors: Matrix, held_out: NormalEquations) -> Matrix:
    """Share of each target's held-out variance that is explained, 0 where nothing varies.

    errors: mean squared errors there [..., targets].
    """
    variance = variances(held_out)
    return np.where(variance > 0, 1.0 - errors / np.where(variance > 0, variance, 1.0), 0.0)
