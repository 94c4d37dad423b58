"""Names of searches and of methods of certificates, as types: imported when one is looked up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from offramp.kit.rules import OneOf


def _methods() -> Collection[str]:
    from offramp.tuning.bounds import METHODS

    return METHODS


MethodName = Annotated[str, OneOf("method", _methods)]
Search = Literal["families", "evolution"]
"""How policies are searched."""
