"""What is shown of fitted or imported exit heads: tables, and what they are worth in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from offramp.report.formats import decimal
from offramp.report.table import Column, Table

if TYPE_CHECKING:
    from offramp.heads.exit_heads import ExitHeads
    from offramp.heads.parts import Classifier, ExitMaps, Weights


def heads_table(fitted: ExitHeads) -> Table[int]:
    """Explained variance and each classifier's AUROC; a row is a place among the exits."""

    def explained(place: int) -> str:
        values = None if fitted.lens is None else fitted.lens.explained
        return "?" if values is None else decimal(float(values[place]))

    def auroc(classifier: Classifier[Weights]) -> Callable[[int], str]:
        def text(place: int) -> str:
            value = float(classifier.auroc[place])
            shown = "rare" if math.isnan(value) else decimal(value)
            return shown if classifier.better_than_chance[place] else f"({shown})"

        return text

    return Table(
        (
            Column("Exit", lambda place: fitted.exits[place]),
            *([] if fitted.lens is None else [Column("Lens", explained)]),
            *(Column(name.replace("_", " "), auroc(one)) for name, one in fitted.classifiers.items()),
        ),
        caption="Held-out documents: variance explained by the lens, AUROC of the classifiers"
        + ("; (0.70): not shown to beat the base rate; rare: too few of a class" * bool(fitted.classifiers)),
        words=0,
    )


def _explained(place: int | None) -> Callable[[tuple[int, ExitMaps[Weights]]], float]:
    """Explained variance of the maps into one of the deeper layers; None: the mean of all."""

    def value(row: tuple[int, ExitMaps[Weights]]) -> float:
        explained = row[1].explained_by_all
        return float(explained.mean() if place is None else explained[place])

    return value


MAPS: Table[tuple[int, ExitMaps[Weights]]] = Table(
    (
        Column("Exit", lambda row: row[0]),
        Column("Rank", lambda row: "full" if row[1].rank is None else str(row[1].rank)),
        Column("Layers", lambda row: len(row[1].explained_by_all)),
        Column("MB", lambda row: f"{row[1].bytes / 1e6:,.1f}"),
        Column("Explained", _explained(None), decimal),
        Column("Next layer", _explained(0), decimal),
        Column("Last layer", _explained(-1), decimal),
    ),
    caption="K,V maps, held-out documents: variance explained of what deeper layers add to the exit's state",
    words=0,
)
"""Each exit's K,V maps over its deeper layers."""


def heads_notes(fitted: ExitHeads) -> list[str]:
    """What each classifier is worth, in words."""
    lines = []
    for name, classifier in fitted.classifiers.items():
        worse = [
            exit
            for exit, better in zip(fitted.exits, classifier.better_than_chance, strict=True)
            if not better
        ]
        if len(worse) == len(fitted.exits):
            lines.append(
                f"{name} is not shown to beat the base rate at any exit: do not build a policy on it"
            )
        elif worse:
            listed = ", ".join(str(exit) for exit in worse)
            lines.append(f"{name} is not shown to beat the base rate at exits {listed}")
    seen = sum(len(ids) for ids in fitted.seen_documents.values())
    lines.append(f"fitting read {seen} documents; tuning on a trace made with these heads leaves them out")
    return lines
