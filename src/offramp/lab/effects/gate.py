"""The gate: whether twelve layers are better than four, without which nothing is concluded from anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offramp.lab.effects.factorial import CORNERS
from offramp.lab.effects.runs import DENSE, GATE, Run

USED = 0.05
"""Nats by which the deeper model has to be better."""

WIDE = "gate-wide-"
"""How runs of as many parameters as the deeper model begin, which decide nothing."""


@dataclass(frozen=True)
class Depth:
    """One corner's last validation losses, of the deep model, the shallow one, and the shallow one of as many
    parameters; None where there is none, or it is not finite."""

    corner: str
    deep: float | None
    shallow: float | None
    wide: float | None
    layers: tuple[int | None, int | None] = (None, None)

    @property
    def gained(self) -> float | None:
        """By how much the deep one is better, nats a token."""
        return None if self.deep is None or self.shallow is None else self.shallow - self.deep


@dataclass(frozen=True)
class Gate:
    """Both corners."""

    corners: tuple[Depth, ...]

    @property
    def passed(self) -> bool | None:
        """Whether depth is used; None where that is not known."""
        gained = [one.gained for one in self.corners]
        known = [one for one in gained if one is not None]
        if any(one <= USED for one in known):
            return False
        return True if len(known) == len(gained) else None


def find_gate(runs: Sequence[Run], left_out: Mapping[str, str]) -> Gate:
    """The gate of a study's runs. left_out: those that do not count."""
    return Gate(tuple(_depth(corner, signs, runs, left_out) for corner, signs in CORNERS.items()))


def _depth(corner: str, signs: tuple[int, ...], runs: Sequence[Run], left_out: Mapping[str, str]) -> Depth:
    alike = [run for run in runs if run.kind == DENSE and run.signs == signs and run.name not in left_out]
    of_gate = [run for run in alike if run.block == GATE]
    deep = next((run for run in alike if run.block == "1"), None)
    shallow = next((run for run in of_gate if not run.name.startswith(WIDE)), None)
    wide = next((run for run in of_gate if run.name.startswith(WIDE)), None)
    layers = (None if deep is None else deep.layers, None if shallow is None else shallow.layers)
    return Depth(corner, _loss(deep), _loss(shallow), _loss(wide), layers)


def _loss(run: Run | None) -> float | None:
    loss = math.nan if run is None else float(run.losses[-1])
    return loss if math.isfinite(loss) else None
