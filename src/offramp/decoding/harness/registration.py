"""Making the model type `offramp` known to lm-eval versions that read no entry points."""

from __future__ import annotations

import importlib

from offramp.errors import InputError

NAME = "offramp"


def register() -> None:
    """Let `--model offramp` and `simple_evaluate(model="offramp")` find the model, in this process.

    Raises InputError if lm-eval is missing.
    """
    try:
        registry = importlib.import_module("lm_eval.api.registry")
        # lm-eval fills its registry when this is imported, or else only while it is empty.
        importlib.import_module("lm_eval.models")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "lm_eval":
            raise
        raise InputError(
            "lm-evaluation-harness is not installed",
            where="lm_eval",
            fix="pip install 'offramp[harness]'",
        ) from error
    if NAME not in registry.model_registry:
        model = importlib.import_module("offramp.decoding.harness.model")
        registry.model_registry.register(NAME)(model.OfframpLM)
