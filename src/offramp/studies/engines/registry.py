"""The engines by name."""

from __future__ import annotations

from collections.abc import Mapping

from offramp.errors import InputError
from offramp.studies.engines.engine import StudyEngine
from offramp.studies.engines.local import LocalEngine
from offramp.studies.engines.ray import RayEngine

ENGINES: Mapping[str, StudyEngine] = {engine.name: engine for engine in (LocalEngine(), RayEngine())}


def engine_named(name: str) -> StudyEngine:
    """The engine with this name.

    Raises InputError if there is none.
    """
    if name not in ENGINES:
        raise InputError(
            f"there is no engine named {name!r}", where="--engine", fix=f"choose from {', '.join(ENGINES)}"
        )
    return ENGINES[name]
