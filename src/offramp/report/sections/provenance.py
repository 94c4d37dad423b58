"""Where every number comes from, and the command that repeats the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offramp.report.formats import decimal
from offramp.report.markup import element, table, text
from offramp.report.run_result import RunResult, WorkloadResult


def provenance_section(run: RunResult) -> str:
    """The command, the versions and fingerprints, the workloads traced."""
    command = element(
        "pre", element("code", text(run.command)), id_="command", tabindex=0, aria_label="Command"
    )
    content = (
        element("h2", "How to repeat this")
        + element(
            "div",
            command + element("button", "Copy", type_="button", class_="copy", data_copy="command"),
            class_="command",
        )
        + workload_table(run)
        + element("dl", "".join(entries(run.provenance)), class_="provenance")
    )
    return element("section", content, id_="provenance", aria_label="How to repeat this")


def workload_table(run: RunResult) -> str:
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


def entries(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names and values as a definition list, nested ones with their path."""
    items = []
    for name, value in values.items():
        path = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            items += entries(value, f"{path} · ")
            continue
        if isinstance(value, list | tuple):
            value = ", ".join(str(item) for item in value)
        shown = "none" if value is None else str(value)
        items.append(element("div", element("dt", text(path)) + element("dd", text(shown))))
    return items
