"""Arrays of exit heads: named, sealed, and taken out of a file with every shape checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.kit.sealed_tensors import Arrays
from offramp.workloads.shared_text import WHOLE, Sketch

Weights = NDArray[np.float32]

MADE_BY = "make one with offramp heads fit MODEL --workload W -o FILE"


def at_place(array: Weights, place: int) -> Weights:
    """One exit's part of an array whose first axis is the exits, or 1 where all exits share it."""
    one: Weights = array[place if len(array) > 1 else 0]
    return one


LARGEST_WEIGHT = 1e30
"""Of float32: a sum of thousands of products with hidden states stays finite."""


def at_places(array: Weights, places: Sequence[int]) -> Weights:
    """The same of some exits, in their order; what is shared stays so."""
    return array[list(places)] if len(array) > 1 else array


def named_arrays(prefix: str, owner: object, names: Iterable[str]) -> Arrays:
    """The arrays that an object has, by their name in a file."""
    return {f"{prefix}.{name}": array for name in names if (array := getattr(owner, name)) is not None}


def text_arrays(texts: Sequence[Sketch], prefix: str) -> Arrays:
    """Sketches as arrays: all numbers one after the other, and how many each has."""
    return {
        f"{prefix}hashes": np.concatenate([np.empty(0, dtype=np.uint32), *texts]),
        f"{prefix}sizes": np.array([len(sketch) for sketch in texts], dtype=np.int64),
    }


def useless(array: NDArray[Any]) -> str | None:
    """Why nothing can be computed with an array, None if it can: "holds a number that is not finite"."""
    if not np.isfinite(array).all():
        return "holds a number that is not finite"
    largest = float(np.abs(array).max(initial=0)) if array.dtype.kind == "f" else 0.0
    return f"holds {largest:.0e}, and products with it are infinite" if largest > LARGEST_WEIGHT else None


class Reader:
    """Takes arrays of known shapes, most of them with the exits' axis first."""

    def __init__(self, arrays: Arrays, exits: int, where: str) -> None:
        self.arrays = arrays
        self.exits = exits
        self.where = where

    def take(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float32, *, finite: bool = True
    ) -> NDArray[Any]:
        """The array [exits, *shape], refused if it is missing, of another shape or type, or not finite."""
        return self.take_whole(name, (self.exits, *shape), dtype, finite=finite)

    def take_shared(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The same, or [1, *shape] where all exits share it."""
        shared = self.array(name).shape[:1] == (1,)
        return self.take_whole(name, (1 if shared else self.exits, *shape))

    def take_whole(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float32, *, finite: bool = True
    ) -> NDArray[Any]:
        """The same of an array without the exits' axis."""
        array = self.array(name)
        if array.shape != shape or array.dtype != dtype:
            wanted = f"{np.dtype(dtype)} {list(shape)}"
            raise self.refused(f"{name} is {array.dtype} {list(array.shape)}, not {wanted}")
        if finite and (why := useless(array)):
            raise self.refused(f"{name} {why}")
        return array

    def take_if_there(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> NDArray[Any] | None:
        """The array [exits, *shape], or None if there is no such array."""
        return self.take(name, shape, dtype) if name in self.arrays else None

    def texts(self, header: Mapping[str, Any], prefix: str) -> tuple[Sketch, ...] | None:
        """The sketches of the texts that fitting read, if the header speaks of any."""
        if not header.get("texts"):
            return None
        hashes, sizes = (self.array(f"{prefix}{name}") for name in ("hashes", "sizes"))
        documents = sum(len(ids) for ids in header["documents"].values())
        right = hashes.dtype == np.uint32 and sizes.dtype == np.int64 and hashes.ndim == sizes.ndim == 1
        if not right or len(sizes) != documents or sizes.sum() != len(hashes) or (sizes < WHOLE).any():
            raise self.refused("the sketches of their texts do not belong to their documents")
        return tuple(np.split(hashes, np.cumsum(sizes)[:-1])) if documents else ()

    def width(self, name: str) -> int:
        """The last axis of an array."""
        return int(self.array(name).shape[-1])

    def array(self, name: str) -> NDArray[Any]:
        """An array of any shape, refused if it is missing."""
        if name not in self.arrays:
            raise self.refused(f"the array {name} is missing")
        return self.arrays[name]

    def refused(self, why: str) -> InputError:
        """The error for heads whose arrays do not belong together."""
        return InputError(f"the exit heads cannot be used: {why}", where=self.where, fix=MADE_BY)
