"""K,V maps: what skipped layers are given where K and V are not to come from the exit's own state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.heads.arrays import Reader, Weights, named_arrays, text_arrays
from offramp.heads.readings import LowRank
from offramp.kit.sealed_tensors import Arrays
from offramp.workloads.shared_text import Sketch

ELEMENT_BYTES = 4
"""Maps are kept in float32."""

MAP_ARRAYS = ("centre", "bias", "explained", "change", "inward", "outward")


@dataclass(frozen=True)
class ExitMaps(LowRank):
    """The maps of one exit e < L - 1, to the output of each layer l = e + 1..L - 1, the axis "layers" here.

    h_l = h + D_l (h - centre) + bias_l, h being the exit's hidden state: the input of layer l + 1 but for
    what a linear map cannot say. D_l is whole, or of low rank with one V for all layers: D_l = U_l V^T.

    change: D, float32 [layers, hidden, hidden] (rows are outputs), None in low rank. inward has no
    axis of layers, outward has it first; columns stand from the most to the least that they explain. centre:
    float32 [hidden]. bias: float32 [layers, hidden]. explained: float64 [ranks, layers], share of the
    held-out variance of h_l - h, each token's over the mean square of its h, that the first columns explain:
    row r - 1 of rank r; one row where D is whole. penalty: of the ridge regression.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("rank", "bytes", "explained_by_all")
    NOT_KEPT: ClassVar[tuple[str, ...]] = MAP_ARRAYS

    centre: Weights
    bias: Weights
    explained: NDArray[np.float64]
    penalty: float
    change: Weights | None = None

    @property
    def explained_by_all(self) -> NDArray[np.float64]:
        """What all columns explain of each layer: float64 [layers]."""
        shares: NDArray[np.float64] = self.explained[-1]
        return shares

    @property
    def bytes(self) -> int:
        """Of all that is needed to apply the maps."""
        arrays = (self.centre, self.bias, self.change, self.inward, self.outward)
        return sum(array.nbytes for array in arrays if array is not None)

    def truncated(self, rank: int) -> ExitMaps:
        """The first `rank` columns, or all there are if they are fewer.

        Raises InputError for maps that are whole, whose columns have no order, or a rank below 1.
        """
        if self.inward is None or self.outward is None:
            raise InputError(
                "K,V maps that are whole have no columns to leave out",
                where="K,V maps",
                fix="fit them in low rank, up to the hidden size: --kv-rank N",
            )
        if rank < 1:
            raise InputError(f"K,V maps of rank {rank} are not possible", fix="give 1 or more")
        return replace(
            self,
            inward=self.inward[:rank],
            outward=self.outward[..., :rank],
            explained=self.explained[:rank],
        )


@dataclass(frozen=True)
class KeyValueMaps:
    """The maps of some exits: what skipped layers are given where K and V are not to come from h_e itself.

    maps: by exit, ascending, each below L - 1: layer L is given h_{L-1} itself by a token that left at L - 1.
    documents: ids of the documents that fitting saw, by workload fingerprint. texts: sketches of their texts
    in the same order, None where they are not known. provenance: how they were fitted.
    """

    NOT_KEPT: ClassVar[tuple[str, ...]] = ("texts",)

    maps: Mapping[int, ExitMaps]
    documents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    texts: tuple[Sketch, ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits that have maps, ascending."""
        return tuple(self.maps)

    @property
    def ranks(self) -> dict[int, int | None]:
        """The rank of each exit's maps, None where they are whole."""
        return {exit: maps.rank for exit, maps in self.maps.items()}

    def truncated(self, rank: int) -> KeyValueMaps:
        """The same fit at a lower rank: the first columns of every exit, which explain the most.

        Nothing is fitted again, so that several ranks of one fit can be held against each other. Raises
        InputError as `ExitMaps.truncated` does.
        """
        return replace(self, maps={exit: maps.truncated(rank) for exit, maps in self.maps.items()})

    def header(self) -> dict[str, Any]:
        """All that is not an array, as JSON values."""
        texts = {} if self.texts is None else {"texts": True}
        return {
            "maps": [
                {"exit": exit, "rank": maps.rank, "penalty": maps.penalty} for exit, maps in self.maps.items()
            ],
            "documents": {workload: list(ids) for workload, ids in self.documents.items()},
            "provenance": dict(self.provenance),
            **texts,
        }

    def arrays(self) -> Arrays:
        """Every array under the name it has in a file: "kv_maps.8.bias", ..."""
        arrays: Arrays = {}
        for exit, maps in self.maps.items():
            arrays |= named_arrays(f"kv_maps.{exit}", maps, MAP_ARRAYS)
        return arrays if self.texts is None else arrays | text_arrays(self.texts, "kv_maps.texts.")


def map_elements(hidden: int, layers: int, rank: int | None) -> int:
    """Numbers of one exit's maps to so many layers; rank None: whole."""
    each = hidden * hidden if rank is None else hidden * rank
    shared = 0 if rank is None else hidden * rank
    return shared + layers * (each + hidden)


def read_maps(reader: Reader, header: Mapping[str, Any]) -> KeyValueMaps | None:
    """The K,V maps that a header speaks of."""
    described = header.get("kv_maps")
    if described is None:
        return None
    hidden, layers = (int(header["model"][name]) for name in ("hidden_size", "layers"))
    exits = [int(one["exit"]) for one in described["maps"]]
    if not exits or exits != sorted({exit for exit in exits if 1 <= exit < layers - 1}):
        raise reader.refused(f"the exits {exits} of the K,V maps are not ascending layers below {layers - 1}")
    return KeyValueMaps(
        maps={
            exit: _exit_maps(reader, one, f"kv_maps.{exit}.", hidden, layers - 1 - exit)
            for exit, one in zip(exits, described["maps"], strict=True)
        },
        documents={workload: tuple(ids) for workload, ids in described["documents"].items()},
        texts=reader.texts(described, "kv_maps.texts."),
        provenance=described["provenance"],
    )


def _exit_maps(
    reader: Reader, described: Mapping[str, Any], prefix: str, hidden: int, layers: int
) -> ExitMaps:
    """The maps of one exit to so many layers."""
    rank, penalty = described["rank"], described["penalty"]
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= hidden):
        raise reader.refused(f"K,V maps of rank {rank!r}, which is not 1 to {hidden}")
    if not (isinstance(penalty, float) and 0 <= penalty < math.inf):
        raise reader.refused(f"the penalty of K,V maps is {penalty!r}, not a number of 0 or more")
    shapes = {"centre": (hidden,), "bias": (layers, hidden)}
    if rank is None:
        shapes["change"] = (layers, hidden, hidden)
    else:
        shapes |= {"inward": (rank, hidden), "outward": (layers, hidden, rank)}
    return ExitMaps(
        explained=reader.take_whole(prefix + "explained", (rank or 1, layers), np.float64),
        penalty=penalty,
        **{name: reader.take_whole(prefix + name, shape) for name, shape in shapes.items()},
    )
