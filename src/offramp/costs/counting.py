"""FLOPs and bytes of one decoded token at batch 1, counted from a model's shape.

One multiply-add is two FLOPs. Bytes are those that must cross the memory bus: every active weight once, the
K,V cache, the recurrent state; activations of one token stay in the processor's caches and are left out.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.models.shape import LayerShape, ModelShape

LayerCosts = NDArray[np.float64]

# Per element of a recurrent state and token: decay, outer product and sum (3), read-out as a dot product (2);
# the selective state space recurrence h = a h + b x, y = c h (Mamba, arXiv 2312.00752, equation 2).
STATE_FLOPS = 5.0

# Per vocabulary entry of a probe: maximum, subtraction, exponential and sum of a softmax (4), and the product
# and sum of an entropy (2). Charged for every signal: the differences are far below one percent of the head.
REDUCTION_FLOPS = 6.0

# Per vocabulary entry of a probe: the float32 logit written by the head and read by the reductions.
REDUCTION_BYTES = 8.0


def attended_positions(layer: LayerShape, position: float) -> float:
    """Positions that the token at `position` (0 = first) attends to in this layer, itself included."""
    attended = position + 1.0
    return attended if layer.window is None else min(attended, float(layer.window))


def layer_flops(shape: ModelShape, position: float) -> LayerCosts:
    """FLOPs of each layer for one token decoded at `position`: float64 [layers].

    2 x active parameters + 4 x attention width x attended positions (scores, then values; within the window)
    + 5 x recurrent state elements. The usual count of Kaplan et al. (arXiv 2001.08361, section 2.1), with the
    attention term at the token's own position.

    Raises InputError if the position is negative or not finite.
    """
    check_position(position)
    return np.array(
        [
            2.0 * layer.active_parameters
            + 4.0 * layer.attention_width * attended_positions(layer, position)
            + STATE_FLOPS * layer.state_elements
            for layer in shape.layers
        ]
    )


def layer_bytes(shape: ModelShape, position: float) -> LayerCosts:
    """Bytes that each layer moves for one token decoded at `position`, batch 1: float64 [layers].

    Active weights read once, K,V of every attended position read, this token's K,V written, the recurrent
    state read and written; all at the weights' element size.

    Raises InputError if the position is negative or not finite.
    """
    check_position(position)
    elements = [
        layer.active_parameters
        + layer.key_value_width * (attended_positions(layer, position) + 1.0)
        + 2.0 * layer.state_elements
        for layer in shape.layers
    ]
    return np.array(elements) * shape.element_bytes


def head_flops(shape: ModelShape) -> float:
    """FLOPs of the final norm and the output head for one token: 2 x their parameters."""
    return 2.0 * (shape.tail_parameters + shape.head_parameters)


def head_bytes(shape: ModelShape) -> float:
    """Bytes of the final norm's and the output head's weights, each read once."""
    return shape.element_bytes * (shape.tail_parameters + shape.head_parameters)


def probe_flops(shape: ModelShape) -> float:
    """FLOPs of one full-head probe: final norm, head, and the reductions over the vocabulary."""
    return head_flops(shape) + REDUCTION_FLOPS * shape.vocabulary_size


def probe_bytes(shape: ModelShape) -> float:
    """Bytes of one full-head probe: final norm, head, and the logits written and read once in float32."""
    return head_bytes(shape) + REDUCTION_BYTES * shape.vocabulary_size


def key_value_flops(shape: ModelShape, position: float) -> LayerCosts:
    """FLOPs of each layer that a token skips but whose state later tokens must find: float64 [layers].

    Attention: K and V projected from the exit's hidden state (CALM, arXiv 2207.07061, "hidden state
    propagation"). A layer with a recurrent state is charged whole: its state only moves by running the layer.

    Raises InputError if the position is negative or not finite.
    """
    projections = np.array([2.0 * layer.key_value_parameters for layer in shape.layers])
    return np.where(_is_recurrent(shape), layer_flops(shape, position), projections)


def key_value_bytes(shape: ModelShape, position: float) -> LayerCosts:
    """Bytes of the same repair: K,V weights read and one token's K,V written: float64 [layers].

    Layers with a recurrent state are charged whole, as in `key_value_flops`.

    Raises InputError if the position is negative or not finite.
    """
    elements = [layer.key_value_parameters + layer.key_value_width for layer in shape.layers]
    projections = np.array(elements, dtype=np.float64) * shape.element_bytes
    return np.where(_is_recurrent(shape), layer_bytes(shape, position), projections)


def depth_fractions(shape: ModelShape, exits: NDArray[np.int64], position: float) -> NDArray[np.float64]:
    """x, the share of the layers' FLOPs spent up to each exit, the head left out: float64 [exits].

    exits: int64 [exits], each in 1..L. x of exit L is 1.

    Raises InputError for an exit outside 1..L, or a position that is negative or not finite.
    """
    count = len(shape.layers)
    outside = [int(exit) for exit in exits if not 1 <= exit <= count]
    if outside:
        raise InputError(
            f"exit {outside[0]} is outside the model's layers", fix=f"choose exits from 1 to {count}"
        )
    spent = np.cumsum(layer_flops(shape, position))
    return np.asarray(spent[np.asarray(exits) - 1] / spent[-1], dtype=np.float64)


def check_position(position: float) -> None:
    """Raise InputError unless the position is a finite number of at least 0."""
    if not math.isfinite(position) or position < 0:
        raise InputError(
            f"{position} is no position in a sequence", fix="give a finite number, 0 for the first token"
        )


def _is_recurrent(shape: ModelShape) -> NDArray[np.bool_]:
    # By kind and not by size: some families keep their state where it cannot be measured.
    return np.array([layer.kind in ("recurrent", "hybrid") for layer in shape.layers])
