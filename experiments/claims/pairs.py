"""Matched pairs of models: second less first of every figure, over the documents of both.

Reads the traces that the folders of `offramp study run` and `offramp run` keep, since a table has no documents.
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
from common import LEVEL, Values, holm, parser, run, show
from scipy.stats import t as student

import offramp
from offramp import InputError, Trace

PER_TOKEN = ("nll",)
"""Figures per token, which say nothing between models that cut texts into other tokens: left out."""
OF_EQUAL_COUNTS = ("increment", "composite")
"""Figures that hold R_0, which grows with the number of tokens: no difference where the counts differ."""
DRAWS = 10_000
"""So many that the smallest p-value, 2 / 10,001, survives Holm over a table of 250 differences."""


def pairs(
    folders: Sequence[Path], asked: Sequence[Mapping[str, str]], *, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """A line for each figure of each pair on each text that both models have, adjusted over all (Holm).

    asked: kind, and first and second by their shown names ("smollm2 + int8"). Raises InputError for an unknown
    name, two models without a text in common, or traces that may not be compared.
    """
    rows = {(row.model.shown, row.workload, row.heads): row for row in offramp.compare(folders).rows}
    lines: list[dict[str, Any]] = []
    for pair in asked:
        names, places = (pair["first"], pair["second"]), dict.fromkeys(where[1:] for where in rows)
        common = [place for place in places if all((name, *place) in rows for name in names)]
        if not common:
            known = ", ".join(sorted({name for name, *_ in rows}))
            raise InputError(
                f"{' and '.join(names)} have no workload and heads in common", fix=f"choose two of: {known}"
            )
        for workload, heads in common:
            paths = [Path(str(rows[name, workload, heads].trace_folder)) for name in names]
            traces, sizes = [Trace.load(path) for path in paths], [_text_bytes(path) for path in paths]
            for line in paired_differences(traces[0], traces[1], draws=draws, seed=seed, text_bytes=sizes):
                lines.append({**pair, "workload": workload, "heads": heads, **line})
    for line, adjusted in zip(lines, holm([line["p_value"] for line in lines]), strict=True):
        difference = line["difference"]
        line |= {"p_value_after_holm": adjusted, "difference": difference.value}
        line |= {"difference_low": difference.low, "difference_high": difference.high}
        line["why"] = difference.undefined or difference.no_interval
    return pd.DataFrame(lines)


def _text_bytes(trace: Path) -> dict[str, int] | None:
    """Bytes of the observed text by document, where a study kept them beside the trace."""
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
    text_bytes: Sequence[Mapping[str, int] | None] = (None, None),
) -> Iterator[dict[str, Any]]:
    """Second less first in every figure of `offramp.drawn_figures` but those per token, with a p-value.

    Documents with rows in both traces are compared; a draw takes the same documents of both. Where these give
    the two other numbers of tokens (answers that stop), the differences of `OF_EQUAL_COUNTS` are undefined.
    text_bytes: of the observed text by document, of each trace; bits per byte of the full models are then
    compared too, but not on answers that each model wrote itself.

    Raises InputError for traces of other workloads, of other token counts or without a document in common.
    """
    names = " and ".join(str(trace.folder) for trace in (first, second))
    texts = [trace.request.get("workload", {}).get("fingerprint") for trace in (first, second)]
    counts = [trace.token_count for trace in (first, second)]
    if texts[0] != texts[1] or counts[0] != counts[1]:
        raise InputError(
            f"the traces are of different workloads, or hold {counts[0]:,} and {counts[1]:,} tokens",
            where=names,
            fix="trace both models on the same workload, with the same --tokens",
        )
    common = set.intersection(
        *({trace.documents[place].id for place in np.unique(trace.document)} for trace in (first, second))
    )
    if not common:
        raise InputError("the traces have no document in common", where=names, fix="trace the same workload")
    sides = [
        trace.subset(np.array([i for i, document in enumerate(trace.documents) if document.id in common]))
        for trace in (first, second)
    ]
    (bootstrap, one), (_, other) = [offramp.drawn_figures(side, draws=draws, seed=seed) for side in sides]
    figures = {
        name: ([(drawn.values, drawn.undefined) for drawn in (one[name], other[name])])
        for name in one
        if name in other and name not in PER_TOKEN
    }
    if None not in text_bytes and not any(side.generated.any() for side in sides):
        figures["bits_per_byte"] = [
            _bits_per_byte(side, sizes or {}, bootstrap)
            for side, sizes in zip(sides, text_bytes, strict=True)
        ]
    unequal = None
    if sides[0].token_count != sides[1].token_count:
        unequal = f"the common documents hold {sides[0].token_count:,} and {sides[1].token_count:,} tokens, "
        unequal += "and R_0 depends on how many"
    for name, ((before, why), (after, why_too)) in figures.items():
        why = why or why_too or (unequal if name in OF_EQUAL_COUNTS else None)
        line = {"figure": name, "documents": len(common), "p_value": None}
        line |= {
            column: None if values is None else float(values[0])
            for column, values in (("first_value", before), ("second_value", after))
        }
        if before is None or after is None or why is not None:
            yield line | {"difference": offramp.Estimate(None, undefined=why)}
            continue
        line["difference"] = bootstrap.estimate(after - before)
        if line["difference"].low is not None:
            line["p_value"] = two_sided(after - before, len(common))
        yield line


def _bits_per_byte(
    trace: Trace, sizes: Mapping[str, int], bootstrap: Any
) -> tuple[Values | None, str | None]:
    """Summed NLL at the last exit over ln 2 and the bytes of the text, for the trace and its draws [1 + draws].

    Documents stand in the order of the bootstrap: by the SHA-256 of their ids.
    """
    ids = [trace.documents[place].id for place in trace.document]
    nats = pd.Series(trace.fact("nll")[:, -1].astype(float)).groupby(ids).sum()
    nats = nats.loc[sorted(nats.index, key=lambda name: hashlib.sha256(name.encode()).hexdigest())]
    total = np.array([sizes[name] for name in nats.index], dtype=np.float64)
    if not total.sum():
        return None, "the observed text has no bytes"
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of documents without bytes is undefined
        return bootstrap.totals(nats.to_numpy()) / bootstrap.totals(total) / math.log(2.0), None


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


def main() -> None:
    """Read the folders' traces, hold the pairs against each other, print what is sure."""
    options = parser(__doc__, source="folders")
    options.add_argument("folders", type=Path, nargs="+", help="of offramp study run and offramp run")
    options.add_argument("--pairs", type=Path, help="TOML with [[pairs]]: kind, first, second")
    options.add_argument("--pair", nargs=2, action="append", default=[], metavar=("FIRST", "SECOND"))
    asked = options.parse_args()
    given = tomllib.loads(asked.pairs.read_text(encoding="utf-8"))["pairs"] if asked.pairs else []
    given += [{"kind": "as asked", "first": first, "second": second} for first, second in asked.pair]
    table = pairs(asked.folders, given)
    said = []
    for (kind, first, second), found in table.groupby(["kind", "first", "second"], sort=False):
        sure = found[found["p_value_after_holm"] < LEVEL]
        said.append(f"{first} → {second} ({kind}): {len(sure)} of {len(found)} differences sure")
        said += [f"  {one.figure}, {one.workload}: {one.difference:+.3g}" for one in sure.itertuples()]
    show(table, said, asked.output)


if __name__ == "__main__":
    run(main)
