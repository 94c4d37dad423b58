"""What was compared: models, texts, traces, costs by the byte, scores beside savings; how to cite it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from offramp.report.formats import counted, decimal, listed, thousandths, whole
from offramp.report.html import fragment
from offramp.report.names import (
    FLOOR,
    MACHINE,
    TRACE,
    distinct,
    figure_name,
    floor_order,
    floor_shown,
    heads_name,
    machine_shown,
    parameters_text,
)
from offramp.report.page import entries
from offramp.report.sections.strategies import believed, fastest, replayed
from offramp.report.table import NOTHING, Cell, Column, Table, reasons
from offramp.scoring.estimate import BASES_NEEDED, Estimate
from offramp.studies.comparison.equality import per_byte_notes
from offramp.studies.comparison.results import Comparison, Place, Row, ScoreValidity, StrategyResult
from offramp.studies.comparison.savings import independent

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
class ComparedText:
    """What was traced of a text."""

    name: str
    rows: tuple[Row, ...]


def workloads_of(rows: Sequence[Row]) -> list[ComparedText]:
    """Every text with its traces."""
    names = distinct([row.workload for row in rows])
    return [ComparedText(name, tuple(row for row in rows if row.workload == name)) for name in names]


def _counts(counts: Sequence[int]) -> str:
    return " or ".join(f"{count:,}" for count in sorted(set(counts)))


WORKLOADS: Table[ComparedText] = Table(
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


TEXT: tuple[Column[Row], ...] = (
    *TRACE,
    Column("Bits per byte", lambda row: row.bits_per_byte, thousandths, key="bits", numeric=True),
    Column("NLL per token, nats", lambda row: nll(row), decimal, key="nll", numeric=True),
    Column("Bytes per token", lambda row: row.bytes_per_token, decimal, key="bytes", numeric=True),
    Column(
        "Characters per token", lambda row: row.characters_per_token, decimal, key="characters", numeric=True
    ),
)


def bytes_section(comparison: Comparison) -> Markup:
    """Bits per byte and characters per second; nothing where all models read the same tokens."""
    if not per_byte_notes(comparison.rows):
        return Markup()
    rows = [row for row in comparison.rows if row.bytes_per_token is not None and not row.own_text]
    places = with_characters(comparison.strategies)
    machines = distinct([place.machine for place in places])
    table = Table(
        (*TEXT, *(column for machine in machines for column in speed_columns(machine, places))),
        caption="Every model on every workload, the fewest bits per byte first",
        name="bytes",
    )
    rows.sort(key=lambda row: (row.workload, row.bits_per_byte is None, row.bits_per_byte or 0.0))
    return fragment("comparison", "bytes", table.html(rows))


def nll(row: Row) -> float | None:
    """The full model's surprise per token, in nats."""
    curve = row.card.curves.values.get("nll")
    return None if curve is None else float(curve[-1])


Places = dict[Place, list[StrategyResult]]


def with_characters(strategies: Sequence[StrategyResult]) -> Places:
    """The strategies whose characters per second are known, by place."""
    places: Places = {}
    for strategy in strategies:
        if strategy.characters_per_second is not None:
            places.setdefault(strategy.place, []).append(strategy)
    return places


def speed_columns(machine: str, places: Places) -> tuple[Column[Row], Column[Row]]:
    """On a machine plain decoding's characters per second, and those of the fastest strategy."""

    def plain(row: Row) -> float | None:
        here = places.get(row.on(machine), [])
        return next((saving.characters_per_second for saving in here if saving.plain), None)

    def best(row: Row) -> Cell:
        here = places.get(row.on(machine), [])
        found = fastest(replayed(here)) or fastest(believed(here))
        if found is None or found.characters_per_second is None:
            return Cell(NOTHING)
        speed = found.characters_per_second
        return Cell(whole(speed), below=f"{found.family}, {found.basis}", value=speed)

    name = machine_shown(machine)
    return (
        Column(f"Characters per second, plain, {name}", plain, whole, key=f"plain-{machine}", numeric=True),
        Column(f"… with the fastest strategy, {name}", best, whole, key=f"best-{machine}", numeric=True),
    )


VALIDITY: Table[ScoreValidity] = Table(
    (
        Column("Score", lambda entry: Cell(figure_name(entry.score), value=entry.score), data=str),
        MACHINE.over(lambda entry: entry.machine),
        FLOOR.over(lambda entry: entry.floor),
        Column("Kendall τ-b", lambda entry: entry.kendall, decimal, data=Estimate, key="kendall"),
        Column("Independent models", lambda entry: entry.bases, whole, data=int, key="bases"),
    ),
    caption="Each score on one text against the measured savings on another text of the same model",
    name="validity",
)


def validity_section(comparison: Comparison) -> Markup:
    """What can be said, and a row for each score at a floor on a machine; nothing without a measurement."""
    validity = comparison.validity
    if not validity:
        return Markup()
    ranked = sorted(
        validity, key=lambda entry: (entry.machine, floor_order(entry.floor), -(entry.kendall.value or -2.0))
    )
    notes = reasons([entry.kendall for entry in validity])
    return fragment("comparison", "validity", validity_words(validity), VALIDITY.html(ranked), notes)


def validity_words(validity: Sequence[ScoreValidity]) -> list[str]:
    """One sentence: that models are too few, or how many correlations are surely above chance."""
    if not validity:
        return []
    bases = max(entry.bases for entry in validity)
    if bases < BASES_NEEDED:
        return [
            f"Which score tells what is saved cannot be told: {independent(bases)} were measured, "
            f"{BASES_NEEDED} are needed."
        ]
    above = sum(entry.kendall.low is not None and entry.kendall.low > 0 for entry in validity)
    return [
        f"Of {counted(len(validity), 'correlation')} of a score with measured savings, {above} "
        f"{'lies' if above == 1 else 'lie'} above 0 with the whole interval; that they are so many is not "
        "accounted for."
    ]
