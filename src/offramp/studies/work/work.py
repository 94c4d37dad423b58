"""A kind of work: one class, whose fields are what a task is made of; what it is given, and how it is done.

A class of this package that names its `kind` is registered by that, and a plug-in's by its entry point. Its
plain fields are its recipe, those of the type `Needed` the keys of tasks whose results it reads.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import importlib.metadata
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    NewType,
    Self,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from offramp.errors import OfframpError
from offramp.files import write_json_atomically
from offramp.kit.code import OWN, code_of, code_of_module, imports_of, reached_from
from offramp.kit.numbers import Whole
from offramp.kit.typed import InvalidRecordError, finite_json, from_json, read_record, to_json
from offramp.plug_ins import Known, load_plug_in, refused
from offramp.studies.task import FILE, RESULT, Task, TaskCost
from offramp.tracing.request import library_versions

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.studies.task_costs import Sizes


Result = TypeVar("Result")


class ModelCache:
    """One loaded model at most: the last that was asked for."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._model: Model | None = None

    def get(self, key: Hashable, load: Callable[[], Model]) -> Model:
        """The model of a key, loaded if it is not the last one; that one is let go of first.

        Raises what `load` raises.
        """
        if self._model is None or self._key != key:
            self.clear()
            self._model = load()
            self._key = key
        return self._model

    def clear(self) -> None:
        """Let go of the model, if there is one, so that its memory is free."""
        if self._model is not None:
            self._key, self._model = None, None
            gc.collect()


@dataclass(frozen=True)
class WorkContext:
    """Where a task's work reads and writes."""

    folder: Path
    """The task's own, which exists; what an earlier attempt left in it may be there."""
    inputs: Mapping[str, Path]
    """Folders of the tasks it needs, by their keys."""
    models: ModelCache
    """Shared by the tasks that one process runs."""
    executions: Path
    """Where documents that were decoded for certificates are kept for all tasks, by everything that changes
    them."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The task's whole, code and libraries included."""
    progress: bool = False
    """Whether somebody watches this process."""

    def folder_of(self, key: str) -> Path:
        """The folder of a needed task. Raises OfframpError if it is not there."""
        if key not in self.inputs:
            raise OfframpError(
                "the task was not given all that it needs",
                where=str(self.folder),
                fix="plan the study again: offramp study plan",
            )
        return self.inputs[key]

    def result(self, kind: type[Work[Result]], key: str) -> Result:
        """The result of a needed task of a kind.

        Raises DamagedFileError where it is not what that kind leaves.
        """
        return kind.result_in(self.folder_of(key))

    def write_result(self, value: Any) -> None:
        """Write the task's result in one step: sorted keys, no NaN, so that equal results are equal bytes."""
        write_json_atomically(self.folder / RESULT, value)


Needed = NewType("Needed", str)
"""The key of a task whose result a work reads; the name of the field is its role."""

OWN_KINDS: dict[str, type[Work[Any]]] = {}
"""Offramp's own kinds of work by name, as far as their modules are imported."""

FILLED = frozenset({"model", "workload", "machine", "dtype", "device", "threads", "counted_by"})
"""Settings that a study alone fills, by what its names stand for."""
APART = "sources"
"""The field that is not part of a recipe."""


@dataclass(frozen=True, kw_only=True)
class Work(ABC, Generic[Result]):
    """What one task does, and everything that decides its result.

    kind: the name of the kind, in folders, plans and exclusions. exclusive: whether it takes timings, and so
    runs alone.

    `Result` is a record: a dataclass that is written as `result.json` and read back typed; None for a kind
    that leaves nothing but files of its own.
    """

    kind: ClassVar[str]
    exclusive: ClassVar[bool] = False
    by_token: ClassVar[bool] = False
    """Whether it times single tokens: it has threads of its own."""

    threads: Whole = 1
    """Of torch and numpy."""
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where its inputs lie on this machine, by role: of no consequence for the result, since the recipe has
    their fingerprints."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in vars(cls) and cls.__module__.startswith(f"{__package__}."):
            OWN_KINDS[cls.kind] = cls

    @abstractmethod
    def run(self, context: WorkContext) -> Result:
        """Do the work: write files into `context.folder`, and return the result.

        The same recipe and the same needed results give the same bytes, timings apart. It may be stopped at
        any moment and run again in the same folder.

        Raises OfframpError if what it loads is not what the recipe names, and whatever the work raises.
        """

    def cost(self, sizes: Sizes) -> TaskCost:
        """What it will take, roughly, on a model of these sizes; nothing is known by default."""
        return TaskCost()

    @property
    def loads(self) -> bool:
        """Whether it loads a model."""
        return False

    @property
    def transforms(self) -> tuple[str, ...]:
        """What is done to the models that it loads, as texts."""
        return ()

    @classmethod
    def result_type(cls) -> Any:
        """The record that it leaves, NoneType for none."""
        for base in cls.__mro__:
            for generic in getattr(base, "__orig_bases__", ()):
                origin, arguments = get_origin(generic), get_args(generic)
                typed = arguments and not isinstance(arguments[0], TypeVar)
                if isinstance(origin, type) and issubclass(origin, Work) and typed:
                    return type(None) if arguments[0] is None else arguments[0]
        raise TypeError(f"{cls.__name__} does not say what its result is: derive it from Work[...]")

    @classmethod
    def written(cls, result: Result) -> Mapping[str, Any] | None:
        """A result as JSON: numbers that are not finite are null."""
        value: Mapping[str, Any] | None = finite_json(result)
        return value

    @classmethod
    def read(cls, value: Any) -> Result:
        """The result that was written. Raises InvalidRecordError."""
        result: Result = from_json(cls.result_type(), value)
        return result

    @classmethod
    def result_in(cls, folder: Path) -> Result:
        """The result that a task of the kind left in its folder.

        Raises FileNotFoundError if there is none, DamagedFileError for what no such task leaves.
        """
        found: Result = read_record(folder / RESULT, cls.result_type(), FILE.refused)
        return found

    @classmethod
    def unlike(cls, result: Result, task: Task) -> str | None:
        """Why a result cannot be that of a task, None where it can."""
        return None

    # --- as a task

    @classmethod
    def roles(cls) -> tuple[str, ...]:
        """The names of the fields that are keys of tasks."""
        return tuple(name for name, hint in get_type_hints(cls).items() if Needed in (hint, *get_args(hint)))

    def task(
        self, cost: TaskCost | None = None, blocked: str | None = None, made_of: Iterable[object] = ()
    ) -> Task:
        """The task of this work, by the code and the libraries that are here.

        made_of: policies, machines and the like, whose code may be a plug-in's.
        """
        values = _described(self)
        needs = {role: values.pop(role) for role in self.roles() if role in values}
        sources = values.pop(APART)
        module = type(self).__module__
        recipe = {
            **values,
            "code": code_of(module),
            "versions": versions_of(module, self.loads),
        }
        plug_ins = plug_ins_of(made_of)
        if plug_ins:
            recipe["plug_ins"] = plug_ins
        # An accelerator has room for one model at a time.
        exclusive = self.exclusive or (self.loads and getattr(self, "device", None) is not None)
        return Task(
            self.kind,
            recipe,
            needs,
            exclusive,
            sources,
            TaskCost() if cost is None else cost,
            blocked,
        )

    @classmethod
    def of(cls, task: Task) -> Self:
        """The work of a task. Raises OfframpError for a task of another offramp's kind of this name."""
        try:
            return from_json(cls, {**task.recipe, **task.needs, APART: task.sources})
        except InvalidRecordError as error:
            lacks = error.place in cls.roles() and error.place not in task.needs
            raise OfframpError(
                f"the {task.kind} task was not given the {error.place} it needs"
                if lacks
                else f"the {task.kind} task is of another version of offramp ({error})",
                where=task.key,
                fix="plan and run the study again: offramp study run STUDY.toml",
            ) from error


def _described(record: Any) -> dict[str, Any]:
    """A record's fields as JSON; those that are None are left out, so that a kind may get further ones."""
    described = {}
    for entry in dataclasses.fields(record):
        value = getattr(record, entry.name)
        if value is not None:
            described[entry.name] = _described(value) if dataclasses.is_dataclass(value) else to_json(value)
    return described


def require_planned(kind: type[Work[Any]], task: Task) -> None:
    """Refuse to do a task with other code or other libraries than its recipe names. Raises OfframpError."""
    require_same("the code of offramp", task.kind, code_of(kind.__module__), task.recipe["code"])
    for name, version in task.recipe["versions"].items():
        installed = importlib.metadata.version(name)
        if installed != version:
            raise unplanned(f"the library {name}", task.kind, installed, version)
    for module, fingerprint in task.recipe.get("plug_ins", {}).items():
        require_same(f"the plug-in {module}", task.kind, code_of_module(module), fingerprint)


def require_same(what: str, source: str, found: str, wanted: str | None) -> None:
    """Refuse an input whose fingerprint is not the recipe's: a result would be filed under a wrong key.

    Raises OfframpError.
    """
    if found != wanted:
        raise unplanned(what, source, found[:12], "unknown" if wanted is None else wanted[:12])


def unplanned(what: str, where: str, found: str, wanted: str) -> OfframpError:
    """The error for an input that changed since the study was planned."""
    return OfframpError(
        f"{what} is not what the study was planned with: {found}, not {wanted}",
        where=where,
        fix="plan and run the study again: offramp study run STUDY.toml",
    )


def settings_of(kind: type[Work[Any]]) -> frozenset[str]:
    """The names of the fields of a kind that are part of its recipe."""
    return frozenset(field.name for field in dataclasses.fields(kind)) - {APART, *kind.roles()}


LIBRARIES = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn"}
"""That compute what is made of a trace, fit heads and judge timings: packages as they are installed, by the
names under which they are imported."""
TOKENIZING = "tokenizers"
"""The library that cuts a text into a model's tokens."""


def versions_of(module: str, loads: bool) -> dict[str, str]:
    """Of the libraries that a module's work is computed by. loads: whether a model is loaded."""
    reached = reached_from(module).items()
    imported = {module.partition(".")[0] for name, path in reached for module in imports_of(name, path)}
    names = [library for name, library in LIBRARIES.items() if name in imported]
    versions = {name: importlib.metadata.version(name) for name in names}
    if not loads:
        return versions
    return library_versions() | versions | {TOKENIZING: importlib.metadata.version(TOKENIZING)}


def plug_ins_of(parts: Iterable[object]) -> dict[str, str]:
    """What is not offramp's own in some policies, transforms or machines: SHA-256 of the modules, by name."""
    modules = {kind.__module__ for part in parts for kind in (type(part), *_classes_within(part))}
    foreign = sorted(name for name in modules if name.partition(".")[0] != OWN)
    return {name: code_of_module(name) for name in foreign}


def _classes_within(part: object) -> Iterator[type]:
    """Classes of dataclasses in the fields of one, such as the policies that a policy holds."""
    within = part if isinstance(part, tuple) else ()
    if dataclasses.is_dataclass(part):
        within = tuple(getattr(part, field.name) for field in dataclasses.fields(part))
    for inner in within:
        if dataclasses.is_dataclass(inner):
            yield type(inner)
        yield from _classes_within(inner)


ENTRY_POINTS = "offramp.works"
"""The group of entry points that name kinds of work; each has the name of its kind."""


@functools.cache
def works() -> Known[type[Work[Any]]]:
    """The class of each kind, by its name; a plug-in's is loaded when it is asked for."""
    package = importlib.import_module(str(__package__))
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    own = {name: (lambda kind=kind: kind) for name, kind in OWN_KINDS.items()}
    return Known(ENTRY_POINTS, own, _load)


def perform(task: Task, context: WorkContext, kind: type[Work[Any]] | None = None) -> None:
    """Do a task's work, and write its result. kind: the class, by default that of the name.

    Raises OfframpError for other code or libraries than its recipe names, and what the work raises.
    """
    kind = kind or works()[task.kind]
    require_planned(kind, task)
    result = kind.of(task).run(context)
    if result is not None:
        context.write_result(kind.written(result))


def _load(point: EntryPoint) -> type[Work[Any]]:
    kind: type[Work[Any]] = load_plug_in(
        point,
        lambda value: isinstance(value, type) and issubclass(value, Work),
        "kind of work",
        "a class derived from Work",
    )
    if getattr(kind, "kind", None) != point.name:
        raise refused(point, f"its kind is {getattr(kind, 'kind', None)!r}, not the name of its entry point")
    return kind
