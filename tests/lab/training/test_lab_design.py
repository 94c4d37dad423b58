"""The recipes of the study: those that were written down before, matched in size, and written as files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from command_line import run_offramp
from offramp.lab.design import PARAMETERS, Row, design, rows_of
from offramp.lab.effects.factors import FACTORS, half_fraction
from offramp.lab.text.folder import RECORD, LabText
from offramp.lab.training.architecture import make_architecture
from offramp.lab.training.kinds import active_parameters, architecture_of
from offramp.lab.training.recipe import ContinuedRecipe, Recipe, read_recipe, require_one_factor
from offramp.studies.lab_runs import designed

ROOT = Path(__file__).parents[3]


def test_the_runs_are_those_that_were_written_down_before() -> None:
    found = design("text", tokens=1000, rate=1e-3)
    assert len(found) == 4 + 20 + 8 + 6 * 3 + 4
    for number, cell in enumerate(half_fraction(), start=1):
        recipe = found[f"run-{number:02}"]
        assert isinstance(recipe, Recipe)
        assert {name: getattr(recipe, name) for name in FACTORS} == cell
        assert (recipe.seed, recipe.layers, recipe.hidden, recipe.query_heads) == (number, 12, 96, 6)
    dense = {name: recipe for name, recipe in found.items() if isinstance(recipe, Recipe)}
    sizes = {name: make_architecture(recipe, 2048).parameters for name, recipe in dense.items()}
    other_size = ("gate-run-01", "gate-run-16", "run-31", "run-32")
    same_size = [name for name in dense if name not in other_size]
    assert all(abs(sizes[name] / PARAMETERS - 1) < 0.01 for name in same_size)
    assert {recipe.layers for name, recipe in dense.items() if name.startswith("gate")} == {4}
    assert all(sizes[f"gate-{name}"] < sizes[name] for name in ("run-01", "run-16"))
    from_scratch = [name for name in found if name.startswith("run") and name.count("-") == 1]
    assert [found[name].seed for name in from_scratch] == [*range(1, 33)]
    for name, recipe in dense.items():
        if recipe.against is not None:
            require_one_factor(recipe, dense[recipe.against.removesuffix(".toml")], name)


def test_the_second_study_differs_from_the_first_in_what_its_page_says() -> None:
    first = design("text", tokens=2_000_000, rate=1e-3)
    second = designed("narrow", 2048, 8, tokens=2_000_000, rate=1e-3)
    assert list(second) == list(first)
    for name, run in second.items():
        ours, before = run.recipe.model_dump(), first[name].model_dump()
        assert (ours["context"], ours["batch"], ours["rate"]) == (128, 4, before["rate"])
        changed = {key for key in ours if ours[key] != before[key]}
        moved = {"context", "batch", "hidden", "layers", "query_heads", "spread", "width", "parameters"}
        assert changed <= moved - ({"hidden", "layers", "query_heads", "spread"} if run.base else set())
        if not run.base:
            assert ours["spread"] == pytest.approx(ours["hidden"] ** -0.5, abs=1e-4)
            assert ours["hidden"] == before["hidden"] / 2
            assert ours["layers"] == before["layers"] / 2
    sizes = {
        name: architecture_of(run.model, 2048)
        for name, run in second.items()
        if not run.base and name not in ("gate-run-01", "gate-run-16", "run-31", "run-32")
    }
    wanted = sizes["run-01"].parameters
    assert sizes["run-01"].width == 4 * 48
    for made in sizes.values():
        assert abs((active_parameters(made) or made.parameters) / wanted - 1) < 0.01
    for run in (second[name] for name in ("run-16", "run-21", "run-25")):
        made = architecture_of(run.model, 2048)
        torch.manual_seed(0)
        model = made.make_model()
        assert model.config.initializer_range == 0.1443
        assert float(model.get_input_embeddings().weight.std()) == pytest.approx(0.1443, rel=0.02)
        spreads = {
            name: float(weight.std())
            for name, weight in model.named_parameters()
            if weight.dim() > 1 and weight.numel() > 2000 and run.model.kind != "mamba2"  # it has its own too
        }
        assert all(spread == pytest.approx(0.1443, rel=0.06) for spread in spreads.values()), spreads


def test_every_base_goes_on_in_every_way_that_was_written_down_before() -> None:
    found = design("text", tokens=1000, rate=1e-3)
    going_on = {name: recipe for name, recipe in found.items() if isinstance(recipe, ContinuedRecipe)}
    bases = [f"run-{number:02}" for number in (1, 17, 18, 16, 19, 20)]
    for base in bases:
        ways = {recipe.arm: recipe for recipe in going_on.values() if recipe.base == base}
        assert set(ways) == {"continued", "early_exit_loss", "tuned"}
        same = [recipe.model_dump(exclude={"arm"}) for recipe in ways.values()]
        assert same == [same[0]] * 3
        assert (same[0]["tokens"], same[0]["rate"], same[0]["seed"]) == (200, 2.5e-4, found[base].seed + 100)
    assert len(going_on) == 18
    # In the order of running: blocks 3, 4, 5, 6.
    blocks = [rows_of(name)[0].block for name in found]
    assert blocks == ["gate"] * 4 + ["1"] * 16 + ["2"] * 4 + ["3"] * 8 + ["4"] * 12 + ["5"] * 6 + ["6"] * 4


def test_the_table_of_results_has_a_row_for_each_model_of_the_page() -> None:
    rows = [row for name in design("text", tokens=1000, rate=1e-3) for row in rows_of(name)]
    arms = {"4": ("continued", "early_exit_loss", "frozen_exits"), "5": ("tuned", "plain")}
    for block, expected in arms.items():
        for base in (1, 17, 18, 16, 19, 20):
            found = [row.arm for row in rows if (row.block, row.base) == (block, f"run-{base:02}")]
            assert sorted(found) == sorted(expected)
    assert {row.block for row in rows if not row.base} == {"gate", "1", "2", "3", "6"}
    assert rows_of("run-16") == (Row("1"), Row("4", "run-16", "frozen_exits"))
    assert rows_of("run-19-tuned") == (Row("5", "run-19", "tuned"),)


def test_they_are_written_as_files_that_are_read_back(lab_text: LabText, tmp_path: Path) -> None:
    small = run_offramp("lab", "design", lab_text.folder, "-o", tmp_path / "a", "--tokens", 1000).require(2)
    assert "a vocabulary of 300 tokens" in small.err
    text = tmp_path / "text"
    text.mkdir()
    shutil.copy(lab_text.folder / "text.json", text)
    record = RECORD.read(text / "text.json")
    RECORD.write(text / "text.json", type(record)(**{**vars(record), "vocabulary": 2048}))
    command = ("lab", "design", text, "-o", tmp_path / "recipes", "--tokens")
    written = run_offramp(*command, 1000, "--json").require(0).json["recipes"]
    run_offramp(*command, 1000).require(0)
    assert len(written) == 54
    expected = design("../text", tokens=1000, rate=2e-3)
    for path in map(Path, written):
        recipe, _ = read_recipe(path)
        assert recipe.text == str(tmp_path / "recipes" / "../text")
        placed = {"text", "against", "base"}
        assert recipe.model_dump(exclude=placed) == expected[path.stem].model_dump(exclude=placed)
        if isinstance(recipe, ContinuedRecipe):
            assert recipe.base == str(tmp_path / "recipes" / path.stem[: len("run-01")])
    assert "another recipe of this name" in run_offramp(*command, 2000).require(2).err
    refused = run_offramp("lab", "design", tmp_path, "-o", tmp_path / "b", "--tokens", 1000).require(2).err
    assert "no text of a lab lies there" in refused
