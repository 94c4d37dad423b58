"""Recipes: everything that decides the weights of a small model, but for the text itself; and its sizes.

Models that are compared have as many parameters, to within one per cent: the width of their networks follows.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from offramp import InputError
from offramp_lab.family import Heads, Mlp, Norm, Positions, Residual

TOLERANCE = 0.01
"""By how much the parameters of two models that are compared may differ, as a share."""

EPSILON = 1e-5
"""In the root of every norm, of either kind."""

MATRICES = {"gelu": 2, "swiglu": 3}
"""Of a feed-forward network."""

CONVOLVED = 4
"""Tokens that Mamba-2's convolution looks at."""

THETA = 10_000.0
"""Of rotary positions, as of dense models; Mixtral's own is 100 times that, for contexts of 32,768 tokens."""

FREE = ("text", "against", "factor", "seed", "width", "parameters")
"""What may differ between a recipe and the one it is held against, besides its factor."""

WITH_FACTOR = {"hidden": ("query_heads", "spread"), "heads": ("group",)}
"""What changes with a factor."""

Count = Annotated[int, Field(ge=1)]
Precision = Literal["float32", "bfloat16"]


class Reading(BaseModel):
    """What is read, in which steps, and how far each goes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)
    kind: ClassVar[str]

    text: str
    """A folder of `offramp-lab text`."""
    tokens: Annotated[int, Field(ge=1, le=10**11)]
    seed: Annotated[int, Field(ge=0)]
    """Of all that is drawn."""
    context: Annotated[int, Field(ge=8, le=65_536)] = 256
    batch: Count = 16
    """Sequences of a step, each of `context` tokens."""
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-3
    """The largest learning rate."""
    checkpoints: Annotated[int, Field(ge=1, le=32)] = 8
    """Models that are kept, the last one included."""
    precision: Precision = "float32"
    """Of products while it trains."""

    @property
    def steps(self) -> int:
        """So many that the tokens are read, the last step full as all others."""
        return -(-self.tokens // (self.batch * self.context))

    @property
    def schedule(self) -> tuple[int, ...]:
        """Steps after which a model is kept, ascending: each half of the next, the last at the end."""
        return tuple(sorted({max(1, self.steps >> halvings) for halvings in range(self.checkpoints)}))


class FromScratch(Reading):
    """A training from scratch: sizes, and either the number of parameters or the width that gives it."""

    spread: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of initial matrices."""
    layers: Annotated[int, Field(ge=1, le=1000)]
    hidden: Count
    query_heads: Count = 6
    parameters: Count | None = None
    """That a token meets."""
    width: Count | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if (self.parameters is None) == (self.width is None):
            raise ValueError("give one of parameters and width: the other follows")
        if self.hidden % (2 * self.query_heads):
            raise ValueError(
                f"hidden {self.hidden} is no multiple of {2 * self.query_heads}, twice the heads"
            )
        return self

    @property
    def width_unit(self) -> int:
        """What the width is a multiple of."""
        return 1

    def weights(self, vocabulary: int, width: int) -> int:
        """All of them, the embedding counted once, which is the head as well."""
        raise NotImplementedError

    def active(self, vocabulary: int, width: int) -> int:
        """Those that a token meets."""
        return self.weights(vocabulary, width)

    def sized(self, vocabulary: int) -> int:
        """The width; where it is not given, such that the parameters are nearest to those asked for.

        Raises InputError, with how much it is off, if no width comes within one per cent.
        """
        if self.width is not None:
            return self.width
        assert self.parameters is not None, "checked when it was made"
        without = self.active(vocabulary, 0)
        more = self.active(vocabulary, self.width_unit) - without
        width = self.width_unit * max(1, round((self.parameters - without) / more))
        found = self.active(vocabulary, width)
        if abs(off := found / self.parameters - 1) > TOLERANCE:
            raise InputError(
                f"the nearest model has {found:,} parameters, and {self.parameters:,} are asked for "
                f"({off:+.1%}; width {width}; {self.width_unit} more is {more / self.parameters:.1%})",
                where="parameters",
                fix=f"ask for {found:,}, or change layers or hidden",
            )
        return width

    def make_model(self, vocabulary: int) -> Any:
        """With random weights, drawn from torch's generator as it stands."""
        raise NotImplementedError

    def config(self, vocabulary: int) -> dict[str, Any]:
        """What the configs of all kinds say alike."""
        return {
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "max_position_embeddings": self.context,
            "initializer_range": self.spread,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


class Attending(FromScratch):
    """A model with attention. Grouped heads share keys and values among `group` of the `query_heads`."""

    heads: Heads = "grouped"
    group: Count = 3

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.heads == "grouped" and self.query_heads % self.group:
            raise ValueError(f"{self.query_heads} query_heads are no whole groups of {self.group}")
        return self

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.query_heads if self.heads == "all" else self.query_heads // self.group

    @property
    def attention(self) -> int:
        """Weights of one layer's attention: queries and output whole, keys and values by their heads."""
        return round(2 * self.hidden**2 * (1 + self.key_value_heads / self.query_heads))

    def config(self, vocabulary: int) -> dict[str, Any]:
        """As of all kinds, with the heads and the width."""
        return {
            **super().config(vocabulary),
            "intermediate_size": self.sized(vocabulary),
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.key_value_heads,
            "rms_norm_eps": EPSILON,
        }


class Dense(Attending):
    """The lab's own family: five switches. width: of the feed-forward networks."""

    kind: ClassVar = "dense"

    norm: Norm
    mlp: Mlp
    positions: Positions
    heads: Heads
    residual: Residual
    against: str | None = None
    """What it is compared with: another recipe, or the name of a run."""
    factor: Literal["norm", "mlp", "positions", "heads", "residual", "layers", "hidden", "seed"] | None = None
    """The one thing in which the two differ."""

    def weights(self, vocabulary: int, width: int) -> int:
        """All of them."""
        hidden = self.hidden
        norm = 2 * hidden if self.norm == "layernorm" else hidden
        embedding = vocabulary * hidden + (self.context * hidden if self.positions == "learned" else 0)
        per_layer = self.attention + MATRICES[self.mlp] * hidden * width + 2 * norm
        return embedding + self.layers * per_layer + norm

    def make_model(self, vocabulary: int) -> Any:
        """A `LabForCausalLM`."""
        from offramp_lab.family import LabConfig, LabForCausalLM

        switches = {key: getattr(self, key) for key in ("norm", "mlp", "positions", "residual")}
        return LabForCausalLM(LabConfig(**self.config(vocabulary), **switches))


class Mixture(Attending):
    """A mixture of experts: Mixtral, the Llama-like cell with experts for networks. width: of each."""

    kind: ClassVar = "mixture"

    experts: Count = 8
    active_experts: Count = Field(2, alias="active")

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        if self.active_experts > self.experts:
            raise ValueError(f"{self.active_experts} of {self.experts} experts cannot be active")
        for name, size in (("hidden", self.hidden), ("width", self.width)):
            if size is not None and size % self.width_unit:
                raise ValueError(
                    f"experts of {name} {size} cannot be multiplied at once: in {self.precision} it is a "
                    f"multiple of {self.width_unit}"
                )
        return self

    @property
    def width_unit(self) -> int:
        """Rows of experts' matrices are a multiple of 16 bytes: torch multiplies all experts at once so."""
        return 16 // (2 if self.precision == "bfloat16" else 4)

    def weights(self, vocabulary: int, width: int) -> int:
        """All of them."""
        return self._with(self.experts, vocabulary, width)

    def active(self, vocabulary: int, width: int) -> int:
        """Those of a token's own experts and of all that is no expert."""
        return self._with(self.active_experts, vocabulary, width)

    def _with(self, experts: int, vocabulary: int, width: int) -> int:
        networks = experts * MATRICES["swiglu"] * self.hidden * width
        per_layer = self.attention + self.experts * self.hidden + networks + 2 * self.hidden
        return (vocabulary + 1) * self.hidden + self.layers * per_layer

    def make_model(self, vocabulary: int) -> Any:
        """A Mixtral of transformers."""
        from transformers import MixtralConfig, MixtralForCausalLM

        made: Any = MixtralForCausalLM  # which has no types
        config: Any = MixtralConfig
        return made(
            config(
                **self.config(vocabulary),
                num_local_experts=self.experts,
                num_experts_per_tok=self.active_experts,
                rope_parameters={"rope_type": "default", "rope_theta": THETA},
            )
        )


class Mamba2(FromScratch):
    """A state space: Mamba-2. width: numbers of state for each inner unit."""

    kind: ClassVar = "mamba2"

    expand: Count = 3
    """Inner size over `hidden`, shared by `query_heads` heads."""
    chunk: Annotated[int, Field(ge=1, le=1024)] = 64
    """Tokens that are computed at once in training, which changes nothing but rounding."""

    @property
    def width_unit(self) -> int:
        """The state's size is a multiple of it."""
        return 8

    def weights(self, vocabulary: int, width: int) -> int:
        """All of them; a token meets each."""
        inner = self.expand * self.hidden
        convolved = inner + 2 * width  # its inner units, and what writes and reads the state
        inwards = self.hidden * (inner + convolved + self.query_heads)
        # Of the convolution its biases, of the heads a bias of their step, their decay and what passes by.
        vectors = convolved + 3 * self.query_heads + inner + self.hidden
        per_layer = inwards + CONVOLVED * convolved + inner * self.hidden + vectors
        return vocabulary * self.hidden + self.layers * per_layer + self.hidden

    def make_model(self, vocabulary: int) -> Any:
        """A Mamba-2 of transformers."""
        from transformers import Mamba2Config, Mamba2ForCausalLM

        made: Any = Mamba2ForCausalLM
        config: Any = Mamba2Config
        return made(
            config(
                **self.config(vocabulary),
                expand=self.expand,
                num_heads=self.query_heads,
                head_dim=self.expand * self.hidden // self.query_heads,
                state_size=self.sized(vocabulary),
                n_groups=1,
                conv_kernel=CONVOLVED,
                chunk_size=self.chunk,
                layer_norm_epsilon=EPSILON,
                pad_token_id=0,
            )
        )


Arm = Literal["continued", "early_exit_loss", "tuned"]
"""A model that is there is trained on as it was, with the loss of early exits, or on instructions."""


class Continued(Reading):
    """Going on from a model that was trained from scratch, whose text, context and sizes it keeps."""

    kind: ClassVar = "continued"

    base: str = Field(alias="from")
    """The folder of a trained model."""
    arm: Arm


KINDS: dict[str, type[FromScratch]] = {kind.kind: kind for kind in (Dense, Mixture, Mamba2)}


def recipe_of(values: dict[str, Any], where: str) -> Reading:
    """The recipe that a table says. `kind` is dense without it; `from` makes it one that goes on.

    Raises InputError for what is wrong.
    """
    values = dict(values)
    kind = values.pop("kind", "continued" if "from" in values else "dense")
    known: dict[str, type[Reading]] = {**KINDS, "continued": Continued}
    if kind not in known:
        raise InputError(f"kind is {kind!r}", where=where, fix=f"choose of: {', '.join(known)}")
    try:
        return known[kind].model_validate(values)
    except ValidationError as error:
        raise invalid(error, where) from error


def invalid(error: ValidationError, where: str) -> InputError:
    """The error for values that do not fit, the first of them."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return InputError(first["msg"], where=f"{where}, {place}" if place else where, fix="correct it there")


def read_recipe(path: Path) -> Reading:
    """The recipe in a TOML file; paths in it are relative to it. Raises InputError for what is wrong."""
    recipe = recipe_of(read_toml(path), str(path))
    places = {
        key: str(path.parent / named)
        for key in ("text", "against", "base")
        if (named := getattr(recipe, key, None)) is not None
    }
    return recipe.model_copy(update=places)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises InputError for one that is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"the file cannot be read: {error}", where=str(path), fix="give TOML") from error


def require_comparable(recipe: Dense, other: Dense, name: str, vocabulary: int) -> None:
    """Refuse to compare recipes that differ in more than the factor, or in size by over one per cent.

    name: of the other. Raises InputError that names what differs as well, or that the factor does not.
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
    sizes = [one.weights(vocabulary, one.sized(vocabulary)) for one in (recipe, other)]
    if abs(off := sizes[0] / sizes[1] - 1) > TOLERANCE:
        raise InputError(
            f"the model has {sizes[0]:,} parameters, and {name} {sizes[1]:,} ({off:+.1%})",
            where="against",
            fix=f"write parameters = {sizes[1]} in the place of a width",
        )
