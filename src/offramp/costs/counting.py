"""FLOPs and bytes of one decoding step, counted from a model's shape.

A step decodes one token of each of `batch` sequences, all at one position. One multiply-add is two FLOPs.
Bytes are those that must cross the memory bus: every weight in use once for the whole batch, each sequence's
K,V cache and recurrent state; activations of single tokens stay in the processor's caches and are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.kit.numbers import LARGEST_COUNT
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


def layer_flops(shape: ModelShape, position: float, batch: int = 1) -> LayerCosts:
    """FLOPs of each layer for a step that decodes `batch` tokens at `position`: float64 [layers].

    Per token 2 x active parameters + 4 x attention width x attended positions (scores, then values; within
    the window) + 5 x recurrent state elements. The usual count of Kaplan et al. (arXiv 2001.08361, section
    2.1), with the attention term at the token's own position. Where the cache holds a latent (DeepSeek's
    attention), 2 x its expansion parameters for every other attended position, whose K and V are made anew.
    Beside an encoder, 4 x attention width x encoded positions; what is done once a request
    (`request_flops`) is left out.

    Raises InputError if the position is negative or not finite, or the batch below 1.
    """
    check_position(position)
    check_batch(batch)
    return batch * np.array(
        [
            2.0 * layer.active_parameters
            + 4.0 * layer.attention_width * attended_positions(layer, position)
            + 2.0 * layer.expansion_parameters * (attended_positions(layer, position) - 1.0)
            + STATE_FLOPS * layer.state_elements
            + (4.0 * layer.attention_width * encoded_positions(shape) if layer.cross else 0.0)
            for layer in shape.layers
        ]
    )


def layer_bytes(shape: ModelShape, position: float, batch: int = 1) -> LayerCosts:
    """Bytes that each layer moves for a step that decodes `batch` tokens at `position`: float64 [layers].

    Weights read once for all tokens, at the layer's own element size where it has one (quantised weights,
    scales included); per token K,V of every attended position read, its own K,V written, the recurrent state
    read and written, at the model's element size.

    Raises InputError if the position is negative or not finite, or the batch below 1.
    """
    check_position(position)
    check_batch(batch)
    weights = [weights_read(layer, batch) * weight_bytes(shape, layer) for layer in shape.layers]
    kept = [
        layer.key_value_width * (attended_positions(layer, position) + 1.0)
        + 2.0 * layer.state_elements
        + (layer.cross.key_value_width * encoded_positions(shape) if layer.cross else 0.0)
        for layer in shape.layers
    ]
    read = np.array(weights, dtype=np.float64)
    return np.asarray(read + batch * np.array(kept) * shape.element_bytes, dtype=np.float64)


def encoded_positions(shape: ModelShape) -> float:
    """Positions of an encoder's output that every token attends to, 0 without an encoder, or where features
    of pictures stand among the decoder's own positions."""
    encoder = shape.encoder
    return 0.0 if encoder is None or encoder.picture_flops is not None else encoder.positions


def request_flops(shape: ModelShape) -> float:
    """FLOPs of what is done once a request, before its first token: the encoder (for each position 2 x its
    parameters + 4 x attention width x positions), and K and V of its output for every decoder layer. Of an
    image-text model the picture's, and the layers on all positions of the prompt but the last, which is a
    step of decoding.
    """
    if shape.encoder is None:
        return 0.0
    if shape.encoder.picture_flops is not None:
        before = max(0.0, shape.encoder.positions - 1.0)
        return shape.encoder.picture_flops + before * float(
            layer_flops(shape, max(0.0, before - 1) / 2).sum()
        )
    cross = sum(layer.cross.key_value_parameters for layer in shape.layers if layer.cross)
    scores = 4.0 * shape.encoder.attention_width * shape.encoder.positions
    return shape.encoder.positions * (2.0 * (shape.encoder.parameters + cross) + scores)


def request_bytes(shape: ModelShape) -> float:
    """Bytes that the same moves: its weights read once, K and V written; with a prompt of its own those of
    the layers, too."""
    if shape.encoder is not None and shape.encoder.picture_flops is not None:
        before = max(0.0, shape.encoder.positions - 1.0)
        weights = sum(weights_read(layer, 1) * weight_bytes(shape, layer) for layer in shape.layers)
        written = before * sum(layer.key_value_width for layer in shape.layers)
        return weights + shape.element_bytes * (shape.encoder.parameters + written)
    crossing = [layer.cross for layer in shape.layers if layer.cross]
    written = encoded_positions(shape) * sum(cross.key_value_width for cross in crossing)
    read = sum(cross.key_value_parameters for cross in crossing)
    return shape.element_bytes * (written + read + (shape.encoder.parameters if shape.encoder else 0))


def weight_bytes(shape: ModelShape, layer: LayerShape) -> float:
    """Mean bytes of one weight of a layer: its own, or the model's."""
    return float(shape.element_bytes) if layer.element_bytes is None else layer.element_bytes


def weights_read(layer: LayerShape, batch: int) -> float:
    """Elements of a layer's weights that `batch` tokens read together, each once.

    Of E routed experts, k a token, E (1 - (1 - k/E)^batch) distinct ones are expected where tokens choose
    independently and evenly.
    """
    if not layer.experts:
        return float(layer.active_parameters)
    # Exactly the active parameters at batch 1, where all k experts of the one token are read.
    unread = (1.0 - layer.experts_per_token / layer.experts) ** batch
    read = layer.experts * (1.0 - unread) if batch > 1 else float(layer.experts_per_token)
    further = read - layer.experts_per_token
    return layer.active_parameters + further * layer.expert_parameters / layer.experts


def head_flops(shape: ModelShape, batch: int = 1) -> float:
    """FLOPs of the final norm and the output head for `batch` tokens: 2 x their parameters each."""
    return batch * 2.0 * (shape.tail_parameters + shape.head_parameters)


def head_bytes(shape: ModelShape) -> float:
    """Bytes of the final norm's and the output head's weights, each read once for any number of tokens."""
    return shape.element_bytes * (shape.tail_parameters + shape.head_parameters)


def probe_flops(shape: ModelShape) -> float:
    """FLOPs of one full-head probe of one token: final norm, head, and the reductions over the vocabulary."""
    return head_flops(shape) + REDUCTION_FLOPS * shape.vocabulary_size


def probe_bytes(shape: ModelShape) -> float:
    """Bytes of one full-head probe: final norm, head, and the logits written and read once in float32."""
    return head_bytes(shape) + REDUCTION_BYTES * shape.vocabulary_size


def key_value_flops(shape: ModelShape, position: float, batch: int = 1) -> LayerCosts:
    """FLOPs of each layer that `batch` tokens skip but whose state later tokens must find: float64 [layers].

    Attention: K and V projected from the exit's hidden state (CALM, arXiv 2207.07061, "hidden state
    propagation"). A layer with a recurrent state is charged whole: its state only moves by running the layer.

    Raises InputError if the position is negative or not finite, or the batch below 1.
    """
    projections = np.array([2.0 * layer.key_value_parameters for layer in shape.layers])
    return np.where(is_recurrent(shape), layer_flops(shape, position, batch), batch * projections)


def key_value_bytes(shape: ModelShape, position: float, batch: int = 1) -> LayerCosts:
    """Bytes of the same repair: K,V weights read once, each token's K,V written: float64 [layers].

    Layers with a recurrent state are charged whole, as in `key_value_flops`.

    Raises InputError if the position is negative or not finite, or the batch below 1.
    """
    weights = [layer.key_value_parameters * weight_bytes(shape, layer) for layer in shape.layers]
    written = [batch * layer.key_value_width * shape.element_bytes for layer in shape.layers]
    projections = np.array(weights, dtype=np.float64) + np.array(written, dtype=np.float64)
    return np.where(is_recurrent(shape), layer_bytes(shape, position, batch), projections)


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
    """Raise InputError unless the position is a number of at least 0, and not too large."""
    if not 0 <= position <= LARGEST_COUNT:
        raise InputError(
            f"{position} is not a position in a sequence",
            fix=f"give a number from 0, the first token, to {LARGEST_COUNT:,}",
        )


def check_batch(batch: int) -> None:
    """Raise InputError unless a step decodes at least one token, and not too many."""
    if not 1 <= batch <= LARGEST_COUNT:
        raise InputError(f"a batch of {batch} decodes nothing", fix="give a batch size of 1 or more")


def is_recurrent(shape: ModelShape) -> NDArray[np.bool_]:
    """Which layers keep a recurrent state: bool [layers]."""
    # By kind and not by size: some families keep their state where it cannot be measured.
    return np.array([layer.kind in ("recurrent", "hybrid") for layer in shape.layers])
