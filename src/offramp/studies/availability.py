"""Finding what a study names: models, workloads, machines and files of heads, without loading a weight."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.costs.hardware import find_machine, processor_name
from offramp.costs.machine import machine_fingerprint
from offramp.errors import InputError, WorkloadError
from offramp.files import source_fingerprint
from offramp.kit.defaults import LOCAL
from offramp.kit.toml_lines import Location
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform
from offramp.studies.entries import BYTES, FILE_SOURCES, NONE, OWN, TrainingEntry, WorkloadEntry
from offramp.studies.estimates import exit_list
from offramp.studies.fingerprints import Fingerprints, evidence_of
from offramp.studies.found import Found, FoundHeads, FoundMachine, FoundWorkload
from offramp.studies.model_search import find_models
from offramp.studies.steps import all_steps
from offramp.studies.study import Study, placed, resolved
from offramp.studies.training_checks import exits_of_training
from offramp.studies.work.inputs import measured_on
from offramp.tracing.facts import HEAD_FACTS, TRAINED_FACTS
from offramp.tracing.heads_file import read_heads
from offramp.workloads.continued import split_continued
from offramp.workloads.registry import describe_workloads, is_given, load_workload
from offramp.workloads.standard_library import library_files

CANDIDATES = "candidate_score"
SLOW_SOURCES = ("prose:short", "code:short", "math", "math:short")
"""Built-in workloads that take seconds to put together, so that their fingerprints are kept."""


def find_everything(study: Study, fingerprints: Fingerprints, *, download: bool) -> Found:
    """What the study's names stand for. What cannot be had here is said to be missing, with the reason.

    download: fetch models from the Hub that are not here.

    Raises InputError, with the line, for files that the study names and that are not there or not usable.
    """
    search = _WorkloadSearch(study, fingerprints)
    workloads = {
        entry.name: search.find(entry, "workloads", place) for place, entry in enumerate(study.workloads)
    }
    measuring = {
        source: search.find(WorkloadEntry(name=source, source=source), *location)
        for step, location in all_steps(study)
        for source in measured_on([step])
    }
    return Found(
        models=find_models(study, fingerprints, download=download),
        workloads=workloads,
        machines=_find_machines(study),
        heads=_find_heads(study, workloads, search),
        measuring=measuring,
        unfit=_find_unfit(study, fingerprints),
    )


class _WorkloadSearch:
    """Finds workloads, each source once."""

    def __init__(self, study: Study, fingerprints: Fingerprints) -> None:
        self.study = study
        self.fingerprints = fingerprints
        described = describe_workloads()
        self.names = {one.name for one in described}
        self.modes = {one.name.partition(":")[0]: one.mode for one in described}
        self.found: dict[str, FoundWorkload] = {}

    def find(self, entry: WorkloadEntry, *location: str | int) -> FoundWorkload:
        """A workload that the study names at a place in its file."""
        if entry.source not in self.found:
            self.found[entry.source] = self._look_up(entry, location)
        return dataclasses.replace(self.found[entry.source], entry=entry)

    def _look_up(self, entry: WorkloadEntry, location: Location) -> FoundWorkload:
        prefix, text = split_continued(entry.source)
        kind, _, argument = text.partition(":")
        own_file = kind in FILE_SOURCES
        if own_file and not self.study.inline:
            text = f"{kind}:{(self.study.folder / argument).absolute()}"
        source = prefix + text
        mode = load_workload(text).mode if is_given(text) else self.modes[kind]
        kind = text if text in self.names else kind
        found = FoundWorkload(entry, source, prefix + kind, "generation" if prefix else mode)
        try:
            fingerprint, documents = self._facts(source)
            return dataclasses.replace(found, fingerprint=fingerprint, documents=documents)
        except WorkloadError as error:
            if own_file:
                with placed(self.study, *location):
                    raise
            return dataclasses.replace(found, missing=f"{error.what}: {error.fix}")

    def _facts(self, source: str) -> tuple[str, int]:
        """The fingerprint of a workload, and how many documents it has."""

        def load() -> tuple[str, int]:
            workload = load_workload(source)
            return workload.fingerprint, len(workload.documents)

        if split_continued(source)[1] not in SLOW_SOURCES:
            return load()
        key = f"workload {source}, with its documents"
        fingerprint, documents = self.fingerprints.get(key, lambda _: _installed(), load)
        return fingerprint, documents


@functools.cache
def _installed() -> list[Any]:
    """What built-in workloads are made of: this Python, its library's files, and the packages installed."""
    packages = sorted(path.name for folder in sys.path if folder for path in Path(folder).glob("*.dist-info"))
    library = evidence_of(path for _, path in library_files())
    return [sys.version, packages, library, source_fingerprint("workloads")]


def _find_machines(study: Study) -> dict[str, FoundMachine]:
    found = {}
    for place, entry in enumerate(study.machines):
        if entry.source == LOCAL:
            found[entry.name] = FoundMachine(LOCAL)
            continue
        if entry.source == BYTES:
            found[entry.name] = FoundMachine(BYTES, BYTES)
            continue
        path = resolved(study, entry.source)
        source = str(Path(path).absolute()) if Path(path).is_file() else path
        with placed(study, "machines", place):
            machine = find_machine(source)
            figures = machine_fingerprint(machine)
        found[entry.name] = FoundMachine(source, figures, machine)
    return found


def _find_heads(
    study: Study, workloads: Mapping[str, FoundWorkload], search: _WorkloadSearch
) -> dict[str, FoundHeads]:
    """Heads, and exits that are trained, by their names; "none" is of both axes and the same."""

    def made_on(texts: Sequence[str], *location: str | int) -> tuple[FoundWorkload, ...]:
        return tuple(
            workloads[text]
            if text in workloads
            else search.find(WorkloadEntry(name=text, source=text), *location)
            for text in texts
            if text != OWN
        )

    found = {}
    for place, heads in enumerate(study.heads):
        if heads.file is not None:
            found[heads.name] = _given_heads(study, heads.file, "heads", place, "file")
            continue
        found[heads.name] = FoundHeads(
            made_on(heads.fit, "heads", place, "fit"),
            facts=tuple(sorted(heads.classifiers)),
            own=OWN in heads.fit,
            reads_exits=heads.lens and heads.name != NONE,
        )
    for place, training in enumerate(study.trainings):
        if training.folder is not None:
            given = _given_heads(study, training.folder, "trainings", place, "folder")
            if given.given is not None and "trained" not in given.given.provenance:
                raise InputError(
                    "these exit heads were not trained",
                    where=study.where("trainings", place, "folder"),
                    fix="name them in [[heads]], as file =",
                )
            found[training.name] = given
        elif training.kind is not None:
            found[training.name] = FoundHeads(
                made_on(training.text, "trainings", place, "text"),
                facts=_trained_facts(study, training),
                own=OWN in training.text,
                reads_exits=True,
            )
    return found


def _given_heads(study: Study, text: str, *location: str | int) -> FoundHeads:
    """Exit heads in a file, or in a folder of trained exits."""
    path = Path(resolved(study, text)).absolute()
    with placed(study, *location):
        heads = read_heads(path)
    return FoundHeads(
        file=str(path), facts=tuple(heads.classifiers), given=heads, reads_exits=heads.reads_exits
    )


def _trained_facts(study: Study, training: TrainingEntry) -> tuple[str, ...]:
    """Facts of the classifiers that a training fits afterwards: all, but that candidates of the only exit say
    nothing of a later one."""
    names = [fact.name for fact in HEAD_FACTS if fact.name not in TRAINED_FACTS]
    exits = exits_of_training(study, training)
    alone = exits != "all" and len(exit_list(exits)) == 1
    return tuple(sorted(name for name in names if not (alone and name == CANDIDATES)))


def _find_unfit(study: Study, fingerprints: Fingerprints) -> dict[str, str]:
    """Why transforms cannot be done on this machine, by their texts.

    Raises InputError for one that can be done here, but not in the study's dtype.
    """
    unfit = {}
    for step, location in all_steps(study):
        if isinstance(step, Prune):
            continue
        problem = fingerprints.get(
            f"transform {step.text} {study.settings.dtype}",
            lambda _: _kernels(),
            functools.partial(_problem_with, step, study.settings.dtype),
        )
        if problem is not None and problem["elsewhere"]:
            raise InputError(problem["what"], where=study.where(*location), fix=problem["fix"])
        if problem is not None:
            unfit[step.text] = f"{problem['what']}: {problem['fix']}"
    return unfit


def _problem_with(step: Transform, dtype: str) -> dict[str, Any] | None:
    """Why this machine cannot do a transform in a dtype, and whether it could in another; None if it can."""
    try:
        step.check(dtype)
    except InputError as error:
        try:
            step.check(None)
        except InputError:
            return {"what": error.what, "fix": error.fix, "elsewhere": False}
        return {"what": f"{step.text}: {error.what}", "fix": error.fix, "elsewhere": True}
    return None


@functools.cache
def _kernels() -> list[Any]:
    """What it depends on whether this machine can do a transform."""
    names = ("torch", "torchao")
    versions = {one.name: one.version for one in importlib.metadata.distributions() if one.name in names}
    return [versions, processor_name(), source_fingerprint("models")]
