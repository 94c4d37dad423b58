"""lm-eval's own command line, with the model type `offramp` made known to it: `offramp-lm-eval`."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from offramp.errors import InputError, OfframpError

NAME = "offramp"
INCLUDE = "--include_path"
TASKS = Path(__file__).parent / "tasks"
"""Tasks that need no network (`offramp-cities`, ...), which are known unless other folders are named."""


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


def main() -> None:
    """Register the model type and the tasks beside it, then do what `lm_eval` does with the same arguments.

    Exits with 2 for bad input and 1 for other failures of offramp; with what lm-eval exits with otherwise.
    """
    # Waiting threads that spin make small products many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not any(word.startswith(INCLUDE) for word in sys.argv) and {"--tasks", "-t"} & {*sys.argv}:
        sys.argv += [INCLUDE, str(TASKS)]
    try:
        register()
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except OfframpError as error:
        print(f"offramp: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
