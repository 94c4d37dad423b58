"""The kinds of work by name: offramp's own, one module each in this package, and those of plug-ins."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from importlib.metadata import EntryPoint
from typing import Any

from offramp.plug_ins import Known, load_plug_in, refused
from offramp.studies import work
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.work import OWN_KINDS, Work, require_planned

ENTRY_POINTS = "offramp.works"
"""The group of entry points that name kinds of work; each has the name of its kind."""


@functools.cache
def works() -> Known[type[Work[Any]]]:
    """The class of each kind, by its name; a plug-in's is loaded when it is asked for."""
    for module in pkgutil.iter_modules(work.__path__):
        importlib.import_module(f"{work.__name__}.{module.name}")
    own = {kind: (lambda found=found: found) for kind, found in OWN_KINDS.items()}
    return Known(ENTRY_POINTS, own, _load)


def perform(task: Task, context: Context, kind: type[Work[Any]] | None = None) -> None:
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
        lambda found: isinstance(found, type) and issubclass(found, Work),
        "kind of work",
        "a class derived from Work",
    )
    if getattr(kind, "kind", None) != point.name:
        raise refused(point, f"its kind is {getattr(kind, 'kind', None)!r}, not the name of its entry point")
    return kind
