"""K,V maps from the sums of their exits, and the memory it takes: ridge regressions, whole or of low rank.

What is predicted is how a layer's output differs from the exit's, so that the penalty draws towards
propagating the exit's state. In low rank the layers of an exit share one V (the rows of their coefficients,
beneath each other, are one matrix): the reduced-rank ridge regression of Mukherjee and Zhu ("Reduced Rank
Ridge Regression and Its Kernel Extensions", Statistical Analysis and Data Mining 4, 2011, section 2). With
S = covariance of x + penalty and C_l the cross covariances, each over the root of its layer's variance, the
columns of V are S^(-1/2) times the leading eigenvectors of S^(-1/2) (sum C_l C_l^T) S^(-1/2), and
U_l^T = V^T C_l: of full rank it is the ridge regression itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import psutil
import torch

from offramp.errors import InputError
from offramp.heads.parts import ELEMENT_BYTES, ExitMaps, Weights, map_elements
from offramp.models.devices import CPU, float64_device, free_bytes
from offramp.tracing.fitting.ridge import (
    ExitSums,
    Matrix,
    NormalEquations,
    choose_penalty,
    explained_by,
    fit_ridge,
    sums_bytes,
    variances,
)
from offramp.tracing.request import Rank
from offramp.tracing.states import PROCESSOR

AUTO: Literal["auto"] = "auto"
FULL: Literal["full"] = "full"

AUTO_DISTANCE = 0.1
"""How much less of the held-out variance, on average over an exit's layers, the rank that `auto` chooses may
explain than full rank does."""


def mapped_layers(exits: Iterable[int], layers: int) -> dict[int, range]:
    """The layers whose outputs an exit is mapped to: e + 1..L - 1, of a model of L layers."""
    return {exit: range(exit + 1, layers) for exit in exits}


def map_sums(hidden: int, layers: int, exits: Iterable[int], device: torch.device = PROCESSOR) -> ExitSums:
    """Sums of the maps of some exits of a model of so many layers."""
    return ExitSums(hidden, mapped_layers(exits, layers), changes=True, device=device)


def parse_map_exits(exits: Iterable[int], layers: int) -> tuple[int, ...]:
    """The exits of K,V maps, ascending.

    Raises InputError for one that has no deeper layer to map to.
    """
    chosen = tuple(sorted(set(exits)))
    outside = [exit for exit in chosen if not 1 <= exit < layers - 1]
    if outside or not chosen:
        raise InputError(
            f"there is nothing to map to from exit {outside[0]}: at most one layer follows"
            if outside
            else "there is no exit to fit K,V maps at",
            where="kv_maps= (--kv-maps)",
            fix=f"choose exits from 1 to {layers - 2}" if layers > 2 else "leave the maps out",
        )
    return chosen


def solve_maps(sums: ExitSums, rank: Rank) -> Mapping[int, ExitMaps[Weights]]:
    """The maps of every exit; `sums.fit` holds all rows afterwards.

    sums: of changes. Penalties, and ranks if `rank` is "auto", are picked on the held-out sums; weights come
    from all rows. "auto" is the smallest rank that explains, on average over the exit's layers, no more than
    AUTO_DISTANCE less of the held-out variance than full rank.
    """
    maps: dict[int, ExitMaps[Weights]] = {}
    for exit, fit in sums.fit.items():
        solve = _whole if rank == FULL else _low_rank
        maps[exit] = solve(fit, sums.held_out[exit], rank)
    return maps


def _whole(fit: NormalEquations, held_out: NormalEquations, rank: Rank) -> ExitMaps[Weights]:
    penalty, explained = choose_penalty(fit, held_out)
    fit += held_out
    return ExitMaps(
        centre=fit.mean_x.astype(np.float32),
        bias=fit.mean_y.astype(np.float32),
        explained=explained[None],
        penalty=penalty,
        change=np.stack([weight.astype(np.float32) for weight, _ in fit_ridge(fit, penalty)]),
    )


def _low_rank(fit: NormalEquations, held_out: NormalEquations, rank: Rank) -> ExitMaps[Weights]:
    penalty, _ = choose_penalty(fit, held_out)
    explained = explained_by_rank(fit, held_out, penalty)
    if isinstance(rank, int):
        kept = min(rank, len(explained))
    else:
        mean = explained.mean(1)
        kept = int(np.flatnonzero(mean >= mean[-1] - AUTO_DISTANCE)[0]) + 1
    fit += held_out
    inward = shared_columns(fit, penalty)[:kept]
    outward = [inward @ cross for cross in _cross_moments(fit)]
    return ExitMaps(
        centre=fit.mean_x.astype(np.float32),
        bias=fit.mean_y.astype(np.float32),
        explained=explained[:kept],
        penalty=penalty,
        inward=inward.astype(np.float32),
        outward=np.stack([layer.T.astype(np.float32) for layer in outward]),
    )


def shared_columns(sums: NormalEquations, penalty: float) -> Matrix:
    """V^T of full rank, the columns that explain the most first: float64 [hidden, hidden]."""
    from scipy.linalg import eigh

    values, vectors = eigh(sums.moments_xx(sums.mean_x))
    # Eigenvalues of a covariance are not negative; rounding makes some so.
    root = (vectors / np.sqrt(np.maximum(values, 0.0) + penalty)) @ vectors.T
    together = np.zeros_like(root)
    for variance, cross in zip(variances(sums), _cross_moments(sums), strict=True):
        half = root @ cross
        together += half @ half.T / (variance if variance > 0 else 1.0)
    return np.asarray(eigh(together)[1][:, ::-1].T @ root)


def explained_by_rank(fit: NormalEquations, held_out: NormalEquations, penalty: float) -> Matrix:
    """Share of each target's held-out variance that each rank explains: float64 [ranks, targets]."""
    inward, mean_x = shared_columns(fit, penalty), fit.mean_x
    inner = inward @ held_out.moments_xx(mean_x) @ inward.T
    errors = []
    for target, (mean_y, cross) in enumerate(zip(fit.mean_y, _cross_moments(fit), strict=True)):
        outward = inward @ cross
        linear = ((inward @ held_out.moments_xy(target, mean_x, mean_y)) * outward).sum(1)
        quadratic = inner * (outward @ outward.T)
        # The error of the first r columns takes the sum over the first r rows and columns.
        squares = quadratic.cumsum(0).cumsum(1).diagonal()
        errors.append(held_out.moment_yy(target, mean_y) - 2.0 * linear.cumsum() + squares)
    return explained_by(np.stack(errors, axis=1), held_out)


def _cross_moments(sums: NormalEquations) -> Iterable[Matrix]:
    """Cross covariance of x with each target, one after the other: [hidden, hidden] each."""
    mean_x = sums.mean_x
    return (sums.moments_xy(target, mean_x, mean_y) for target, mean_y in enumerate(sums.mean_y))


MEMORY_SHARE = 0.8
"""Share of the free memory that sums and maps may take."""


@dataclass(frozen=True)
class FittingMemory:
    """Bytes that fitting takes beside the model."""

    lens_exits: int
    """How many exits get a lens."""
    map_exits: tuple[int, ...]
    """Those that get K,V maps."""
    lens_sums: int
    """Of the sums of the lens."""
    map_sums: int
    """Of the sums of the maps."""
    maps: int
    """Of the maps themselves, at most."""

    @property
    def parts(self) -> list[str]:
        """What takes how much, in words."""
        found = []
        if self.lens_exits:
            exits = "exit" if self.lens_exits == 1 else "exits"
            found.append(
                f"the sums of a linear lens at {self.lens_exits} {exits} take {_size(self.lens_sums)}"
            )
        if self.map_exits:
            listed = ", ".join(map(str, self.map_exits))
            found.append(
                f"the sums of K,V maps at exit{'s' * (len(self.map_exits) > 1)} {listed} take "
                f"{_size(self.map_sums)}, the maps at most {_size(self.maps)}"
            )
        return found

    def require(self, model: str, device: torch.device = PROCESSOR) -> None:
        """Raise InputError, with all sizes, if they do not fit into memory. device: of the sums."""
        device = float64_device(device)
        free, needed = psutil.virtual_memory().available, self.maps
        if device.type == CPU:
            needed += self.lens_sums + self.map_sums
        elif self.lens_sums + self.map_sums > MEMORY_SHARE * free_bytes(device):
            free, needed = free_bytes(device), self.lens_sums + self.map_sums
        if needed <= MEMORY_SHARE * free:
            return
        fixes = ["give fewer --exits, or leave the lens out with --no-lens"] * bool(self.lens_exits)
        fixes += ["give fewer --kv-maps, or a lower --kv-rank"] * bool(self.map_exits)
        raise InputError(
            f"{'; '.join(self.parts)}; {_size(free)} are free", where=model, fix="; ".join(fixes)
        )


def fitting_memory(
    hidden: int, layers: int, lens_exits: int, map_exits: Sequence[int], rank: Rank
) -> FittingMemory:
    """What fitting takes on a model of so many layers.

    Maps whose rank is still to be found are counted as whole ones: they take no more.
    """
    counts = [len(deeper) for deeper in mapped_layers(map_exits, layers).values()]
    kept = min(rank, hidden) if isinstance(rank, int) else None
    return FittingMemory(
        lens_exits=lens_exits,
        map_exits=tuple(map_exits),
        lens_sums=sums_bytes(hidden, [1] * lens_exits),
        map_sums=sums_bytes(hidden, counts),
        maps=ELEMENT_BYTES * sum(map_elements(hidden, count, kept) for count in counts),
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
