"""What a task's work reads: every input is held against the fingerprint that the task's recipe names."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.costs.hardware import find_machine, machine_facts
from offramp.costs.machine import Machine, machine_fingerprint
from offramp.costs.timings import SCHEMA_VERSION, TimingsProfile
from offramp.errors import OfframpError
from offramp.files import canonical_json, read_json
from offramp.models.devices import CPU
from offramp.models.memory import use_threads
from offramp.studies.computing import code_of, code_of_module
from offramp.studies.entries import BYTES
from offramp.studies.manifest import RESULT, TRACE, study_file
from offramp.studies.steps import measured_on
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.tracing.trace import Trace
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Workload

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.tracing.exit_heads import ExitHeads

HEADS = "heads.safetensors"
EXITS = "exits"
"""The folder of exits that a task trained."""
PROFILE = "profile.json"
PROFILE_FILE = study_file(TimingsProfile, SCHEMA_VERSION)


def require_same(what: str, source: str, found: str, wanted: str | None) -> None:
    """Refuse an input whose fingerprint is not the recipe's: a result would be filed under a wrong key.

    Raises OfframpError.
    """
    if found != wanted:
        raise _unplanned(what, source, found[:12], "unknown" if wanted is None else wanted[:12])


def require_planned(task: Task) -> None:
    """Refuse to do a task with other code or other libraries than its recipe names. Raises OfframpError."""
    require_same("the code of offramp", task.kind, code_of(task.kind), task.recipe["code"])
    require_versions(task)
    for module, fingerprint in task.recipe.get("plug_ins", {}).items():
        require_same(f"the plug-in {module}", task.kind, code_of_module(module), fingerprint)


def require_versions(task: Task) -> None:
    """Refuse to do a task with other libraries than its recipe names. Raises OfframpError."""
    for name, version in task.recipe["versions"].items():
        found = importlib.metadata.version(name)
        if found != version:
            raise _unplanned(f"the library {name}", task.kind, found, version)


def require_this_machine(task: Task, facts: Mapping[str, Any]) -> None:
    """Refuse to time on another machine than the one that some facts are of. Raises OfframpError."""
    found = machine_facts(task.recipe["threads"], device_of(task))
    for name, value in facts.items():
        if found.get(name) != value:
            raise _unplanned(f"this machine ({name})", task.kind, str(found.get(name)), str(value))


def _unplanned(what: str, where: str, found: str, wanted: str) -> OfframpError:
    return OfframpError(
        f"{what} is not what the study was planned with: {found}, not {wanted}",
        where=where,
        fix="plan and run the study again: offramp study run STUDY.toml",
    )


def trace_of(context: Context, role: str = "trace") -> Trace:
    """The trace of a needed task. Raises InputError or DamagedFileError if it is not there or not whole."""
    return Trace.load(context.input(role) / TRACE)


def workload_of(task: Task) -> Workload:
    """A task's workload, checked. Raises as `checked_workload`."""
    return checked_workload(task.sources["workload"], task.recipe["workload"])


def checked_workload(source: str, described: Mapping[str, Any]) -> Workload:
    """A workload. described: its fingerprint, as recipes have it.

    Raises WorkloadError, or OfframpError for another version of its text.
    """
    found = load_workload(source)
    require_same(f"the workload {found.name}", source, found.fingerprint, described["fingerprint"])
    return found


def result_of(context: Context, role: str) -> dict[str, Any]:
    """The result of a needed task."""
    path = context.input(role) / RESULT
    value: dict[str, Any] = read_json(path)
    return value


def heads_of(task: Task, context: Context) -> ExitHeads | None:
    """The exit heads that a task needs, None if it needs none. Raises DamagedFileError."""
    if "heads" not in task.needs:
        return None
    from offramp.tracing.heads_file import read_heads

    folder = context.input("heads")
    return read_heads(folder / (EXITS if (folder / EXITS).is_dir() else HEADS))


def machine_of(task: Task, context: Context) -> Machine | None:
    """The machine that a task prices on: a needed task's timings, or a profile by name or file; None where
    bytes are counted.

    Raises InputError for an unknown machine, OfframpError for one whose figures are not the recipe's.
    """
    if "profile" in task.needs:
        return profile_in(context.input("profile"))
    source = task.sources["machine"]
    if source == BYTES:
        return None
    machine = find_machine(source)
    require_same(f"the machine {machine.name}", source, machine_fingerprint(machine), task.recipe["machine"])
    return machine


def profile_in(folder: Path) -> TimingsProfile:
    """The timings that a profile task left. Raises DamagedFileError."""
    return PROFILE_FILE.read(folder / PROFILE)


def device_of(task: Task) -> str:
    """The device that a task's model computes on; a recipe names none but accelerators."""
    return str(task.recipe.get("device", CPU))


def model_of(task: Task, context: Context, *, stream: bool = False, memory: int | None = None) -> Model:
    """The model of a task, transformed as its recipe says, torch set to the recipe's threads.

    stream: leave its layers on disk; memory: bytes of weights at most, then.

    Raises ModelError or InputError for what cannot be loaded, OfframpError for other weights, config or
    tokenizer than the recipe's.
    """
    from offramp.tracing.loading import find_model, load_for_tracing, read_transforms

    use_threads(task.recipe["threads"])
    source, dtype, described = task.sources["model"], task.recipe["dtype"], task.recipe["model"]
    texts = tuple(described["transforms"])

    def load() -> Model:
        trusted = bool(described.get("trust_remote_code"))
        asked = find_model(
            source,
            read_transforms(texts, dtype),
            dtype=dtype,
            trust_remote_code=trusted,
            device=device_of(task),
        )
        require_same("the model", source, asked.source.identity.base_fingerprint, described["fingerprint"])
        # Layers to prune may be chosen by what they do on a text, which is then part of the recipe.
        for place, measuring in enumerate(measured_on(asked.transforms)):
            checked_workload(measuring, described["measured_on"][place])
        return load_for_tracing(asked, [], stream=stream, memory=memory if stream else None)

    return context.models.get((canonical_json(described), dtype, device_of(task), stream, memory), load)
