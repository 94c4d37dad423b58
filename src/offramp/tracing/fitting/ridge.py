"""A linear lens by ridge regression from sums over tokens: penalty by held-out sums, then a refit on all.

Minimise mean |y - b - A x|^2 + penalty |A|^2. With the covariance X = V diag(e) V^T of the fit documents and
their cross covariance C = X,y in that basis, the weights of a penalty p are V diag(1 / (e + p)) V^T C; the
held-out error is a quadratic form in g = 1 / (e + p), so that any number of penalties costs one
eigendecomposition (Hoerl and Kennard, "Ridge Regression", Technometrics 12, 1970, section 2). Mapping an
exit's output to the last layer's by least squares: "Jump to Conclusions: Short-Cutting Transformers With
Linear Transformations" (arXiv 2303.09435), section 3; trained by gradient descent it is the tuned lens (arXiv
2303.08112), section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.heads.parts import Lens, Weights
from offramp.models.devices import float64_device
from offramp.tracing.states import PROCESSOR

Matrix = NDArray[np.float64]


@dataclass
class NormalEquations:
    """Sums of rows x (an exit's output) and of targets y (deeper layers'), in float64 whatever rows are.

    All of them on one device, where rows are added without the host's waiting for it. Adding rows in any
    pieces gives the same sums but for rounding.
    """

    weight: Tensor
    """Rows, or the sum of their weights, a scalar."""
    x: Tensor
    """Sum [hidden]."""
    y: Tensor
    """Sums [targets, hidden]."""
    xx: Tensor
    """Sum of x x^T [hidden, hidden], shared by all targets."""
    xy: Tensor
    """Sums of x y^T [targets, hidden, hidden]."""
    yy: Tensor
    """Sums of |y|^2 [targets]."""

    @classmethod
    def empty(cls, hidden: int, targets: int = 1, device: torch.device = PROCESSOR) -> NormalEquations:
        """Sums of no row."""

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=device)

        squares = (zeros(hidden, hidden), zeros(targets, hidden, hidden))
        return cls(zeros(), zeros(hidden), zeros(targets, hidden), *squares, zeros(targets))

    def add(self, x: Tensor, targets: Iterable[Tensor], weights: Tensor | None = None) -> None:
        """Add rows x and the targets' rows: [rows, hidden] each. weights: [rows], one each if None."""
        x = self._wide(x)
        weights = None if weights is None else self._wide(weights)
        weighted = x if weights is None else x * weights[:, None]
        self.weight += len(x) if weights is None else weights.sum()
        self.x += weighted.sum(0)
        self.xx.addmm_(weighted.t(), x)
        for target, rows in enumerate(targets):
            y = self._wide(rows)
            self.xy[target].addmm_(weighted.t(), y)
            if weights is not None:
                self.yy[target] += weights @ y.square().sum(1)
                y = y * weights[:, None]
            else:
                self.yy[target] += torch.linalg.vector_norm(y) ** 2
            self.y[target] += y.sum(0)

    def _wide(self, rows: Tensor) -> Tensor:
        return rows.to(self.x.device, torch.float64)

    def __iadd__(self, other: NormalEquations) -> NormalEquations:
        """Sums over both sets of rows, in place: those of many targets fill the memory."""
        for name in ("weight", "x", "y", "xx", "xy", "yy"):
            getattr(self, name).add_(getattr(other, name))
        return self

    @property
    def count(self) -> float:
        """Rows, or the sum of their weights."""
        return float(self.weight)

    @property
    def targets(self) -> int:
        """How many targets there are."""
        return len(self.y)

    @property
    def mean_x(self) -> Matrix:
        """Mean x [hidden]."""
        return _on_host(self.x) / self.count

    @property
    def mean_y(self) -> Matrix:
        """Mean y [targets, hidden]."""
        return _on_host(self.y) / self.count

    def moments_xx(self, mean: Matrix) -> Matrix:
        """Mean products of x - mean, for any given mean: [hidden, hidden]."""
        x = self.mean_x
        products = _on_host(self.xx) / self.count - np.outer(x, mean) - np.outer(mean, x)
        return np.asarray(products + np.outer(mean, mean))

    def moments_xy(self, target: int, mean_x: Matrix, mean_y: Matrix) -> Matrix:
        """Mean products of x - mean_x with one target's y - mean_y: [hidden, hidden]."""
        x, y = self.mean_x, self.mean_y[target]
        products = _on_host(self.xy[target]) / self.count - np.outer(x, mean_y) - np.outer(mean_x, y)
        return np.asarray(products + np.outer(mean_x, mean_y))

    def moment_yy(self, target: int, mean: Matrix) -> float:
        """Mean |y - mean|^2 of one target."""
        y = self.mean_y[target]
        return float(self.yy[target]) / self.count - 2.0 * float(y @ mean) + float(mean @ mean)


def _on_host(sums: Tensor) -> Matrix:
    return np.asarray(sums.cpu().numpy())


class ExitSums:
    """Sums of some exits, apart for documents to fit on and held-out ones.

    device: where they are kept. layers: by exit, the deeper layers whose outputs are predicted from its own.
    changes: the targets are not these outputs but what they differ by from the exit's own, and each row
    counts by the inverse of its mean square, since a layer normalises what it is given: else the few tokens
    that attention rests on, hundreds of times larger than all others, would be all that is fitted.
    """

    def __init__(
        self,
        hidden: int,
        layers: Mapping[int, Sequence[int]],
        *,
        changes: bool = False,
        device: torch.device = PROCESSOR,
    ) -> None:
        self.layers = {exit: tuple(deeper) for exit, deeper in layers.items()}
        self.changes = changes
        self.device = float64_device(device)
        self.fit, self.held_out = (
            {exit: NormalEquations.empty(hidden, len(deeper), self.device) for exit, deeper in layers.items()}
            for _ in range(2)
        )

    def add(self, states: Mapping[int, Tensor], held_out: NDArray[np.bool_]) -> None:
        """Add rows. states: [rows, hidden] by layer. held_out: bool [rows]."""
        for sums, rows in ((self.fit, ~held_out), (self.held_out, held_out)):
            if not rows.any():
                continue
            places = torch.from_numpy(np.flatnonzero(rows)).to(self.device)

            def of(layer: int, places: Tensor = places) -> Tensor:
                return states[layer].to(self.device)[places].double()

            for exit, deeper in self.layers.items():
                x = of(exit)
                targets = map(of, deeper)
                if self.changes:
                    weights = 1.0 / x.square().mean(1).clamp_min(torch.finfo(torch.float32).tiny)
                    sums[exit].add(x, (y - x for y in targets), weights)
                else:
                    sums[exit].add(x, targets)

    @property
    def captured(self) -> set[int]:
        """All layers whose outputs are wanted."""
        return set(self.layers).union(*self.layers.values())

    def rows(self, held_out: bool) -> float:
        """Rows of one side, or the sum of their weights: 0 if there is none."""
        side = self.held_out if held_out else self.fit
        return next(iter(side.values())).count


def sums_bytes(hidden: int, targets: Iterable[int], folds: int = 2) -> int:
    """Bytes of the sums of some exits with so many targets each: float64 matrices [hidden, hidden].

    One of the exit and one of each target, per fold.
    """
    return sum(8 * hidden * hidden * (1 + count) * folds for count in targets)


PENALTIES = np.logspace(-10, 1, 23)
"""Penalties tried, relative to the mean eigenvalue. The range is wide because a few features of a hidden
state are often thousands of times larger than all others."""


def fit_ridge(sums: NormalEquations, penalty: float) -> list[tuple[Matrix, Matrix]]:
    """The ridge solution of every target, y = A x + b: A [hidden, hidden], rows are outputs, and b [hidden].

    penalty: as in the module's formula, per token; the intercept is not penalised.
    """
    from scipy.linalg import cho_factor, cho_solve

    mean_x = sums.mean_x
    system = cho_factor(sums.moments_xx(mean_x) + penalty * np.eye(len(mean_x)))
    maps = []
    for target, mean_y in enumerate(sums.mean_y):
        weight = cho_solve(system, sums.moments_xy(target, mean_x, mean_y)).T
        maps.append((weight, mean_y - weight @ mean_x))
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


def choose_penalty(fit: NormalEquations, held_out: NormalEquations) -> tuple[float, Matrix]:
    """The candidate penalty of least held-out error, and the share of each target's held-out variance that it
    explains, [targets].

    Of several targets, the least sum of their errors, each over its own variance, which is taken about the
    held-out mean. Where nothing varies on the held-out rows, it explains 0.
    """
    penalties = candidate_penalties(fit)
    errors = held_out_errors(fit, held_out, penalties)
    variance = variances(held_out)
    best = int((errors / np.where(variance > 0, variance, 1.0)[:, None]).sum(0).argmin())
    return float(penalties[best]), explained_by(errors[:, best], held_out)


def variances(sums: NormalEquations) -> Matrix:
    """Mean |y - mean y|^2 of every target: float64 [targets]."""
    return np.array([sums.moment_yy(target, mean) for target, mean in enumerate(sums.mean_y)])


def explained_by(errors: Matrix, held_out: NormalEquations) -> Matrix:
    """Share of each target's held-out variance that is explained, 0 where nothing varies.

    errors: mean squared errors there [..., targets].
    """
    variance = variances(held_out)
    return np.where(variance > 0, 1.0 - errors / np.where(variance > 0, variance, 1.0), 0.0)


def lens_sums(hidden: int, layers: int, exits: Iterable[int], device: torch.device = PROCESSOR) -> ExitSums:
    """Sums of a lens at some exits below L = `layers`: each predicts the last layer's output alone."""
    return ExitSums(hidden, dict.fromkeys(exits, (layers,)), device=device)


def solve_lens(sums: ExitSums) -> Lens[Weights]:
    """The lens of every exit: penalty from the held-out sums, weights from all; `sums.fit` then holds all."""
    weights, biases, shares, penalties = [], [], [], []
    for exit, fit in sums.fit.items():
        penalty, explained = choose_penalty(fit, sums.held_out[exit])
        fit += sums.held_out[exit]
        ((weight, bias),) = fit_ridge(fit, penalty)
        weights.append(weight.astype(np.float32))
        biases.append(bias.astype(np.float32))
        shares.append(explained[0])
        penalties.append(penalty)
    return Lens(
        weight=np.stack(weights),
        bias=np.stack(biases),
        explained=np.array(shares),
        penalty=np.array(penalties),
    )
