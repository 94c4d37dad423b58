"""Sums over tokens from which a ridge regression follows in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


@dataclass
class NormalEquations:
    """Sums of rows x (an exit's output) and y (the last layer's), in float64 whatever the rows' type.

    count: rows. x, y: sums [hidden]. xx: sum of x x^T [hidden, hidden]. xy: sum of x y^T [hidden, hidden].
    yy: sum of |y|^2. Adding rows in any pieces gives the same sums but for rounding.
    """

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: float

    @classmethod
    def empty(cls, hidden: int) -> NormalEquations:
        """Sums of no row."""

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float64)

        return cls(0, zeros(hidden), zeros(hidden), zeros(hidden, hidden), zeros(hidden, hidden), 0.0)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows x, y: [rows, hidden] each."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx.addmm_(x.t(), x)
        self.xy.addmm_(x.t(), y)
        self.yy += float(torch.linalg.vector_norm(y) ** 2)

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """Sums over both sets of rows."""
        return NormalEquations(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def moments(self, mean_x: Matrix, mean_y: Matrix) -> Moments:
        """Mean products of x - mean_x and y - mean_y, for any given means."""
        x, y = self.x.numpy() / self.count, self.y.numpy() / self.count
        xx = (
            self.xx.numpy() / self.count
            - np.outer(x, mean_x)
            - np.outer(mean_x, x)
            + np.outer(mean_x, mean_x)
        )
        xy = (
            self.xy.numpy() / self.count
            - np.outer(x, mean_y)
            - np.outer(mean_x, y)
            + np.outer(mean_x, mean_y)
        )
        yy = self.yy / self.count - 2 * y @ mean_y + mean_y @ mean_y
        return Moments(xx, xy, float(yy))

    @property
    def means(self) -> tuple[Matrix, Matrix]:
        """Mean x and mean y [hidden]."""
        return self.x.numpy() / self.count, self.y.numpy() / self.count


@dataclass(frozen=True)
class Moments:
    """Mean products about given means: xx, xy [hidden, hidden], yy = mean |y - mean|^2."""

    xx: Matrix
    xy: Matrix
    yy: float


def sums_bytes(hidden: int, exits: int, folds: int = 2) -> int:
    """Bytes of the sums of all exits: two float64 matrices [hidden, hidden] per exit and fold."""
    return 2 * 8 * hidden * hidden * exits * folds
