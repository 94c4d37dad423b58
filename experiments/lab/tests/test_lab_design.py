"""The recipes of the study: those that were written down before, and matched in size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_worlds import tiny, tiny_kind

from offramp import InputError
from offramp_lab.design import FACTORS, LEVELS, PARAMETERS, SIZES, design, half_fraction, stands_for
from offramp_lab.recipes import Dense, Mamba2, Mixture, read_recipe, require_comparable

PAGE = Path(__file__).parents[1] / "docs" / "preregistered.md"


def test_the_design_is_the_one_that_was_written_down_before() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    written = {int(row[0]): tuple(row[1:6]) for row in rows if len(row) == 6 and row[0].isdecimal()}
    assert written == {run: tuple(cell.values()) for run, cell in enumerate(half_fraction(), start=1)}
    signs = np.array([[2 * LEVELS[one].index(cell[one]) - 1 for one in FACTORS] for cell in half_fraction()])
    pairs = np.stack([signs[:, a] * signs[:, b] for a in range(5) for b in range(a)], axis=1)
    columns = np.concatenate([signs, pairs], axis=1)
    assert np.array_equal(columns.T @ columns, 16 * np.eye(15)), "at right angles"


@pytest.mark.parametrize("size", sorted(SIZES))
def test_runs_of_every_size_match_but_for_those_that_are_to_differ(size: str) -> None:
    runs = design(size, tokens=1000, rate=1e-3)
    assert len(runs) == 4 + 20 + 8 + 6 * 3 + 4 + 24
    scratch = {name: run.model for name, run in runs.items() if not run.base}
    met = {name: one.active(2048, one.sized(2048)) for name, one in scratch.items()}
    unlike = ("gate-run-01", "gate-run-16", "run-31", "run-32")
    alike = [met[name] for name in scratch if name not in unlike]
    assert max(alike) / min(alike) < 1.02
    assert all(met[f"gate-{name}"] < met[name] for name in ("run-01", "run-16"))
    assert met["run-31"] < met["run-16"] < met["run-32"]
    assert [run.recipe.seed for name, run in runs.items() if name.startswith("run") and not run.base] == [
        *range(1, 57)
    ]
    if size == "design":
        assert met["run-01"] == PARAMETERS
        assert scratch["run-21"].sized(2048) == 152
        assert scratch["run-25"].sized(2048) == 136
    if size == "narrow":
        assert {one.spread for one in scratch.values() if one.hidden == 48} == {round(48**-0.5, 4)}
        assert (runs["run-01"].recipe.context, runs["run-01"].recipe.batch) == (128, 4)


def test_runs_that_go_on_have_a_fifth_of_the_tokens_and_a_quarter_of_the_rate() -> None:
    runs = design("design", tokens=1000, rate=1e-3)
    tuned = runs["run-16-tuned"]
    assert (tuned.block, tuned.base, tuned.arm) == ("5", "run-16", "tuned")
    assert (tuned.recipe.tokens, tuned.recipe.rate, tuned.recipe.seed) == (200, 1e-3 / 4, 116)
    assert stands_for(runs["run-16"]) == ("4", "frozen_exits")
    assert stands_for(runs["run-16-continued"]) == ("5", "plain")
    assert stands_for(runs["run-02"]) is None
    assert runs["run-16"].second_try.name == "run-16-again"


@pytest.mark.parametrize("recipe", [tiny(), tiny(norm="layernorm", mlp="gelu", positions="learned")])
@pytest.mark.parametrize("heads", ["all", "grouped"])
def test_parameters_are_those_of_the_modules(recipe: Dense, heads: str) -> None:
    own = recipe.model_copy(update={"heads": heads})
    for one in (own, tiny_kind("mixture", heads=heads), tiny_kind("mamba2", expand=3, width=16)):
        weights = dict(one.make_model(300).named_parameters())
        width = one.sized(300)
        assert one.weights(300, width) == sum(weight.numel() for weight in weights.values())
        experts = sum(weight.numel() for name, weight in weights.items() if ".experts." in name)
        assert one.active(300, width) == one.weights(300, width) - experts // 2  # two of four


@pytest.mark.parametrize("size", ["narrow", "smoke"])
def test_experts_of_the_design_can_be_multiplied(size: str) -> None:
    recipe = design(size, tokens=1000, rate=1e-3)["run-21"].model
    model = recipe.make_model(2048)
    ids = torch.arange(16)[None]
    model(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"width": 77}, "a multiple of 4"),
        ({"width": 76, "precision": "bfloat16"}, "a multiple of 8"),
        ({"active": 5}, "5 of 4 experts"),
        ({"width": None}, "one of parameters and width"),
        ({"group": 3}, "no whole groups of 3"),
        ({"query_heads": 10}, "no multiple of 20"),
        ({"norm": "rmsnorm"}, "Extra inputs"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        tiny_kind("mixture", **change)


def test_sizes_and_comparisons_that_do_not_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="parameters, and 9,000 are asked for"):
        tiny_kind("mamba2", width=None, parameters=9000).sized(300)
    other = tiny()
    require_comparable(tiny(norm="layernorm", factor="norm", against="x"), other, "x", 300)
    with pytest.raises(InputError, match=r"in more than norm: batch \(8, there 4\)"):
        require_comparable(tiny(norm="layernorm", factor="norm", against="x", batch=8), other, "x", 300)
    with pytest.raises(InputError, match="the factor is mlp, and it is swiglu in x as well"):
        require_comparable(tiny(factor="mlp", against="x"), other, "x", 300)
    with pytest.raises(InputError, match="write parameters ="):
        require_comparable(tiny(mlp="gelu", factor="mlp", against="x"), other, "x", 300)
    file = tmp_path / "recipe.toml"
    file.write_text('kind = "mixtur"\n')
    with pytest.raises(InputError, match="kind is 'mixtur'"):
        read_recipe(file)
    file.write_text('kind = "mamba2"\ntext = "t"\ntokens = 5\nseed = 1\nlayers = 1\nhidden = 12\nwidth = 8\n')
    read = read_recipe(file)
    assert isinstance(read, Mamba2)
    assert read.text == str(tmp_path / "t")
    assert not isinstance(read, Mixture)


def test_models_are_kept_after_each_half_of_the_next() -> None:
    recipe = tiny(tokens=1000 * 128, checkpoints=5)
    assert recipe.schedule == (62, 125, 250, 500, 1000)
    assert tiny(tokens=1).steps == 1
    assert math.prod(tiny(tokens=129).schedule) == 2
