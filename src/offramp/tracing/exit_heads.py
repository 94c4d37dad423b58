"""Exit heads, bound to the model they belong to: a linear lens or output heads, classifiers, and K,V maps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.files import canonical_json
from offramp.workloads.shared_text import Sketch

Weights = NDArray[np.float32]

SHORTLIST = 2048
"""Tokens of the short list, unless heads bring another or the vocabulary is smaller."""

ELEMENT_BYTES = 4
"""Maps are kept in float32."""


@dataclass(frozen=True)
class ExitMaps:
    """The maps of one exit e < L - 1, to the output of each layer l = e + 1..L - 1, the axis "layers" here.

    h_l = h + D_l (h - centre) + bias_l, h being the exit's hidden state: the input of layer l + 1 but for
    what a linear map cannot say. D_l is whole, or of low rank with one V for all layers: D_l = U_l V^T.

    change: D, float32 [layers, hidden, hidden] (rows are outputs), None in low rank. inward: V^T, float32
    [rank, hidden], and outward: U, float32 [layers, hidden, rank], columns from the most to the least that
    they explain; None where D is whole. centre: float32 [hidden]. bias: float32 [layers, hidden].
    explained: float64 [ranks, layers], share of the held-out variance of h_l - h, each token's over the mean
    square of its h, that the first columns explain: row r - 1 of rank r; one row where D is whole. penalty:
    of the ridge regression.
    """

    centre: Weights
    bias: Weights
    explained: NDArray[np.float64]
    penalty: float
    change: Weights | None = None
    inward: Weights | None = None
    outward: Weights | None = None

    @property
    def rank(self) -> int | None:
        """Columns of U and V; None where D is whole."""
        return None if self.inward is None else len(self.inward)

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

    def missing(self, exits: Iterable[int], layers: int) -> list[int]:
        """Which of some exits the maps lack, of a model of so many layers; L - 1 and L need none."""
        return sorted(exit for exit in set(exits) - set(self.maps) if exit < layers - 1)

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

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array under the name it has in a file: "kv_maps.8.bias", ..."""
        maps = {
            f"kv_maps.{exit}.{name}": array
            for exit, maps in self.maps.items()
            for name in MAP_ARRAYS
            if (array := getattr(maps, name)) is not None
        }
        return maps if self.texts is None else maps | text_arrays(self.texts, "kv_maps.texts.")


MAP_ARRAYS = ("centre", "bias", "explained", "change", "inward", "outward")


def text_arrays(texts: Sequence[Sketch], prefix: str) -> dict[str, NDArray[Any]]:
    """Sketches as arrays: all numbers one after the other, and how many each has."""
    return {
        f"{prefix}hashes": np.concatenate([np.empty(0, dtype=np.uint32), *texts]),
        f"{prefix}sizes": np.array([len(sketch) for sketch in texts], dtype=np.int64),
    }


def map_elements(hidden: int, layers: int, rank: int | None) -> int:
    """Numbers of one exit's maps to so many layers; rank None: whole."""
    each = hidden * hidden if rank is None else hidden * rank
    shared = 0 if rank is None else hidden * rank
    return shared + layers * (each + hidden)


@dataclass(frozen=True)
class LinearLens:
    """Per exit below L an affine map h -> A h + b, an estimate of the last layer's output.

    weight: float32 [exits, hidden, hidden] (rows are outputs); bias: float32 [exits, hidden].
    explained: float64 [exits], share of the variance of h_L explained on held-out documents. penalty: float64
    [exits], the ridge penalty chosen there. Both are None for a lens that offramp did not fit.
    """

    weight: Weights
    bias: Weights
    explained: NDArray[np.float64] | None = None
    penalty: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ExitMlp:
    """Per exit below L a residual gated network behind the lens, before the model's own final norm and head.

    x -> x + W_down (silu(W_gate n(x)) * W_up n(x)), n(x) = norm * x / sqrt(mean(x^2) + epsilon): SwiGLU
    (arXiv 2002.05202, equation 6) behind an RMS norm (arXiv 1910.07467, equation 4), x being what the lens
    gives.

    norm: float32 [exits, hidden]. gate, up: float32 [exits, units, hidden]. down: float32 [exits, hidden,
    units].
    """

    norm: Weights
    gate: Weights
    up: Weights
    down: Weights
    epsilon: float = 1e-6

    @property
    def units(self) -> int:
        """Of the hidden layer."""
        return int(self.gate.shape[1])


NormKind = Literal["model", "rms", "layer", "none"]


@dataclass(frozen=True)
class OutputHeads:
    """Per exit below L an output head of its own: h -> W norm(h) + b, then what the model does to its logits.

    weight: float32 [exits, vocabulary, hidden]. bias: float32 [exits, vocabulary], None without one. norm:
    "model" (the model's own final norm), "rms" (arXiv 1910.07467, section 3), "layer" (arXiv 1607.06450,
    section 3) or "none". norm_weight, norm_bias: float32 [exits, hidden] of "rms" and "layer", None where
    there is none. epsilon: added under the root.
    """

    weight: Weights
    bias: Weights | None = None
    norm: NormKind = "model"
    norm_weight: Weights | None = None
    norm_bias: Weights | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class ExitClassifier:
    """Per exit below L a classifier of features, one linear layer or a network with one hidden layer (ReLU).

    mean, scale: float32 [exits, features], of the standardised features (x - mean) / scale. weights: one
    array [exits, features, outputs] per layer; biases: one [exits, outputs] per layer; the last has one
    output, the logit of the probability. auroc: float64 [exits], on held-out documents, NaN where a class was
    too rare. base_rate: float64 [exits], share of positive labels among the documents it was fitted on.
    better_than_chance: bool [exits], whether the log loss on held-out documents beats the base rate's by more
    than chance does in one of twenty. Where a class was too rare the weights are 0: it says the base rate.
    """

    mean: Weights
    scale: Weights
    weights: tuple[Weights, ...]
    biases: tuple[Weights, ...]
    auroc: NDArray[np.float64]
    base_rate: NDArray[np.float64]
    better_than_chance: NDArray[np.bool_]


@dataclass(frozen=True)
class ExitHeads:
    """A whole file of fitted heads.

    model: {"name", "fingerprint", "dtype", "layers", "hidden_size", "vocabulary_size"} of the base. exits:
    ascending, below L; the first axis of every array but the K,V maps'. lens, output: how exits are read, at
    most one of them; by the logit lens if both are None. classifiers: by the fact they give (see
    `offramp.tracing.facts.HEAD_FACTS`). shortlist: token ids of the restricted vocabulary, int32 [tokens],
    None for the first ids. candidate_exit: the exit whose best tokens are the candidates, None without that
    classifier. documents: ids of the documents that fitting saw, by workload fingerprint. texts: sketches of
    these documents' texts, in the same order over all workloads; None where they are not known. provenance:
    how it was fitted; or, under "imported", where it came from. mlp: what comes behind the lens, without
    which there is none. kv_maps: for the KV strategy "mapped", with exits, documents, texts and provenance of
    their own: heads may hold nothing else, and then have no `exits`.
    """

    model: Mapping[str, Any]
    exits: tuple[int, ...]
    lens: LinearLens | None
    classifiers: Mapping[str, ExitClassifier]
    shortlist: NDArray[np.int32] | None
    candidate_exit: int | None
    documents: Mapping[str, tuple[str, ...]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    output: OutputHeads | None = None
    kv_maps: KeyValueMaps | None = None
    mlp: ExitMlp | None = None
    texts: tuple[Sketch, ...] | None = None

    def __repr__(self) -> str:
        parts = [f"{len(self.exits)} exits"] if self.exits else []
        kinds = {
            "lens": self.lens,
            "MLP": self.mlp,
            "output heads": self.output,
            "K,V maps": self.kv_maps,
        }
        parts += [*(name for name, part in kinds.items() if part is not None), *self.classifiers]
        return f"ExitHeads(of {self.model.get('name', 'a model')}: {', '.join(parts)})"

    @property
    def reads_exits(self) -> bool:
        """Whether exits are read through these heads instead of the model's own norm and output head."""
        return self.lens is not None or self.output is not None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything in the heads, in hexadecimal: what a file of them is sealed with."""
        return seal_of(self.header(), self.arrays())

    @property
    def holds_maps_alone(self) -> bool:
        """Whether exits are read, and decided on, as without heads."""
        others = self.reads_exits or self.classifiers or self.shortlist is not None
        return self.kv_maps is not None and not others

    @property
    def reading_fingerprint(self) -> str | None:
        """The fingerprint without the K,V maps: what exits are read by. None if they are as without heads."""
        return None if self.holds_maps_alone else replace(self, kv_maps=None).fingerprint

    @property
    def seen_documents(self) -> dict[str, tuple[str, ...]]:
        """Ids of the documents that any part's fitting saw, by workload fingerprint."""
        seen = dict(self.documents)
        for workload, ids in ({} if self.kv_maps is None else self.kv_maps.documents).items():
            seen[workload] = tuple(dict.fromkeys((*seen.get(workload, ()), *ids)))
        return seen

    @property
    def seen_texts(self) -> tuple[Sketch, ...] | None:
        """Sketches of all these documents' texts, None where those of some are not known."""
        if self.kv_maps is None:
            return self.texts
        own = self.texts if self.documents or self.texts else ()
        return None if own is None or self.kv_maps.texts is None else (*own, *self.kv_maps.texts)

    def header(self) -> dict[str, Any]:
        """All that is not an array, as JSON values; those only that there are."""
        output = {} if self.output is None else {"output": _describe_output(self.output)}
        maps = {} if self.kv_maps is None else {"kv_maps": self.kv_maps.header()}
        mlp = {} if self.mlp is None else {"mlp": {"units": self.mlp.units, "epsilon": self.mlp.epsilon}}
        texts = {} if self.texts is None else {"texts": True}
        return {
            "model": dict(self.model),
            "exits": list(self.exits),
            "lens": self.lens is not None,
            "classifiers": {name: len(classifier.weights) for name, classifier in self.classifiers.items()},
            "candidate_exit": self.candidate_exit,
            "documents": {workload: list(ids) for workload, ids in self.documents.items()},
            "provenance": dict(self.provenance),
            **output,
            **mlp,
            **maps,
            **texts,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array under the name it has in a file: "lens.weight", "correctness.weights.0", ..."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.lens is not None:
            arrays |= _named("lens", self.lens, LENS_ARRAYS)
        if self.mlp is not None:
            arrays |= _named("mlp", self.mlp, MLP_ARRAYS)
        if self.output is not None:
            arrays |= _named("output", self.output, OUTPUT_ARRAYS)
        for fact, classifier in self.classifiers.items():
            arrays |= {f"{fact}.{name}": getattr(classifier, name) for name in CLASSIFIER_ARRAYS}
            for number, (weights, biases) in enumerate(
                zip(classifier.weights, classifier.biases, strict=True)
            ):
                arrays |= {f"{fact}.weights.{number}": weights, f"{fact}.biases.{number}": biases}
        if self.shortlist is not None:
            arrays["shortlist"] = self.shortlist
        if self.kv_maps is not None:
            arrays |= self.kv_maps.arrays()
        if self.texts is not None:
            arrays |= text_arrays(self.texts, "texts.")
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


LENS_ARRAYS = ("weight", "bias", "explained", "penalty")
MLP_ARRAYS = ("norm", "gate", "up", "down")
OUTPUT_ARRAYS = ("weight", "bias", "norm_weight", "norm_bias")
CLASSIFIER_ARRAYS = ("mean", "scale", "auroc", "base_rate", "better_than_chance")


def _named(prefix: str, owner: object, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays that an object has, by their name in a file."""
    return {f"{prefix}.{name}": array for name in names if (array := getattr(owner, name)) is not None}


def _describe_output(output: OutputHeads) -> dict[str, Any]:
    absent = [name for name in OUTPUT_ARRAYS if getattr(output, name) is None]
    return {"norm": output.norm, "epsilon": output.epsilon, "absent": absent}


def seal_of(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of a header and of every array's name, type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(canonical_json(header).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical_json([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
