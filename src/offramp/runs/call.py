"""`offramp.run`: a run, asked for from Python."""

from __future__ import annotations

from offramp.kit.request import as_call
from offramp.runs.request import Run

run = as_call(Run)
