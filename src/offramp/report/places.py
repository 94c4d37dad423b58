"""Where something holds, as columns of a comparison's tables: a trace, a place on a machine, a floor."""

from __future__ import annotations

from dataclasses import replace

from offramp.report.formats import short_source
from offramp.report.names import LENS, distinct, floor_shown, heads_name, line_name, machine_shown
from offramp.report.table import Cell, Column
from offramp.studies.comparison.results import Place, Row
from offramp.tuning.floor import Floor

HEADS: Column[str] = Column(
    "Exit heads",
    lambda heads: Cell(heads_name(heads), value=heads),
    data=str,
    key="heads",
    facet="heads",
    idle=LENS,
)
WORKLOAD: Column[str] = Column("Workload", lambda name: name, data=str, facet="workload", on="page")

TRACE: tuple[Column[Row], ...] = (
    Column("Model", lambda row: row.model.shown, facet="model"),
    Column("", lambda row: row.model.name, data=str, key="model"),
    Column("", lambda row: row.model.transform, data=str, key="transform"),
    WORKLOAD.over(lambda row: row.workload),
    Column("Workload", lambda row: short_source(row.workload), on="terminal"),
    HEADS.over(lambda row: row.heads),
)
"""A trace: data have the model's name and its transform apart."""

MACHINE: Column[str] = Column(
    "Machine",
    lambda machine: Cell(machine_shown(machine), value=machine),
    data=str,
    facet="machine",
    on="page",
)

PLACE: tuple[Column[Place], ...] = (
    Column("Model", lambda place: place.model, data=str, facet="model", on="page"),
    WORKLOAD.over(lambda place: place.workload),
    replace(HEADS.over(lambda place: place.heads), on="page"),
    MACHINE.over(lambda place: place.machine),
    Column("Where", lambda place: _in_words(place), on="terminal"),
)
"""A trace on a machine: one cell on a terminal."""

FLOOR: Column[Floor | None] = Column(
    "Floor",
    lambda floor: Cell(floor_shown(floor), value="" if floor is None else str(floor)),
    data=str,
    facet="floor",
)


def _in_words(place: Place) -> str:
    names = [
        line_name(place.model, place.heads),
        short_source(place.workload),
        machine_shown(place.machine),
    ]
    return " · ".join(distinct(names))
