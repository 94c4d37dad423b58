"""What pages call models, floors, machines, heads and figures, and the columns of where something holds."""

from __future__ import annotations

from dataclasses import replace

from offramp.report.formats import short_source, value_words
from offramp.report.table import Cell, Column
from offramp.studies.comparison.results import Place, Row
from offramp.tuning.floor import Floor

LENS = "logit lens"

FIGURES: dict[str, str] = {
    "representation": "Representation quality",
    "increment": "Information increment",
    "calibration": "Calibration",
    "composite": "Composite",
    "literal_calibration": "Calibration, as the study words it",
    "first_match_skip": "First-match oracle skips at 100 % agreement",
    "saturation_skip": "Saturation oracle skips at 100 % agreement",
    "time_ceiling_first_match": "First-match oracle at 100 % agreement, as time",
    "time_ceiling_saturation": "Saturation oracle at 100 % agreement, as time",
    "eas_logit": "EAS, logits",
    "eas_centred_logit": "EAS, centred logits",
    "eas_hidden": "EAS, hidden state",
    "block_influence": "Block influence",
    "mean_kl": "Mean KL to the full model",
}


def figure_name(key: str) -> str:
    """A figure as shown: "composite" -> "Composite"."""
    if key in FIGURES:
        return FIGURES[key]
    return (key[:1].upper() + key[1:]).replace("_", " ")


def heads_name(heads: str) -> str:
    """Exit heads as shown; no name stands for the model's own norm and head."""
    return LENS if heads in ("", "none") else heads


def machine_shown(machine: str) -> str:
    """A machine as shown."""
    return machine or "none named"


def floor_shown(floor: Floor | None) -> str:
    """A floor as shown: "95 % agreement"."""
    return "none asked" if floor is None else value_words(floor, floor.value)


def floor_order(floor: Floor | None) -> tuple[str, float]:
    """Sorts floors by kind, the strictest share first, none at all last."""
    return ("\uffff", 0.0) if floor is None else (floor.kind, -floor.value)


def line_name(model: str, heads: str) -> str:
    """A model as read through its exit heads: "smollm2", "smollm2 · lens"."""
    return model if heads_name(heads) == LENS else f"{model} · {heads}"


def row_name(row: Row) -> str:
    """The row's model and heads."""
    return line_name(row.model.shown, row.heads)


def parameters_text(parameters: float | None) -> str:
    """A size: 51_500 -> "51.5 k", 135e6 -> "135 M", 8.2e9 -> "8.2 B", "–" if it is not known."""
    if parameters is None:
        return "–"
    unit, size = next(((u, s) for u, s in (("B", 1e9), ("M", 1e6)) if parameters >= s), ("k", 1e3))
    return f"{parameters / size:.3g} {unit}"


def distinct(names: list[str]) -> list[str]:
    """Each name once, in order."""
    return list(dict.fromkeys(names))


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
