"""Tables: Parquet, CSV and the dataclasses hold the same; units, undefined values, what is saved."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from comparison_traces import synthetic_trace
from hypothesis import given, settings
from hypothesis import strategies as st

from comparison_examples import example_comparison
from offramp.policies.cost_breakdown import GAIN_PARTS, Gain
from offramp.scoring.card import ESTIMATES
from offramp.scoring.estimate import Estimate
from offramp.scoring.scoring import score
from offramp.studies.comparison.results import Comparison, Strategy, share_saved
from offramp.studies.comparison.table_lines import CURVES
from offramp.studies.comparison.tables import comparison_tables, write_tables

NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=12)
ESTIMATED = st.builds(Estimate, NUMBERS, NUMBERS, NUMBERS)
COMPARISONS = st.builds(
    Comparison,
    title=TEXTS,
    description=TEXTS,
    rows=st.just(()),
    strategies=st.lists(
        st.builds(
            Strategy,
            **dict.fromkeys(("model", "workload", "heads", "machine", "family", "policy", "kv"), TEXTS),
            **dict.fromkeys(("agreement", "skip_ratio", "net_speedup"), ESTIMATED),
            **dict.fromkeys(("probe_share", "seconds_per_token", "characters_per_second"), NUMBERS),
            basis=st.sampled_from(["predicted", "measured"]),
            floor=TEXTS,
            reachable=st.booleans(),
            answer=TEXTS,
            gain=st.none() | st.builds(Gain, **dict.fromkeys(GAIN_PARTS, st.floats(-1, 1))),
        ),
        max_size=3,
    ).map(tuple),
    failures=st.dictionaries(TEXTS, TEXTS, max_size=2),
)
"""Of any text and any number; what else a table may hold is in `example_comparison`."""


def written(comparison: Comparison, folder: Path) -> dict[str, tuple[pa.Table, pa.Table]]:
    """What was written, by table: (CSV, Parquet)."""
    write_tables(comparison, folder)
    tables = {path.stem: pyarrow.parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))}
    return {name: (read_csv(folder / f"{name}.csv", table), table) for name, table in tables.items()}


def read_csv(source: Any, like: pa.Table) -> pa.Table:
    """A CSV file read with the types of a table; nothing between two commas is null, "" is no text."""
    types = pyarrow.csv.ConvertOptions(
        column_types=like.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(source, parse_options=lines, convert_options=types)


def expected_lines(values: tuple[Any, ...]) -> list[dict[str, Any]]:
    """The lines of a table by the fields of its dataclasses: an estimate is three columns."""
    lines = []
    for value in values:
        line: dict[str, Any] = {}
        for field in fields(value):
            part = getattr(value, field.name)
            column = field.name
            if isinstance(part, Estimate):
                limits = {column: part.value, f"{column}_low": part.low, f"{column}_high": part.high}
                line |= {key: finite(limit) for key, limit in limits.items()}
            elif field.name == "gain":
                line |= {f"gain_{one}": None if part is None else getattr(part, one) for one in GAIN_PARTS}
            else:
                line[column] = finite(part) if isinstance(part, float) else part
        lines.append(line)
    return lines


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@settings(max_examples=25, deadline=None)
@given(comparison=COMPARISONS)
def test_csv_parquet_and_dataclasses_hold_the_same(comparison: Comparison) -> None:
    tables = comparison_tables(comparison)
    for name, table in tables.items():
        text, columns = io.BytesIO(), io.BytesIO()
        pyarrow.csv.write_csv(table, text)
        pyarrow.parquet.write_table(table, columns)
        assert read_csv(io.BytesIO(text.getvalue()), table).equals(table), name
        assert pyarrow.parquet.read_table(columns).equals(table), name
    require_fields(tables, comparison)
    assert tables["failures"].to_pylist() == [
        {"cell": cell, "reason": reason} for cell, reason in comparison.failures.items()
    ]


def require_fields(tables: Mapping[str, pa.Table], comparison: Comparison) -> None:
    """Tables that hold one dataclass a line hold all its fields."""
    for name in ("strategies", "validity"):
        lines = expected_lines(getattr(comparison, name))
        assert tables[name].to_pylist() == lines_in_order(lines, tables[name]), name


def lines_in_order(lines: list[dict[str, Any]], table: pa.Table) -> list[dict[str, Any]]:
    """The same lines with the table's columns; a column that the dataclass lacks is an error."""
    for line in lines:
        assert set(line) == set(table.column_names)
    return [{name: line[name] for name in table.column_names} for line in lines]


def test_a_rich_comparison_is_whole_in_both_files(tmp_path: Path) -> None:
    comparison = example_comparison()
    tables = written(comparison, tmp_path)
    for name, (text, table) in tables.items():
        assert text.equals(table), name
        assert table.num_rows > 0, name
    require_fields({name: table for name, (_, table) in tables.items()}, comparison)
    leaderboard = tables["leaderboard"][1].to_pylist()
    assert len(leaderboard) == len(comparison.rows)
    for line, row in zip(leaderboard, comparison.rows, strict=True):
        assert (line["model"], line["transform"], line["workload"]) == (
            row.model.name,
            row.model.transform,
            row.workload,
        )
        for name in ESTIMATES:
            column = "initial_information_nats" if name == "initial_information" else name
            assert line[column] == row.scores[name].value
            assert line[f"{column}_low"] == row.scores[name].low
        assert line["eas_hidden"] == row.eas[2]["score"]["value"]
        assert line["eas_hidden_ceiling"] == 0.67
        assert line["bits_per_byte"] == row.bits_per_byte
        assert line["generation"] == row.model.generation
        assert line["mean_kl_nats"] == row.candidates["mean_kl"]
    profiles = tables["profiles"][1].to_pylist()
    assert len(profiles) == sum(len(row.exits) for row in comparison.rows)
    first = comparison.rows[0]
    for place, line in enumerate(profiles[: len(first.exits)]):
        assert line["exit"] == first.exits[place]
        assert line["kl_to_final_nats"] == first.curves["kl_to_final"][place]
        assert line["agreement_high"] == first.intervals["agreement"]["high"][place]
        assert line["auroc"] == first.curves["auroc"][place]
        assert line["aurc"] is None
    certified = tables["certified"][1].to_pylist()
    assert [line["answer"] for line in certified] == [
        one.answer for row in comparison.rows for one in row.savings
    ]
    combined = tables["combined"][1].to_pylist()
    assert [line["combination"] for line in combined] == ["plain", "int8", "exits", "int8 + exits"]
    assert combined[3]["interaction"] == pytest.approx(1.0, abs=0.02)


def test_every_curve_of_a_score_card_has_a_column() -> None:
    generator = np.random.default_rng(0)
    card = score(synthetic_trace(generator.random((240, 4)) < 0.5, length=6), draws=40)
    assert set(card.curves.values) <= set(CURVES)


def test_a_measurement_with_a_defect_says_which_in_the_table() -> None:
    comparison = example_comparison()
    (combined,) = comparison.combined
    assert "faster" in comparison_tables(comparison)["combined"].column("answer").to_pylist()
    contenders = [
        {**one, "contender": {**one["contender"], "answer": "defect"}} for one in combined["combinations"]
    ]
    broken = {**combined, "defects": ["a wrong output", "and layers"], "combinations": contenders}
    tables = comparison_tables(replace(comparison, combined=(broken,)))
    said = set(tables["combined"].column("answer").to_pylist())
    assert said == {"defect: a wrong output; and layers"}


def test_empty_tables_have_their_columns(tmp_path: Path) -> None:
    tables = written(Comparison("t", "", ()), tmp_path)
    full = comparison_tables(example_comparison())
    for name, (text, table) in tables.items():
        assert table.num_rows == text.num_rows == 0
        assert table.column_names == text.column_names == full[name].column_names


def test_equal_comparisons_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_tables(example_comparison(), tmp_path / name)
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 2 * len(comparison_tables(example_comparison()))
    for path in files:
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()


def test_savings_are_those_of_the_rows_predicted_and_measured() -> None:
    comparison = example_comparison()
    lines = comparison_tables(comparison)["savings"].to_pylist()
    assert len(lines) == sum(len(row.exit_speedup) + len(row.measured_speedup) for row in comparison.rows)
    (row,) = (
        row for row in comparison.rows if (row.model.shown, row.workload) == ("qwen3-8b + int8", "code")
    )
    own = {"model": "qwen3-8b", "transform": "int8", "workload": "code", "heads": "", "base": "qwen3-8b"}
    place = {"floor": "agreement=0.95", "machine": "local"}
    for basis, speedups in (("predicted", row.exit_speedup), ("measured", row.measured_speedup)):
        saved = share_saved(speedups["agreement=0.95 | local"])
        assert {**own, **place, "basis": basis, "saved_share_of_time": saved} in lines


def test_every_candidate_score_has_a_column() -> None:
    generator = np.random.default_rng(0)
    card = score(synthetic_trace(generator.random((240, 4)) < 0.5, length=6), draws=40)
    columns = comparison_tables(example_comparison())["leaderboard"].column_names
    assert {f"{name}_nats" if name == "mean_kl" else name for name in card.candidates} <= set(columns)
