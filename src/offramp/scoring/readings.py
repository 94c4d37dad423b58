"""Two readings of the same tokens: what a model's own head reads at its exits, and what fitted heads read."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.scoring.estimate import Estimate


@dataclass(frozen=True)
class Reading:
    """The components of a score card that depend most on what reads an exit, in one reading."""

    representation: Estimate
    increment: Estimate


COMPONENTS = ("representation", "increment")
"""Their names on a score card."""


@dataclass(frozen=True)
class Readings:
    """A model's exits read by its own head (raw), and through fitted heads: the same tokens, exits and draws.

    raw: what the head can read. fitted: what the representation holds, as far as these heads find it.
    gained: fitted less raw, paired over documents. closed: representation quality gained, as a share of what
    lies between the raw one and the ceiling; negative where the heads read less. ceiling: 1 - x_1. through:
    the heads, in words. documents: that all of it is taken on. left_out: those that the heads' fitting saw,
    and that are in none of these figures.
    """

    raw: Reading
    fitted: Reading
    gained: Reading
    closed: Estimate
    ceiling: float
    through: str
    documents: int
    left_out: int
