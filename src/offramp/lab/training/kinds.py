"""Models of other kinds than dense: a mixture of experts and a state space, transformers' own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offramp.errors import InputError
from offramp.lab.training.architecture import (
    EPSILON,
    MATRICES,
    Architecture,
    make_architecture,
    nearest_width,
)
from offramp.lab.training.recipe import FromScratch, Mamba2Recipe, MixtureRecipe, Recipe

STATE_UNIT = 8
"""The state's size is a multiple of it."""

ALIGNED_BYTES = 16
"""Rows of an expert's matrices are a multiple of it: torch multiplies those of all experts at once so."""

CONVOLVED = 4
"""Tokens that Mamba-2's convolution looks at."""

THETA = 10_000.0
"""Of rotary positions, as of dense models; Mixtral's own is 100 times that, for contexts of 32,768 tokens."""


@dataclass(frozen=True)
class Mixture:
    """A Mixtral. width: of each expert.

    parameters: all of them. active: those that a token meets. products: as of `Architecture`.
    """

    recipe: MixtureRecipe
    vocabulary: int
    width: int

    @property
    def parameters(self) -> int:
        """All weights."""
        return self._with(self.recipe.experts)

    @property
    def active(self) -> int:
        """Weights that a token meets: of its own experts and of all that is no expert."""
        return self._with(self.recipe.active)

    @property
    def products(self) -> int:
        """Of a token, without attention's own."""
        norms = (2 * self.recipe.layers + 1) * self.recipe.hidden
        return self.active - norms

    def _with(self, experts: int) -> int:
        recipe = self.recipe
        shared = recipe.key_value_heads / recipe.query_heads
        attention = round(2 * recipe.hidden**2 * (1 + shared))
        router = recipe.experts * recipe.hidden
        networks = experts * MATRICES["swiglu"] * recipe.hidden * self.width
        per_layer = attention + router + networks + 2 * recipe.hidden
        return (self.vocabulary + 1) * recipe.hidden + recipe.layers * per_layer

    def make_model(self) -> Any:
        """With random weights, drawn from torch's generator as it stands."""
        from transformers import MixtralConfig, MixtralForCausalLM

        recipe = self.recipe
        config = MixtralConfig(
            vocab_size=self.vocabulary,
            hidden_size=recipe.hidden,
            intermediate_size=self.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.query_heads,
            num_key_value_heads=recipe.key_value_heads,
            max_position_embeddings=recipe.context,
            initializer_range=recipe.spread,
            rms_norm_eps=EPSILON,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            num_local_experts=recipe.experts,
            num_experts_per_tok=recipe.active,
            rope_parameters={"rope_type": "default", "rope_theta": THETA},
        )
        made: Any = MixtralForCausalLM  # which has no types
        return made(config)


@dataclass(frozen=True)
class Mamba2:
    """A Mamba-2. width: numbers of state for each inner unit. products: as of `Architecture`, the
    convolution's included; those of the state are not weights.
    """

    recipe: Mamba2Recipe
    vocabulary: int
    width: int

    @property
    def inner(self) -> int:
        """Units between the two matrices of a layer."""
        return self.recipe.expand * self.recipe.hidden

    @property
    def parameters(self) -> int:
        """All weights; a token meets each."""
        recipe = self.recipe
        # Of the convolution its biases, of the heads a bias of their step, their decay and what passes by.
        vectors = self._convolved + 3 * recipe.query_heads + self.inner + recipe.hidden
        return self.products + recipe.layers * vectors + recipe.hidden

    @property
    def products(self) -> int:
        """Of a token, without those of the state."""
        recipe = self.recipe
        inwards = recipe.hidden * (self.inner + self._convolved + recipe.query_heads)
        per_layer = inwards + CONVOLVED * self._convolved + self.inner * recipe.hidden
        return self.vocabulary * recipe.hidden + recipe.layers * per_layer

    @property
    def _convolved(self) -> int:
        """Channels of the convolution: the inner units, and what writes and reads the state."""
        return self.inner + 2 * self.width

    def make_model(self) -> Any:
        """With random weights, drawn from torch's generator as it stands."""
        from transformers import Mamba2Config, Mamba2ForCausalLM

        recipe = self.recipe
        values: dict[str, Any] = {
            "vocab_size": self.vocabulary,
            "hidden_size": recipe.hidden,
            "num_hidden_layers": recipe.layers,
            "expand": recipe.expand,
            "num_heads": recipe.query_heads,
            "head_dim": self.inner // recipe.query_heads,
            "state_size": self.width,
            "n_groups": 1,
            "conv_kernel": CONVOLVED,
            "chunk_size": recipe.chunk,
            "initializer_range": recipe.spread,
            "layer_norm_epsilon": EPSILON,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "max_position_embeddings": recipe.context,  # not Mamba-2's own: what it has seen
        }
        made: Any = Mamba2ForCausalLM
        return made(Mamba2Config(**values))


AnyArchitecture = Architecture | Mixture | Mamba2


def active_parameters(architecture: AnyArchitecture) -> int | None:
    """Weights that a token meets; None where it meets all."""
    return architecture.active if isinstance(architecture, Mixture) else None


def architecture_of(recipe: FromScratch, vocabulary: int) -> AnyArchitecture:
    """The model of a recipe of any kind; its width such that the parameters that a token meets are nearest to
    those asked for.

    Raises InputError, with how much it is off, if no width comes within one per cent, and for a width or a
    hidden size with which experts cannot be multiplied.
    """
    if isinstance(recipe, Recipe):
        return make_architecture(recipe, vocabulary)
    unit, which = STATE_UNIT, "state"
    if isinstance(recipe, MixtureRecipe):
        unit, which = _expert_unit(recipe), "width of an expert"
    made = Mixture if isinstance(recipe, MixtureRecipe) else Mamba2

    def of(width: int) -> Mixture | Mamba2:
        return made(recipe, vocabulary, width)  # type: ignore[arg-type]

    def count(width: int) -> int:
        return active_parameters(of(width)) or of(width).parameters

    if recipe.width is not None:
        return of(recipe.width)
    assert recipe.parameters is not None, "a recipe has a width or a number of parameters"
    return of(nearest_width(count, recipe.parameters, unit=unit, which=which))


def _expert_unit(recipe: MixtureRecipe) -> int:
    """What an expert's width is a multiple of, if the recipe's sizes are; InputError else."""
    unit = ALIGNED_BYTES // (2 if recipe.precision == "bfloat16" else 4)
    for name, size in (("hidden", recipe.hidden), ("width", recipe.width)):
        if size is not None and size % unit:
            raise InputError(
                f"experts of {name} {size} cannot be multiplied at once: in {recipe.precision} it is a "
                f"multiple of {unit}",
                where=name,
                fix=f"give {size // unit * unit or unit} or {(size // unit + 1) * unit}",
            )
    return unit
