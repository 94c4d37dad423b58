"""The contract of a kind of work, for authors of plug-ins to run on theirs."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import read_json
from offramp.kit.arguments import checked
from offramp.studies.fitness import Sizes
from offramp.studies.task import RESULT, Task, TaskCost, files_of
from offramp.studies.work.work import ModelCache, Work, WorkContext, perform

KNOWN = Sizes(4, 4, 1e6, 64, 6400, 4e6, models=1, threads=1, tokens=1000)
UNKNOWN = Sizes(None, None, None, None, None, None, models=1, threads=1, tokens=1000)


@checked
def check_work(work: Work[Any], inputs: Mapping[str, Path] | None = None) -> Work[Any]:
    """Hold a work against what planning, running and reading studies rely on; returns the work.

    Its class is a frozen dataclass with a kind and a result that is a record; its task reads back as an equal
    work, and has the same key wherever its sources lie; it costs something that can be told of known and of
    unknown sizes; run twice it leaves the same files with the same bytes (unless it is exclusive, since it
    takes timings), in a folder of its own and again in the same; of other files than `result.json` only in
    the folder `files`; and its result reads back as what was written.

    inputs: folders of the tasks that it needs, by their keys. Raises InputError naming the first rule that is
    broken, and whatever the work raises.
    """
    kind = type(work)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", getattr(kind, "kind", "")):
        raise _broken(work, "its kind is not a word in small letters", "name folders and plans by it")
    parameters = getattr(kind, "__dataclass_params__", None)
    if "__dataclass_fields__" not in vars(kind) or parameters is None or not parameters.frozen:
        raise _broken(work, "its class is not a frozen dataclass", "make it one, with kw_only=True")
    task = work.task()
    if kind.of(task) != work:
        raise _broken(work, "its task reads back as another work", "give its fields types that JSON has")
    elsewhere = {role: f"{source} elsewhere" for role, source in work.sources.items()}
    if dataclasses.replace(work, sources=elsewhere).task().key != task.key:
        raise _broken(work, "its key depends on where its inputs lie", "keep places in sources alone")
    for sizes in (KNOWN, UNKNOWN):
        if not isinstance(work.cost(sizes), TaskCost):
            raise _broken(work, "its cost is not a TaskCost", "ask the sizes for it")
    with tempfile.TemporaryDirectory() as place:
        _check_runs(work, task, inputs or {}, Path(place))
    return work


def _check_runs(work: Work[Any], task: Task, inputs: Mapping[str, Path], place: Path) -> None:
    kind, left = type(work), []
    for name in ("first", "second", "first"):
        folder = place / name
        folder.mkdir(exist_ok=True)
        context = WorkContext(folder, inputs, ModelCache(), place / "executions", task.recipe)
        perform(task, context, kind)
        left.append({path.relative_to(folder): path.read_bytes() for path in files_of(folder)})
        written = {path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
        if foreign := written - set(files_of(folder)):
            raise _broken(work, f"it leaves {min(foreign).name}", "write further files into the folder files")
    if not kind.exclusive and not left[0] == left[1] == left[2]:
        raise _broken(work, "run twice it leaves other bytes", "leave dates, hosts and paths out")
    path = place / "first" / RESULT
    if path.is_file() and kind.written(kind.result_in(path.parent)) != read_json(path):
        raise _broken(work, "its result does not read back as it was written", "give its fields their types")
    if not path.is_file() and kind.result_type() is not type(None):
        raise _broken(work, "it leaves no result", "return its record from run")


def _broken(work: Work[Any], what: str, fix: str) -> InputError:
    return InputError(what, where=type(work).__name__, fix=fix)
