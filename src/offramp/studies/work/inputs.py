"""What works read, and the fields that say which: every input is held against what the recipe names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.costs.machine import Machine, machine_fingerprint
from offramp.costs.machine_registry import find_machine, machine_facts
from offramp.costs.timings import SCHEMA_VERSION, TimingsProfile
from offramp.defaults import BYTES, SEED
from offramp.kit.numbers import NotNegative, Whole
from offramp.models.devices import CPU
from offramp.models.process import use_threads
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.quantise import is_quantisation
from offramp.models.transforms.transform import Transform
from offramp.studies.task import TRACE, study_file
from offramp.studies.work.work import Needed, Result, Work, WorkContext, require_same, unplanned
from offramp.tracing.trace import Trace
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Workload

if TYPE_CHECKING:
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes

HEADS = "heads.safetensors"
EXITS = "exits"
"""The folder of exits that a task trained."""
PROFILE = "profile.json"
PROFILE_FILE = study_file(TimingsProfile, SCHEMA_VERSION)


@dataclass(frozen=True)
class TextUsed:
    """Which text a task is on."""

    kind: str = ""
    """Of workload, without any place."""
    fingerprint: str | None = None
    source: str | None = None
    """Where it comes from, where its fingerprint is not known, since it is not here."""
    answered: bool = False
    """Whether the model writes answers to its prompts."""

    def load(self, source: str) -> Workload:
        """The workload from where it lies.

        Raises WorkloadError, or OfframpError for another version of its text.
        """
        workload = load_workload(source)
        require_same(f"the workload {workload.name}", source, workload.fingerprint, self.fingerprint)
        return workload


@dataclass(frozen=True)
class ModelUsed:
    """Which model a task is on."""

    fingerprint: str | None
    """Before any transform."""
    transforms: tuple[str, ...] = ()
    attention: str | None = None
    """The implementation that it was loaded with, None for the family's own."""
    trust_remote_code: bool = False
    source: str | None = None
    """As of a text."""
    measured_on: tuple[TextUsed, ...] = ()
    """Texts that layers to prune are chosen on."""


@dataclass(frozen=True, kw_only=True)
class ModelWork(Work[Result]):
    """Work that loads a model."""

    model: ModelUsed
    dtype: str
    device: str | None = None
    """An accelerator, None for the processor."""

    @property
    def loads(self) -> bool:
        """Whether it loads the model."""
        return True

    @property
    def transforms(self) -> tuple[str, ...]:
        """What is done to it."""
        return self.model.transforms

    def load_model(self, context: WorkContext, *, stream: bool = False, memory: int | None = None) -> Model:
        """The model, transformed, torch set to the recipe's threads.

        stream: leave its layers on disk; memory: bytes of weights at most, then.

        Raises ModelError or InputError for what cannot be loaded, OfframpError for other weights, config or
        tokenizer than the recipe's.
        """
        from offramp.tracing.loading import find_model, load_for_tracing, read_transforms

        use_threads(self.threads)
        source, used = self.sources["model"], self.model

        def load() -> Model:
            request = find_model(
                source,
                read_transforms(used.transforms, self.dtype),
                dtype=self.dtype,
                trust_remote_code=used.trust_remote_code,
                device=self.device or CPU,
            )
            require_same("the model", source, request.source.identity.base_fingerprint, used.fingerprint)
            # Layers to prune may be chosen by what they do on a text, which is then part of the recipe.
            for text, measuring in zip(used.measured_on, measured_on(request.transforms), strict=True):
                text.load(measuring)
            return load_for_tracing(request, [], stream=stream, memory=memory if stream else None)

        return context.models.get((used, self.dtype, self.device, stream, memory), load)


@dataclass(frozen=True, kw_only=True)
class TextWork(ModelWork[Result]):
    """Work that reads a workload with a model."""

    workload: TextUsed

    def load_workload(self) -> Workload:
        """The workload. Raises as `TextUsed.load`."""
        return self.workload.load(self.sources["workload"])


@dataclass(frozen=True, kw_only=True)
class TimedWork(ModelWork[Result]):
    """Work that is timed on this machine."""

    by_token = True

    machine: Mapping[str, Any]
    """Facts of the one that it was planned on."""

    def require_here(self) -> None:
        """Refuse to time on another machine. Raises OfframpError."""
        require_this_machine(self, self.machine)


@dataclass(frozen=True, kw_only=True)
class TurnsWork(TextWork[Result], TimedWork[Result]):
    """Work that times ways to decode prompts in turns, and so runs alone; as of a study's tables [decode] and
    [combine].
    """

    exclusive = True

    prompts: Whole
    rounds: Whole
    seconds: NotNegative
    tried: tuple[str, ...] = ()
    """Transforms of further models, that take turns too."""
    seed: Whole = SEED

    @property
    def transforms(self) -> tuple[str, ...]:
        """What is done to the models that it loads."""
        return (*self.model.transforms, *self.tried)

    def cost_of_turns(
        self, sizes: Sizes, new_tokens: int, contenders: int, *, models: int | None = None
    ) -> TaskCost:
        """Of so many contenders beside the plain ones.

        models: that are in memory; by default those tried, but for the ones in few bits, which share tensors.
        """
        visits, seconds = self.rounds * self.prompts, self.seconds
        if models is None:
            models = 1 + sum(not is_quantisation(text) for text in self.tried)
        return sizes.decoding(
            contenders, new_tokens=new_tokens, visits=visits, seconds=seconds, models=models
        )


@dataclass(frozen=True, kw_only=True)
class TraceReader(Work[Result]):
    """Work that reads a trace."""

    trace: Needed


@dataclass(frozen=True, kw_only=True)
class PricedWork(TraceReader[Result]):
    """Work on a trace that is priced on a machine."""

    profile: Needed | None = None
    """The timings of this one, if it is this."""
    machine: str | None = None
    """Fingerprint of another."""

    def machine_used(self, context: WorkContext) -> Machine | None:
        """The machine: a needed task's timings, or a profile by name or file; None where bytes are counted.

        Raises InputError for an unknown machine, OfframpError for one whose figures are not the recipe's.
        """
        if self.profile is not None:
            return profile_of(context, self.profile)
        source = self.sources["machine"]
        if source == BYTES:
            return None
        machine = find_machine(source)
        require_same(f"the machine {machine.name}", source, machine_fingerprint(machine), self.machine)
        return machine


def require_this_machine(work: Work[Any], facts: Mapping[str, Any]) -> None:
    """Refuse to time on another machine than the one that some facts are of. Raises OfframpError."""
    here = machine_facts(work.threads, getattr(work, "device", None) or CPU)
    for name, value in facts.items():
        if here.get(name) != value:
            raise unplanned(f"this machine ({name})", work.kind, str(here.get(name)), str(value))


def measured_on(steps: Iterable[Transform]) -> tuple[str, ...]:
    """The workloads that layers are chosen on by a measure."""
    return tuple(step.workload for step in steps if isinstance(step, Prune) and not step.resolved)


def trace_of(context: WorkContext, key: str) -> Trace:
    """The trace of a needed task. Raises InputError or DamagedFileError if it is not there or not whole."""
    return Trace.load(context.folder_of(key) / TRACE)


def heads_of(context: WorkContext, key: str | None) -> ExitHeads | None:
    """The exit heads of a needed task, None if none is. Raises DamagedFileError."""
    if key is None:
        return None
    from offramp.heads.file import read_heads

    folder = context.folder_of(key)
    return read_heads(folder / (EXITS if (folder / EXITS).is_dir() else HEADS))


def profile_of(context: WorkContext, key: str) -> TimingsProfile:
    """The timings of a needed task. Raises DamagedFileError."""
    return profile_in(context.folder_of(key))


def profile_in(folder: Path) -> TimingsProfile:
    """The timings that a profile task left. Raises DamagedFileError."""
    return PROFILE_FILE.read(folder / PROFILE)
