"""What texts cost by the byte: models that cut one text into tokens of different lengths, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.formats import decimal, thousandths, whole
from offramp.report.html import fragment
from offramp.report.names import distinct, machine_shown
from offramp.report.places import TRACE
from offramp.report.ranking import believed, fastest, replayed
from offramp.report.table import NOTHING, Cell, Column, Table
from offramp.studies.comparison.equality import per_byte_notes
from offramp.studies.comparison.results import Comparison, Place, Row, Strategy

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


Places = dict[Place, list[Strategy]]


def with_characters(strategies: Sequence[Strategy]) -> Places:
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
        return next((one.characters_per_second for one in here if one.plain), None)

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
