"""Options of sampling: which ask for it, and the values that mean something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from offramp.errors import InputError

SAMPLES = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options that only mean something for sampling; giving one asks for it."""


@dataclass(frozen=True)
class Range:
    """Numbers that an option takes. words: the same for people."""

    number: type
    within: Callable[[Any], bool]
    words: str

    def holds(self, value: Any) -> bool:
        """Whether a value is such a number, and within."""
        return isinstance(value, self.number) and not isinstance(value, bool) and self.within(value)


RANGES: Mapping[str, Range] = {
    "temperature": Range(Real, lambda value: 1e-4 <= value < 1e6, "above 0, 0.0001 at least"),
    "top_k": Range(Integral, lambda value: value >= 1, "1 or more"),
    "top_p": Range(Real, lambda value: 0 < value <= 1, "above 0, 1 at most"),
}


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Raise InputError for a number out of its range; transformers takes some of them silently."""
    for name, range_ in RANGES.items():
        value = sampling.get(name)
        if value is not None and not range_.holds(value):
            raise InputError(
                f"{name} cannot be {value!r}", where=f"{name}=", fix=f"give a number {range_.words}"
            )
