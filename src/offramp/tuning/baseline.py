"""A baseline as the tuner knows it: what decodes without exits, and what it takes and keeps."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.kit.numbers import Positive, Proportion
from offramp.policies.figures import NEVER


@dataclass(frozen=True)
class Baseline:
    """One way to decode without exits."""

    name: str
    cost: Positive
    """Over plain cost: by price, or by the stopwatch at the upper limit of its interval."""
    kept: Proportion
    """Share of its tokens that are the full model's choice: as rerun, or of what it decoded."""


PLAIN = Baseline(NEVER, 1.0, 1.0)
"""The full model."""
