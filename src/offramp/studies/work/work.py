"""A kind of work: one class, whose fields are what a task of it is made of; and the tasks that it makes.

A class of this package that names its `kind` is registered by that, and a plug-in's by its entry point. Its
plain fields are its recipe, those of the type `Needed` the keys of tasks whose results it reads.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
from offramp.kit.typed import InvalidRecordError, finite_json, from_json, read_record, to_json
from offramp.studies.manifest import FILE, RESULT
from offramp.studies.task import Task, TaskCost
from offramp.studies.work.code import code_of, code_of_module, plug_ins_of, versions_of
from offramp.studies.work.context import Context

if TYPE_CHECKING:
    from offramp.studies.estimates import Sizes

Result = TypeVar("Result")

Needed = NewType("Needed", str)
"""The key of a task whose result a work reads; the name of the field is its role."""

OWN_KINDS: dict[str, type[Work[Any]]] = {}
"""Offramp's own kinds of work by name, as far as their modules are imported."""

FILLED = frozenset({"model", "workload", "machine", "dtype", "device", "threads"})
"""Settings that a study alone fills, by what its names stand for."""
APART = "sources"
"""The field that is not part of a recipe."""


@dataclass(frozen=True, kw_only=True)
class Work(ABC, Generic[Result]):
    """What one task does, and everything that decides its result.

    kind: the name of the kind, in folders, plans and exclusions. exclusive: whether it takes timings, and so
    runs alone. threads: of torch and numpy. sources: where its inputs lie on this machine, by role: of no
    consequence for the result, since the recipe has their fingerprints.

    `Result` is a record: a dataclass that is written as `result.json` and read back typed; None for a kind
    that leaves nothing but files of its own.
    """

    kind: ClassVar[str]
    exclusive: ClassVar[bool] = False

    threads: int = 1
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in vars(cls) and cls.__module__.startswith(f"{__package__}."):
            OWN_KINDS[cls.kind] = cls

    @abstractmethod
    def run(self, context: Context) -> Result:
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
            "versions": versions_of(module, self.transforms if self.loads else None),
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
    found = {}
    for one in dataclasses.fields(record):
        value = getattr(record, one.name)
        if value is not None:
            found[one.name] = _described(value) if dataclasses.is_dataclass(value) else to_json(value)
    return found


def require_planned(kind: type[Work[Any]], task: Task) -> None:
    """Refuse to do a task with other code or other libraries than its recipe names. Raises OfframpError."""
    require_same("the code of offramp", task.kind, code_of(kind.__module__), task.recipe["code"])
    for name, version in task.recipe["versions"].items():
        found = importlib.metadata.version(name)
        if found != version:
            raise unplanned(f"the library {name}", task.kind, found, version)
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
    return frozenset(one.name for one in dataclasses.fields(kind)) - {APART, *kind.roles()}
