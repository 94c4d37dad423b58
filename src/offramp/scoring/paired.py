"""Two models on the same documents: the difference of every figure, with paired intervals over documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.scoring.documents import document_rows, fact_sums, ids_of, name_of, of_documents
from offramp.scoring.estimate import DocumentBootstrap, Estimate
from offramp.scoring.scoring import DrawnFigure, drawn_figures
from offramp.tracing.trace import Trace

PER_TOKEN = ("nll",)
"""Figures per token, which say nothing between models that cut texts into other tokens: left out."""

OF_EQUAL_COUNTS = ("increment", "composite")
"""Figures that hold R_0, which grows with the number of tokens: no difference where the counts differ."""

BITS_PER_BYTE = "bits_per_byte"

PAIRED_DRAWS = 10_000
"""So many that the smallest p-value, 2 / 10,001, survives Holm over a table of 250 differences."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class PairedFigure:
    """One figure of two traces. difference: second less first, with a 95 % paired interval over documents.

    p_value: two-sided, that there is no difference (`two_sided`). None where there is no interval.
    """

    figure: str
    first: float | None
    second: float | None
    difference: Estimate
    p_value: float | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object: figure, first, second, value, low, high, undefined, no_interval, p_value."""
        names = {name: getattr(self, name) for name in ("figure", "first", "second", "p_value")}
        return {**names, **asdict(self.difference)}


@dataclass(frozen=True)
class Paired:
    """What two traces differ in, over the documents that both have. documents: how many."""

    documents: int
    figures: tuple[PairedFigure, ...]


def paired_differences(
    first: Trace,
    second: Trace,
    *,
    draws: int = 1000,
    seed: int = 0,
    text_bytes: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
) -> Paired:
    """Second less first in every figure of `offramp.scoring.scoring.drawn_figures` but those per token.

    Documents with rows in both traces are compared; a draw takes the same documents of both. Where these give
    the two other numbers of tokens (answers that stop), the differences of `OF_EQUAL_COUNTS` are undefined.
    text_bytes:
    bytes of the observed text by document id, of each trace; bits per byte of the full models are then
    compared too, but not on answers that each model wrote itself.

    Raises InputError for traces of other workloads, of other token counts, or without a document in common,
    a document without its bytes, and for what `offramp.score` refuses.
    """
    require_comparable(first, second)
    common = ids_of(first) & ids_of(second)
    if not common:
        raise InputError(
            "the traces have no document in common",
            where=f"{name_of(first)} and {name_of(second)}",
            fix="trace both models on the same workload",
        )
    sides = [of_documents(trace, common) for trace in (first, second)]
    (bootstrap, one), (_, other) = [drawn_figures(side, draws=draws, seed=seed) for side in sides]
    figures = {
        name: (drawn, other[name]) for name, drawn in one.items() if name not in PER_TOKEN and name in other
    }
    own_text = any(bool(side.generated.any()) for side in sides)
    if text_bytes is not None and not own_text:
        bits = [_bits_per_byte(side, sizes, bootstrap) for side, sizes in zip(sides, text_bytes, strict=True)]
        figures[BITS_PER_BYTE] = (bits[0], bits[1])
    unequal = _unequal_counts(*sides)
    return Paired(
        documents=len(common),
        figures=tuple(
            _paired(name, *pair, bootstrap, undefined=unequal if name in OF_EQUAL_COUNTS else None)
            for name, pair in figures.items()
        ),
    )


def require_comparable(first: Trace, second: Trace) -> None:
    """Raise InputError unless both traces are of one workload and of equally many tokens."""
    names = f"{name_of(first)} and {name_of(second)}"
    workloads = [trace.request.get("workload", {}).get("fingerprint") for trace in (first, second)]
    if workloads[0] != workloads[1]:
        raise InputError(
            "the traces are of different workloads, or of different versions of one",
            where=names,
            fix="trace both models on the same workload",
        )
    if first.token_count != second.token_count:
        raise InputError(
            f"the traces hold {first.token_count:,} and {second.token_count:,} tokens; scores depend on how "
            "many",
            where=names,
            fix="trace both models with the same --tokens, on a workload that has as many for both",
        )


def _unequal_counts(first: Trace, second: Trace) -> str | None:
    """Why figures that grow with the number of tokens have no difference, None where the counts are equal.

    Equal counts of whole traces do not make those of the common documents equal: one model may fill every
    answer where the other stops early, and reach the total with more documents.
    """
    if first.token_count == second.token_count:
        return None
    return (
        f"the common documents hold {first.token_count:,} and {second.token_count:,} tokens, and R_0 depends "
        "on how many"
    )


def _bits_per_byte(trace: Trace, sizes: Mapping[str, int], bootstrap: DocumentBootstrap) -> DrawnFigure:
    """Summed NLL at the last exit over ln 2 and the bytes of the text, for the trace and its draws."""
    rows = document_rows(trace)
    ids = [trace.documents[int(place)].id for place in rows.index]
    missing = next((name for name in ids if name not in sizes), None)
    if missing is not None:
        raise InputError(
            f"it is not known how many bytes the document {missing} has",
            where=name_of(trace),
            fix="give the bytes of every document, or none",
        )
    total = np.array([sizes[name] for name in ids], dtype=np.float64)
    if not total.sum():
        return DrawnFigure(None, "the observed text has no bytes")
    nats = fact_sums(trace, rows, "nll")[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of documents without bytes is undefined
        return DrawnFigure(bootstrap.totals(nats) / bootstrap.totals(total) / math.log(2.0))


def _paired(
    name: str,
    first: DrawnFigure,
    second: DrawnFigure,
    bootstrap: DocumentBootstrap,
    *,
    undefined: str | None = None,
) -> PairedFigure:
    """One figure's difference. undefined: why the two may not be compared, None if they may."""
    if first.values is None or second.values is None or undefined:
        why = Estimate(None, undefined=first.undefined or second.undefined or undefined)
        return PairedFigure(name, _value(first), _value(second), why, None)
    drawn = second.values - first.values
    difference = bootstrap.estimate(drawn)
    p_value = None if difference.low is None else two_sided(drawn, bootstrap.weights.shape[1])
    return PairedFigure(name, _value(first), _value(second), difference, p_value)


def two_sided(values: Values, documents: int) -> float:
    """Two-sided p-value that a difference is 0: the larger one of two.

    values: the difference and its bootstrap draws, [1 + draws]; undefined draws are left out. The first
    counts draws: 2 (1 + those of the rarer sign) / (1 + draws) (Davison and Hinkley 1997, section 4.4). It is
    too small in the far tails that a table of many differences asks for: of 20 documents, four times at
    0.0025. The second is Student's t: the difference over the draws' spread, widened by sqrt(n / (n - 1)) for
    n documents, with n - 1 degrees of freedom.
    """
    from scipy.stats import t as student  # here, since planning a study imports this file

    difference, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
    rarer = min(np.count_nonzero(draws <= 0.0), np.count_nonzero(draws >= 0.0))
    counted = 2.0 * (1.0 + float(rarer)) / (1.0 + len(draws))
    spread = float(np.std(draws)) * math.sqrt(documents / (documents - 1))
    if not spread:
        return min(1.0, counted)
    return min(1.0, max(counted, float(2.0 * student.sf(abs(difference) / spread, documents - 1))))


def _value(figure: DrawnFigure) -> float | None:
    return None if figure.values is None else float(figure.values[0])
