"""Which α brings EAS nearest to published values whose α nobody knows, and how far that may be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.scoring.eas import DEFAULT_ALPHA, adaptability
from offramp.scoring.rank_correlation import spearman

MODELS_NEEDED = 3
"""Trainings; below that, one that is left out leaves nothing, or one alone, to fit to."""

CLOSE = 0.02
"""Values of two digits that differ by this much are different values."""

LEAST_ALPHA = 0.001
"""α is above 0, and this is the least that is tried."""

ALPHAS = np.array([LEAST_ALPHA, *(step / 100 for step in range(1, 101))])
"""Where the least error is looked for first."""

EDGE = 1e-4
"""An α this near to the least or the largest one is where the range ends."""

Conclusion = Literal["fits", "does not fit", "cannot be told"]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class PublishedModel:
    """A model with its published EAS and what was measured of it.

    base: the training it comes from, "" for one of its own. similarity: of each exit to the last, mean over
    tokens before clipping, float64 [exits below L].
    weights: of `offramp.scoring.eas.layer_weights`, float64 [exits below L].
    """

    model: str
    published: float
    similarity: Values
    weights: Values
    base: str = ""

    @property
    def training(self) -> str:
        """What it shares with models of the same base."""
        return self.base or self.model

    def eas(self, alpha: float) -> float:
        """EAS of what was measured."""
        return float(adaptability(self.similarity, self.weights, alpha))


@dataclass(frozen=True)
class FittedModel:
    """A published value and what EAS makes of it, None where no α was fitted.

    fitted: with the α of all models. left_out: with the α that models of other trainings give.
    """

    model: str
    published: float
    fitted: float | None = None
    left_out: float | None = None


@dataclass(frozen=True)
class EasFit:
    """EAS of one similarity on one text beside the published values of the same models.

    alpha: in (0, 1], of the least error. Errors are root mean squares of what EAS lacks to the published
    values: error with `alpha`, left_out_error of each model with the α of other trainings, mean_error of the
    mean of their published values instead, default_error with α = 0.5. spearman: of fitted with published
    values, None if either are all equal. missing: models with a published value that were not measured
    here. claim: the sentence to print. All figures are None below 3 trainings.
    """

    similarity: str
    workload: str
    heads: str
    models: tuple[FittedModel, ...]
    missing: tuple[str, ...] = ()
    conclusion: Conclusion = "cannot be told"
    claim: str = ""
    alpha: float | None = None
    error: float | None = None
    left_out_error: float | None = None
    mean_error: float | None = None
    default_error: float | None = None
    spearman: float | None = None


def eas_fit(
    models: Sequence[PublishedModel],
    *,
    similarity: str,
    workload: str,
    heads: str = "",
    missing: Sequence[str] = (),
) -> EasFit:
    """The α of these models, and what their values are described by with it.

    similarity, workload, heads, missing: as of `EasFit`, and only passed on.
    """
    bare = tuple(FittedModel(one.model, one.published) for one in models)
    fit = EasFit(similarity, workload, heads, bare, tuple(missing))
    if (trainings := len({one.training for one in models})) < MODELS_NEEDED:
        return replace(fit, claim=_too_few(fit, trainings))
    others = [[two for two in models if two.training != one.training] for one in models]
    alpha, published = fitted_alpha(models), np.array([one.published for one in models])
    fitted = np.array([one.eas(alpha) for one in models])
    left_out = np.array([one.eas(fitted_alpha(rest)) for one, rest in zip(models, others, strict=True)])
    means = np.array([np.mean([one.published for one in rest]) for rest in others])
    default = np.array([one.eas(DEFAULT_ALPHA) for one in models])
    rank = float(spearman(fitted[None], published, np.ones((1, len(models))))[0, 0])
    values = zip(bare, fitted, left_out, strict=True)
    return _concluded(
        replace(
            fit,
            models=tuple(
                replace(one, fitted=float(all_), left_out=float(rest)) for one, all_, rest in values
            ),
            alpha=alpha,
            error=_error(fitted, published),
            left_out_error=_error(left_out, published),
            mean_error=_error(means, published),
            default_error=_error(default, published),
            spearman=rank if np.isfinite(rank) else None,
        )
    )


def fitted_alpha(models: Sequence[PublishedModel]) -> float:
    """The α in [0.001, 1] whose EAS has the least root mean square error.

    EAS is convex in α (a mean of exponentials), so that it may meet a published value twice: the least error
    of a grid is found first, then refined between its neighbours (Brent's method).
    """
    from scipy.optimize import minimize_scalar  # here, since pages import this file, and fit nothing

    def loss(alpha: float) -> float:
        return float(np.mean([(one.eas(alpha) - one.published) ** 2 for one in models]))

    best = int(np.argmin([loss(float(alpha)) for alpha in ALPHAS]))
    bounds = ALPHAS[max(best - 1, 0)], ALPHAS[min(best + 1, len(ALPHAS) - 1)]
    refined = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-7}).x)
    return min(float(ALPHAS[best]), refined, key=loss)


def _error(values: Values, published: Values) -> float:
    """Root mean square of the differences: float64 [models] twice."""
    return float(np.sqrt(np.mean((values - published) ** 2)))


# --- in words


def _too_few(fit: EasFit, count: int) -> str:
    models = "training has" if count == 1 else "trainings have"
    return (
        f"cannot be told; {count} {models} both a published value and a measurement, {MODELS_NEEDED} needed"
        f"{_without(fit)}"
    )


def _concluded(fit: EasFit) -> EasFit:
    """A fit with all figures, with what it comes to and why."""
    alpha, left_out, mean = fit.alpha, fit.left_out_error, fit.mean_error
    assert alpha is not None
    assert left_out is not None
    assert mean is not None
    conclusion: Conclusion = "fits" if left_out < min(mean, CLOSE) else "does not fit"
    if left_out >= mean:
        why = f"no better than the mean of the others, which is off by {mean:.3f}"
    else:
        why = f"better than the mean of the others ({mean:.3f})"
        why += f", and below {CLOSE:g}" if conclusion == "fits" else f", but not below {CLOSE:g}"
    shown = f"{alpha:.2f}" if alpha >= EDGE + 0.01 else f"{alpha:.3g}"
    edge = ", where its range ends" if alpha < LEAST_ALPHA + EDGE or alpha > 1.0 - EDGE else ""
    claim = (
        f"{conclusion}; α = {shown}{edge}, and with the α of the others a model's value is off by "
        f"{left_out:.3f}, {why} ({len(fit.models)} models{_without(fit)})"
    )
    return replace(fit, conclusion=conclusion, claim=claim)


def _without(fit: EasFit) -> str:
    return f"; without {', '.join(fit.missing)}, not measured" if fit.missing else ""
