"""Work of a part of a step, and how its time scales with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """FLOPs of a part, and the bytes that it moves."""

    flops: float
    bytes: float


def work_ratio(wanted: Work, known: Work) -> float:
    """How many times longer some work takes than other work on one machine, by FLOPs and by bytes.

    The larger of the two ratios: a part never takes less time than its slower resource needs.
    """
    by_bytes = wanted.bytes / known.bytes if known.bytes else 0.0
    return max(wanted.flops / known.flops, by_bytes)
