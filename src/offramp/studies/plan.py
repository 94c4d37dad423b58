"""The plan of a study: its cells, the tasks behind them and the jobs that run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp.files import sha256_of_file
from offramp.studies.availability import find_everything
from offramp.studies.expansion import expand
from offramp.studies.fingerprints import FILE, Fingerprints
from offramp.studies.found import Found
from offramp.studies.jobs import jobs_of
from offramp.studies.study import Study
from offramp.studies.task import PLANNED_BY, Plan

FILLED_IN = ("layers", "hidden", "vocabulary", "parameters")
"""Facts of a model that its files tell if the study does not."""


def make_plan(study: Study, folder: Path | None = None, *, download: bool = False) -> Plan:
    """Lay a study out. Nothing is run and no weight is loaded.

    folder: the study's own, where fingerprints of files are kept from one plan to the next; None: nowhere.
    download: fetch models from the Hub that are not here; without, their tasks are blocked, with the reason.

    Raises InputError, with the line, for what the study names and is not there, does not fit together, or is
    there twice; OfframpError if the disk is full.
    """
    fingerprints = Fingerprints(None if folder is None else folder / FILE)
    try:
        found = find_everything(study, fingerprints, download=download)
    finally:
        fingerprints.save()  # what took long to find out is kept, whatever else is wrong
    expanded = expand(study, found)
    jobs = jobs_of(expanded.tasks, expanded.names, study.settings.threads)
    return Plan(
        _described(study, found), expanded.cells, expanded.tasks, jobs, found.unavailable, found.damaged
    )


def _described(study: Study, found: Found) -> dict[str, Any]:
    """Everything that the study says, with the sizes of the models, the names of the pairs and its file."""
    value = study.to_json()
    for model in value["models"]:
        here = found.models[model["name"]]
        model.update({name: getattr(here, name) for name in FILLED_IN})
    for pair, entry in zip(value["pairs"], study.pairs, strict=True):
        pair["name"] = entry.name
    if study.path.is_file():
        value["file"] = {"path": str(study.path.absolute()), "sha256": sha256_of_file(study.path)}
    if study.inline:
        value[PLANNED_BY] = "offramp run"
    return value
