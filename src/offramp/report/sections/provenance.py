"""What was measured, where every number comes from, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from markupsafe import Markup

from offramp.report.formats import decimal
from offramp.report.html import fragment
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.table import Column, Table


def provenance_section(run: RunResult) -> Markup:
    """The command, the versions and fingerprints, the workloads traced."""
    return fragment("run", "provenance", run.command, TRACED.html(run.workloads), entries(run.provenance))


TRACED: Table[WorkloadResult] = Table(
    (
        Column("Workload", lambda workload: workload.name),
        Column("Mode", lambda workload: workload.mode),
        Column("Documents", lambda workload: workload.card.documents),
        Column("Left out", lambda one: sum(not doc.valid for doc in one.trace.documents)),
        Column("Tokens", lambda workload: f"{workload.card.tokens:,}"),
        Column("Seconds", lambda workload: workload.seconds, partial(decimal, digits=1)),
        Column("Trace", lambda workload: workload.trace_folder),
    ),
    caption="Traced workloads",
    words=2,
)


def entries(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values, nested ones with their path."""
    items: list[tuple[str, str]] = []
    for name, value in values.items():
        path = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            items += entries(value, f"{path} · ")
            continue
        if isinstance(value, list | tuple):
            value = ", ".join(str(item) for item in value)
        items.append((path, "none" if value is None else str(value)))
    return items
