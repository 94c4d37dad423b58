"""Recipes: sizes that match or are refused, one factor at a time, and errors with their lines."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import run_offramp
from lab_recipes import TINY, tiny, write_recipe
from offramp.errors import InputError
from offramp.lab.text.folder import LabText
from offramp.lab.training.architecture import make_architecture
from offramp.lab.training.comparison import require_comparable
from offramp.lab.training.recipe import KINDS, ContinuedRecipe, Reading, Recipe, read_recipe

SWITCHES = {
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu", "swiglu"),
    "positions": ("learned", "rotary"),
    "heads": ("all", "grouped"),
    "residual": ("plain", "depth_scaled"),
}
STUDY = {"layers": 12, "hidden": 96, "query_heads": 6, "group": 3, "context": 256, "vocabulary": 2048}
GPT2_LIKE_PARAMETERS = 1_553_088
"""With a feed-forward width of four times the hidden size: what docs/lab/preregistered.md matches all to."""


def test_the_page_names_the_keys_of_every_kind() -> None:
    page = (Path(__file__).parents[3] / "docs" / "lab.md").read_text(encoding="utf-8")
    rows = page.partition("| recipe | keys |\n|---|---|\n")[2].partition("\n\n")[0].splitlines()
    named = [re.findall(r"`(\w+)`", row.split("|")[2]) for row in rows]
    every, *own = [
        [field.alias or name for name, field in kind.model_fields.items()]
        for kind in (Reading, *KINDS.values(), ContinuedRecipe)
    ]
    assert named == [every, *([key for key in keys if key not in every] for keys in own)]


@pytest.mark.parametrize("values", list(itertools.product(*SWITCHES.values())), ids="-".join)
def test_every_combination_of_switches_has_as_many_parameters(values: tuple[str, ...]) -> None:
    from offramp.models.lab_family import LabForCausalLM

    sizes = {key: value for key, value in STUDY.items() if key != "vocabulary"}
    given: dict[str, Any] = {**TINY, **dict(zip(SWITCHES, values, strict=True)), **sizes, "width": None}
    recipe = Recipe(text="text", parameters=GPT2_LIKE_PARAMETERS, **given)
    found = make_architecture(recipe, STUDY["vocabulary"])
    with torch.device("meta"):
        model: Any = LabForCausalLM(found.config())
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert abs(found.parameters / GPT2_LIKE_PARAMETERS - 1) < 0.01
    matrices = [w for name, w in model.named_parameters() if w.dim() == 2 and "embed_positions" not in name]
    assert found.products == sum(weight.numel() for weight in matrices)  # the embedding, as the head
    if values == ("layernorm", "gelu", "learned", "all", "plain"):
        assert found.width == 4 * 96


def test_a_size_that_no_width_gives_is_refused_with_how_far_off_it_is(lab_text: LabText) -> None:
    with pytest.raises(InputError, match=r"16,096 parameters, and 9,000 are asked for \(\+78\.8%") as refused:
        make_architecture(tiny(lab_text, width=None, parameters=9000), 300)
    assert "ask for 16,096" in refused.value.fix


def test_models_of_unmatched_sizes_are_not_compared(lab_text: LabText, tmp_path: Path) -> None:
    write_recipe(tmp_path / "other.toml", lab_text)
    against = {"against": str(tmp_path / "other.toml"), "factor": "norm", "norm": "layernorm"}
    wider = tiny(lab_text, width=52, **against)
    with pytest.raises(InputError, match=r"parameters, and other\.toml 25,120 \(\+3\.7%\)") as refused:
        require_comparable(wider, lab_text.fingerprint, make_architecture(wider, 300))
    parameters = int(refused.value.fix.split("parameters = ")[1].split()[0])
    matched = tiny(lab_text, width=None, parameters=parameters, **against)
    require_comparable(matched, lab_text.fingerprint, make_architecture(matched, 300))


def test_models_that_differ_in_more_than_the_factor_are_not_compared(
    lab_text: LabText, tmp_path: Path
) -> None:
    write_recipe(tmp_path / "other.toml", lab_text)

    def refused(text: str = lab_text.fingerprint, **more: Any) -> str:
        recipe = tiny(lab_text, against=str(tmp_path / "other.toml"), **more)
        with pytest.raises(InputError) as error:
            require_comparable(recipe, text, make_architecture(recipe, 300))
        return str(error.value)

    more = refused(factor="norm", norm="layernorm", rate=1e-3)
    assert "in more than norm: rate (0.001, there 0.005)" in more
    assert "the factor is norm, and it is rmsnorm in other.toml as well" in refused(factor="norm")
    assert "another tokenizer" in refused("0" * 64, factor="norm", norm="layernorm")


@pytest.mark.parametrize(
    ("changes", "line", "what"),
    [
        ({"norm": "batchnorm"}, 3, "choose one of: layernorm, rmsnorm"),
        ({"widht": 3}, 18, "did you mean 'width'"),
        ({"parameters": 9000}, 18, "both parameters and width are given"),
        ({"width": None}, 1, "neither parameters nor width is given"),
        ({"factor": "norm"}, 18, "against and factor are given together"),
        ({"hidden": 36}, 9, "give a multiple of 8"),
        ({"group": 3}, 12, "no whole groups of 3"),
        ({"rate": 0.0}, 15, "greater than 0"),
        ({"layers": 10**9}, 8, "less than or equal to 1000"),
        ({"tokens": 10**15}, 2, "less than or equal to"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_line(
    lab_text: LabText, tmp_path: Path, changes: dict[str, Any], line: int, what: str
) -> None:
    path = write_recipe(tmp_path / "recipe.toml", lab_text, **changes)
    outcome = run_offramp("lab", "train", path, "-o", tmp_path / "model").require(2)
    assert f"recipe.toml, line {line}" in outcome.err
    assert what in outcome.err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("sizes", [{"hidden": 4 * 10**6}, {"width": 10**11}])
def test_a_model_that_no_memory_holds_is_refused(
    lab_text: LabText, tmp_path: Path, sizes: dict[str, int]
) -> None:
    path = write_recipe(tmp_path / "recipe.toml", lab_text, **sizes)
    outcome = run_offramp("lab", "train", path, "-o", tmp_path / "model").require(2)
    assert "of memory, and" in outcome.err
    assert not (tmp_path / "model").exists()


def test_a_recipe_says_when_models_are_kept(lab_text: LabText) -> None:
    recipe = tiny(lab_text)
    assert (recipe.steps, recipe.schedule, recipe.key_value_heads) == (19, (4, 9, 19), 2)
    assert tiny(lab_text, checkpoints=8).schedule == (1, 2, 4, 9, 19)


def test_paths_of_a_recipe_are_relative_to_it(lab_text: LabText, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.toml", lab_text, text="text", against="b", factor="seed")
    recipe, _ = read_recipe(path)
    assert isinstance(recipe, Recipe)
    assert (recipe.text, recipe.against) == (str(tmp_path / "text"), str(tmp_path / "b"))
