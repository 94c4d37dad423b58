"""What is shown of fitted or imported exit heads: tables, what they are worth in words, and JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from offramp.report.word_table import WordTable
    from offramp.tracing.exit_heads import ExitHeads
    from offramp.tracing.key_value_maps import ExitMaps, KeyValueMaps


def heads_table(fitted: ExitHeads) -> WordTable:
    """Explained variance and each classifier's AUROC per exit; in brackets where it does not beat chance."""
    from offramp.report.formats import decimal
    from offramp.report.word_table import WordTable

    title = "held-out documents: variance explained by the lens, AUROC of the classifiers"
    signs = "(0.70): not shown to beat the base rate there; rare: too few tokens of one class"
    table = WordTable(title=f"[bold]{title}[/]", caption=signs if fitted.classifiers else None)
    table.add_column("exit", justify="right")
    if fitted.lens is not None:
        table.add_column("lens", justify="right")
    for name in fitted.classifiers:
        table.add_column(name.replace("_", " "), justify="right")
    for index, exit in enumerate(fitted.exits):
        cells = [str(exit)]
        if fitted.lens is not None:
            explained = fitted.lens.explained
            cells.append("?" if explained is None else decimal(float(explained[index])))
        for classifier in fitted.classifiers.values():
            auroc = float(classifier.auroc[index])
            text = "rare" if math.isnan(auroc) else decimal(auroc)
            cells.append(text if classifier.better_than_chance[index] else f"({text})")
        table.add_row(*cells)
    return table


def maps_table(maps: KeyValueMaps) -> WordTable:
    """Rank, size and explained variance of each exit's K,V maps, mean over its deeper layers."""
    from offramp.report.formats import decimal
    from offramp.report.word_table import WordTable

    title = "K,V maps, held-out documents: variance explained of what deeper layers add to the exit's state"
    table = WordTable(title=f"[bold]{title}[/]")
    for column in ("exit", "rank", "layers", "MB", "explained", "next layer", "last layer"):
        table.add_column(column, justify="right")
    for exit, one in maps.maps.items():
        explained = one.explained[-1]
        table.add_row(
            str(exit),
            "full" if one.rank is None else str(one.rank),
            str(len(explained)),
            f"{one.bytes / 1e6:,.1f}",
            *[decimal(float(value)) for value in (explained.mean(), explained[0], explained[-1])],
        )
    return table


def _describe_maps(maps: ExitMaps) -> dict[str, Any]:
    return {
        "rank": maps.rank,
        "bytes": maps.bytes,
        "explained": maps.explained[-1].tolist(),
        "penalty": maps.penalty,
    }


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


def heads_summary(fitted: ExitHeads, output: Path) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "heads": str(output),
        "fingerprint": fitted.fingerprint,
        "exits": list(fitted.exits),
        "candidate_exit": fitted.candidate_exit,
        "lens": None
        if fitted.lens is None
        else {"explained": _listed(fitted.lens.explained), "penalty": _listed(fitted.lens.penalty)},
        "output": None if fitted.output is None else {"norm": fitted.output.norm},
        "classifiers": {
            name: {
                "auroc": classifier.auroc.tolist(),
                "base_rate": classifier.base_rate.tolist(),
                "better_than_chance": classifier.better_than_chance.tolist(),
            }
            for name, classifier in fitted.classifiers.items()
        },
        "kv_maps": None
        if fitted.kv_maps is None
        else {str(exit): _describe_maps(maps) for exit, maps in fitted.kv_maps.maps.items()},
        "documents": {workload: list(ids) for workload, ids in fitted.seen_documents.items()},
        "provenance": dict(fitted.provenance),
    }


def _listed(numbers: NDArray[np.float64] | None) -> list[float] | None:
    """JSON values, None for what is not known."""
    return None if numbers is None else [float(number) for number in numbers]
