"""Kinds of probe: what one check at an exit computes, counted from a model's shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from offramp.costs import counting
from offramp.defaults import CANDIDATES, NETWORK_UNITS, SHORTLIST
from offramp.kit.numbers import Layers, Whole
from offramp.models.shape import ModelShape

MapRanks = tuple[tuple[Layers, Whole | None], ...]
"""Exits that have K,V maps, ascending, each with the rank of its maps; None where they are whole."""


@dataclass(frozen=True)
class ProbeSizes:
    """Sizes that probes, and other parts that are fitted, have beside the model's own."""

    shortlist: Whole = SHORTLIST
    """Tokens of a restricted vocabulary, or all where a model has fewer."""
    hidden: Whole = NETWORK_UNITS
    """Units of a small network."""
    candidates: Whole = CANDIDATES
    """Tokens whose logits alone are computed."""
    map_rank: Whole = 64
    """Of the K,V maps that a machine is timed with, to half of the layers."""
    kv_maps: MapRanks = ()
    """The K,V maps that are to be priced."""
    mlp_units: Whole = 0
    """Of the networks behind them, 0 without any."""
    lens_rank: Whole | None = None
    """Of the linear lenses, None where they are whole, 0 where networks stand alone."""

    def __post_init__(self) -> None:
        # JSON has lists for tuples.
        object.__setattr__(self, "kv_maps", tuple((exit, rank) for exit, rank in self.kv_maps))


USUAL_SIZES = ProbeSizes()

FULL_HEAD = "full head"
"""The kind of probe whose product is the whole head's, and with it the output of an exit that reads it."""

RESTRICTED_HEAD = "restricted head"
"""The kind of probe whose product is the short list's, and with it the output where that is read off it."""


@dataclass(frozen=True)
class FittedSizes:
    """What exit heads add to a step (see `fitted_of`)."""

    lens: bool = False
    """Whether exits below L are read through a linear lens, a network, or both."""
    mlp_units: int = 0
    """Of the networks, 0 without any."""
    maps: MapRanks = ()
    """K,V maps, where K and V are mapped."""
    shortlist: int | None = None
    """Tokens of a list of another length than usual, None without one."""
    lens_rank: int | None = None
    """Of the lens, None where it is whole, 0 without one."""

    def added_to(self, sizes: ProbeSizes) -> ProbeSizes:
        """The sizes with these."""
        listed = sizes.shortlist if self.shortlist is None else self.shortlist
        return replace(
            sizes,
            lens_rank=self.lens_rank,
            mlp_units=self.mlp_units,
            kv_maps=self.maps,
            shortlist=listed,
        )


NOTHING_FITTED = FittedSizes()


def fitted_of(
    *, lens: bool, lens_rank: int | None, mlp_units: int, maps: MapRanks, shortlist: int | None
) -> FittedSizes:
    """Of heads with or without a lens, a network alone being a reading whose lens is of rank 0."""
    alone = bool(mlp_units) and not lens
    return FittedSizes(lens or alone, mlp_units, maps, shortlist, 0 if alone else lens_rank)


@dataclass(frozen=True)
class ProbeKind:
    """One kind of probe."""

    name: str
    meaning: str
    flops: Callable[[ModelShape, ProbeSizes], float]
    bytes: Callable[[ModelShape, ProbeSizes], float]
    """Of one check of one token, the lens left out."""
    launches: int
    """Kernels that an ordinary implementation launches for it."""
    # Hidden states are at hand in the processor's caches, as all activations are taken to be.
    row_bytes: Callable[[ModelShape, ProbeSizes], float] = lambda shape, sizes: 0.0
    """Of these, the bytes that every token of a batch moves anew, where the weights are read once for all."""
    reads_logits: bool = False
    """It goes through the final norm (and the linear lens, if there is one)."""

    def batch_flops(self, shape: ModelShape, sizes: ProbeSizes, batch: int) -> float:
        """FLOPs of one check of each of `batch` tokens."""
        return batch * self.flops(shape, sizes)

    def batch_bytes(self, shape: ModelShape, sizes: ProbeSizes, batch: int) -> float:
        """Bytes of one check of each of `batch` tokens."""
        return self.bytes(shape, sizes) + (batch - 1) * self.row_bytes(shape, sizes)


def _product_bytes(shape: ModelShape, columns: int) -> float:
    """The weights of a product from the hidden state to some columns, each read once."""
    return float(shape.element_bytes * shape.hidden_size * columns)


def _listed(shape: ModelShape, sizes: ProbeSizes) -> int:
    return min(sizes.shortlist, shape.vocabulary_size)


def _restricted_flops(shape: ModelShape, sizes: ProbeSizes) -> float:
    listed = _listed(shape, sizes)
    product = 2.0 * (shape.tail_parameters + shape.hidden_size * listed)
    return product + counting.REDUCTION_FLOPS * listed


def _restricted_bytes(shape: ModelShape, sizes: ProbeSizes) -> float:
    listed = _listed(shape, sizes)
    weights = _product_bytes(shape, listed) + shape.element_bytes * shape.tail_parameters
    return weights + counting.REDUCTION_BYTES * listed


def _candidate_flops(shape: ModelShape, sizes: ProbeSizes) -> float:
    # Per candidate three features: its logit, its share and the change of that share (SpecEE, arXiv
    # 2504.08850).
    network = 2.0 * sizes.hidden * (3 * sizes.candidates + 1)
    return 2.0 * (shape.tail_parameters + shape.hidden_size * sizes.candidates) + network


def _candidate_bytes(shape: ModelShape, sizes: ProbeSizes) -> float:
    network = shape.element_bytes * sizes.hidden * (3 * sizes.candidates + 1)
    tail = shape.element_bytes * shape.tail_parameters
    return _product_bytes(shape, sizes.candidates) + tail + network


PROBES: dict[str, ProbeKind] = {
    kind.name: kind
    for kind in (
        ProbeKind(
            FULL_HEAD,
            "final norm, output head and reductions over the vocabulary",
            lambda shape, sizes: counting.probe_flops(shape),
            lambda shape, sizes: counting.probe_bytes(shape),
            launches=4,
            row_bytes=lambda shape, sizes: counting.REDUCTION_BYTES * shape.vocabulary_size,
            reads_logits=True,
        ),
        ProbeKind(
            RESTRICTED_HEAD,
            "final norm and the head's columns of a short list of tokens",
            _restricted_flops,
            _restricted_bytes,
            launches=4,
            row_bytes=lambda shape, sizes: counting.REDUCTION_BYTES * _listed(shape, sizes),
            reads_logits=True,
        ),
        ProbeKind(
            "candidates",
            "final norm, the head's columns of a few candidate tokens and a small network",
            _candidate_flops,
            _candidate_bytes,
            launches=6,
            # Candidates differ from token to token, and so do the head's columns.
            row_bytes=lambda shape, sizes: _product_bytes(shape, sizes.candidates),
            reads_logits=True,
        ),
        ProbeKind(
            "cosine",
            "one cosine of two hidden states",
            lambda shape, sizes: 6.0 * shape.hidden_size,
            lambda shape, sizes: 0.0,
            launches=1,
        ),
        ProbeKind(
            "classifier",
            "one linear classifier on the hidden state",
            lambda shape, sizes: 2.0 * shape.hidden_size,
            lambda shape, sizes: _product_bytes(shape, 1),
            launches=1,
        ),
        ProbeKind(
            "network",
            "a small network on the hidden state",
            lambda shape, sizes: 2.0 * sizes.hidden * (shape.hidden_size + 1),
            lambda shape, sizes: _product_bytes(shape, sizes.hidden) + shape.element_bytes * sizes.hidden,
            launches=3,
        ),
    )
}


def map_flops(shape: ModelShape, layers: int, rank: int | None, batch: int = 1) -> float:
    """FLOPs of an exit's K,V maps to so many layers, for `batch` hidden states; rank None: whole maps."""
    return batch * 2.0 * _map_elements(shape.hidden_size, layers, rank)


def map_bytes(shape: ModelShape, layers: int, rank: int | None) -> float:
    """Bytes of such maps, kept in float32 and read once for any number of tokens."""
    return 4.0 * _map_elements(shape.hidden_size, layers, rank)


def _map_elements(hidden: int, layers: int, rank: int | None) -> int:
    """D and a bias of each layer; in low rank V, which the layers share, and U and a bias of each."""
    if rank is None:
        return layers * (hidden * hidden + hidden)
    return hidden * rank + layers * (hidden * rank + hidden)


def timed_map_layers(shape: ModelShape) -> int:
    """The layers that the K,V maps which a machine is timed with map to."""
    return max(1, len(shape.layers) // 2)


def lens_products(hidden: int, sizes: ProbeSizes) -> tuple[tuple[int, int], ...]:
    """Products of a linear lens and the network behind it, each as (columns, inputs)."""
    rank, units = sizes.lens_rank, sizes.mlp_units
    if rank is None:
        lens: tuple[tuple[int, int], ...] = ((hidden, hidden),)
    else:
        lens = ((rank, hidden), (hidden, rank)) if rank else ()
    return (*lens, (units, hidden), (units, hidden), (hidden, units)) if units else lens


def lens_flops(shape: ModelShape, batch: int = 1, sizes: ProbeSizes = USUAL_SIZES) -> float:
    """FLOPs of both for `batch` hidden states: 2 d^2, or 4 d r in rank r, and 6 d units of each."""
    return batch * 2.0 * sum(math.prod(product) for product in lens_products(shape.hidden_size, sizes))


def lens_bytes(shape: ModelShape, sizes: ProbeSizes = USUAL_SIZES) -> float:
    """Bytes of both, read once for any number of tokens; a lens has a bias, a network a norm."""
    products = sum(math.prod(product) for product in lens_products(shape.hidden_size, sizes))
    vectors = (sizes.lens_rank != 0) + bool(sizes.mlp_units)
    return float(shape.element_bytes * (products + shape.hidden_size * vectors))
