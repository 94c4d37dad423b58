"""Matched pairs of models: second less first of every figure, over the documents of both.

Reads the traces that folders of `offramp study run` and `offramp run` keep: a table has no documents.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

import offramp
from common import LEVEL, Values, holm, parser, run
from offramp import InputError, Trace

PER_TOKEN = ("nll",)
"""Figures per token, which say nothing between models that cut texts into other tokens: left out."""
OF_EQUAL_COUNTS = ("increment", "composite")
"""Figures that hold R_0, which grows with the number of tokens: no difference where the counts differ."""
DRAWS = 10_000
"""So many that the smallest p-value, 2 / 10,001, survives Holm over a table of 250 differences."""

Sizes = Mapping[str, int]
"""Bytes of the observed text by document."""


def pairs(
    folders: Sequence[Path], asked: Sequence[Mapping[str, str]], *, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """A line for each figure of each pair on each text that both models have, adjusted over all (Holm).

    asked: kind, and first and second by their shown names ("smollm2 + int8").

    Raises InputError for an unknown name, two models without a text in common, or traces that may not be
    compared.
    """
    rows = {(row.model.shown, row.workload, row.heads): row for row in offramp.compare(folders).rows}
    lines = []
    for pair in asked:
        names = (pair["first"], pair["second"])
        places = dict.fromkeys(key[1:] for key in rows)
        common = [place for place in places if all((name, *place) in rows for name in names)]
        if names[0] == names[1]:
            raise InputError(f"{names[0]} is paired with itself", fix="name another model")
        if not common:
            known = ", ".join(sorted({name for name, *_ in rows}))
            what = f"{' and '.join(names)} have no workload and heads in common"
            raise InputError(what, fix=f"choose two of: {known}")
        for workload, heads in common:
            paths = [Path(str(rows[name, workload, heads].trace_folder)) for name in names]
            (first, sizes), (second, other_sizes) = ((Trace.load(path), _text_bytes(path)) for path in paths)
            known_sizes = None if sizes is None or other_sizes is None else (sizes, other_sizes)
            found = paired_differences(first, second, draws=draws, seed=seed, text_bytes=known_sizes)
            lines += [{**pair, "workload": workload, "heads": heads, **line} for line in found]
    table = pd.DataFrame(lines)
    if len(table):
        table["p_value_after_holm"] = holm(table["p_value"])
        table["sure"] = table["p_value_after_holm"] <= LEVEL
    return table


def _text_bytes(trace: Path) -> Sizes | None:
    """Of a trace beside which a study kept them."""
    path = trace.parent / "text.json"
    if not path.is_file():
        return None
    documents = json.loads(path.read_text(encoding="utf-8"))["documents"]
    return {name: size["bytes"] for name, size in documents.items()}


def paired_differences(
    first: Trace,
    second: Trace,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    text_bytes: tuple[Sizes, Sizes] | None = None,
) -> Iterator[dict[str, Any]]:
    """Second less first in every figure of `offramp.drawn_figures` but those per token, with a p-value.

    Documents with rows in both traces are compared; a draw takes the same documents of both. Where these give
    the two other numbers of tokens (answers that stop), the differences of `OF_EQUAL_COUNTS` are undefined;
    why says so. With text_bytes bits per byte of the full models are compared too, but not on answers that
    each model wrote itself.

    Raises InputError for traces of other workloads, of other token counts or without a document in common.
    """
    texts, counts = zip(*((_text(trace), trace.token_count) for trace in (first, second)), strict=True)
    common = _documents(first) & _documents(second)
    if len(set(texts)) > 1 or len(set(counts)) > 1 or not common:
        raise InputError(
            f"the traces ({counts[0]:,} and {counts[1]:,} tokens) are not of the same text",
            where=f"{first.folder} and {second.folder}",
            fix="trace both models on the same workload, with the same --tokens",
        )
    sides = [
        trace.subset(np.array([place for place, one in enumerate(trace.documents) if one.id in common]))
        for trace in (first, second)
    ]
    (bootstrap, one), (_, other) = [offramp.drawn_figures(side, draws=draws, seed=seed) for side in sides]
    figures = {name: (one[name], other[name]) for name in one if name in other and name not in PER_TOKEN}
    if text_bytes is not None and not any(side.generated.any() for side in sides):
        bits = [_bits(side, sizes, bootstrap) for side, sizes in zip(sides, text_bytes, strict=True)]
        figures["bits_per_byte"] = (bits[0], bits[1])
    unequal = ""
    if sides[0].token_count != sides[1].token_count:
        unequal = f"{sides[0].token_count:,} and {sides[1].token_count:,} tokens, on which R_0 depends"
    for name, (before, after) in figures.items():
        drawn, why = None, before.undefined or after.undefined or (unequal if name in OF_EQUAL_COUNTS else "")
        if before.values is not None and after.values is not None and not why:
            drawn = after.values - before.values
        found = offramp.DrawnFigure(drawn, why).estimate(bootstrap)
        yield {
            "figure": name,
            "first_value": np.nan if before.values is None else float(before.values[0]),
            "second_value": np.nan if after.values is None else float(after.values[0]),
            "difference": found.value,
            "difference_low": found.low,
            "difference_high": found.high,
            "p_value": np.nan if drawn is None or found.low is None else two_sided(drawn, len(common)),
            "documents": len(common),
            "why": found.undefined or found.no_interval or "",
        }


def _text(trace: Trace) -> str | None:
    fingerprint: str | None = trace.request.get("workload", {}).get("fingerprint")
    return fingerprint


def _documents(trace: Trace) -> set[str]:
    """Ids of the documents with rows."""
    return {trace.documents[int(place)].id for place in np.unique(trace.document)}


def _bits(trace: Trace, sizes: Sizes, bootstrap: Any) -> offramp.DrawnFigure:
    """Bits per byte: summed NLL at the last exit over ln 2 and the bytes of the text, [1 + draws].

    Documents stand in the order of the bootstrap: by the SHA-256 of their ids.
    """
    ids = sorted(_documents(trace), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    of_row = [trace.documents[int(place)].id for place in trace.document]
    nats = pd.Series(trace.fact("nll")[:, -1].astype(float)).groupby(of_row).sum()[ids].to_numpy()
    total = np.array([sizes[name] for name in ids], dtype=np.float64)
    if not total.sum():
        return offramp.DrawnFigure(None, "the observed text has no bytes")
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of documents without bytes is undefined
        return offramp.DrawnFigure(bootstrap.totals(nats) / bootstrap.totals(total) / math.log(2.0))


def two_sided(values: Values, documents: int) -> float:
    """Two-sided p-value that a difference is 0: the larger one of two.

    values: the difference and its bootstrap draws, [1 + draws]; undefined draws are left out. The first
    counts draws: 2 (1 + those of the rarer sign) / (1 + draws) (Davison and Hinkley 1997, section 4.4). It is
    too small in the far tails that a table of many differences asks for: of 20 documents, four times at
    0.0025. The second is Student's t: the difference over the draws' spread, widened by sqrt(n / (n - 1)) for
    n documents, with n - 1 degrees of freedom.
    """
    difference, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
    rarer = min(np.count_nonzero(draws <= 0.0), np.count_nonzero(draws >= 0.0))
    counted = 2.0 * (1.0 + float(rarer)) / (1.0 + len(draws))
    spread = float(np.std(draws)) * math.sqrt(documents / (documents - 1))
    tail = float(2.0 * student.sf(abs(difference) / spread, documents - 1)) if spread else 0.0
    return min(1.0, max(counted, tail))


def main() -> tuple[pd.DataFrame, Path | None]:
    """The differences of the pairs that are asked for."""
    options = parser(__doc__)
    options.add_argument("folders", type=Path, nargs="+", help="of offramp study run and offramp run")
    options.add_argument("--pairs", type=Path, help="TOML with [[pairs]]: kind, first, second")
    options.add_argument("--pair", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"))
    asked = options.parse_args()
    given = tomllib.loads(asked.pairs.read_text(encoding="utf-8"))["pairs"] if asked.pairs else []
    given += [{"kind": "as asked", "first": first, "second": second} for first, second in asked.pair]
    return pairs(asked.folders, given), asked.output


if __name__ == "__main__":
    run(main)
