"""A recipe: everything that decides the weights of a small model, but for the text itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from offramp.errors import InputError
from offramp.models.lab_switches import Heads, Mlp, Norm, Positions, Residual
from offramp.records.given_file import (
    Count,
    Positive,
    Source,
    Table,
    Text,
    Whole,
    checked,
    did_you_mean,
    read_toml,
)

WHAT = "recipe"

Precision = Literal["float32", "bfloat16"]
Factor = Literal["norm", "mlp", "positions", "heads", "residual", "layers", "hidden", "seed"]

FREE = ("text", "against", "factor", "seed", "width", "parameters")
"""What may differ between a recipe and the one it is held against, besides its factor. (Texts are compared by
what they hold and not by where they lie.)"""

WITH_FACTOR = {"hidden": ("query_heads", "spread"), "heads": ("group",)}
"""What changes with a factor."""

TOLERANCE = 0.01
"""By how much the parameters of two models that are compared may differ, as a share."""


MOST_TOKENS = 10**11
"""A small model reads them in years."""

Layers = Annotated[int, Field(strict=True, ge=1, le=1000)]


class Reading(Table):
    """What is read, in which steps, and how far each goes.

    text: a folder of `offramp lab text`. seed: of all that is drawn. batch: sequences of a step, each of
    `context` tokens. rate: the largest learning rate. checkpoints: models that are kept, the last one
    included. precision: of products while it trains.
    """

    text: Text
    tokens: Annotated[int, Field(strict=True, ge=1, le=MOST_TOKENS)]
    seed: Whole
    context: Annotated[int, Field(strict=True, ge=8, le=65_536)] = 256
    batch: Count = 16
    rate: Positive = 2e-3
    checkpoints: Annotated[int, Field(strict=True, ge=1, le=32)] = 8
    precision: Precision = "float32"

    @property
    def steps(self) -> int:
        """So many that the tokens are read, the last step full as all others."""
        return -(-self.tokens // (self.batch * self.context))

    @property
    def schedule(self) -> tuple[int, ...]:
        """Steps after which a model is kept, ascending: each half of the next, the last at the end."""
        return tuple(sorted({max(1, self.steps >> halvings) for halvings in range(self.checkpoints)}))


class FromScratchReading(Reading):
    """Of a training from scratch. spread: standard deviation of initial matrices."""

    spread: Positive = 0.02


class Recipe(FromScratchReading):
    """One training from scratch.

    heads: grouped ones share keys and values among `group` of the `query_heads`. width: of the feed-forward
    networks; without it, it is chosen so that the model has so many `parameters`. against: the recipe or
    trained model that this one is compared with, and the one `factor` in which they differ.
    """

    kind: ClassVar = "dense"

    norm: Norm
    mlp: Mlp
    positions: Positions
    heads: Heads
    residual: Residual
    layers: Layers
    hidden: Count
    query_heads: Count = 6
    group: Count = 3
    parameters: Count | None = None
    width: Count | None = None
    against: Text | None = None
    factor: Factor | None = None

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.query_heads if self.heads == "all" else self.query_heads // self.group


class MixtureRecipe(FromScratchReading):
    """A mixture of experts from scratch: Mixtral, the Llama-like cell with experts for feed-forward networks.

    heads, group: as of a dense one. width: of each expert. parameters: of those that a token meets, its
    `active` ones among the `experts`.
    """

    kind: Literal["mixture"]
    layers: Layers
    hidden: Count
    heads: Heads = "grouped"
    query_heads: Count = 6
    group: Count = 3
    experts: Count = 8
    active: Count = 2
    parameters: Count | None = None
    width: Count | None = None

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.query_heads if self.heads == "all" else self.query_heads // self.group


class Mamba2Recipe(FromScratchReading):
    """A state-space model from scratch: Mamba-2, whose layers have neither attention nor a second network.

    expand: inner size over `hidden`, shared by `query_heads` heads. width: numbers of state for each inner
    unit. chunk: tokens that are computed at once in training, which changes nothing but rounding.
    """

    kind: Literal["mamba2"]
    layers: Layers
    hidden: Count
    query_heads: Count = 6
    expand: Count = 3
    chunk: Annotated[int, Field(strict=True, ge=1, le=1024)] = 64
    parameters: Count | None = None
    width: Count | None = None


Arm = Literal["continued", "early_exit_loss", "tuned"]
"""A model that is there is trained on as it was, with the loss of early exits, or on instructions."""


class ContinuedRecipe(Reading):
    """Going on from a model that was trained from scratch, whose text, context and sizes it keeps."""

    model_config = ConfigDict(populate_by_name=True)
    kind: ClassVar = "continued"

    base: Text = Field(alias="from")
    arm: Arm


FromScratch = Recipe | MixtureRecipe | Mamba2Recipe
AnyRecipe = FromScratch | ContinuedRecipe

KINDS: dict[str, Any] = {"dense": Recipe, "mixture": MixtureRecipe, "mamba2": Mamba2Recipe}


def read_recipe(path: Path) -> tuple[AnyRecipe, Source]:
    """The recipe in a TOML file, and the file; paths in it are relative to it.

    `kind` says of which kind the model is, dense without it; `from` makes it one that goes on. Raises
    InputError, with the line, for what is wrong.
    """
    values, source = read_toml(path, WHAT)
    goes_on = "from" in values
    recipe = checked(ContinuedRecipe, values, source) if goes_on else _from_scratch(values, source)
    places = {
        key: str(path.parent / named)
        for key in ("text", "against", "base")
        if (named := getattr(recipe, key, None)) is not None
    }
    return recipe.model_copy(update=places), source


def _from_scratch(values: dict[str, Any], source: Source) -> FromScratch:
    """Of one kind, its sizes checked. Raises InputError, with the line."""
    kind = values.get("kind", "dense")
    if kind not in KINDS:
        raise source.refused(f"kind is {kind!r}", did_you_mean(str(kind), KINDS), "kind")
    if kind == "dense":
        values.pop("kind", None)
    recipe: FromScratch = checked(KINDS[kind], values, source)
    if (recipe.parameters is None) == (recipe.width is None):
        both = (
            "both parameters and width are given" if recipe.width else "neither parameters nor width is given"
        )
        raise source.refused(both, "give one of them: the other follows", "parameters")
    if isinstance(recipe, Recipe) and (recipe.against is None) != (recipe.factor is None):
        raise source.refused(
            "against and factor are given together or not at all",
            "say what is compared and in what the two differ",
            "against" if recipe.against else "factor",
        )
    if recipe.hidden % (2 * recipe.query_heads):
        raise source.refused(
            f"{recipe.query_heads} heads do not share a hidden size of {recipe.hidden} in even parts",
            f"give a multiple of {2 * recipe.query_heads}",
            "hidden",
        )
    if isinstance(recipe, Mamba2Recipe):
        return recipe
    if recipe.heads == "grouped" and recipe.query_heads % recipe.group:
        raise source.refused(
            f"{recipe.query_heads} heads are no whole groups of {recipe.group}",
            "give a group that divides the number of heads",
            "group",
        )
    if isinstance(recipe, MixtureRecipe) and recipe.active > recipe.experts:
        raise source.refused(
            f"{recipe.active} of {recipe.experts} experts cannot be active",
            "give fewer active ones",
            "active",
        )
    return recipe


def require_one_factor(recipe: Recipe, other: Recipe, name: str) -> None:
    """Refuse a comparison of recipes that differ in more than the factor. name: of the other.

    Raises InputError that names what differs as well, or that the factor does not.
    """
    ours, theirs = recipe.model_dump(), other.model_dump()
    different = [key for key in ours if ours[key] != theirs[key]]
    if recipe.factor not in different:
        raise InputError(
            f"the factor is {recipe.factor}, and it is {ours[str(recipe.factor)]} in {name} as well",
            where="factor",
            fix=f"change {recipe.factor}, or name what differs",
        )
    allowed = (*FREE, recipe.factor, *WITH_FACTOR.get(str(recipe.factor), ()))
    if others := [key for key in different if key not in allowed]:
        listed = ", ".join(f"{key} ({ours[key]}, there {theirs[key]})" for key in others)
        raise InputError(
            f"the recipe differs from {name} in more than {recipe.factor}: {listed}",
            where="against",
            fix="make these equal, or leave against and factor out: a difference would have several causes",
        )
