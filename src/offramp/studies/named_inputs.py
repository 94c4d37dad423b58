"""What the names of a study stand for, found here without loading a weight, and kept beside the study."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.costs.machine import Machine, machine_fingerprint
from offramp.costs.machine_registry import find_machine, processor_name
from offramp.defaults import BYTES, LOCAL
from offramp.errors import DamagedFileError, InputError, ModelError, WorkloadError
from offramp.files import canonical_json, sha256_of_text, source_fingerprint
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads
from offramp.kit.given_file import Location
from offramp.kit.numbers import Count, Layers, NotNegative, Whole, shown_size
from offramp.kit.typed import InvalidRecordError, from_json
from offramp.models.checkpoint import (
    CONFIG_FILE,
    CONTEXT_KEYS,
    read_config,
    stated_count,
    stated_layers,
)
from offramp.models.devices import CPU, device_memory, find_device
from offramp.models.identity import ModelIdentity
from offramp.models.process import WORKING_SHARE, machine_memory
from offramp.models.shape import ELEMENT_BYTES
from offramp.models.source import (
    BUNDLED,
    ModelFiles,
    find_downloaded,
    find_source,
    hub_source,
    is_object,
    looks_like_hub_id,
    named_object,
    unknown_model,
)
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform
from offramp.studies.study import Study, placed, resolved
from offramp.studies.study_checks import all_steps
from offramp.studies.study_tables import (
    FILE_SOURCES,
    NONE,
    OWN,
    ModelEntry,
    TrainingEntry,
    WorkloadEntry,
    exit_list,
)
from offramp.studies.task import FINGERPRINT_FILE, Fingerprint, KeptFingerprints
from offramp.studies.work.inputs import TextUsed, measured_on
from offramp.tracing.facts import HEAD_FACTS, TRAINED_FACTS
from offramp.workloads.registry import describe_workloads, is_given, load_workload, split_continued
from offramp.workloads.standard_library import library_files

Evidence = list[list[str | int]]
"""Path, size, time of the last change (ns) and inode of some files."""


class Fingerprints:
    """Values by name, each with the evidence that it still holds.

    path: where they are kept; None: in memory only. A file that cannot be read is as good as none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept: dict[str, Fingerprint] = {}
        self._changed = False
        # There may be none yet; of one that changed all can be found out again.
        with contextlib.suppress(OSError, DamagedFileError):
            if path is not None:
                self._kept.update(FINGERPRINT_FILE.read(path).values)

    def get(self, name: str, kind: Any, evidence: Callable[[Any], Any], find: Callable[[], Any]) -> Any:
        """The value kept under a name while the evidence for it is the same, else what `find` finds.

        kind: its type; what is kept of another is as good as nothing. evidence, find: of a value in JSON what
        it was found from, and such a value. Raises what `find` and `evidence` raise.
        """
        kept = self._kept.get(name)
        with contextlib.suppress(InvalidRecordError):
            if kept is not None:
                known = from_json(kind, kept.value)
                if kept.evidence == _digest(evidence(kept.value)):
                    return known
        value = find()
        self._kept[name] = Fingerprint(_digest(evidence(value)), value)
        self._changed = True
        return from_json(kind, value)

    def save(self) -> None:
        """Write what was added, in one step. Raises OfframpError if the disk is full."""
        if self._path is not None and self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            FINGERPRINT_FILE.write(self._path, KeptFingerprints(self._kept))
            self._changed = False


def evidence_of(paths: Iterable[Path]) -> Evidence:
    """What tells that files are those that were read: all files below the folders among the paths, too."""
    evidence: Evidence = []
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                facts = file.stat()
                evidence.append([str(file), facts.st_size, facts.st_mtime_ns, facts.st_ino])
    return evidence


def _digest(evidence: Any) -> str:
    return sha256_of_text(canonical_json(evidence))


@dataclass(frozen=True)
class FoundModel:
    """A model."""

    entry: ModelEntry
    """The study's, with the sizes that its files say."""
    source: str
    """What it is loaded by."""
    identity: ModelIdentity | None = None
    """None if it is not here."""
    attention: str | None = None
    """The implementation that a model object was loaded with, None for the family's own."""
    context: int | None = None
    """Tokens that it takes, None if its files do not say."""
    model_type: str | None = None
    """Of its config."""
    missing: str | None = None
    """Why it cannot be had here, None if it can."""
    damaged: bool = False
    """Whether that is since its files are not whole or not safe."""

    def weight_bytes(self, dtype: str) -> float | None:
        """Bytes of the weights as they are loaded, None if it is not known how many there are."""
        parameters = self.entry.parameters
        return None if parameters is None else parameters * ELEMENT_BYTES[dtype]

    def fingerprint(self, transforms: Sequence[str]) -> str | None:
        """Of the transformed model, None if it is not here."""
        if self.identity is None:
            return None
        return dataclasses.replace(self.identity, transforms=tuple(transforms)).fingerprint


@dataclass(frozen=True)
class FoundWorkload:
    """A workload."""

    entry: WorkloadEntry
    source: str
    """What it is loaded by."""
    used: TextUsed
    """Which text it is."""
    missing: str | None = None
    """As a model's."""
    documents: int | None = None
    """How many it has, None if it is not here."""

    @property
    def mode(self) -> str:
        """As of the workload: "text" or "generation"."""
        return "generation" if self.used.answered else "text"

    @property
    def why_missing(self) -> str | None:
        """Why it cannot be had here, with its name."""
        return None if self.missing is None else f"{self.entry.name}: {self.missing}"


@dataclass(frozen=True)
class FoundMachine:
    """A machine."""

    source: str
    """Name or path."""
    fingerprint: str | None = None
    """Of its figures, None for this machine's own timings."""
    machine: Machine | None = None
    """Itself, None likewise, and where bytes are counted."""


@dataclass(frozen=True)
class FoundHeads:
    """Heads, or exits that are trained: the workloads that they are made on, or the file that holds them."""

    workloads: tuple[FoundWorkload, ...] = ()
    file: str | None = None
    facts: tuple[str, ...] = ()
    """That a trace made with them has beside its own."""
    content: ExitHeads | None = None
    """What the file holds."""
    own: bool = False
    """Whether they are fitted on the workload that is traced."""
    reads_exits: bool = False
    """Whether exits are read through them."""


@dataclass(frozen=True)
class Found:
    """All of them, by the study's names."""

    models: Mapping[str, FoundModel]
    workloads: Mapping[str, FoundWorkload]
    machines: Mapping[str, FoundMachine]
    heads: Mapping[str, FoundHeads]  # those of trainings among them
    measuring: Mapping[str, FoundWorkload]
    """Workloads that layers to prune are chosen on, by source."""
    unfit: Mapping[str, str]
    """Why a transform cannot be done on this machine, by its text."""

    @property
    def unavailable(self) -> dict[str, str]:
        """Why a model or workload cannot be had here, by name."""
        missing = {name: workload.missing for name, workload in self.workloads.items()}
        missing |= {name: model.missing for name, model in self.models.items()}
        return {name: why for name, why in missing.items() if why is not None}

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of models whose files are not whole or not safe."""
        return tuple(name for name, model in self.models.items() if model.damaged)


CANDIDATES = "candidate_score"
SLOW_SOURCES = ("prose:short", "code:short", "math", "math:short")
"""Built-in workloads that take seconds to put together, so that their fingerprints are kept."""


def find_everything(study: Study, fingerprints: Fingerprints, *, download: bool) -> Found:
    """What the study's names stand for. What cannot be had here is said to be missing, with the reason.

    download: fetch models from the Hub that are not here.

    Raises InputError, with the line, for files that the study names and that are not there or not usable.
    """
    search, models = _WorkloadSearch(study, fingerprints), _ModelSearch(study, fingerprints, download)
    workloads = {
        entry.name: search.find(entry, "workloads", index) for index, entry in enumerate(study.workloads)
    }
    measuring = {
        source: search.find(WorkloadEntry(name=source, source=source), *location)
        for step, location in all_steps(study)
        for source in measured_on([step])
    }
    return Found(
        models={entry.name: models.find(entry, index) for index, entry in enumerate(study.models)},
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
        self.names = {workload.name for workload in described}
        self.modes = {workload.name.partition(":")[0]: workload.mode for workload in described}
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
        # Of a text that is not here the source stands for its fingerprint.
        used = TextUsed(prefix + kind, source=source, answered=bool(prefix) or mode == "generation")
        workload = FoundWorkload(entry, source, used)
        try:
            fingerprint, documents = self._facts(source)
            used = dataclasses.replace(used, fingerprint=fingerprint, source=None)
            return dataclasses.replace(workload, used=used, documents=documents)
        except WorkloadError as error:
            if own_file:
                with placed(self.study, *location):
                    raise
            return dataclasses.replace(workload, missing=f"{error.what}: {error.fix}")

    def _facts(self, source: str) -> tuple[str, int]:
        """The fingerprint of a workload, and how many documents it has."""

        def load() -> tuple[str, int]:
            workload = load_workload(source)
            return workload.fingerprint, len(workload.documents)

        if split_continued(source)[1] not in SLOW_SOURCES:
            return load()
        key = f"workload {source}, with its documents"
        facts: tuple[str, int] = self.fingerprints.get(key, tuple[str, Whole], lambda _: _installed(), load)
        return facts


@functools.cache
def _installed() -> list[Any]:
    """What built-in workloads are made of: this Python, its library's files, and the packages installed."""
    packages = sorted(path.name for folder in sys.path if folder for path in Path(folder).glob("*.dist-info"))
    library = evidence_of(path for _, path in library_files())
    return [sys.version, packages, library, source_fingerprint("workloads")]


def _find_machines(study: Study) -> dict[str, FoundMachine]:
    machines = {}
    for index, entry in enumerate(study.machines):
        if entry.source == LOCAL:
            machines[entry.name] = FoundMachine(LOCAL)
            continue
        if entry.source == BYTES:
            machines[entry.name] = FoundMachine(BYTES, BYTES)
            continue
        path = resolved(study, entry.source)
        source = str(Path(path).absolute()) if Path(path).is_file() else path
        with placed(study, "machines", index):
            machine = find_machine(source)
            figures = machine_fingerprint(machine)
        machines[entry.name] = FoundMachine(source, figures, machine)
    return machines


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

    readers = {}
    for index, heads in enumerate(study.heads):
        if heads.file is not None:
            readers[heads.name] = _given_heads(study, heads.file, "heads", index, "file")
            continue
        readers[heads.name] = FoundHeads(
            made_on(heads.fit, "heads", index, "fit"),
            facts=tuple(sorted(heads.classifiers)),
            own=OWN in heads.fit,
            reads_exits=heads.lens and heads.name != NONE,
        )
    for index, training in enumerate(study.trainings):
        if training.folder is not None:
            trained = _given_heads(study, training.folder, "trainings", index, "folder")
            if trained.content is not None and "trained" not in trained.content.provenance:
                raise InputError(
                    "these exit heads were not trained",
                    where=study.where("trainings", index, "folder"),
                    fix="name them in [[heads]], as file =",
                )
            readers[training.name] = trained
        elif training.kind is not None:
            readers[training.name] = FoundHeads(
                made_on(training.text, "trainings", index, "text"),
                facts=_trained_facts(study, training),
                own=OWN in training.text,
                reads_exits=True,
            )
    return readers


def _given_heads(study: Study, text: str, *location: str | int) -> FoundHeads:
    """Exit heads in a file, or in a folder of trained exits."""
    path = Path(resolved(study, text)).absolute()
    with placed(study, *location):
        heads = read_heads(path)
    return FoundHeads(
        file=str(path), facts=tuple(heads.classifiers), content=heads, reads_exits=heads.reads_exits
    )


def _trained_facts(study: Study, training: TrainingEntry) -> tuple[str, ...]:
    """Facts of the classifiers that a training fits afterwards: all, but that candidates of the only exit say
    nothing of a later one."""
    names = [fact.name for fact in HEAD_FACTS if fact.name not in TRAINED_FACTS]
    exits = study.exits_of(training)
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
        problem: _Problem | None = fingerprints.get(
            f"transform {step.text} {study.settings.dtype}",
            _Problem | None,
            lambda _: _kernels(),
            functools.partial(_problem_with, step, study.settings.dtype),
        )
        if problem is not None and problem.elsewhere:
            raise InputError(problem.what, where=study.where(*location), fix=problem.fix)
        if problem is not None:
            unfit[step.text] = f"{problem.what}: {problem.fix}"
    return unfit


@dataclass(frozen=True)
class _Problem:
    """Why a transform cannot be done, and whether it could in another dtype."""

    what: str
    fix: str
    elsewhere: bool


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
    return [importlib.metadata.version("torch"), processor_name(), source_fingerprint("models")]


HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "dim")


@dataclass
class _ModelSearch:
    """Finds models. One that is a model but cannot be used is said to be missing, with the reason."""

    study: Study
    fingerprints: Fingerprints
    download: bool
    """Fetch those from the Hub that are not here and would fit."""
    unreachable: str | None = None
    """Why nothing more is fetched, once the Hub did not answer."""

    def find(self, entry: ModelEntry, index: int) -> FoundModel:
        if is_object(entry.source):
            return _from_object(entry)
        path = (self.study.folder / Path(entry.source).expanduser()).absolute()
        stated = FoundModel(entry, entry.source)
        if entry.source in BUNDLED:
            try:
                path = BUNDLED[entry.source].find()
            except ModelError as error:
                return dataclasses.replace(stated, missing=f"{error.what}: {error.fix}")
            return self._from_files(stated, path)
        with placed(self.study, "models", index, "source"):
            if path.exists():
                if not (path.suffix == ".gguf" or (path / CONFIG_FILE).is_file()):
                    find_source(str(path), trust_remote_code=entry.trust_remote_code)  # says why not
                return self._from_files(dataclasses.replace(stated, source=str(path)), path)
            if path.suffix == ".gguf" or not looks_like_hub_id(entry.source):
                raise unknown_model(entry.source)
        return self._from_hub(stated)

    def _from_files(self, stated: FoundModel, path: Path) -> FoundModel:
        """A model whose files are here. A damaged or unsafe one stops only its own cells."""
        try:
            return self._fitting(self._described(stated, [path]))
        except ModelError as error:
            why = f"{error.what}: {error.fix}"
        except OSError as error:
            why = f"its files cannot be read: {error}"
        return dataclasses.replace(stated, missing=why, damaged=True)

    def _from_hub(self, stated: FoundModel) -> FoundModel:
        downloaded = find_downloaded(stated.source)
        if downloaded is not None:
            try:
                source = hub_source(stated.source, downloaded, stated.entry.trust_remote_code)
                return self._fitting(self._described(stated, [downloaded.folder], source))
            except ModelError:  # a part of it is here: the rest is fetched like a whole model
                pass
        unfit = self._fitting(stated)
        if unfit.missing is not None:
            return unfit
        if not self.download:
            why = f"it is not on this machine: offramp study run fetches {stated.source} from the Hub"
            return dataclasses.replace(stated, missing=why)
        return self._fetched(stated)

    def _fetched(self, stated: FoundModel) -> FoundModel:
        if self.unreachable is not None:
            return dataclasses.replace(stated, missing=self.unreachable)
        try:
            return self._fitting(self._described(stated, []))
        except ModelError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # the Hub's error where it does not answer
                self.unreachable = (
                    "it is not on this machine, and the Hub cannot be reached: run the study again with a "
                    "network, or download its models elsewhere and give their folders"
                )
                return dataclasses.replace(stated, missing=self.unreachable)
            return dataclasses.replace(stated, missing=f"{error.what}: {error.fix}")

    def _described(
        self, stated: FoundModel, paths: list[Path], source: ModelFiles | None = None
    ) -> FoundModel:
        """The model with what its files say. paths: that it is found from. Raises ModelError."""

        def evidence(value: Any) -> Any:
            folders = [] if value is None else [Path(value["folder"])]
            versions = importlib.metadata.version("transformers")
            return [evidence_of({*paths, *folders}), versions, source_fingerprint("models")]

        def find() -> Any:
            trusted = stated.entry.trust_remote_code
            return _describe(source or find_source(stated.source, trust_remote_code=trusted))

        name = f"model {stated.source}, with its sizes"
        facts: _ModelFacts = self.fingerprints.get(name, _ModelFacts, evidence, find)
        sizes = {size: value for size, value in vars(facts.sizes).items() if value is not None}
        return dataclasses.replace(
            stated,
            entry=stated.entry.model_copy(update=sizes),
            identity=facts.identity,
            context=facts.context,
            model_type=facts.model_type,
        )

    def _fitting(self, model: FoundModel) -> FoundModel:
        """The model, said to be missing if it does not fit into this machine's memory."""
        need, device = model.weight_bytes(self.study.settings.dtype), find_device(self.study.settings.device)
        room = machine_memory() if device == CPU else device_memory(device)
        if self.study.streamed or need is None or need * WORKING_SHARE <= room:
            return model
        why = (
            f"its weights take {shown_size(round(need))} in {self.study.settings.dtype}, "
            f"{'this machine' if device == CPU else device} has {shown_size(room)} of memory: "
            "trace it layer by layer ([large] stream = true), or elsewhere"
        )
        return dataclasses.replace(model, missing=why)


def _from_object(entry: ModelEntry) -> FoundModel:
    """A model object of this process; said to be missing in any other."""
    try:
        model = named_object(entry.source)
    except ModelError as error:
        return FoundModel(entry, entry.source, missing=error.what)
    shape = model.shape
    weights = sum(layer.parameters for layer in shape.layers) + shape.tail_parameters + shape.head_parameters
    sizes = {
        "layers": model.layers,
        "hidden": shape.hidden_size,
        "vocabulary": shape.vocabulary_size,
        "parameters": float(weights),
    }
    return FoundModel(
        entry.model_copy(update=sizes),
        entry.source,
        identity=model.identity,
        attention=model.attention,
        context=model.context_length,
        model_type=model.hf.config.model_type,
    )


@dataclass(frozen=True)
class _Sizes:
    layers: Layers | None
    hidden: Count | None
    vocabulary: Count | None
    parameters: NotNegative


@dataclass(frozen=True)
class _ModelFacts:
    """What the files of a model say."""

    folder: str
    identity: ModelIdentity
    sizes: _Sizes
    context: Count | None
    model_type: str | None


def _describe(source: ModelFiles) -> dict[str, Any]:
    """A `_ModelFacts` in JSON values."""
    config = read_config(source.folder)
    identity = dataclasses.asdict(source.identity)
    del identity["transforms"]  # of none yet
    return {
        "folder": str(source.folder),
        "identity": identity,
        "sizes": {
            "layers": stated_layers(config),
            "hidden": stated_count(config, HIDDEN_KEYS),
            "vocabulary": stated_count(config, ("vocab_size",)),
            "parameters": float(sum(tensor.elements for tensor in source.stored().values())),
        },
        "context": stated_count(config, CONTEXT_KEYS),
        "model_type": (config.get("text_config") or config).get("model_type"),
    }
