"""The shape of a model as numbers: what a layer, the head and a K,V projection hold. No torch here."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from offramp.errors import InputError
from offramp.kit.numbers import Count, NotNegative, Positive, Whole

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one weight, by what models are loaded in."""

DTYPES = tuple(ELEMENT_BYTES)

LayerKind = Literal["attention", "recurrent", "hybrid", "feedforward"]
"""What a layer mixes positions by: hybrid is both in one layer, feedforward neither."""


@dataclasses.dataclass(frozen=True)
class CrossShape:
    """A decoder layer's attention to what an encoder read, with as many heads as to its own tokens; its K and
    V are made once a request."""

    key_value_width: Whole
    """Elements kept per encoded position, read once a token."""
    key_value_parameters: Whole
    """Elements of the weights that make them, multiplied once per encoded position; no token's."""


@dataclasses.dataclass(frozen=True)
class EncoderShape:
    """The encoder beside a decoder, which runs once a request."""

    IF_ANY: ClassVar[tuple[str, ...]] = ("picture_flops",)

    parameters: Whole
    """Elements of its weights, embeddings left out."""
    positions: NotNegative
    """That it gives the decoder to attend to, or of a prompt with its pictures: of a trace the mean over its
    documents, else of a probe."""
    attention_width: Whole = 0
    """Query heads x head size over all its layers; each position attends to every other."""
    picture_flops: NotNegative | None = None
    """Of an image-text model, what it makes of a picture, whatever else is in the prompt, whose positions
    then run through the decoder's own layers."""


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """One decoder layer, measured from its modules."""

    IF_ANY: ClassVar[tuple[str, ...]] = ("cross",)

    kind: LayerKind
    parameters: Whole
    """Elements of every weight in the layer."""
    active_parameters: Whole
    """Elements that one token multiplies (for a mixture of experts: routed and shared only; without those of
    `cross`)."""
    key_value_parameters: Whole
    """Elements of the weights that make K and V (0 without attention)."""
    key_value_width: Whole
    """Elements kept in the cache per token (0 without attention)."""
    attention_width: Whole
    """Query heads x head size; scores and values cost 4 x this FLOPs per attended position."""
    window: Count | None
    """Attended positions at most, None for all."""
    state_elements: Whole
    """Elements of a recurrent state, read and written once per token."""
    experts: Whole = 0
    """Of a mixture of experts, how many there are (0 otherwise)."""
    experts_per_token: Whole = 0
    """Of them, how many a token is routed to."""
    expert_parameters: Whole = 0
    """Elements of all routed experts together."""
    expansion_parameters: Whole = 0
    """Elements of the weights that make K and V anew from a cached latent, multiplied once for every attended
    position (0 where the cache holds K and V themselves)."""
    element_bytes: Positive | None = None
    """Mean bytes of one weight of this layer where that is not the model's (quantised weights, scales
    included), None otherwise."""
    cross: CrossShape | None = None
    """What it attends to beside its own tokens, None without an encoder."""


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """A whole model: layers 1..L in order, the final norm ("tail") and the output head."""

    IF_ANY: ClassVar[tuple[str, ...]] = ("encoder", "context_length")

    layers: tuple[LayerShape, ...]
    hidden_size: Count
    vocabulary_size: Count
    tail_parameters: Whole
    head_parameters: Whole
    """Elements of the output matrix (vocabulary x hidden), tied or not."""
    element_bytes: Count
    """Bytes of one weight as it is loaded (`ELEMENT_BYTES`)."""
    encoder: EncoderShape | None = None
    """None for a model that has none."""
    context_length: Count | None = None
    """Positions of a sequence at most; None for a model that states no limit, and in older traces."""


def require_context(context: int | None, prompt: int, new_tokens: int, where: str, fix: str) -> None:
    """Refuse a prompt that leaves no room for its new tokens within a context. None: there is no limit."""
    if context is not None and prompt + new_tokens > context:
        raise InputError(
            f"the prompt's {prompt} tokens and {new_tokens} new ones exceed the context of {context} "
            "positions",
            where=where,
            fix=fix,
        )
