"""Published values of EAS from a study's file to its page, on tiny models: no task is done twice for one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from fault_studies import plan_into, run_jobs
from study_files import plan_of, small_world

from offramp.errors import InputError
from offramp.report.page import write_comparison_page
from offramp.scoring.eas import SIMILARITIES, adaptability, layer_weights
from offramp.studies.comparison.reading import read_comparison
from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.tables import comparison_tables
from offramp.studies.folder import StudyFolder
from offramp.studies.task import Plan
from tiny_models import write_llama

ALPHA, MADE_BY = 0.3, "hidden"
LAYERS = (3, 4, 6)

STUDY = """
policies = ["static:exit=1"]
machines = ["h100"]

[study]
name = "published"
tokens = 400
threads = 1
draws = 40

[[workloads]]
name = "texts"
source = "jsonl:{documents}#text"
"""
MODEL = """
[[models]]
name = "tiny-{layers}"
source = "{folder}"
published_eas = {value!r}
"""


def study_file(path: Path, values: dict[int, float], documents: Path) -> Path:
    models = [
        MODEL.format(layers=layers, folder=path.parent / f"tiny-{layers}", value=value)
        for layers, value in values.items()
    ]
    path.write_text(STUDY.format(documents=documents) + "".join(models))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    return StudyFolder(tmp_path_factory.mktemp("studies") / "published")


@pytest.fixture(scope="module")
def values(folder: StudyFolder, documents: Path) -> dict[int, float]:
    """EAS of each model with the one similarity and α, from a run of the study with other values."""
    write_llama(folder.path.parent / "tiny-3", num_hidden_layers=3)
    write_llama(folder.path.parent / "tiny-4", hidden_act="gelu", num_key_value_heads=4)
    write_llama(folder.path.parent / "tiny-6", num_hidden_layers=6)
    path = study_file(folder.path.parent / "STUDY.toml", dict.fromkeys(LAYERS, 1.0), documents)
    assert run_jobs(folder, plan_into(path, folder)) == []
    found = {}
    for row in read_comparison([folder.path]).rows:
        similarity = np.array(row.curves[SIMILARITIES[MADE_BY]][:-1], dtype=np.float64)
        weights = layer_weights(np.array(row.exits[:-1]), row.exits[-1])
        found[row.exits[-1]] = float(adaptability(similarity, weights, ALPHA))
    return found


@pytest.fixture(scope="module")
def plan(folder: StudyFolder, values: dict[int, float], documents: Path) -> Plan:
    """The study with these values, planned into the same folder, and nothing run again."""
    return plan_into(study_file(folder.path.parent / "STUDY.toml", values, documents), folder)


@pytest.fixture(scope="module")
def comparison(folder: StudyFolder, plan: Plan) -> Comparison:
    assert all(folder.is_done(task) for task in plan.tasks.values())
    return read_comparison([folder.path])


def test_a_published_value_changes_no_task(tmp_path: Path) -> None:
    small_world(tmp_path)
    text = 'workloads = ["txt:one.txt"]\nmachines = ["h100"]\n[[models]]\nname = "a"\n'
    assert (
        plan_of(tmp_path, text).tasks.keys() == plan_of(tmp_path, f"{text}published_eas = 0.5\n").tasks.keys()
    )


@pytest.mark.parametrize("value", ["0", "-0.1", "1.01", "nan", '"0.5"'])
def test_a_value_that_is_no_eas_is_refused(tmp_path: Path, value: str) -> None:
    small_world(tmp_path)
    text = f'workloads = ["txt:one.txt"]\n[[models]]\nname = "a"\npublished_eas = {value}\n'
    with pytest.raises(InputError, match="published_eas") as caught:
        plan_of(tmp_path, text)
    assert "line" in caught.value.where


def test_the_similarity_and_alpha_that_made_the_values_are_found(comparison: Comparison) -> None:
    fits = {fit.similarity: fit for fit in comparison.eas}
    assert list(fits) == list(SIMILARITIES)
    assert fits[MADE_BY].alpha == pytest.approx(ALPHA, abs=1e-3)
    assert fits[MADE_BY].error == pytest.approx(0.0, abs=1e-5)
    assert [one.model for one in fits[MADE_BY].models] == [f"tiny-{layers}" for layers in LAYERS]


def test_the_page_and_the_tables_say_so(comparison: Comparison, tmp_path: Path) -> None:
    page = write_comparison_page(comparison, tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="eas"' in page
    assert re.search(r"EAS, hidden state, on texts: [^;]*; α = 0\.30, and with the α of the others", page)
    assert "a description and no replication" in " ".join(page.split())
    tables = comparison_tables(comparison)
    lines = {line["similarity"]: line for line in tables["eas_fits"].to_pylist()}
    assert lines[MADE_BY]["alpha"] == pytest.approx(ALPHA, abs=1e-3)
    assert lines[MADE_BY]["models"] == len(LAYERS)
    assert tables["eas_models"].num_rows == len(LAYERS) * len(SIMILARITIES)


def test_a_model_whose_cells_are_not_done_is_named(
    folder: StudyFolder, values: dict[int, float], plan: Plan, documents: Path, tmp_path: Path
) -> None:
    """A study of one model more, which was never traced."""
    del plan  # the folder is as it left it
    write_llama(folder.path.parent / "tiny-2", num_hidden_layers=2)
    path = study_file(folder.path.parent / "OTHER.toml", {**values, 2: 0.5}, documents)
    other = StudyFolder(tmp_path / "other")
    other.path.mkdir()
    (other.path / "tasks").symlink_to(folder.path / "tasks")
    plan_into(path, other)
    found = read_comparison([other.path])
    assert {fit.missing for fit in found.eas} == {("tiny-2",)}
    assert all(fit.claim.endswith("(3 models; without tiny-2, not measured)") for fit in found.eas)
    both = read_comparison([other.path, folder.path])
    assert [(fit.alpha, fit.missing) for fit in both.eas] == [(fit.alpha, fit.missing) for fit in found.eas]
