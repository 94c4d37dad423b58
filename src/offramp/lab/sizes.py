"""The design of docs/lab/preregistered.md in other sizes: every recipe of it, scaled alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from offramp.lab.design import GPT2_LIKE, LLAMA_LIKE, run_name
from offramp.lab.training.architecture import make_architecture
from offramp.lab.training.recipe import AnyRecipe, ContinuedRecipe, Mamba2Recipe, Precision, Recipe

DESIGN = "design"


@dataclass(frozen=True)
class Size:
    """How a recipe of the design is scaled.

    hidden, layers, query_heads: times its own. tokens: numbers of which a pilot chooses one, ascending.
    spread_by_width: initial matrices have a standard deviation of 1/sqrt(hidden) in the place of 0.02. The
    rest as of a recipe.
    """

    hidden: Fraction = Fraction(1)
    layers: Fraction = Fraction(1)
    query_heads: Fraction = Fraction(1)
    context: int = 256
    batch: int = 16
    precision: Precision = "float32"
    tokens: tuple[int, ...] = tuple(count * 1_000_000 for count in (2, 4, 8, 16, 32))
    spread_by_width: bool = False


SIZES: Mapping[str, Size] = {
    DESIGN: Size(),
    "narrow": Size(
        hidden=Fraction(1, 2),
        layers=Fraction(1, 2),
        query_heads=Fraction(1, 2),
        context=128,
        batch=4,
        spread_by_width=True,
    ),
    "smoke": Size(hidden=Fraction(1, 2), layers=Fraction(1, 3), context=64, batch=4, tokens=(20_000,)),
    # Some 87 million weights at a vocabulary of 2,048: 12 layers of 768, heads of 64, one GPU.
    "100m": Size(
        hidden=Fraction(8),
        query_heads=Fraction(2),
        context=1024,
        batch=64,
        precision="bfloat16",
        tokens=tuple(count * 1_000_000 for count in (256, 512, 1024, 2048, 4096)),
    ),
}
"""By name: the one that was written down first, the one that was written down after its gate, one that only
shows that everything works, a larger one."""


def resized(recipes: Mapping[str, AnyRecipe], size: Size, vocabulary: int) -> dict[str, AnyRecipe]:
    """A design in another size. Parameters are those of its GPT-2-like corner with a width of 4 times the
    hidden size, and widths follow the Llama-like corner's.

    vocabulary: of the text. Raises InputError where a size cannot be matched.
    """
    scaled = {name: _scaled(recipe, size) for name, recipe in recipes.items()}
    corners = (scaled[run_name(GPT2_LIKE)], scaled[run_name(LLAMA_LIKE)], recipes[run_name(LLAMA_LIKE)])
    gpt2, llama, before = (one for one in corners if isinstance(one, Recipe))
    widened = gpt2.model_copy(update={"parameters": None, "width": 4 * gpt2.hidden})
    parameters = make_architecture(widened, vocabulary).parameters
    width = make_architecture(llama.model_copy(update={"parameters": parameters}), vocabulary).width
    grown = Fraction(width, make_architecture(before, 2048).width)
    found = {}
    for name, recipe in scaled.items():
        if isinstance(recipe, Recipe) and recipe.width is not None:
            times = grown if recipe.mlp == "swiglu" else size.hidden
            recipe = recipe.model_copy(update={"width": round(recipe.width * times)})
        elif not isinstance(recipe, ContinuedRecipe):
            recipe = recipe.model_copy(update={"parameters": parameters})
        found[name] = recipe
    return found


def _scaled(recipe: AnyRecipe, size: Size) -> AnyRecipe:
    """With layers, hidden size and heads of another size, and its own widths and parameters."""
    update: dict[str, object] = {"context": size.context, "batch": size.batch, "precision": size.precision}
    if not isinstance(recipe, ContinuedRecipe):
        update |= {
            "layers": max(1, round(recipe.layers * size.layers)),
            "hidden": round(recipe.hidden * size.hidden),
            "query_heads": round(recipe.query_heads * size.query_heads),
        }
        if not isinstance(recipe, Mamba2Recipe):  # as many as share keys and values, at least
            update["query_heads"] = max(recipe.group, round(recipe.query_heads * size.query_heads))
        if size.spread_by_width:
            update["spread"] = round(1 / math.sqrt(recipe.hidden * size.hidden), 4)
    return recipe.model_copy(update=update)
