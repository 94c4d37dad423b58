"""Accelerations alone and together, as lines of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from offramp.studies.comparison.content import answer_text
from offramp.studies.comparison.results import Comparison


def combined_lines(comparison: Comparison) -> Iterator[Mapping[str, Any]]:
    """One line for each combination of each measurement; figures as in `Combination`."""
    for result in comparison.combined:
        for combination in result["combinations"]:
            contender, quality = combination["contender"], combination["quality"]
            seconds = contender["seconds_per_token"]
            yield {
                "model": result["model"],
                "workload": result["workload"],
                "combination": combination["name"],
                "policy": combination["policy"],
                "answer": answer_text(
                    contender["answer"], contender["resolution"], result["defects"], contender["left_out"]
                ),
                "left_out": contender["left_out"],
                "seconds_per_token": None if seconds is None else seconds["value"],
                **_limits("speedup", contender["ratio"]),
                **_limits("product", combination["product"]),
                **_limits("interaction", combination["interaction"]),
                **_limits("forced_agreement", None if quality is None else quality["forced_agreement"]),
            }


def _limits(name: str, interval: Mapping[str, float | None] | None) -> dict[str, float | None]:
    found = interval or {"value": None, "low": None, "high": None}
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
