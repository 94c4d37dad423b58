"""`offramp list`: what is known by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from offramp.cli.console import Output
from offramp.errors import OfframpError
from offramp.kit.request import Request, argument
from offramp.kit.rules import OneOf

if TYPE_CHECKING:
    from offramp.report.table import Table

Rows = list[dict[str, str]]

NAME_WIDTH = 38


def _models() -> Rows:
    from offramp.models.source import BUNDLED

    return [
        {
            "name": model.name,
            "what it is": model.description,
            "weights": model.weights,
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
            "what it is": workload.description,
            "mode": workload.mode,
            "documents": workload.documents,
            "licence": workload.licence,
        }
        for workload in describe_workloads()
    ]


def _transforms() -> Rows:
    from offramp.models.transforms.transform import describe_transforms

    return [
        {"name": transform.name, "what it is": transform.description} for transform in describe_transforms()
    ]


def _policies() -> Rows:
    from offramp.policies.grammar import policy_kinds

    rows = []
    for name, kind in policy_kinds().usable().items():
        parameters = ",".join(f"{known.name}={known.default or '…'}" for known in kind.parameters)
        rows.append({"name": f"{name}:{parameters}" if parameters else name, "what it is": _first_line(kind)})
    return rows


def _signals() -> Rows:
    from offramp.policies.signals import SIGNALS
    from offramp.tracing.facts import FACT_BY_NAME

    return [
        {
            "name": name,
            "what it is": f"{signal.source}; a token leaves when it is {signal.exit_when} the threshold",
            "unit": signal.unit,
            "probe": signal.probe,
            "recorded": FACT_BY_NAME[signal.fact].recorded_with or "always",
            "fact": signal.fact,
        }
        for name, signal in SIGNALS.items()
    ]


def _hardware() -> Rows:
    from offramp.costs.hardware import describe_machines

    return [
        {
            "name": machine.name,
            "what it is": machine.description,
            "rates": machine.rates,
            "source": machine.source,
        }
        for machine in describe_machines()
    ]


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


LISTS: dict[str, Callable[[], Rows]] = {
    "models": _models,
    "workloads": _workloads,
    "transforms": _transforms,
    "policies": _policies,
    "signals": _signals,
    "hardware": _hardware,
}


@dataclass(frozen=True, kw_only=True)
class ListCommand(Request):
    """List models, workloads, transforms, policies, signals or hardware known by name.

    Wherever a hardware name fits, so does a .toml profile of your own.

    Roofline: kind = "roofline", name, description, source, bytes_per_second,
    launch_seconds, decision_seconds, and float32 and bfloat16 in the table
    flops_per_second.

    Timings: kind = "timings", name, source, dtype, unit = "milliseconds", layers,
    and a table of the array batch for each batch size: size, layer, head and, if
    known, token or overhead, key_value, lens, probes.
    """

    what: Annotated[str, OneOf("list", lambda: LISTS), argument]
    """models, workloads, transforms, policies, signals or hardware."""


def list_things(asked: ListCommand, out: Output) -> None:
    """Show one of the lists."""
    rows = LISTS[asked.what]() + _broken(asked.what)
    out.console.print(_listed().rich(rows))
    out.finish({asked.what: rows})


def _broken(what: str) -> Rows:
    """Plug-ins that cannot be used, and why."""
    from offramp.costs.hardware import broken_machines
    from offramp.models.transforms.transform import TRANSFORMS
    from offramp.policies.grammar import policy_kinds
    from offramp.workloads.registry import broken_workloads

    errors: dict[str, Callable[[], Mapping[str, OfframpError]]] = {
        "workloads": broken_workloads,
        "transforms": TRANSFORMS.broken,
        "policies": policy_kinds().broken,
        "hardware": broken_machines,
    }
    return [
        {"name": name, "what it is": f"cannot be used: {error.what}", "where": error.where}
        for name, error in errors.get(what, dict)().items()
    ]


def _listed() -> Table[dict[str, str]]:
    """Names beside what they are, with the details below, so that it can be read at 80 columns."""
    from offramp.report.table import Cell, Column, Table

    def described(row: dict[str, str]) -> Cell:
        name, what_it_is, *details = row.values()
        shown = [detail for detail in details if detail and detail != name]
        return Cell(what_it_is, below=" · ".join(shown))

    named: Column[dict[str, str]] = Column(" ", lambda row: _broken_at_commas(row["name"]))
    return Table((named, Column(" ", described)))


def _broken_at_commas(name: str) -> str:
    """A name in lines of at most NAME_WIDTH characters where its commas allow it."""
    lines = [""]
    for part in re.findall(r"[^,]*,|[^,]+$", name):
        if lines[-1] and len(lines[-1]) + len(part) > NAME_WIDTH:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)
