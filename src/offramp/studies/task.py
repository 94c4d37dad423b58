"""Tasks, the cells that show their results, the jobs that run them, and how a task ended."""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, OfframpError
from offramp.files import (
    PathBelow,
    canonical_json,
    is_temporary,
    remove,
    sha256_of_file,
    sha256_of_text,
    sync_folder,
)
from offramp.kit.numbers import NotNegative, Threads, Whole
from offramp.kit.sealed_file import SealedFile
from offramp.kit.typed import Record

SCHEMA_VERSION = 1
"""Of a task's recipe: raise it where the same recipe would give another result."""

AXES = {
    "model": "models",
    "transform": "transforms",
    "workload": "workloads",
    "heads": "heads",
    "training": "trainings",
    "policy": "policies",
    "machine": "machines",
    "load": "loads",
}
"""Tables of a study's file by what a cell calls the entry that it has of each."""


@dataclass(frozen=True)
class TaskCost:
    """What a task will take, roughly. None: unknown."""

    seconds: NotNegative | None = None
    """On this machine."""
    memory_bytes: Whole | None = None
    """At its peak."""
    disk_bytes: Whole | None = None
    """That stay."""


@dataclass(frozen=True)
class Task:
    """One piece of work with one result, which every cell that needs it shares."""

    kind: PathBelow
    """A name of `offramp.studies.work.work.works`."""
    recipe: Mapping[str, Any]
    """Everything that changes the result (JSON): fingerprints, sizes, seed, threads, code and library
    versions; and nothing that does not, such as the names that the study gives."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Keys of tasks whose results it reads, by role ("trace", "heads", "profile", "league")."""
    exclusive: bool = False
    """Whether it takes timings, and so runs alone."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where its input lies on this machine (role -> path, Hub id or text of a workload); of no consequence
    for the result, which the fingerprints in the recipe pin down."""
    estimate: TaskCost = TaskCost()
    blocked: str | None = None
    """Why it cannot be run here, None if it can."""

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of kind, recipe and the keys of what it needs."""
        content = [SCHEMA_VERSION, self.kind, dict(self.recipe), dict(self.needs)]
        return sha256_of_text(canonical_json(content))


@dataclass(frozen=True)
class StudyCell:
    """One combination of a study's axes by the names that its file gives, and the task that answers it.

    An axis that does not matter for the kind (the machine of a score) is "".
    """

    kind: str
    """Its task's."""
    task: str
    model: str
    transform: str = ""
    workload: str = ""
    heads: str = ""
    policy: str = ""
    machine: str = ""
    training: str = ""
    load: str = ""

    @property
    def reader(self) -> str:
        """What its exits are read through by its name, "" for the model's own head."""
        return self.heads or self.training

    @property
    def name(self) -> str:
        """The names joined, as shown: "smollm2 + int8 · prose · league · h100"."""
        model = f"{self.model} + {self.transform}" if self.transform else self.model
        words = (model, self.workload, self.reader, self.policy or self.kind, self.load, self.machine)
        return " · ".join(word for word in words if word)


@dataclass(frozen=True)
class StudyJob:
    """Tasks that one process runs, in order, because they share what is expensive (a model, a trace)."""

    name: str
    tasks: tuple[Task, ...]
    needs: tuple[str, ...] = ()
    """Keys of tasks in other jobs that must be done first."""
    threads: Threads = 1
    """Of torch."""
    exclusive: bool = False
    memory_bytes: Whole = 0
    """At the peak."""

    @property
    def key(self) -> str:
        """SHA-256 of its tasks' keys."""
        return sha256_of_text(canonical_json([task.key for task in self.tasks]))


FINGERPRINTS = "fingerprints.json"
"""The file beside a plan that says what was found out about files."""
MANIFEST = "manifest.json"
DAMAGED = "manifest.damaged.json"
"""The manifest of a finished task one of whose files was found damaged; it vouches for nothing any more."""

RESULT = "result.json"
FAILURE = "failure.json"
APART = frozenset({MANIFEST, DAMAGED, FAILURE})
TRACE = "trace"
"""The folder of the trace in a trace task's folder."""
WRITTEN = (
    *(RESULT, "heads.safetensors", "profile.json", "passage.json", "text.json"),
    *("training.json", "tuned-*.json", TRACE, "exits", "files"),
)
"""What tasks write into their folders, of whatever kind, those of plug-ins into "files"; what has another
name there is somebody's."""


@dataclass(frozen=True)
class TaskFile:
    """A finished file: its SHA-256 in hexadecimal and its size."""

    sha256: str
    bytes: Whole


@dataclass(frozen=True)
class TaskManifest:
    """What a finished task left: its files by path relative to the task's folder. The rest is the task's."""

    kind: str
    key: str
    recipe: Mapping[str, Any]
    needs: Mapping[str, str]
    files: Mapping[PathBelow, TaskFile]


def study_file(record: type[Record], version: int | None = None) -> SealedFile[Record]:
    """A kind of file of a study whose damage the next run mends."""
    return SealedFile(
        record,
        "a file of the study is damaged: {name}",
        "run the study again: it does the damaged tasks anew and keeps the others",
        version,
    )


FILE = study_file(TaskManifest, version=1)


@dataclass(frozen=True)
class Fingerprint:
    """What was found out about files, once."""

    evidence: str
    """SHA-256 of what tells that they are those that were read."""
    value: Any
    """JSON."""


@dataclass(frozen=True)
class KeptFingerprints:
    """What was found out for the plans of a study."""

    values: Mapping[str, Fingerprint]
    """By name."""


FINGERPRINT_FILE = study_file(KeptFingerprints)


def write_manifest(folder: Path, task: Task) -> None:
    """Vouch for every file in the folder: from now on the task is done.

    The files are flushed to disk first. Raises DiskFullError if there is no room for the manifest.
    """
    files = {}
    for path in files_of(folder):
        flush(path)
        record = TaskFile(sha256_of_file(path), path.stat().st_size)
        files[path.relative_to(folder).as_posix()] = record
    for below in sorted({(folder / name).parent for name in files} - {folder}):
        sync_folder(below)  # the task's own is flushed with the manifest
    remove(folder / DAMAGED)
    FILE.write(folder / MANIFEST, TaskManifest(task.kind, task.key, task.recipe, task.needs, files))


def read_manifest(folder: Path) -> TaskManifest | None:
    """The manifest of a task's folder, None if the task is not finished.

    Raises DamagedFileError if its bytes are not those that were written.
    """
    path = folder / MANIFEST
    try:
        return FILE.read(path)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise FILE.damaged(folder, "it is a file, not the folder of a task") from error


def check_files(folder: Path, manifest: TaskManifest, *, whole: bool) -> list[str]:
    """What is wrong with a finished task's files, one sentence a file; none if nothing is.

    whole: whether to read every byte of every file; else only sizes, and the bytes of the result.
    """
    problems = []
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != record.bytes:
            problems.append(f"{name} has {path.stat().st_size:,} bytes instead of {record.bytes:,}")
        elif (whole or name == RESULT) and sha256_of_file(path) != record.sha256:
            problems.append(f"{name}: its bytes changed since it was written (SHA-256 differs)")
    return problems


def files_of(folder: Path) -> Iterator[Path]:
    """The files that a task wrote, in order of their paths; records, locks and temporary files left out."""
    for path in sorted(folder.rglob("*")):
        top = path.relative_to(folder).parts[0]
        apart = not any(fnmatch.fnmatchcase(top, name) for name in WRITTEN)
        temporary = is_temporary(path) or is_temporary(path.parent)
        if path.is_file() and not apart and path.name != ".lock" and not temporary:
            yield path


def flush(path: Path) -> None:
    """Flush a file's bytes to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Failure:
    """What went wrong with a task, where, and what to do; error: the name of the error's class."""

    what: str
    where: str = ""
    fix: str = ""
    error: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure that an error means."""
        name = type(error).__name__
        if isinstance(error, OfframpError):
            return cls(error.what, error.where, error.fix, name)
        return cls(str(error) or name, error=name)


FAILURE_FILE = SealedFile(
    Failure, "the task failed, and the record of why is damaged", "run the study again with --retry"
)


def write_failure(folder: Path, failure: Failure) -> None:
    """Record that the task of a folder failed; its next try removes the record (see `remove_failure`)."""
    folder.mkdir(parents=True, exist_ok=True)
    FAILURE_FILE.write(folder / FAILURE, failure)


def read_failure(folder: Path) -> Failure | None:
    """Why the task of a folder failed, None if it did not. A damaged record is a failure that says so."""
    path = folder / FAILURE
    if not path.exists():
        return None
    try:
        return FAILURE_FILE.read(path)
    except DamagedFileError as error:
        return Failure.of(error)


def remove_failure(folder: Path) -> None:
    """Forget that the task of a folder failed, as before another try."""
    (folder / FAILURE).unlink(missing_ok=True)
