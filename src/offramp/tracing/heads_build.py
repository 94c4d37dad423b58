"""Exit heads from the header and the arrays of a file, every shape, type and number checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.tracing.exit_heads import ExitClassifier, ExitHeads, LinearLens, OutputHeads
from offramp.tracing.key_value_maps import ExitMaps, KeyValueMaps
from offramp.workloads.shared_text import WHOLE, Sketch

NORM_ARRAYS: dict[str, tuple[str, ...]] = {
    "model": (),
    "rms": ("norm_weight",),
    "layer": ("norm_weight", "norm_bias"),
    "none": (),
}
"""Arrays that a norm may bring with it, the first of which it must."""

Arrays = dict[str, NDArray[Any]]

MADE_BY = "make one with offramp heads fit MODEL --workload W -o FILE"


def build_heads(header: dict[str, Any], arrays: Arrays, where: str) -> ExitHeads:
    """Heads from a header and arrays, every shape, type and number checked.

    where: the file. Raises InputError for arrays that do not belong together, and what a header without the
    parts that `ExitHeads.header` writes raises.
    """
    reader = Reader(arrays, len(header["exits"]), where)
    hidden = int(header["model"]["hidden_size"])
    lens = None
    if header["lens"]:
        lens = LinearLens(
            weight=reader.take("lens.weight", (hidden, hidden)),
            bias=reader.take("lens.bias", (hidden,)),
            explained=reader.take_if_there("lens.explained", (), np.float64),
            penalty=reader.take_if_there("lens.penalty", (), np.float64),
        )
    heads = ExitHeads(
        model=header["model"],
        exits=tuple(header["exits"]),
        lens=lens,
        classifiers={
            fact: _classifier(reader, fact, layers) for fact, layers in header["classifiers"].items()
        },
        shortlist=reader.arrays.get("shortlist"),
        candidate_exit=header["candidate_exit"],
        documents={workload: tuple(ids) for workload, ids in header["documents"].items()},
        provenance=header["provenance"],
        output=_output(reader, header),
        texts=_texts(reader, header, "texts."),
        kv_maps=_maps(reader, header),
    )
    if heads.lens is not None and heads.output is not None:
        raise reader.refused("they read exits both through a lens and through output heads")
    layers = int(header["model"]["layers"])
    if list(heads.exits) != sorted({exit for exit in heads.exits if 1 <= exit < layers}):
        raise reader.refused(f"the exits {list(heads.exits)} are not ascending layers below {layers}")
    return heads


def _texts(reader: Reader, header: dict[str, Any], prefix: str) -> tuple[Sketch, ...] | None:
    """The sketches of the texts that fitting read, if there are any."""
    if not header.get("texts"):
        return None
    hashes, sizes = (reader.array(f"{prefix}{name}") for name in ("hashes", "sizes"))
    documents = sum(len(ids) for ids in header["documents"].values())
    right = hashes.dtype == np.uint32 and sizes.dtype == np.int64 and hashes.ndim == sizes.ndim == 1
    if not right or len(sizes) != documents or sizes.sum() != len(hashes) or (sizes < WHOLE).any():
        raise reader.refused("the sketches of their texts do not belong to their documents")
    return tuple(np.split(hashes, np.cumsum(sizes)[:-1])) if documents else ()


def _output(reader: Reader, header: dict[str, Any]) -> OutputHeads | None:
    """The output heads that a header speaks of."""
    described = header.get("output")
    if described is None:
        return None
    hidden, vocabulary = (int(header["model"][name]) for name in ("hidden_size", "vocabulary_size"))
    shapes = {"bias": (vocabulary,), "norm_weight": (hidden,), "norm_bias": (hidden,)}
    norm, epsilon = described["norm"], described["epsilon"]
    if norm not in NORM_ARRAYS:
        raise reader.refused(f"no norm {norm!r}; there are: {', '.join(NORM_ARRAYS)}")
    if NORM_ARRAYS[norm] and not (isinstance(epsilon, float) and 0 <= epsilon < 1):
        raise reader.refused(f"the norm's epsilon is {epsilon!r}, not a number from 0 up to 1")
    given = {name: shape for name, shape in shapes.items() if name not in described["absent"]}
    stray = [name for name in given if name != "bias" and name not in NORM_ARRAYS[norm]]
    if stray or ("norm_weight" in NORM_ARRAYS[norm] and "norm_weight" not in given):
        raise reader.refused(f"a {norm} norm takes {', '.join(NORM_ARRAYS[norm]) or 'no weights'}")
    return OutputHeads(
        weight=reader.take("output.weight", (vocabulary, hidden)),
        norm=norm,
        epsilon=epsilon,
        **{name: reader.take(f"output.{name}", shape) for name, shape in given.items()},
    )


def _maps(reader: Reader, header: dict[str, Any]) -> KeyValueMaps | None:
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
        texts=_texts(reader, described, "kv_maps.texts."),
        provenance=described["provenance"],
    )


def _exit_maps(reader: Reader, described: dict[str, Any], prefix: str, hidden: int, layers: int) -> ExitMaps:
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


def _classifier(reader: Reader, fact: str, layers: int) -> ExitClassifier:
    features = reader.width(f"{fact}.mean")
    widths = [features]
    weights, biases = [], []
    for number in range(layers):
        outputs = 1 if number == layers - 1 else reader.width(f"{fact}.biases.{number}")
        weights.append(reader.take(f"{fact}.weights.{number}", (widths[-1], outputs)))
        biases.append(reader.take(f"{fact}.biases.{number}", (outputs,)))
        widths.append(outputs)
    scale = reader.take(f"{fact}.scale", (features,))
    if not (scale > 0).all():
        raise reader.refused(f"{fact}.scale holds a number that is not positive")
    return ExitClassifier(
        mean=reader.take(f"{fact}.mean", (features,)),
        scale=scale,
        weights=tuple(weights),
        biases=tuple(biases),
        auroc=reader.take(f"{fact}.auroc", (), np.float64, finite=False),
        base_rate=reader.take(f"{fact}.base_rate", (), np.float64),
        better_than_chance=reader.take(f"{fact}.better_than_chance", (), np.bool_),
    )


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

    def take_whole(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float32, *, finite: bool = True
    ) -> NDArray[Any]:
        """The same of an array without the exits' axis."""
        array = self.array(name)
        if array.shape != shape or array.dtype != dtype:
            wanted = f"{np.dtype(dtype)} {list(shape)}"
            raise self.refused(f"{name} is {array.dtype} {list(array.shape)}, not {wanted}")
        if finite and not np.isfinite(array).all():
            raise self.refused(f"{name} holds a number that is not finite")
        return array

    def take_if_there(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> NDArray[Any] | None:
        """The same, or None if there is no such array."""
        return self.take(name, shape, dtype) if name in self.arrays else None

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
