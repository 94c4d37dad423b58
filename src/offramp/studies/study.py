"""The study file, its axes and settings, with the line of every error; and the study as it is planned."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from offramp.defaults import DELTA, LOCAL
from offramp.errors import InputError, OfframpError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit import arguments
from offramp.kit.given_file import Source, TomlTable, checked
from offramp.kit.numbers import Whole
from offramp.studies.study_tables import (
    LEAGUE,
    NONE,
    TUNED,
    Certify,
    Combine,
    Decode,
    Exclude,
    HeadsEntry,
    Large,
    LoadEntry,
    MachineEntry,
    ModelEntry,
    PolicyEntry,
    StudySettings,
    TrainingEntry,
    TransformEntry,
    WorkEntry,
    WorkloadEntry,
)
from offramp.studies.task import StudyCell, StudyJob, Task

WHAT = "study file"


INLINE = Path("offramp run")
"""In the place of a study's file: it was put together by a command."""


TABLE_OPTIONS = {"workloads": "workload", "transforms": "transform", "heads": "heads", "machines": "hardware"}
"""The command's option behind a table of the study; those behind keys of [study] have the key's name."""


class Study(TomlTable):
    """A whole study file. Lines in errors are known if `read_study` read it."""

    former: ClassVar[Mapping[str, str]] = {
        "pairs": "move them to a file of their own, and give it to experiments/claims/pairs.py --pairs FILE"
    }

    settings: StudySettings = Field(alias="study")
    models: tuple[ModelEntry, ...] = Field(min_length=1)
    workloads: tuple[WorkloadEntry, ...] = Field(min_length=1)
    heads: tuple[HeadsEntry, ...] = Field(default=(HeadsEntry(name=NONE),), min_length=1)
    trainings: tuple[TrainingEntry, ...] = Field(default=(TrainingEntry(name=NONE),), min_length=1)
    policies: tuple[PolicyEntry, ...] = (
        PolicyEntry(name=LEAGUE, policy=LEAGUE),
        PolicyEntry(name=TUNED, policy=TUNED),
    )
    transforms: tuple[TransformEntry, ...] = Field(default=(TransformEntry(name=NONE),), min_length=1)
    machines: tuple[MachineEntry, ...] = Field(
        default=(MachineEntry(name=LOCAL, source=LOCAL),), min_length=1
    )
    loads: tuple[LoadEntry, ...] = ()
    exclude: tuple[Exclude, ...] = ()
    certify: Certify | None = None
    decode: Decode | None = None
    combine: Combine | None = None
    large: Large | None = None
    works: tuple[WorkEntry, ...] = ()

    _source: Source = PrivateAttr(default=Source(Path("STUDY.toml"), WHAT))

    @property
    def name(self) -> str:
        """The study's name."""
        return self.settings.name

    @property
    def shared_delta(self) -> float:
        """The chance that a certificate is wrong, shared by all that a headline may be about."""
        axes = (self.models, self.transforms, self.workloads, self.readers, self.settings.floors)
        return DELTA / math.prod(map(len, axes))

    @property
    def path(self) -> Path:
        """The file it was read from."""
        return self._source.path

    @property
    def folder(self) -> Path:
        """What relative paths in it start from."""
        return self.path.parent

    @property
    def inline(self) -> bool:
        """Whether it was put together by a command: there is no file."""
        return self.path == INLINE

    @property
    def readers(self) -> tuple[HeadsEntry | TrainingEntry, ...]:
        """What exits are read through, one after another: the heads where "none" is among the trainings, and
        exits that are trained, which bring heads of their own."""
        trained = [entry for entry in self.trainings if entry.name != NONE]
        return (*(self.heads if len(trained) < len(self.trainings) else ()), *trained)

    def exits_of(self, entry: TrainingEntry) -> str | Sequence[int]:
        """Exits of a training as they are asked for: those that are traced unless the entry names some."""
        return self.settings.exits if entry.at is None else entry.at

    @property
    def streamed(self) -> bool:
        """Whether its models are traced layer by layer."""
        return self.large is not None and self.large.stream

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything it says, defaults included."""
        return sha256_of_text(canonical_json(self.to_json()))

    def where(self, *location: str | int) -> str:
        """A place in the file, for an error: "STUDY.toml, line 12, models[2].stage"; a command's option."""
        if not self.inline:
            return self._source.where(*location)
        table, *keys = [part for part in location if isinstance(part, str)] or ["study"]
        option = keys[0] if table == "study" and keys else TABLE_OPTIONS.get(table, "")
        return f"--{option.replace('_', '-')}" if option else str(INLINE)

    def to_json(self) -> dict[str, Any]:
        """A JSON object of everything it says, defaults included."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    @arguments.checked
    def of(cls, values: Mapping[str, Any], source: Source) -> Study:
        """The study that the entries of a file describe, not yet held against one another.

        Raises InputError as `offramp.kit.given_file.checked`.
        """
        study = checked(cls, values, source)
        study._source = source
        return study


@dataclass(frozen=True)
class StudyFile:
    """The file of a study as it was."""

    path: str
    sha256: str


@dataclass(frozen=True)
class StudyPlan:
    """A study laid out: its cells, and the jobs that do the tasks behind them (shared ones included)."""

    study: Study
    """As it was planned, its models with the sizes that their files say."""
    cells: tuple[StudyCell, ...]
    jobs: tuple[StudyJob, ...]
    """In an order in which each comes after what it needs."""
    unavailable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Why a model, workload or machine cannot be had here, by its name."""
    damaged: tuple[str, ...] = ()
    """Names of those models among them whose files are not whole or not safe."""
    documents: Mapping[str, Whole | None] = dataclasses.field(default_factory=dict)
    """Of each workload, None if it is not here."""
    file: StudyFile | None = None
    """Of the study, None where a command put it together."""
    is_run: bool = False
    """Whether that was `offramp run`: nothing describes its model."""

    @functools.cached_property
    def tasks(self) -> Mapping[str, Task]:
        """By key, in an order in which every task comes after what it needs."""
        return {task.key: task for job in self.jobs for task in job.tasks}


@contextlib.contextmanager
def placed(study: Study, *location: str | int) -> Iterator[None]:
    """Give the errors of what is done within the place in the study file that they come from."""
    try:
        yield
    except OfframpError as error:
        place = study.where(*location)
        where = error.where or place
        if error.where and not study.inline:
            where = f"{place}: {error.where}"
        raise InputError(error.what, where=where, fix=error.fix) from error


def resolved(study: Study, text: str) -> str:
    """A path of the file as this process finds it; a text that names nothing there stays as it is."""
    path = study.folder / Path(text).expanduser()
    return str(path) if path.exists() else text
