"""From a recipe to the sizes of its model: its parameters, and the width that makes them match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offramp.errors import InputError
from offramp.lab.training.recipe import TOLERANCE, Recipe

if TYPE_CHECKING:
    from offramp.models.lab_family import LabConfig

EPSILON = 1e-5
"""In the root of every norm, of either kind."""

MATRICES = {"gelu": 2, "swiglu": 3}
"""Of a feed-forward network."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model. width: of the feed-forward networks. vocabulary: of the text's tokenizer.

    parameters: all of them, the embedding counted once, which is the head as well. products:
    multiplications of a token with weights, the head included; those of attention are not weights.
    """

    recipe: Recipe
    vocabulary: int
    width: int

    @property
    def parameters(self) -> int:
        """All weights."""
        recipe = self.recipe
        return count_parameters(recipe, self.vocabulary, self.width)

    @property
    def products(self) -> int:
        """Of a token, without attention's own."""
        recipe = self.recipe
        per_layer = _attention(recipe) + MATRICES[recipe.mlp] * recipe.hidden * self.width
        return recipe.layers * per_layer + self.vocabulary * recipe.hidden

    def make_model(self) -> Any:
        """With random weights, drawn from torch's generator as it stands."""
        from offramp.models.lab_family import LabForCausalLM

        return LabForCausalLM(self.config())

    def config(self) -> LabConfig:
        """As transformers has it."""
        from offramp.models.lab_family import LabConfig

        recipe = self.recipe
        values: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": recipe.hidden,
            "intermediate_size": self.width,
            "num_hidden_layers": recipe.layers,
            "num_attention_heads": recipe.query_heads,
            "num_key_value_heads": recipe.key_value_heads,
            "max_position_embeddings": recipe.context,
            "initializer_range": recipe.spread,
            "tie_word_embeddings": True,
            "rms_norm_eps": EPSILON,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "norm": recipe.norm,
            "mlp": recipe.mlp,
            "positions": recipe.positions,
            "residual": recipe.residual,
        }
        return LabConfig(**values)


def count_parameters(recipe: Recipe, vocabulary: int, width: int) -> int:
    """Of the model of a recipe, with a feed-forward width."""
    hidden = recipe.hidden
    norm = 2 * hidden if recipe.norm == "layernorm" else hidden
    embedding = vocabulary * hidden + (recipe.context * hidden if recipe.positions == "learned" else 0)
    per_layer = _attention(recipe) + MATRICES[recipe.mlp] * hidden * width + 2 * norm
    return embedding + recipe.layers * per_layer + norm


def make_architecture(recipe: Recipe, vocabulary: int) -> Architecture:
    """The model of a recipe; its width such that the parameters are nearest to those asked for.

    Raises InputError, with how much it is off, if no width comes within one per cent.
    """
    if recipe.width is not None:
        return Architecture(recipe, vocabulary, recipe.width)
    wanted = recipe.parameters
    assert wanted is not None, "a recipe has a width or a number of parameters"
    width = nearest_width(lambda width: count_parameters(recipe, vocabulary, width), wanted)
    return Architecture(recipe, vocabulary, width)


def nearest_width(
    count: Callable[[int], int], wanted: int, *, unit: int = 1, which: str = "feed-forward width"
) -> int:
    """The multiple of `unit` for which a model's parameters are nearest to those wanted.

    count: of a width, linear in it. Raises InputError if it is off by more than one per cent.
    """
    without = count(0)
    more = count(unit) - without
    width = unit * max(1, round((wanted - without) / more))
    found = count(width)
    off = found / wanted - 1
    if abs(off) > TOLERANCE:
        raise InputError(
            f"the nearest model has {found:,} parameters, and {wanted:,} are asked for "
            f"({off:+.1%}; {which} {width}; {unit if unit > 1 else 'one'} more is {more / wanted:.1%})",
            where="parameters",
            fix=f"ask for {found:,}, or change layers or hidden",
        )
    return width


def require_matched(ours: Architecture, theirs: Architecture, name: str) -> None:
    """Refuse to compare models whose sizes differ by more than one per cent. Raises InputError."""
    off = ours.parameters / theirs.parameters - 1
    if abs(off) > TOLERANCE:
        raise InputError(
            f"the model has {ours.parameters:,} parameters, and {name} {theirs.parameters:,} ({off:+.1%})",
            where="against",
            fix=f"write parameters = {theirs.parameters} in the place of a width",
        )


def _attention(recipe: Recipe) -> int:
    """Weights of one layer's attention: queries and output whole, keys and values by their heads."""
    shared = recipe.key_value_heads / recipe.query_heads
    return round(2 * recipe.hidden**2 * (1 + shared))
