"""The recipes of the study: those that were written down before, matched in size, and written as files."""

from __future__ import annotations

import shutil
from pathlib import Path

from command_line import run_offramp
from offramp.lab.design import PARAMETERS, design
from offramp.lab.effects.factors import FACTORS, half_fraction
from offramp.lab.text.folder import RECORD, LabText
from offramp.lab.training.architecture import make_architecture
from offramp.lab.training.recipe import read_recipe, require_one_factor

ROOT = Path(__file__).parents[3]


def test_the_runs_are_those_that_were_written_down_before() -> None:
    found = design("text", tokens=1000, rate=1e-3)
    assert len(found) == 4 + 20 + 4
    for number, cell in enumerate(half_fraction(), start=1):
        recipe = found[f"run-{number:02}"]
        assert {name: getattr(recipe, name) for name in FACTORS} == cell
        assert (recipe.seed, recipe.layers, recipe.hidden, recipe.query_heads) == (number, 12, 96, 6)
    sizes = {name: make_architecture(recipe, 2048).parameters for name, recipe in found.items()}
    other_size = ("gate-run-01", "gate-run-16", "run-31", "run-32")
    same_size = [name for name in found if name not in other_size]
    assert all(abs(sizes[name] / PARAMETERS - 1) < 0.01 for name in same_size)
    assert {recipe.layers for name, recipe in found.items() if name.startswith("gate")} == {4}
    assert all(sizes[f"gate-{name}"] < sizes[name] for name in ("run-01", "run-16"))
    seeds = [recipe.seed for name, recipe in found.items() if name.startswith("run")]
    assert len(set(seeds)) == len(seeds)
    for name, recipe in found.items():
        if recipe.against is not None:
            require_one_factor(recipe, found[recipe.against.removesuffix(".toml")], name)


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
    assert len(written) == 28
    expected = design("../text", tokens=1000, rate=2e-3)
    for path in map(Path, written):
        recipe, _ = read_recipe(path)
        assert recipe.text == str(tmp_path / "recipes" / "../text")
        assert recipe.model_dump(exclude={"text", "against"}) == expected[path.stem].model_dump(
            exclude={"text", "against"}
        )
    assert "another recipe of this name" in run_offramp(*command, 2000).require(2).err
    refused = run_offramp("lab", "design", tmp_path, "-o", tmp_path / "b", "--tokens", 1000).require(2).err
    assert "no text of a lab lies there" in refused
