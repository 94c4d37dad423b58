"""The pages about studies and comparisons: the example is a study; no key, table or command is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import offramp
from command_line import run_offramp
from offramp.report.comparison_data import comparison_tables
from offramp.report.comparison_page import NAVIGATION
from offramp.studies import study_tables
from offramp.studies.comparison.results import Comparison
from offramp.studies.engines.registry import ENGINES
from offramp.studies.study import Study
from offramp.studies.study_tables import TomlTable

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
TABLES = [
    kind
    for kind in vars(study_tables).values()
    if isinstance(kind, type) and issubclass(kind, TomlTable) and kind is not TomlTable
]


def test_the_example_is_a_study(tmp_path: Path) -> None:
    example, trainings = re.findall(r"^```toml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    path = tmp_path / "small.toml"
    path.write_text(example + trainings, encoding="utf-8")
    study = offramp.read_study(path)
    assert isinstance(study, offramp.Study)
    assert [model.name for model in study.models] == ["smollm2"]
    assert len(study.exclude) == 1
    assert [training.kind for training in study.trainings] == [None, "block"]


@pytest.mark.parametrize("table", [Study, *TABLES])
def test_every_key_is_explained(table: type[TomlTable]) -> None:
    keys = {field.alias or name for name, field in table.model_fields.items()}
    missing = sorted(key for key in keys if not re.search(rf"`\[?\[?{key}\]?\]?[` ]|\b{key} = ", PAGE))
    assert missing == []


def test_every_shipped_study_and_every_engine_is_named() -> None:
    for path in (ROOT / "studies").glob("*.toml"):
        assert f"studies/{path.name})" in PAGE, path.name
    for name in ENGINES:
        assert f"`--engine {name}`" in PAGE


def test_every_section_and_table_of_a_comparison_is_explained() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    tables = comparison_tables(Comparison("", "", ()))
    assert sorted(name for name in tables if f"`{name}`" not in page) == []
    apart = {"Tables", "Cite", "Words"}
    assert [name for _, name in NAVIGATION if f"| {name} |" not in page and name not in apart] == []


def test_every_command_and_option_is_named() -> None:
    help_texts = [run_offramp("study", command, "--help").out for command in ("plan", "run", "status")]
    options = set(re.findall(r" (--[a-z]+)", " ".join(help_texts))) - {"--help", "--json", "--output"}
    assert sorted(option for option in options if option not in PAGE) == []
