"""`offramp exits train --kind regularised`: its options, and what it shows of the model that it trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.commands import command_line
from offramp.kit.defaults import DELTA

if TYPE_CHECKING:
    from offramp.lab.exits.evaluation import Evaluation
    from offramp.lab.exits.regularisation import Regularisation
    from offramp.lab.exits.train import TrainedExits
    from offramp.report.word_table import WordTable

KIND = "regularised"
FLOORS = (0.95, 0.9, 0.8)
"""Of which the first is proposed that the text's documents can certify."""

Lora = Annotated[
    int | None,
    typer.Option(
        "--lora",
        help="regularised: rank of what is added to the layers' matrices, by default 16; 0: all weights are "
        "trained.",
        show_default=False,
    ),
]
Keep = Annotated[
    float | None,
    typer.Option(
        "--keep",
        help="regularised: weight of KL(original || trained) at full depth, by default 1.",
        show_default=False,
    ),
]
LayerDropout = Annotated[
    float | None,
    typer.Option(
        "--layer-dropout",
        help="regularised: chance of the last layer to be left out at the last step, by default 0.1.",
        show_default=False,
    ),
]
Curriculum = Annotated[
    str | None,
    typer.Option(
        "--curriculum",
        help="regularised: rotational, one exit a step; gradual, deepest first; or all.",
        show_default=False,
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(
        "--targets",
        help="regularised: what exits learn: model, the original's distribution; or text, its tokens.",
        show_default=False,
    ),
]
Ahead = Annotated[
    int | None,
    typer.Option(
        "--ahead",
        help="regularised: tokens that exits learn to predict, by default 1, the next.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class RegularisedOptions:
    """What was given of the options of this kind; None for what was not."""

    lora: int | None
    keep: float | None
    layer_dropout: float | None
    curriculum: str | None
    targets: str | None
    ahead: int | None

    @property
    def given(self) -> dict[str, Any]:
        """By the name of the option."""
        return {f"--{one.name.replace('_', '-')}": getattr(self, one.name) for one in fields(self)}

    def regularisation(self) -> Regularisation:
        """What is asked for. Raises InputError for what cannot be."""
        from offramp.lab.exits.regularisation import Regularisation

        values: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        return Regularisation(**{name: value for name, value in values.items() if value is not None})


def table(trained: TrainedExits) -> WordTable:
    """Every exit and the full depth, before and after, held against the trained model and the original."""
    from offramp.report.formats import decimal
    from offramp.report.word_table import WordTable

    record = trained.record
    rows = record.rows
    read = f"up to {rows.held_out:,} tokens of {rows.held_out_documents} held-out documents"
    found = WordTable(title=f"[bold]{read}: agreement if all leave[/]")
    for column in ("exit", "original", "with own full depth", "with the original", "KL, nats"):
        found.add_column(column, justify="right")
    found.add_column("bits per byte", justify="right")
    for floor in record.floors:
        found.add_column(f"leave at {100 * floor:.0f} %", justify="right")
    for place, before, after in zip(record.places, record.before, record.trained, strict=True):
        leaving = [f"{100 * share:.0f} %" for share in after.leaving] or [""] * len(record.floors)
        found.add_row(
            place,
            decimal(before.agreement),
            decimal(after.agreement),
            decimal(after.reference_agreement or 0.0, 3),
            decimal(after.loss, 3),
            f"{_bits(before)} → {_bits(after)}",
            *leaving,
        )
    return found


def _bits(one: Evaluation) -> str:
    return "?" if one.bits_per_byte is None else f"{one.bits_per_byte:.3f}"


def next_lines(trained: TrainedExits, output: Path, original: str, left: int) -> list[str]:
    """What counts, and how it is had. original: the model, as the command line named it. left: documents of
    the first text that training did not read: those of a trace, a part of which certify."""
    from offramp.tuning import bounds, splits

    def needed(floor: float) -> int:
        return splits.fewest_documents(bounds.fewest_documents(1.0 - floor, DELTA))

    floor = next((floor for floor in FLOORS if needed(floor) <= left), None)
    tuning = f"no floor can be certified on {left} documents: trace and tune on a text of more"
    traced, text = f"{output}-trace", trained.record.request.workloads[0]["name"]
    return [
        "what leaves is counted at floors of agreement with the original model, not with the trained one",
        f"next: {command_line('trace', output, reference=original, workload=text, output=traced)}",
        tuning
        if floor is None
        else f"then: {command_line('tune', traced, floor=f'reference_agreement={floor}')}",
    ]
