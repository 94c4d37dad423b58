"""What was compared: models, texts, failures, traces; what tables are narrowed down by; how to cite it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from offramp.report.formats import counted, listed, whole
from offramp.report.html import fragment
from offramp.report.names import (
    distinct,
    floor_order,
    floor_shown,
    heads_name,
    machine_shown,
    parameters_text,
)
from offramp.report.places import TRACE
from offramp.report.sections.provenance import entries
from offramp.report.table import Column, Table
from offramp.studies.comparison.results import Comparison, Row

FACETS: dict[str, str] = {
    "model": "Model",
    "workload": "Workload",
    "heads": "Exit heads",
    "machine": "Machine",
    "floor": "Floor",
    "basis": "Basis",
}
"""What rows can be narrowed down by: facet and the name that is shown."""


def citation_section(comparison: Comparison) -> Markup:
    """How to cite a comparison, and where its numbers come from."""
    return fragment("comparison", "citation", comparison.citation.strip(), entries(comparison.provenance))


def compared_section(comparison: Comparison) -> Markup:
    """The models, the workloads, the failures, and every trace with where it comes from."""
    rows, failures = comparison.rows, comparison.failures
    return fragment(
        "comparison",
        "compared",
        description=comparison.description,
        failed=counted(len(failures), "cell"),
        failures=failures,
        tables=_models(rows) + WORKLOADS.html(workloads_of(rows)),
        traces=f"Every trace behind this ({len(rows):,})",
        trace_table=TRACES.html(rows),
    )


def filters(comparison: Comparison) -> Markup:
    """A search box and a choice for each facet that has more than one value; only there with the script."""
    shown = {FACETS[name]: (name, values) for name, values in facets(comparison).items() if len(values) > 1}
    return fragment("comparison", "filters", shown)


def facets(comparison: Comparison) -> dict[str, list[str]]:
    """The values of every facet, as the tables show them."""
    rows, strategies, validity = comparison.rows, comparison.strategies, comparison.validity
    asked = [(answer.floor, answer.machine) for row in rows for answer in row.answers]
    asked += [(entry.floor, entry.machine) for entry in validity]
    machines = [machine for _, machine in asked] + [strategy.place.machine for strategy in strategies]
    floors = {floor for floor, _ in asked} | {strategy.floor for strategy in strategies}
    values: dict[str, list[str]] = {
        "model": [row.model.shown for row in rows],
        "workload": [row.workload for row in rows],
        "heads": [heads_name(row.heads) for row in rows],
        "machine": [machine_shown(machine) for machine in machines],
        "floor": [floor_shown(floor) for floor in sorted(floors, key=floor_order)],
        "basis": [str(strategy.basis) for strategy in strategies],
    }
    return {name: distinct(shown) for name, shown in values.items()}


MODEL: tuple[Column[Row], ...] = (
    Column("Model", lambda row: row.model.shown),
    Column("Trained as", lambda row: row.model.base),
    Column("Family", lambda row: row.model.family),
    Column("Generation", lambda row: row.model.generation, "{:g}".format),
    Column("Released", lambda row: row.model.released),
    Column("Parameters", lambda row: row.model.parameters, parameters_text),
    Column("Kind", lambda row: row.model.kind),
    Column("Stage", lambda row: row.model.stage),
    Column("Layers", lambda row: row.exits[-1], numeric=True),
)


def _models(rows: Sequence[Row]) -> Markup:
    """The models; a fact that is known of none gets no column."""
    models = list({row.model.shown: row for row in reversed(rows)}.values())[::-1]
    based = any(row.model.base != row.model.shown for row in models)
    columns = [
        column
        for column in MODEL
        if any(column.of(row) is not None for row in models) and (based or column.name != "Trained as")
    ]
    caption = "Models" + ("; those trained as one are variants of the same model" if based else "")
    return Table(columns, caption=caption).html(models)


@dataclass(frozen=True)
class Workload:
    """What was traced of a text."""

    name: str
    rows: tuple[Row, ...]


def workloads_of(rows: Sequence[Row]) -> list[Workload]:
    """Every text with its traces."""
    names = distinct([row.workload for row in rows])
    return [Workload(name, tuple(row for row in rows if row.workload == name)) for name in names]


def _counts(counts: Sequence[int]) -> str:
    return " or ".join(f"{count:,}" for count in sorted(set(counts)))


WORKLOADS: Table[Workload] = Table(
    (
        Column("Workload", lambda text: text.name),
        Column(
            "Fingerprint", lambda text: listed(sorted({row.workload_fingerprint[:12] for row in text.rows}))
        ),
        Column("Tokens", lambda text: _counts([row.card.tokens for row in text.rows]), numeric=True),
        Column("Documents", lambda text: _counts([row.card.documents for row in text.rows]), numeric=True),
        Column("Traces", lambda text: len(text.rows), numeric=True),
    ),
    caption="Workloads; tokens and documents are of each trace",
)

TRACES: Table[Row] = Table(
    (
        *TRACE,
        Column("Tokens", lambda row: row.card.tokens, whole, numeric=True),
        Column("Documents", lambda row: row.card.documents, whole, numeric=True),
        Column("From", lambda row: row.source or None, prose=True),
        Column("Trace", lambda row: row.trace_folder, prose=True),
        Column("Notes", lambda row: " ".join(row.notes) or None, prose=True),
    ),
    caption="Every trace",
    name="traces",
    noun="trace",
)
