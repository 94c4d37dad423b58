"""A figure with its interval, or the reason why there is none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval over documents.

    value: None if the figure is undefined; `undefined` then says why.
    low, high: None where no interval is allowed (too few documents, a biased figure); `no_interval` says why.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: str | None = None
    no_interval: str | None = None

    def scaled(self, factor: float) -> Estimate:
        """The estimate times a positive constant; what is undefined stays so."""
        scaled = {
            name: None if getattr(self, name) is None else getattr(self, name) * factor
            for name in ("value", "low", "high")
        }
        return replace(self, **scaled)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the five fields."""
        return asdict(self)
