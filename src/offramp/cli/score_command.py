"""`offramp score`: the suitability score of traces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from offramp.cli.console import Output
from offramp.kit.request import Request, argument

if TYPE_CHECKING:
    from offramp.scoring.card import ScoreCard
    from offramp.tracing.trace import Trace


@dataclass(frozen=True, kw_only=True)
class ScoreCommand(Request):
    """Score how suited a model is to early exit, from its traces. Needs no model.

    Of a trace made with --heads and one without, of the same tokens and exits, both readings are held against
    each other; a run with exit heads has both.
    """

    traces: Annotated[tuple[Path, ...], argument]
    """Folders that offramp trace or offramp run wrote."""


def score(asked: ScoreCommand, out: Output) -> None:
    """Score every trace, and show the cards."""
    from offramp.report.sections.potential import (
        FIGURES,
        TITLE,
        card_figures,
        gained_figures,
        readings_figures,
        readings_sentence,
    )
    from offramp.runs.folder import find_raw_traces, find_traces
    from offramp.scoring.scoring import score as score_trace
    from offramp.tracing.trace import Trace

    given = dict.fromkeys(asked.traces)
    loaded = {folder: Trace.load(folder) for path in given for folder in find_traces(path)}
    aside = [Trace.load(folder) for path in given for folder in find_raw_traces(path)]
    cards = []
    for folder, trace in loaded.items():
        card = score_trace(trace, beside=_raw_reading(trace, [*loaded.values(), *aside]))
        cards.append((folder, card))
        out.console.print(FIGURES.rich(card_figures(card), caption=_title(folder, trace, card)))
        if card.readings is not None:
            figures = [*readings_figures(card.readings), *gained_figures(card.readings)]
            out.console.print(FIGURES.rich(figures, caption=TITLE))
            out.console.print(readings_sentence(card.readings), markup=False)
        for note in _notes(card):
            out.console.print(note, markup=False)
        out.console.print()
    out.finish({"scores": [{"trace": str(folder), **card.to_json()} for folder, card in cards]})


def _raw_reading(trace: Trace, others: Iterable[Trace]) -> Trace | None:
    """Of a trace read through fitted heads the one of the same tokens that the model's own head read."""
    from offramp.scoring.scoring import are_two_readings, is_raw

    raw = (other for other in others if not is_raw(trace) and are_two_readings(other, trace))
    return next(raw, None)


def _notes(card: ScoreCard) -> list[str]:
    """What to bear in mind, why there are no intervals among it."""
    why = card.representation.no_interval
    return [*([f"no intervals: {why}"] if why else []), *card.notes]


def _title(folder: Path, trace: Trace, card: ScoreCard) -> str:
    from offramp.heads.described import RAW
    from offramp.report.formats import counted

    request = trace.request
    through = "" if card.read_through == RAW else f", exits are read through {card.read_through}"
    return (
        f"{request['model']['name']} on {request['workload']['name']}: {counted(card.tokens, 'token')} of "
        f"{counted(card.documents, 'document')} at {counted(len(trace.exits), 'exit')}{through}\n{folder}"
    )
