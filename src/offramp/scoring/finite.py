"""Values that JSON can hold: finite numbers, lists, texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def number(value: float | None) -> float | None:
    """A finite number, null for anything else."""
    return None if value is None or not math.isfinite(value) else float(value)


def finite_json(value: Any) -> Any:
    """Any JSON-like value with tuples as lists, numpy scalars as numbers and non-finite numbers as null."""
    if isinstance(value, Mapping):
        return {str(key): finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return number(value)
    return value
