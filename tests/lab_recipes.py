"""A tiny recipe that the tests of training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp.lab.text.folder import LabText
from offramp.lab.training.recipe import Recipe

TINY: dict[str, Any] = {
    "tokens": 2400,
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "positions": "rotary",
    "heads": "grouped",
    "residual": "plain",
    "layers": 2,
    "hidden": 32,
    "seed": 1,
    "query_heads": 4,
    "group": 2,
    "context": 32,
    "batch": 4,
    "rate": 5e-3,
    "checkpoints": 3,
    "width": 48,
}
"""19 steps of 128 tokens; models are kept after 4, 9 and 19."""


def tiny(text: LabText, **more: Any) -> Recipe:
    """The recipe with some entries changed."""
    return Recipe(text=str(text.folder), **{**TINY, **more})


def write_recipe(path: Path, of: LabText, **more: Any) -> Path:
    """The recipe as a file."""
    values = {"text": str(of.folder), **TINY, **more}
    lines = (f"{key} = {value!r}".replace("'", '"') for key, value in values.items() if value is not None)
    path.write_text("\n".join(lines) + "\n")
    return path
