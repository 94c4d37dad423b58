"""Where every number comes from, and how to repeat or cite it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from offramp.report.formats import decimal
from offramp.report.html import fragment, table
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.studies.comparison.results import Comparison


def provenance_section(run: RunResult) -> Markup:
    """The command, the versions and fingerprints, the workloads traced."""
    return fragment("run", "provenance", run.command, workload_table(run), entries(run.provenance))


def citation_section(comparison: Comparison) -> Markup:
    """How to cite a comparison, and where its numbers come from."""
    citation = comparison.citation.strip() if comparison.citation else ""
    return fragment("comparison", "citation", citation, entries(comparison.provenance))


def workload_table(run: RunResult) -> Markup:
    """What was traced, and where the trace lies."""
    rows = [workload_row(workload) for workload in run.workloads]
    header = ["Workload", "Mode", "Documents", "Left out", "Tokens", "Seconds", "Trace"]
    return table(header, rows, caption="Traced workloads", numeric_from=2)


def workload_row(workload: WorkloadResult) -> list[str]:
    """One workload as a row."""
    invalid = sum(not document.valid for document in workload.trace.documents)
    card = workload.card
    numbers = [str(card.documents), str(invalid), f"{card.tokens:,}", decimal(workload.seconds, 1)]
    return [workload.name, workload.mode, *numbers, workload.trace_folder]


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
