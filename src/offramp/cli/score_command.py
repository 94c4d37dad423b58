"""`offramp score`: the suitability score of traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson


def score(
    traces: Annotated[list[Path], typer.Argument(help="Folders that offramp trace or offramp run wrote.")],
    as_json: AsJson = False,
) -> None:
    """Score how suited a model is to early exit, from its traces. Needs no model."""
    from rich.table import Table

    from offramp.report.formats import decimal, estimate_text
    from offramp.scoring.scoring import score as score_trace
    from offramp.tracing.trace import Trace

    out = Output(as_json)
    cards = [(folder, score_trace(Trace.load(folder))) for folder in traces]
    table = Table(box=None, pad_edge=False)
    for column in ("trace", "representation", "increment", "calibration", "composite", "EAS", "oracle skip"):
        table.add_column(column)
    for folder, card in cards:
        figures = (
            card.representation,
            card.increment,
            card.calibration,
            card.composite,
            card.eas().score,
            card.saturation_skip,
        )
        table.add_row(str(folder), *(estimate_text(figure, decimal) for figure in figures))
    out.console.print(table)
    for _, card in cards:
        for note in card.notes:
            out.console.print(note)
    out.finish({"scores": [{"trace": str(folder), **card.to_json()} for folder, card in cards]})
