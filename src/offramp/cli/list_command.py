"""`offramp list`: what is known by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson
from offramp.errors import InputError

Rows = list[dict[str, str]]


def _models() -> Rows:
    from offramp.models.registry import BUNDLED

    return [
        {
            "name": model.name,
            "what it is": model.description,
            "licence": model.licence,
            "install": model.install,
        }
        for model in BUNDLED.values()
    ]


def _workloads() -> Rows:
    from offramp.workloads.registry import describe_workloads

    return [
        {
            "name": workload.name,
            "mode": workload.mode,
            "documents": workload.documents,
            "licence": workload.licence,
            "what it is": workload.description,
        }
        for workload in describe_workloads()
    ]


def _policies() -> Rows:
    from offramp.policies.kinds import policy_kinds

    rows = []
    for name, kind in policy_kinds().items():
        parameters = ",".join(f"{parameter.name}=..." for parameter in kind.parameters)
        rows.append({"name": f"{name}:{parameters}" if parameters else name, "what it is": _first_line(kind)})
    return rows


def _signals() -> Rows:
    from offramp.policies.signals import SIGNALS

    return [
        {"name": name, "fact": signal.fact, "exit when": f"{signal.exit_when} the threshold"}
        for name, signal in SIGNALS.items()
    ]


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


LISTS: dict[str, Callable[[], Rows]] = {
    "models": _models,
    "workloads": _workloads,
    "policies": _policies,
    "signals": _signals,
}


def list_things(
    what: Annotated[str, typer.Argument(help="models, workloads, policies or signals.")],
    as_json: AsJson = False,
) -> None:
    """List models, workloads, policies or signals that are known by name."""
    from rich.table import Table

    if what not in LISTS:
        near = difflib.get_close_matches(what, LISTS, n=1)
        raise InputError(
            f"there is no list of {what!r}",
            fix=(f"did you mean {near[0]}? " if near else "") + "choose one of: " + ", ".join(LISTS),
        )
    out = Output(as_json)
    rows = LISTS[what]()
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    out.console.print(table)
    out.finish({what: rows})
