"""A comparison as tables: one row a line, units in the columns' names, undefined as null; CSV and Parquet."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from offramp.files import write_atomically, write_text_atomically
from offramp.policies.cost_breakdown import GAIN_PARTS
from offramp.scoring.eas import SIMILARITIES
from offramp.studies.comparison.combined_rows import combined_lines
from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.score_cells import score_cells
from offramp.studies.comparison.table_lines import (
    CURVE_COLUMNS,
    SCORES,
    Line,
    certified_lines,
    failures_lines,
    leaderboard_lines,
    limits,
    pairs_lines,
    profiles_lines,
    strategies_lines,
    trends_lines,
    validity_lines,
)

CELLS_FILE = "cells.jsonl"
"""Scores and savings, as `offramp predict --from-scores` reads them."""

WHERE = ("model", "transform", "workload", "heads")
TEXT, NUMBER, COUNT, TRUTH = pa.string(), pa.float64(), pa.int64(), pa.bool_()


def comparison_tables(comparison: Comparison) -> dict[str, pa.Table]:
    """Every table by name, with its columns even where it has no lines."""
    return {
        name: pa.Table.from_pylist([dict(line) for line in lines(comparison)], schema=schema)
        for name, (schema, lines) in TABLES.items()
    }


def write_tables(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write every table as CSV and as Parquet, and the cells for `offramp predict`; the paths written.

    Each file is put in place in one step. Raises DiskFullError if there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in comparison_tables(comparison).items():
        for ending, write in (("csv", pa.csv.write_csv), ("parquet", pa.parquet.write_table)):
            path = (folder / f"{name}.{ending}").absolute()  # pyarrow takes a relative "a:b" for a URI
            write_atomically(path, functools.partial(write, table))
            written.append(path)
    path = folder / CELLS_FILE
    cells = [json.dumps(asdict(cell), ensure_ascii=False, sort_keys=True) for cell in score_cells(comparison)]
    write_text_atomically(path, "".join(f"{cell}\n" for cell in cells))
    return (*written, path)


def _schema(*parts: tuple[pa.DataType, tuple[str, ...]]) -> pa.Schema:
    return pa.schema([(name, kind) for kind, names in parts for name in names])


def _limits_of(*names: str) -> tuple[str, ...]:
    return tuple(column for name in names for column in limits(name))


_EAS = tuple(
    column
    for similarity in SIMILARITIES
    for name in (f"eas_{similarity}",)
    for column in (*limits(name), f"{name}_ceiling", f"{name}_floor")
)

TABLES: dict[str, tuple[pa.Schema, Callable[[Comparison], Iterator[Line]]]] = {
    "leaderboard": (
        _schema(
            (TEXT, (*WHERE, "base", "family", "released", "kind", "stage", "workload_sha256", "source")),
            (NUMBER, ("generation", "parameters")),
            (COUNT, ("tokens", "documents")),
            (TRUTH, ("own_text",)),
            (NUMBER, (*_limits_of(*SCORES), *_EAS)),
            (NUMBER, ("bits_per_byte", "bytes_per_token", "characters_per_token")),
        ),
        leaderboard_lines,
    ),
    "certified": (
        _schema(
            (TEXT, (*WHERE, "floor", "machine", "policy", "answer", "lacks")),
            (TRUTH, ("certified", "executed")),
            (COUNT, ("documents", "documents_needed", "documents_in_all")),
            (NUMBER, limits("net_speedup")),
        ),
        certified_lines,
    ),
    "profiles": (
        _schema(
            (TEXT, WHERE),
            (COUNT, ("exit",)),
            (NUMBER, ("depth_flops_share", *_limits_of(*CURVE_COLUMNS))),
        ),
        profiles_lines,
    ),
    "strategies": (
        _schema(
            (TEXT, ("model", "workload", "heads", "machine", "family", "policy", "kv", "floor", "basis")),
            (TEXT, ("answer",)),
            (TRUTH, ("reachable", "chosen")),
            (NUMBER, _limits_of("agreement", "skip_ratio", "net_speedup")),
            (NUMBER, ("probe_share", "seconds_per_token", "characters_per_second")),
            (NUMBER, tuple(f"gain_{part}" for part in GAIN_PARTS)),
        ),
        strategies_lines,
    ),
    "pairs": (
        _schema(
            (TEXT, ("kind", "first", "second", "workload", "heads", "figure")),
            (COUNT, ("documents",)),
            (NUMBER, ("first_value", "second_value", *limits("difference"))),
            (NUMBER, ("p_value", "p_value_after_holm")),
        ),
        pairs_lines,
    ),
    "trends": (
        _schema(
            (TEXT, ("figure", "against", "family", "workload", "heads", "claim")),
            (COUNT, ("models",)),
            (NUMBER, (*limits("slope"), "intercept", "p_value", "p_value_after_holm")),
        ),
        trends_lines,
    ),
    "validity": (
        _schema(
            (TEXT, ("score", "basis", "floor", "machine", "claim")),
            (COUNT, ("bases", "cells")),
            (NUMBER, _limits_of("kendall", "spearman", "less_than_oracle")),
            (NUMBER, ("error_share_of_time", "null_error_share_of_time", "within_base_kendall")),
            (NUMBER, ("p_value", "p_value_after_holm")),
        ),
        validity_lines,
    ),
    "combined": (
        _schema(
            (TEXT, ("model", "workload", "combination", "policy", "answer", "left_out")),
            (NUMBER, ("seconds_per_token", *_limits_of("speedup", "product", "interaction"))),
            (NUMBER, limits("forced_agreement")),
        ),
        combined_lines,
    ),
    "failures": (_schema((TEXT, ("cell", "reason"))), failures_lines),
}
"""Schema and lines of each table."""
