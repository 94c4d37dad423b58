"""Sums over tokens from which ridge regressions follow in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


@dataclass
class NormalEquations:
    """Sums of rows x (an exit's output) and of targets y (deeper layers'), in float64 whatever rows are.

    count: rows, or the sum of their weights. x: sum [hidden]. y: sums [targets, hidden]. xx: sum of x x^T
    [hidden, hidden], shared by all targets. xy: sums of x y^T [targets, hidden, hidden]. yy: sums of |y|^2
    [targets]. Adding rows in any pieces gives the same sums but for rounding.
    """

    count: float
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def empty(cls, hidden: int, targets: int = 1) -> NormalEquations:
        """Sums of no row."""

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64)

        squares = (zeros(hidden, hidden), zeros(targets, hidden, hidden))
        return cls(0, zeros(hidden), zeros(targets, hidden), *squares, zeros(targets))

    def add(self, x: Tensor, targets: Iterable[Tensor], weights: Tensor | None = None) -> None:
        """Add rows x and the targets' rows: [rows, hidden] each. weights: [rows], one each if None."""
        x = x.double()
        weighted = x if weights is None else x * weights.double()[:, None]
        self.count += len(x) if weights is None else float(weights.sum(dtype=torch.float64))
        self.x += weighted.sum(0)
        self.xx.addmm_(weighted.t(), x)
        for target, rows in enumerate(targets):
            y = rows.double()
            self.xy[target].addmm_(weighted.t(), y)
            if weights is not None:
                self.yy[target] += weights.double() @ y.square().sum(1)
                y = y * weights.double()[:, None]
            else:
                self.yy[target] += torch.linalg.vector_norm(y) ** 2
            self.y[target] += y.sum(0)

    def __iadd__(self, other: NormalEquations) -> NormalEquations:
        """Sums over both sets of rows, in place: those of many targets fill the memory."""
        self.count += other.count
        for name in ("x", "y", "xx", "xy", "yy"):
            getattr(self, name).add_(getattr(other, name))
        return self

    @property
    def targets(self) -> int:
        """How many targets there are."""
        return len(self.y)

    @property
    def mean_x(self) -> Matrix:
        """Mean x [hidden]."""
        return np.asarray(self.x.numpy() / self.count)

    @property
    def mean_y(self) -> Matrix:
        """Mean y [targets, hidden]."""
        return np.asarray(self.y.numpy() / self.count)

    def moments_xx(self, mean: Matrix) -> Matrix:
        """Mean products of x - mean, for any given mean: [hidden, hidden]."""
        x = self.mean_x
        products = self.xx.numpy() / self.count - np.outer(x, mean) - np.outer(mean, x)
        return np.asarray(products + np.outer(mean, mean))

    def moments_xy(self, target: int, mean_x: Matrix, mean_y: Matrix) -> Matrix:
        """Mean products of x - mean_x with one target's y - mean_y: [hidden, hidden]."""
        x, y = self.mean_x, self.mean_y[target]
        products = self.xy[target].numpy() / self.count - np.outer(x, mean_y) - np.outer(mean_x, y)
        return np.asarray(products + np.outer(mean_x, mean_y))

    def moment_yy(self, target: int, mean: Matrix) -> float:
        """Mean |y - mean|^2 of one target."""
        y = self.mean_y[target]
        return float(self.yy[target]) / self.count - 2.0 * float(y @ mean) + float(mean @ mean)


class ExitSums:
    """Sums of some exits, apart for documents to fit on and held-out ones.

    layers: by exit, the deeper layers whose outputs are predicted from its own.
    changes: the targets are not these outputs but what they differ by from the exit's own, and each row
    counts by the inverse of its mean square, since a layer normalises what it is given: else the few tokens
    that attention rests on, hundreds of times larger than all others, would be all that is fitted.
    """

    def __init__(self, hidden: int, layers: Mapping[int, Sequence[int]], *, changes: bool = False) -> None:
        self.layers = {exit: tuple(deeper) for exit, deeper in layers.items()}
        self.changes = changes
        self.fit = {exit: NormalEquations.empty(hidden, len(deeper)) for exit, deeper in layers.items()}
        self.held_out = {exit: NormalEquations.empty(hidden, len(deeper)) for exit, deeper in layers.items()}

    def add(self, states: Mapping[int, Tensor], held_out: Tensor) -> None:
        """Add rows. states: [rows, hidden] by layer. held_out: bool [rows]."""
        for sums, rows in ((self.fit, ~held_out), (self.held_out, held_out)):
            if not bool(rows.any()):
                continue
            for exit, deeper in self.layers.items():
                x = states[exit][rows].double()
                targets = (states[layer][rows].double() for layer in deeper)
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
