"""Families that a transform cannot be applied to, known before any weight is loaded.

Not all of them: what a transform needs is checked on the loaded model, whatever its family.
"""

from __future__ import annotations

from collections.abc import Mapping

from offramp.models.transforms.transform import Transform

QUANTISATION = {
    "falcon": "its layers multiply with their weights themselves, in ways that quantised ones do not allow",
    "gpt2": "its matrices are convolutions, and torchao quantises linear modules alone",
    "mixtral": "most of its weights are stacked experts, and torchao quantises linear modules alone",
}
PRUNING = {
    "gemma3n_text": "its layers take embeddings of their own, by number",
    "zamba2": "its layers share weights",
    "zaya": "its layers compute something else when they move up",
}
UNFIT: Mapping[str, Mapping[str, str]] = {"int8": QUANTISATION, "int4": QUANTISATION, "prune": PRUNING}
"""Why a family is refused, by the name of the transform and the model type in the config."""


def why_unfit(transform: Transform, model_type: str | None) -> str | None:
    """Why a transform cannot be applied to a family; None if nothing is known against it."""
    return UNFIT.get(transform.name, {}).get(model_type or "")
