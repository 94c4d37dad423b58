"""A tiny recipe that the tests of training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp.lab.text.folder import LabText
from offramp.lab.training.recipe import ContinuedRecipe, Mamba2Recipe, MixtureRecipe, Recipe

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


SWITCHES = ("norm", "mlp", "positions", "residual")

TINY_KINDS: dict[str, dict[str, Any]] = {
    "mixture": {"kind": "mixture", "experts": 4},
    "mamba2": {"kind": "mamba2", "expand": 2, "chunk": 8, "width": 8},
}


def tiny(text: LabText, **more: Any) -> Recipe:
    """The recipe with some entries changed."""
    return Recipe(text=str(text.folder), **{**TINY, **more})


def tiny_kind(text: LabText, kind: str, **more: Any) -> MixtureRecipe | Mamba2Recipe:
    """One of a model of another kind."""
    left_out = SWITCHES if kind == "mixture" else (*SWITCHES, "heads", "group")
    values = {key: value for key, value in TINY.items() if key not in left_out}
    made = MixtureRecipe if kind == "mixture" else Mamba2Recipe
    return made.model_validate({"text": str(text.folder), **values, **TINY_KINDS[kind], **more})


def going_on(text: LabText, base: Path, arm: str, **more: Any) -> ContinuedRecipe:
    """8 steps from a tiny model, of which the last is kept."""
    given = {
        "text": str(text.folder),
        "from": str(base),
        "arm": arm,
        "tokens": 1024,
        "seed": 7,
        "context": 32,
    }
    return ContinuedRecipe.model_validate({**given, "batch": 4, "rate": 1e-3, "checkpoints": 1, **more})


def write_recipe(path: Path, of: LabText, **more: Any) -> Path:
    """The recipe as a file."""
    values = {"text": str(of.folder), **TINY, **more}
    lines = (f"{key} = {value!r}".replace("'", '"') for key, value in values.items() if value is not None)
    path.write_text("\n".join(lines) + "\n")
    return path
