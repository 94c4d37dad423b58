"""A quality floor: what the user will not give up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FloorKind = Literal["agreement", "reference_agreement", "nll", "kl"]
FloorAnswer = Literal["holds", "broken", "not decided"]


@dataclass(frozen=True)
class Floor:
    """A quality floor: what the user will not give up.

    kind: "agreement" or "reference_agreement" (shares of tokens; the latter with the untransformed full
    model), "nll" (increase) or "kl" (nats). value: as the user gave it. clip: B, the loss in nats at which a
    token's loss is cut ("nll", "kl"). risk: the largest mean loss allowed, in [0, 1]: 1 - value of a share,
    value / clip of the others.
    """

    kind: FloorKind
    value: float
    clip: float | None = None

    @property
    def risk(self) -> float:
        """Largest mean loss allowed, as a share of the largest possible loss."""
        return 1.0 - self.value if self.clip is None else self.value / self.clip

    def __str__(self) -> str:
        """As on the command line: agreement=0.99."""
        return f"{self.kind}={self.value:g}"
