"""What was measured or compared, where every number comes from, and how to repeat or cite it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup

from offramp.report.data_table import (
    FACETS,
    PLACE_COLUMNS,
    DataColumn,
    DataTable,
    number_cell,
    place_cells,
    words,
)
from offramp.report.formats import counted, decimal, listed
from offramp.report.html import fragment, table
from offramp.report.names import (
    distinct,
    floor_order,
    floor_shown,
    heads_name,
    machine_shown,
    parameters_text,
)
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.table import Column, Table
from offramp.studies.comparison.results import Comparison, ModelFacts, Row


def provenance_section(run: RunResult) -> Markup:
    """The command, the versions and fingerprints, the workloads traced."""
    return fragment("run", "provenance", run.command, TRACED.html(run.workloads), entries(run.provenance))


def citation_section(comparison: Comparison) -> Markup:
    """How to cite a comparison, and where its numbers come from."""
    citation = comparison.citation.strip() if comparison.citation else ""
    return fragment("comparison", "citation", citation, entries(comparison.provenance))


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


def compared_section(comparison: Comparison) -> Markup:
    """The models, the workloads, the failures, and every trace with where it comes from."""
    rows, failures = comparison.rows, comparison.failures
    return fragment(
        "comparison",
        "compared",
        description=comparison.description,
        failed=counted(len(failures), "cell"),
        failures=failures,
        tables=_models(rows) + _workloads(rows),
        traces=f"Every trace behind this ({len(rows):,})",
        trace_table=_traces(rows),
    )


def filters(comparison: Comparison) -> Markup:
    """A search box and a choice for each facet that has more than one value; only there with the script."""
    found = {FACETS[name]: (name, values) for name, values in facets(comparison).items() if len(values) > 1}
    return fragment("comparison", "filters", found)


def facets(comparison: Comparison) -> dict[str, list[str]]:
    """The values of every facet, as the tables show them."""
    rows = comparison.rows
    savings = [saving for row in rows for saving in row.savings]
    places = [(one.floor, one.machine) for one in savings]
    places += [(one.floor, one.machine) for one in comparison.strategies]
    places += [(one.floor, one.machine) for one in comparison.validity]
    found = {
        "model": [row.model.shown for row in rows],
        "workload": [row.workload for row in rows],
        "heads": [heads_name(row.heads) for row in rows],
        "machine": [machine_shown(machine) for _, machine in places],
        "floor": [floor_shown(floor) for floor in sorted({floor for floor, _ in places}, key=floor_order)],
        "basis": [one.basis for one in comparison.strategies],
    }
    return {name: distinct(values) for name, values in found.items()}


FACTS: dict[str, Callable[[ModelFacts], str]] = {
    "Family": lambda m: m.family or "–",
    "Generation": lambda m: "–" if m.generation is None else f"{m.generation:g}",
    "Released": lambda m: m.released or "–",
    "Parameters": lambda m: parameters_text(m.parameters),
    "Kind": lambda m: m.kind or "–",
    "Stage": lambda m: m.stage or "–",
}


def _models(rows: Sequence[Row]) -> Markup:
    """The models; a fact that is known of none gets no column."""
    found: dict[str, tuple[ModelFacts, int]] = {}
    for row in rows:
        found.setdefault(row.model.shown, (row.model, row.exits[-1] if row.exits else 0))
    lines = {name: [fact(model) for model, _ in found.values()] for name, fact in FACTS.items()}
    known = [name for name, values in lines.items() if any(value != "–" for value in values)]
    based = any(model.base != model.shown for model, _ in found.values())
    header = ["Model", *(["Trained as"] if based else []), *known, "Layers"]
    body = []
    for place, (name, (model, layers)) in enumerate(found.items()):
        facts = [lines[fact][place] for fact in known]
        body.append([name, *([model.base] if based else []), *facts, str(layers or "–")])
    caption = "Models" + ("; those trained as one are variants of the same model" if based else "")
    return table(header, body, caption=caption, numeric_from=len(header) - 1)


def _workloads(rows: Sequence[Row]) -> Markup:
    """The workloads with what was traced of each."""
    body = []
    for name in distinct([row.workload for row in rows]):
        here = [row for row in rows if row.workload == name]
        tokens = " or ".join(f"{count:,}" for count in sorted({row.tokens for row in here}))
        documents = " or ".join(f"{count:,}" for count in sorted({row.documents for row in here}))
        marks = listed(sorted({row.workload_fingerprint[:12] for row in here}))
        body.append([name, marks, tokens, documents, str(len(here))])
    header = ["Workload", "Fingerprint", "Tokens", "Documents", "Traces"]
    return table(header, body, caption="Workloads; tokens and documents are of each trace", numeric_from=2)


def _traces(rows: Sequence[Row]) -> Markup:
    """Every trace, where it lies and what to bear in mind about it."""
    columns = (
        *PLACE_COLUMNS,
        DataColumn("tokens", "Tokens", numeric=True),
        DataColumn("documents", "Documents", numeric=True),
        DataColumn("source", "From"),
        DataColumn("trace", "Trace"),
        DataColumn("notes", "Notes"),
    )
    body = [
        [
            *place_cells(row.model.shown, row.workload, row.heads),
            number_cell(row.tokens, lambda value: f"{value:,.0f}"),
            number_cell(row.documents, lambda value: decimal(value, 0)),
            words(row.source or "–"),
            words(row.trace_folder or "–"),
            words(" ".join(row.notes) or "–"),
        ]
        for row in rows
    ]
    return DataTable("traces", "Every trace", columns, body, noun="trace").html()
