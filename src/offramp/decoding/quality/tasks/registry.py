"""The tasks that are known by name: the built-in ones and those of plug-ins."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint

from offramp.decoding.quality.tasks.multiple_choice import MULTIPLE_CHOICE
from offramp.decoding.quality.tasks.reasoning import REASONING_GYM
from offramp.decoding.quality.tasks.task import Task, TaskSource
from offramp.errors import InputError
from offramp.plug_ins import load_plug_in, plug_ins

ENTRY_POINT_GROUP = "offramp.tasks"
TASKS = {source.name: source for source in (REASONING_GYM, MULTIPLE_CHOICE)}
WITHOUT_CODE = "human-eval"
"""A task that offramp scored by running the model's programs, as it was called; lm-eval has it."""


def code_refused(where: str) -> InputError:
    """The error for what would run code that a model wrote: offramp runs none."""
    return InputError(
        "this would run code that the model wrote, and offramp has nothing that keeps such code in",
        where=where,
        fix="use lm-evaluation-harness with its own switch, in a virtual machine: HF_ALLOW_CODE_EVAL=1 "
        "offramp-lm-eval --model offramp --tasks humaneval --confirm_run_unsafe_code --model_args ...",
    )


def load_task(spec: str, *, allow_code: bool = False) -> Task:
    """The task that a text names: "multiple-choice", "reasoning-gym:gcd", or a plug-in's.

    A package adds one by pointing an entry point of the group "offramp.tasks" at a `TaskSource`; its name is
    the entry point's. allow_code: refused; code that a model wrote is not run.

    Raises InputError for an unknown name (with near matches), an argument that the task does not take, a
    broken plug-in, a missing package, and a task that runs code.
    """
    name, _, argument = spec.partition(":")
    if allow_code or name == WITHOUT_CODE:
        raise code_refused(f"task {spec}")
    added = {} if name in TASKS else _plug_ins()
    if name in TASKS:
        source = TASKS[name]
    elif name in added:
        source = _load_plug_in(added[name])
    else:
        raise _unknown(spec, name)
    if argument and not source.argument:
        raise InputError(
            f"the task {name!r} takes no argument, but {argument!r} was given",
            where=f"task {spec}",
            fix=f"write {name}",
        )
    if source.runs_code:
        raise code_refused(f"task {spec}")
    return source.open(argument, False)


def describe_tasks() -> tuple[TaskSource, ...]:
    """Every known task, those of plug-ins included; none is opened.

    Raises InputError naming a plug-in that cannot be loaded.
    """
    return (*TASKS.values(), *(_load_plug_in(point) for point in _plug_ins().values()))


def _plug_ins() -> dict[str, EntryPoint]:
    return {name: point for name, point in plug_ins(ENTRY_POINT_GROUP).items() if name not in TASKS}


def _load_plug_in(point: EntryPoint) -> TaskSource:
    source: TaskSource = load_plug_in(
        point, lambda found: isinstance(found, TaskSource), "task", "a TaskSource"
    )
    return source


def _unknown(spec: str, name: str) -> InputError:
    names = [*TASKS, *_plug_ins()]
    near = difflib.get_close_matches(name, names, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    grammars = [source.grammar for source in TASKS.values()]
    choices = ", ".join([*grammars, *names[len(TASKS) :]])
    return InputError(
        f"there is no task {spec!r}", where=f"task {spec}", fix=f"{hint}choose one of: {choices}"
    )
