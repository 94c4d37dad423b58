"""Models and workloads without names and places: no byte of a result depends on where its inputs lie."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from offramp.workloads.workload import Workload

if TYPE_CHECKING:
    from offramp.models.model import Model

GIVEN = "given by the study"
"""What stands in the place of a path."""
SHOWN = 12
"""Characters of a fingerprint in a name."""


def nameless_model(model: Model) -> Model:
    """The same model, called after its fingerprint: a folder, a file and a Hub id may hold the same one."""
    own = model.identity
    identity = replace(own, source=GIVEN, licence=None, revision=None)
    return replace(model, name=f"model {own.base_fingerprint[:SHOWN]}", identity=identity)


def nameless_workload(workload: Workload, kind: str) -> Workload:
    """The same workload; one that is not known by its name alone is called after its fingerprint.

    kind: as a recipe has it: "prose:short", but "txt" for "txt:notes.txt". Policies may ask for it.
    """
    if workload.name == kind:
        return workload
    return replace(workload, name=f"{kind}:{workload.fingerprint[:SHOWN]}", source=GIVEN)
