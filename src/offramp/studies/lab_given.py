"""The plan of a study of the lab whose models are given: the same endpoints, on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp.studies.fingerprints import FILE, Fingerprints
from offramp.studies.folder import StudyFolder
from offramp.studies.lab_collected import Collected
from offramp.studies.lab_study import LabStudy
from offramp.studies.model_search import find_models
from offramp.studies.task import Cell, Plan


def lay_out_given(study: LabStudy, folder: Path | None, *, download: bool) -> Plan:
    """The text, and once it is made all endpoints of each model.

    download: fetch models from the Hub that are not here. Raises InputError, with the line, for a name that
    no model could have.
    """
    fingerprints = Fingerprints(None if folder is None else folder / FILE)
    try:
        models = find_models(study, fingerprints, download=download)
    finally:
        fingerprints.save()
    found = Collected(study, None if folder is None else StudyFolder(folder))
    described: list[dict[str, Any]] = []
    for name, model in models.items():
        task = found.make.measure_given(model, found.text)
        found.add(f"measure {name}", Cell("measure", "", name), task)
        facts = {key: getattr(model, key) for key in ("layers", "hidden", "vocabulary", "parameters")}
        described.append({**model.entry.model_dump(mode="json"), **facts, "measure": task.key})
    missing = {name: model.missing for name, model in models.items() if model.missing is not None}
    return Plan(
        study={**found.described(), "models": described},
        cells=tuple(found.cells.values()),
        tasks=found.tasks,
        jobs=found.made_jobs(),
        unavailable={**found.absent, **missing},
        damaged=tuple(name for name, model in models.items() if model.damaged),
        to_come=tuple(found.to_come.values()),
    )
