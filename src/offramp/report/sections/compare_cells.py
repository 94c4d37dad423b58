"""What was compared: models with their facts, workloads with their tokens, and what failed or did not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offramp.report.comparison_words import distinct, heads_name, parameters_text
from offramp.report.data_table import DataColumn, DataTable, facet_cell, number_cell, words
from offramp.report.formats import counted, decimal, listed
from offramp.report.markup import disclosure, element, table, text
from offramp.studies.comparison.results import Comparison, ModelFacts, Row


def cells_section(comparison: Comparison) -> str:
    """The models, the workloads, the failures, and every cell with where it comes from."""
    content = element("h2", "What was compared")
    if comparison.description:
        content += element("p", text(comparison.description))
    content += failures(comparison)
    content += element("div", _models(comparison.rows) + _workloads(comparison.rows), class_="compared")
    content += disclosure(f"Every trace behind this ({len(comparison.rows):,})", _traces(comparison.rows))
    return element("section", content, id_="compared", class_="part", aria_label="What was compared")


def failures(comparison: Comparison) -> str:
    """Cells that failed or did not run, each with its reason; nothing if all did."""
    if not comparison.failures:
        return ""
    items = "".join(
        element("li", element("strong", text(name)) + " " + text(why))
        for name, why in comparison.failures.items()
    )
    count = counted(len(comparison.failures), "cell")
    heading = element("h3", text(f"{count} failed or did not run"))
    return element("div", heading + element("ul", items), class_="caveats failures")


FACTS: dict[str, Callable[[ModelFacts], str]] = {
    "Family": lambda m: m.family or "–",
    "Generation": lambda m: "–" if m.generation is None else f"{m.generation:g}",
    "Released": lambda m: m.released or "–",
    "Parameters": lambda m: parameters_text(m.parameters),
    "Kind": lambda m: m.kind or "–",
    "Stage": lambda m: m.stage or "–",
}


def _models(rows: Sequence[Row]) -> str:
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


def _workloads(rows: Sequence[Row]) -> str:
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


def _traces(rows: Sequence[Row]) -> str:
    """Every trace, where it lies and what to bear in mind about it."""
    columns = (
        DataColumn("model", "Model", facet="model"),
        DataColumn("workload", "Workload", facet="workload"),
        DataColumn("heads", "Exit heads", facet="heads"),
        DataColumn("tokens", "Tokens", numeric=True),
        DataColumn("documents", "Documents", numeric=True),
        DataColumn("source", "From"),
        DataColumn("trace", "Trace"),
        DataColumn("notes", "Notes"),
    )
    body = [
        [
            facet_cell(row.model.shown),
            facet_cell(row.workload),
            facet_cell(heads_name(row.heads)),
            number_cell(row.tokens, lambda value: f"{value:,.0f}"),
            number_cell(row.documents, lambda value: decimal(value, 0)),
            words(row.source or "–"),
            words(row.trace_folder or "–"),
            words(" ".join(row.notes) or "–"),
        ]
        for row in rows
    ]
    return DataTable("traces", "Every trace", columns, body, noun="trace").html()
