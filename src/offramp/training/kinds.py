"""Exits that are trained on states: what an exit computes, and from where training starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.heads.parts import ExitReading, GatedNetwork, Lens, stacked

Parameters = Mapping[str, Tensor]
"""Of one exit, float32, by name."""

EPSILON = 1e-6
"""Under the root of a block's norm."""


@dataclass(frozen=True)
class RidgeStart:
    """From where an exit begins: its lens in closed form, and how its states are spread.

    weight: float32 [hidden, hidden], rows are outputs. bias: float32 [hidden]. mean: of its states, float64
    [hidden]. covariance: float64 [hidden, hidden].
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def initial_lens(start: RidgeStart, rank: int = 0) -> dict[str, Tensor]:
    """A lens before the first step. rank: of its change of the state; 0: whole.

    In low rank it is the one that differs least from the whole one on states as they are spread: with C =
    M S^(1/2), M the whole lens less the identity and S the covariance, M is projected on the first left
    singular vectors of C (reduced-rank regression: Izenman, "Reduced-Rank Regression for the Multivariate
    Linear Model", Journal of Multivariate Analysis 5, 1975, section 2). Both factors are of one size, so that
    a rate moves them alike.
    """
    if not rank:
        return {"weight": torch.from_numpy(start.weight), "bias": torch.from_numpy(start.bias)}
    change = start.weight.astype(np.float64) - np.eye(len(start.bias))
    variances, directions = np.linalg.eigh(start.covariance)
    spread = change @ directions * np.sqrt(variances.clip(min=0.0))
    outward = np.linalg.svd(spread, full_matrices=False)[0][:, :rank]
    inward = outward.T @ change
    bias = start.bias + (change - outward @ inward) @ start.mean
    sizes = np.sqrt(np.linalg.norm(inward, axis=1).clip(min=np.finfo(np.float64).tiny))
    factors = {"inward": inward / sizes[:, None], "outward": outward * sizes, "bias": bias}
    return {name: torch.from_numpy(one.astype(np.float32)) for name, one in factors.items()}


def initial_network(hidden: int, units: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A network that gives back what it is given: `down` lets nothing through, but its gradient is not 0."""

    def random() -> Tensor:
        return torch.randn(units, hidden, generator=generator) / math.sqrt(hidden)

    return {
        "norm": torch.ones(hidden),
        "gate": random(),
        "up": random(),
        "down": torch.zeros(hidden, units),
    }


def joined(exits: Sequence[Parameters], network: Parameters) -> dict[str, Tensor]:
    """Lenses of several exits and the network that all share, as one: "0.bias", "1.bias", ..., "gate"."""
    lenses = {f"{place}.{name}": one for place, lens in enumerate(exits) for name, one in lens.items()}
    return {**lenses, **network}


def exits_of(shared: Parameters, exits: int) -> list[dict[str, Tensor]]:
    """Each exit's parameters out of those that `joined` gave."""
    network = {name: one for name, one in shared.items() if "." not in name}
    lenses: list[dict[str, Tensor]] = [{} for _ in range(exits)]
    for name, one in shared.items():
        place, dot, own = name.partition(".")
        if dot:
            lenses[int(place)][own] = one
    return [{**lens, **network} for lens in lenses]


def prepared(parameters: Parameters) -> ExitReading[Tensor]:
    """What computes with the parameters of one exit, differentiable."""
    of_lens: Any = {name: one for name, one in parameters.items() if name in Lens.AXES}
    lens = Lens[Tensor](**of_lens)
    if "gate" not in parameters:
        return ExitReading(lens)
    network: Any = {name: parameters[name] for name in GatedNetwork.AXES}
    return ExitReading(lens, GatedNetwork[Tensor](**network, epsilon=EPSILON))


def reading_of(exits: Sequence[Parameters], *, shared: bool) -> ExitReading[Any]:
    """Of the parameters of every exit. shared: whether they hold one network, which is kept once."""
    readings = [prepared(one) for one in exits]
    networks = [one.mlp for one in readings if one.mlp is not None]
    lens = stacked([one.lens for one in readings if one.lens is not None])
    return ExitReading(lens, stacked(networks[:1] if shared else networks) if networks else None)
