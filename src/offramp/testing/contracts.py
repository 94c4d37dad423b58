"""Contracts of machines, workloads and kinds of work, for authors of plug-ins to run on theirs."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.costs.machine import Machine, fault_of_prices, listed_prices
from offramp.costs.probes import ProbeSizes
from offramp.costs.token import TokenCosts
from offramp.errors import InputError, WorkloadError
from offramp.files import read_json
from offramp.kit.arguments import checked
from offramp.models.shape import LayerShape, ModelShape
from offramp.studies.task import RESULT, Task, TaskCost, files_of
from offramp.studies.task_costs import Sizes
from offramp.studies.work.work import ModelCache, Work, WorkContext, perform
from offramp.workloads.registry import require_usable
from offramp.workloads.workload import Workload, WorkloadSource

FAR, NEAR = 500.0, 3.0


def example_shape(layers: int = 4) -> ModelShape:
    """A small dense model in bfloat16, to price where no other is at hand."""
    layer = LayerShape("attention", 100_000, 100_000, 8_000, 128, 256, None, 0)
    return ModelShape((layer,) * layers, 256, 1000, 256, 256_000, 2)


@checked
def check_machine(
    machine: Machine, shape: ModelShape | None = None, *, batches: Sequence[int] = (1, 4)
) -> Machine:
    """Hold a machine against what charging relies on; returns the machine.

    Name, source and kind are set; the profile is JSON; at every batch size of `batches` there are finite
    prices in seconds, none negative, one per layer and kind of probe, and the plain step takes time; a linear
    lens makes nothing cheaper, and neither does a later position; no batch below 1 and no position below 0
    has a price.

    shape: of a model that the machine can price, by default a small dense one. Raises InputError naming the
    first rule that is broken.
    """
    shape = example_shape() if shape is None else shape
    for field in ("name", "source", "kind"):
        if not str(getattr(machine, field, "")).strip():
            raise _broken(machine, f"its {field} is not set", f"give the machine a {field}")
    try:
        json.dumps(machine.to_json(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _broken(
            machine, f"its profile is not JSON: {error}", "let to_json give plain values"
        ) from error
    for batch in batches:
        near = machine.token_costs(shape, NEAR, batch=batch)
        _check_prices(machine, near, shape, batch)
        for what, other in {
            "a linear lens": machine.token_costs(shape, NEAR, batch=batch, lens=True),
            "a network behind it": machine.token_costs(
                shape, NEAR, batch=batch, lens=True, sizes=ProbeSizes(mlp_units=64)
            ),
            "a lens of low rank": machine.token_costs(
                shape, NEAR, batch=batch, lens=True, sizes=ProbeSizes(lens_rank=4)
            ),
            "a later position": machine.token_costs(shape, FAR, batch=batch),
        }.items():
            _check_prices(machine, other, shape, batch)
            if not all(
                after >= before
                for after, before in zip(listed_prices(other), listed_prices(near), strict=True)
            ):
                raise _broken(machine, f"{what} makes a part cheaper", "add its cost, never take away")
    _check_refused(machine, "a batch of 0", lambda: machine.token_costs(shape, NEAR, batch=0))
    _check_refused(machine, "position -1", lambda: machine.token_costs(shape, -1.0))
    return machine


def _check_prices(machine: Machine, costs: TokenCosts, shape: ModelShape, batch: int) -> None:
    fault = fault_of_prices(costs, shape, batch)
    if fault is not None:
        raise _broken(machine, fault, "see offramp.costs.machine.Machine for the contract")


def _check_refused(machine: Machine, what: str, ask: Callable[[], TokenCosts]) -> None:
    try:
        ask()
    except InputError:
        return
    raise _broken(machine, f"it prices {what}", "raise InputError")


@checked
def check_workload(workload: Workload | Callable[[], Workload]) -> Workload:
    """Hold a workload, or a function that loads one, against what offramp relies on; returns the workload.

    There is at least one document; ids are distinct; every text is non-empty and can be written in UTF-8;
    name, licence and source are set; the mode is known, and only prompts go through a chat template. A
    function is called twice and must give the same documents in the same order, since a trace is resumed and
    repeated by its fingerprint.

    Raises WorkloadError naming the first rule that is broken.
    """
    if isinstance(workload, Workload):
        return _usable(workload)
    first, second = _usable(workload()), _usable(workload())
    for one, other in zip(first.documents, second.documents, strict=False):
        if one != other:
            raise WorkloadError(
                f"two loads differ from document {one.id!r} on",
                where=first.name,
                fix="fix the order, and the seed of whatever is drawn at random",
            )
    if first.fingerprint != second.fingerprint:
        raise WorkloadError(
            "two loads have different fingerprints",
            where=first.name,
            fix="return the same number of documents, mode and chat each time",
        )
    return first


@checked
def check_workload_source(source: WorkloadSource, argument: str = "") -> Workload:
    """Hold a registry entry against the contract: its workload, and what it says about itself.

    Raises WorkloadError naming the first rule that is broken.
    """
    for field in ("name", "documents", "licence", "description"):
        if not getattr(source, field).strip():
            raise WorkloadError(f"the source's {field} is not set", where=source.name or "a workload source")
    if source.argument and source.sizes:
        raise WorkloadError("a source has an argument or sizes, not both", where=source.name)
    if ":" in source.name:
        raise WorkloadError("a source's name holds a colon, which ends a name", where=source.name)
    workload = check_workload(lambda: source.open(argument or None))
    if workload.mode != source.mode:
        raise WorkloadError(
            f"the source says mode {source.mode!r}, its workload {workload.mode!r}", where=source.name
        )
    return workload


@checked
def _usable(workload: Workload) -> Workload:
    for field in ("name", "licence", "source"):
        if not getattr(workload, field).strip():
            raise WorkloadError(
                f"the workload's {field} is not set",
                where=workload.name or "a workload without a name",
                fix="say where the text comes from and under which licence",
            )
    require_usable(workload)
    return workload


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
            raise _broken(
                work,
                f"it leaves {min(foreign).name}",
                "write further files into the folder files",
            )
    if not kind.exclusive and not left[0] == left[1] == left[2]:
        raise _broken(work, "run twice it leaves other bytes", "leave dates, hosts and paths out")
    path = place / "first" / RESULT
    if path.is_file() and kind.written(kind.result_in(path.parent)) != read_json(path):
        raise _broken(
            work,
            "its result does not read back as it was written",
            "give its fields their types",
        )
    if not path.is_file() and kind.result_type() is not type(None):
        raise _broken(work, "it leaves no result", "return its record from run")


def _broken(thing: Machine | Work[Any], what: str, fix: str) -> InputError:
    name = type(thing).__name__
    where = name if isinstance(thing, Work) else f"machine {getattr(thing, 'name', name)}"
    return InputError(what, where=where, fix=fix)
