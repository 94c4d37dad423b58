"""What options of sampling may be: transformers takes some silently, and fails while it generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Gt, Le

from offramp.kit.arguments import settled
from offramp.kit.numbers import Count
from offramp.kit.rules import Must

Temperature = Annotated[
    float, Must(lambda value: value == 0 or 1e-4 <= value < 1e6, "0 (greedy), or from 0.0001 to below 1e6")
]
TopP = Annotated[float, Gt(0), Le(1)]

HINTS: Mapping[str, tuple[Any, str]] = {
    "temperature": (Temperature | None, "float | None"),
    "top_k": (Count | None, "int | None"),
    "top_p": (TopP | None, "float | None"),
    "stop_strings": (str | Sequence[str] | None, "str | Sequence[str] | None"),
    "eos_token_id": (int | Sequence[int] | None, "int | Sequence[int] | None"),
    "logits_processor": (Sequence[Callable[..., Any]] | None, "LogitsProcessorList | None"),
    "stopping_criteria": (Sequence[Callable[..., Any]] | None, "StoppingCriteriaList | None"),
}
"""By option, its type, and the same in words."""


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Raise InputError for an option of another type, and a number out of its range."""
    for name in HINTS.keys() & sampling.keys():
        hint, said = HINTS[name]
        settled(name, sampling[name], hint, said)
