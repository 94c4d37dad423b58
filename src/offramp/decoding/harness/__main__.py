"""lm-eval's own command line, with the model type `offramp`: `offramp-lm-eval`."""

from __future__ import annotations

import importlib
import os
import sys

from offramp.decoding.harness.registration import register
from offramp.errors import OfframpError


def main() -> None:
    """Register the model type, then do what `lm_eval` does with the same arguments.

    Exits with 2 for bad input and 1 for other failures of offramp; with what lm-eval exits with otherwise.
    """
    # Waiting threads that spin make small products many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        register()
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except OfframpError as error:
        print(f"offramp: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
