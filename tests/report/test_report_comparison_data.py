"""Tables: Parquet, CSV and the dataclasses hold the same; units, undefined values, what is saved."""

from __future__ import annotations

import io
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_examples import CHAT, workload_result
from rich.console import Console

from comparison_examples import example_comparison
from offramp.policies.cost_breakdown import GAIN_PARTS, Gain
from offramp.policies.rules.fixed import StaticExit
from offramp.report.comparison_data import comparison_tables
from offramp.report.comparison_page import comparison_terminal, render_comparison
from offramp.report.curves import CURVES
from offramp.report.sections import leaderboard
from offramp.report.table import Column, write_tables
from offramp.scoring.card import ESTIMATES
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Place, Row, StrategyResult, share_saved
from offramp.tuning.floor import Floor
from page_reader import Page

NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=12)
ORDERED = st.tuples(NUMBERS, NUMBERS).map(
    lambda ends: ends if None in ends or not ends[0] > ends[1] else ends[::-1]
)
ESTIMATED = st.builds(lambda value, ends: Estimate(value, *ends), NUMBERS, ORDERED)
COMPARISONS = st.builds(
    Comparison,
    title=TEXTS,
    description=TEXTS,
    rows=st.just(()),
    strategies=st.lists(
        st.builds(
            StrategyResult,
            place=st.builds(Place, TEXTS, TEXTS, TEXTS, TEXTS),
            **dict.fromkeys(("family", "kv"), TEXTS),
            policy=st.builds(StaticExit, st.integers(1, 99)),
            **dict.fromkeys(("agreement", "skip_ratio", "net_speedup"), ESTIMATED),
            **dict.fromkeys(("probe_share", "seconds_per_token", "characters_per_second"), NUMBERS),
            basis=st.sampled_from(["predicted", "measured"]),
            floor=st.none() | st.builds(Floor, st.just("agreement"), st.floats(0.01, 0.99)),
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
    write_tables(comparison_tables(comparison), folder)
    tables = {path.stem: pyarrow.parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))}
    return {name: (read_csv(folder / f"{name}.csv", table), table) for name, table in tables.items()}


def read_csv(source: Any, like: pa.Table) -> pa.Table:
    """A CSV file read with the types of a table; nothing between two commas is null, "" is no text."""
    types = pyarrow.csv.ConvertOptions(
        column_types=like.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(source, parse_options=lines, convert_options=types)


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
    for strategy, line in zip(comparison.strategies, tables["strategies"].to_pylist(), strict=True):
        assert line == line_of(strategy)
    assert tables["failures"].to_pylist() == [
        {"cell": cell, "reason": reason} for cell, reason in comparison.failures.items()
    ]


def line_of(strategy: StrategyResult) -> dict[str, Any]:
    """A strategy's line by its fields: an estimate is three columns, a place four."""
    line: dict[str, Any] = dict(vars(strategy.place))
    for field in fields(strategy):
        value = getattr(strategy, field.name)
        if isinstance(value, Estimate):
            limits = {"": value.value, "_low": value.low, "_high": value.high}
            line |= {f"{field.name}{ending}": finite(limit) for ending, limit in limits.items()}
        elif field.name == "gain":
            line |= {f"gain_{part}": None if value is None else getattr(value, part) for part in GAIN_PARTS}
        elif field.name == "floor":
            line["floor"] = "" if value is None else str(value)
        elif field.name == "policy":
            line["policy"] = str(value)
        elif field.name not in ("place", "defect", "reference_agreement"):  # a defect is part of the answer
            line[field.name] = finite(value) if isinstance(value, float) else value
    return line


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def test_a_rich_comparison_is_whole_in_both_files(tmp_path: Path) -> None:
    comparison = example_comparison()
    tables = written(comparison, tmp_path)
    for name, (text, table) in tables.items():
        assert text.equals(table), name
        assert table.num_rows > 0, name
    assert [line_of(one) for one in comparison.strategies] == tables["strategies"][1].to_pylist()
    lines = tables["leaderboard"][1].to_pylist()
    assert len(lines) == len(comparison.rows)
    for line, row in zip(lines, comparison.rows, strict=True):
        assert (line["model"], line["transform"], line["workload"]) == (
            row.model.name,
            row.model.transform,
            row.workload,
        )
        for name in ESTIMATES:
            column = "initial_information_nats" if name == "initial_information" else name
            assert line[column] == getattr(row.card, name).value
            assert line[f"{column}_low"] == getattr(row.card, name).low
        assert line["eas_hidden"] == row.card.eas_variants[2].score.value
        assert line["eas_hidden_ceiling"] == 0.67
        assert line["bits_per_byte"] == row.bits_per_byte
        assert line["generation"] == row.model.generation
        assert line["mean_kl_nats"] == row.card.candidates["mean_kl"]
    profiles = tables["profiles"][1].to_pylist()
    assert len(profiles) == sum(len(row.exits) for row in comparison.rows)
    first = comparison.rows[0]
    for place, line in enumerate(profiles[: len(first.exits)]):
        assert line["exit"] == first.exits[place]
        assert line["kl_to_final_nats"] == first.card.curves.values["kl_to_final"][place]
        assert line["agreement_high"] == first.card.curves.intervals["agreement"].high[place]
        assert line["auroc"] == finite(first.card.curves.values["auroc"][place])
        assert line["aurc"] is None
    certified = tables["certified"][1].to_pylist()
    assert [line["answer"] for line in certified] == [
        answer.answer for row in comparison.rows for answer in row.answers
    ]
    combined = tables["combined"][1].to_pylist()
    assert [line["combination"] for line in combined] == ["plain", "int8", "exits", "int8 + exits"]
    assert combined[3]["interaction"] == pytest.approx(1.0, abs=0.02)


def test_every_curve_and_candidate_of_a_score_card_has_a_column() -> None:
    card = workload_result("chat", CHAT, layers=4).card
    assert set(card.curves.values) <= set(CURVES)
    columns = comparison_tables(example_comparison())["leaderboard"].column_names
    assert {f"{name}_nats" if name == "mean_kl" else name for name in card.candidates} <= set(columns)


def test_a_measurement_with_a_defect_says_which_in_the_table() -> None:
    comparison = example_comparison()
    (combined,) = comparison.combined
    assert "faster" in comparison_tables(comparison)["combined"].column("answer").to_pylist()
    combinations = tuple(
        replace(one, contender=replace(one.contender, answer="defect")) for one in combined.combinations
    )
    broken = replace(combined, defects=("a wrong output", "and layers"), combinations=combinations)
    tables = comparison_tables(replace(comparison, combined=(broken,)))
    said = set(tables["combined"].column("answer").to_pylist())
    assert said == {"defect: a wrong output; and layers"}


def test_a_new_column_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column: Column[Row] = Column(
        "Mean position", lambda row: row.card.mean_position, data=float, numeric=True
    )
    monkeypatch.setattr(leaderboard, "FIGURES", (*leaderboard.FIGURES, column))
    comparison = example_comparison()
    out = io.StringIO()
    comparison_terminal(comparison, Console(file=out, width=300))
    text, table = written(comparison, tmp_path)["leaderboard"]
    assert "Mean position" in Page(render_comparison(comparison)).text
    assert "mean position" in out.getvalue()
    for file in (text, table):
        assert set(file.column("mean_position").to_pylist()) == {16.0}


def test_empty_tables_have_their_columns(tmp_path: Path) -> None:
    tables = written(Comparison("t", "", ()), tmp_path)
    full = comparison_tables(example_comparison())
    for name, (text, table) in tables.items():
        assert table.num_rows == text.num_rows == 0
        assert table.column_names == text.column_names == full[name].column_names


def test_equal_comparisons_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_tables(comparison_tables(example_comparison()), tmp_path / name)
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
        saved = share_saved(speedups[Floor("agreement", 0.95), "local"])
        assert {**own, **place, "basis": basis, "saved_share_of_time": saved} in lines
