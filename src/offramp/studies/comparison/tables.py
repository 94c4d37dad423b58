"""A comparison as tables: one row a line, units in the columns' names, undefined as null; CSV and Parquet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from offramp.files import write_atomically
from offramp.kit.spreadsheet import csv_table
from offramp.policies.cost_breakdown import GAIN_PARTS
from offramp.scoring.eas import SIMILARITIES
from offramp.studies.comparison.content import answer_text
from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.table_lines import (
    CANDIDATES,
    CURVE_COLUMNS,
    SCORES,
    Line,
    certified_lines,
    failures_lines,
    leaderboard_lines,
    limits,
    profiles_lines,
    savings_lines,
    strategies_lines,
    trainings_lines,
    validity_lines,
)


def combined_lines(comparison: Comparison) -> Iterator[Mapping[str, Any]]:
    """One line for each combination of each measurement; figures as in `Combination`."""
    for result in comparison.combined:
        for combination in result["combinations"]:
            contender, quality = combination["contender"], combination["quality"]
            seconds = contender["seconds_per_token"]
            yield {
                "model": result["model"],
                "workload": result["workload"],
                "combination": combination["name"],
                "policy": combination["policy"],
                "answer": answer_text(
                    contender["answer"], contender["resolution"], result["defects"], contender["left_out"]
                ),
                "left_out": contender["left_out"],
                "seconds_per_token": None if seconds is None else seconds["value"],
                **_limits("speedup", contender["ratio"]),
                **_limits("product", combination["product"]),
                **_limits("interaction", combination["interaction"]),
                **_limits("forced_agreement", None if quality is None else quality["forced_agreement"]),
            }


def _limits(name: str, interval: Mapping[str, float | None] | None) -> dict[str, float | None]:
    found = interval or {"value": None, "low": None, "high": None}
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}


WHERE = ("model", "transform", "workload", "heads")
TEXT, NUMBER, COUNT, TRUTH = pa.string(), pa.float64(), pa.int64(), pa.bool_()


def comparison_tables(comparison: Comparison) -> dict[str, pa.Table]:
    """Every table by name, with its columns even where it has no lines."""
    return {
        name: pa.Table.from_pylist([dict(line) for line in lines(comparison)], schema=schema)
        for name, (schema, lines) in TABLES.items()
    }


def write_tables(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write every table as CSV and as Parquet; the paths written.

    Each file is put in place in one step. Raises DiskFullError if there is no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in comparison_tables(comparison).items():
        for ending, write, kept in (
            ("csv", pa.csv.write_csv, csv_table(table)),
            ("parquet", pa.parquet.write_table, table),
        ):
            path = (folder / f"{name}.{ending}").absolute()  # pyarrow takes a relative "a:b" for a URI
            write_atomically(path, functools.partial(write, kept))
            written.append(path)
    return tuple(written)


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
            (NUMBER, (*_limits_of(*SCORES), *_EAS, *CANDIDATES.values())),
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
    "trainings": (
        _schema(
            (TEXT, ("model", "workload", "heads", "kind", "exits")),
            (COUNT, ("steps", "tokens", "rows")),
            (NUMBER, ("training_seconds",)),
            (TEXT, ("floor", "machine", "policy", "passed", "basis")),
            (NUMBER, (*limits("saved_share_of_time"), "untrained_saved_share_of_time")),
            (NUMBER, ("plain_seconds_per_token", *limits("credit"), "paid_back_after_tokens")),
        ),
        trainings_lines,
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
            (TEXT, ("answer", "credit_over")),
            (TRUTH, ("reachable", "chosen")),
            (NUMBER, _limits_of("agreement", "skip_ratio", "net_speedup", "credit")),
            (NUMBER, ("probe_share", "seconds_per_token", "characters_per_second")),
            (NUMBER, tuple(f"gain_{part}" for part in GAIN_PARTS)),
        ),
        strategies_lines,
    ),
    "savings": (
        _schema((TEXT, (*WHERE, "base", "floor", "machine", "basis")), (NUMBER, ("saved_share_of_time",))),
        savings_lines,
    ),
    "validity": (
        _schema((TEXT, ("score", "floor", "machine")), (COUNT, ("bases",)), (NUMBER, limits("kendall"))),
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
