"""Exit heads, bound to the model they belong to: how exits are read, classifiers, and K,V maps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray

from offramp.errors import InputError, refused_as, shortened
from offramp.heads.parts import (
    NORM_ARRAYS,
    Classifier,
    ExitMaps,
    ExitReading,
    GatedNetwork,
    HeadPart,
    Lens,
    NormKind,
    OwnHead,
    Weights,
)
from offramp.kit.numbers import Count, Layers, NotNegative, whole_number
from offramp.kit.sealed_tensors import Arrays, seal_of
from offramp.kit.typed import InvalidRecordError, from_json
from offramp.workloads.shared_text import WHOLE, Sketch


@dataclass(frozen=True)
class KeyValueMaps:
    """The maps of some exits: what skipped layers are given where K and V are not to come from h_e itself."""

    NOT_KEPT: ClassVar[tuple[str, ...]] = ("texts",)

    maps: Mapping[int, ExitMaps[Weights]]
    """By exit, ascending, each below L - 1: layer L is given h_{L-1} itself by a token that left at L - 1."""
    documents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Ids of the documents that fitting saw, by workload fingerprint."""
    texts: tuple[Sketch, ...] | None = None
    """Sketches of their texts in the same order, None where they are not known."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How they were fitted."""

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
            arrays |= maps.arrays(f"kv_maps.{exit}")
        return arrays if self.texts is None else arrays | text_arrays(self.texts, "kv_maps.texts.")


@dataclass(frozen=True, kw_only=True)
class HeadsEntries:
    """What heads say as they are in the header of their file."""

    exits: tuple[Layers, ...]
    """Ascending, below L; the first axis of every array but the K,V maps' and of what all exits share."""
    candidate_exit: Layers | None
    """The exit whose best tokens are the candidates, None without that classifier."""
    documents: Mapping[str, tuple[str, ...]]
    """Ids of the documents that fitting saw, by workload fingerprint."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was fitted; or, under "imported", where it came from."""


@dataclass(frozen=True)
class ExitHeads(HeadsEntries):
    """A whole file of fitted heads.

    Exits are read through lens, network and output head, one after the other (`offramp.heads.parts`), and by
    the logit lens if there is none of these.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("fingerprint",)
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("shortlist", "texts")

    model: Mapping[str, Any]
    """{"name", "fingerprint", "dtype", "layers", "hidden_size", "vocabulary_size"} of the base."""
    lens: Lens[Weights] | None
    classifiers: Mapping[str, Classifier[Weights]]
    """By the fact they give (see `offramp.tracing.facts.HEAD_FACTS`)."""
    shortlist: NDArray[np.int32] | None
    """Token ids of the restricted vocabulary, int32 [tokens], None for the first ids."""
    output: OwnHead[Weights] | None = None
    kv_maps: KeyValueMaps | None = None
    """For the KV strategy "mapped", with exits, documents, texts and provenance of their own: heads may hold
    nothing else, and then have no `exits`."""
    mlp: GatedNetwork[Weights] | None = None
    texts: tuple[Sketch, ...] | None = None
    """Sketches of the documents' texts, in the same order over all workloads; None where not known."""

    def __repr__(self) -> str:
        parts = [f"{len(self.exits)} exits"] if self.exits else []
        norms = self.output is not None and self.output.weight is None
        kinds = {
            "lens": self.lens,
            "MLP": self.mlp,
            f"{'norms' if norms else 'output heads'}": self.output,
            "K,V maps": self.kv_maps,
        }
        parts += [*(name for name, part in kinds.items() if part is not None), *self.classifiers]
        return f"ExitHeads(of {self.model.get('name', 'a model')}: {', '.join(parts)})"

    @property
    def reads_exits(self) -> bool:
        """Whether exits are read through these heads instead of the model's own norm and output head."""
        return any(part is not None for part in (self.lens, self.mlp, self.output))

    @property
    def reading(self) -> ExitReading[Weights] | None:
        """What states go through before the final norm; None where nothing."""
        return None if self.lens is None and self.mlp is None else ExitReading(self.lens, self.mlp)

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
        output = {} if self.output is None else {"output": self.output.header()}
        maps = {} if self.kv_maps is None else {"kv_maps": self.kv_maps.header()}
        mlp = {} if self.mlp is None else {"mlp": self.mlp.header()}
        rank = {} if self.lens is None or self.lens.rank is None else {"lens_rank": self.lens.rank}
        texts = {} if self.texts is None else {"texts": True}
        return {
            "model": dict(self.model),
            "exits": list(self.exits),
            "lens": self.lens is not None,
            "classifiers": {name: len(classifier.weights) for name, classifier in self.classifiers.items()},
            "candidate_exit": self.candidate_exit,
            "documents": {workload: list(ids) for workload, ids in self.documents.items()},
            "provenance": dict(self.provenance),
            **rank,
            **output,
            **mlp,
            **maps,
            **texts,
        }

    def arrays(self) -> Arrays:
        """Every array under the name it has in a file: "lens.weight", "correctness.weights.0", ..."""
        arrays: Arrays = {}
        for part in (self.lens, self.mlp, self.output):
            arrays |= {} if part is None else part.arrays()
        for fact, classifier in self.classifiers.items():
            arrays |= classifier.arrays(fact)
        if self.shortlist is not None:
            arrays["shortlist"] = self.shortlist
        if self.kv_maps is not None:
            arrays |= self.kv_maps.arrays()
        if self.texts is not None:
            arrays |= text_arrays(self.texts, "texts.")
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


TEXT_ARRAYS = ("hashes", "sizes")
"""Of sketches of texts."""
MADE_BY = "make one with offramp heads fit MODEL --workload W -o FILE"


LARGEST_WEIGHT = 1e30
"""Of float32: a sum of thousands of products with hidden states stays finite."""


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


class ArrayReader:
    """Takes a file's arrays of known shapes, most of them with the exits' axis first."""

    def __init__(self, arrays: Arrays, exits: int, where: str) -> None:
        self.arrays = arrays
        self.exits = exits
        self.where = where

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: type[np.generic] = np.float32,
        *,
        shared: bool = False,
        finite: bool = True,
    ) -> NDArray[Any]:
        """The array [exits, *shape], refused if it is missing, of another shape or type, or not finite.

        shared: whether it may be [1, *shape], where all exits share it.
        """
        one = shared and self.array(name).shape[:1] == (1,)
        return self.take_whole(name, (1 if one else self.exits, *shape), dtype, finite=finite)

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

    def part(
        self,
        kind: type[HeadPart[Any]],
        sizes: Mapping[str, int],
        absent: Collection[str] = (),
        *,
        shared: bool,
    ) -> dict[str, NDArray[Any]]:
        """The arrays of a part by name. sizes: of each axis. absent: those that it has not.

        shared: whether all exits may share its arrays, those of a norm left out.
        """
        return {
            name: self.take(
                f"{kind.PREFIX}.{name}",
                tuple(sizes[axis] for axis in axes),
                shared=shared and not name.startswith("norm_"),
            )
            for name, axes in kind.AXES.items()
            if name not in absent
        }

    def texts(self, documents: Mapping[str, Sequence[str]], prefix: str) -> tuple[Sketch, ...]:
        """The sketches of the texts of these documents, which fitting read."""
        hashes, sizes = (self.array(f"{prefix}{name}") for name in TEXT_ARRAYS)
        count = sum(map(len, documents.values()))
        right = hashes.dtype == np.uint32 and sizes.dtype == np.int64 and hashes.ndim == sizes.ndim == 1
        # Each size first: the sum of some that are huge wraps round.
        right = right and len(sizes) == count and not ((sizes < WHOLE) | (sizes > len(hashes))).any()
        if not right or sum(sizes.tolist()) != len(hashes):
            raise self.refused("the sketches of their texts do not belong to their documents")
        return tuple(np.split(hashes, np.cumsum(sizes)[:-1])) if count else ()

    def array(self, name: str) -> NDArray[Any]:
        """An array of any shape, refused if it is missing."""
        if name not in self.arrays:
            raise self.refused(f"the array {name} is missing")
        return self.arrays[name]

    def width(self, name: str) -> int:
        """The last axis of an array, refused if it has none."""
        shape = self.array(name).shape
        if not shape:
            raise self.refused(f"{name} is one number, not an array of them")
        return int(shape[-1])

    def refused(self, why: str) -> InputError:
        """The error for heads whose arrays do not belong together."""
        return InputError(f"the exit heads cannot be used: {why}", where=self.where, fix=MADE_BY)


@dataclass(frozen=True)
class _BaseEntry:
    """What a header says of the model that heads belong to."""

    name: str
    fingerprint: str
    layers: Count
    hidden_size: Count
    vocabulary_size: Count


@dataclass(frozen=True)
class _NetworkEntry:
    units: Count
    epsilon: Annotated[float, Gt(0), Lt(1)]
    adds_to_normed: bool = False


@dataclass(frozen=True)
class _OutputEntry:
    norm: NormKind
    epsilon: Annotated[float, Ge(0), Lt(1)] | None
    absent: tuple[str, ...]


@dataclass(frozen=True)
class _MapEntry:
    exit: Count
    rank: Count | None
    penalty: NotNegative


@dataclass(frozen=True)
class _MapsEntry:
    maps: tuple[_MapEntry, ...]
    documents: dict[str, tuple[str, ...]]
    provenance: dict[str, Any]
    texts: bool = False


@dataclass(frozen=True, kw_only=True)
class _ReadingEntry:
    """What a header says of how exits are read."""

    lens: bool
    lens_rank: Count | None = None
    mlp: _NetworkEntry | None = None
    output: _OutputEntry | None = None


@dataclass(frozen=True, kw_only=True)
class _HeadsHeader(_ReadingEntry, HeadsEntries):
    """The entries of a header; what the arrays must fit is checked with them."""

    model: _BaseEntry
    classifiers: Mapping[str, Count]
    provenance: Mapping[str, Any]
    kv_maps: _MapsEntry | None = None
    texts: bool = False


def build_heads(header: dict[str, Any], arrays: Arrays, where: str) -> ExitHeads:
    """Heads from a header and arrays, every shape, type and number checked.

    where: the file. Raises InputError for what does not belong together, and for a header that
    `ExitHeads.header` does not write.
    """
    what = "the exit heads cannot be used: of their header"
    with refused_as(InputError, what, InvalidRecordError, where=where, fix=MADE_BY):
        said = from_json(_HeadsHeader, header)
    reader = ArrayReader(arrays, len(said.exits), where)
    heads = ExitHeads(
        model=header["model"],
        exits=said.exits,
        lens=_lens(reader, said),
        classifiers={fact: _classifier(reader, fact, layers) for fact, layers in said.classifiers.items()},
        shortlist=_shortlist(reader),
        candidate_exit=said.candidate_exit,
        documents=said.documents,
        provenance=said.provenance,
        output=_output(reader, said),
        texts=reader.texts(said.documents, "texts.") if said.texts else None,
        mlp=_network(reader, said),
        kv_maps=_maps(reader, said),
    )
    layers = said.model.layers
    if list(heads.exits) != sorted({exit for exit in heads.exits if 1 <= exit < layers}):
        raise reader.refused(f"the exits {list(heads.exits)} are not ascending layers below {layers}")
    if heads.candidate_exit not in (None, *heads.exits):
        raise reader.refused(f"the candidate exit {heads.candidate_exit} is none of its exits")
    if unread := sorted(arrays.keys() - heads.arrays().keys()):
        raise reader.refused(f"the array {shortened(unread[0])} belongs to nothing in its header")
    return heads


def unlisted_arrays(header: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Of the names of arrays those that a header says nothing of.

    Raises InvalidRecordError for a header that `ExitHeads.header` does not write.
    """
    said = from_json(_HeadsHeader, header)
    parts: dict[str, type[HeadPart[Any]]] = dict.fromkeys(said.classifiers, Classifier)
    parts |= {kind.PREFIX: kind for kind in (Lens, GatedNetwork, OwnHead) if getattr(said, kind.PREFIX)}
    listed = {"shortlist", *(f"texts.{name}" for name in TEXT_ARRAYS if said.texts)}
    if said.kv_maps is not None:
        parts |= {f"kv_maps.{one.exit}": ExitMaps for one in said.kv_maps.maps}
        listed |= {f"kv_maps.texts.{name}" for name in TEXT_ARRAYS if said.kv_maps.texts}
    listed |= {f"{prefix}.{name}" for prefix, kind in parts.items() for name in (*kind.AXES, *kind.JUDGED)}

    def is_listed(name: str) -> bool:
        of, _, number = name.rpartition(".")  # the layers of a classifier are numbered
        fact, _, kind = of.rpartition(".")
        place = whole_number(number, 0) if kind in ("weights", "biases") else None
        return name in listed or (place is not None and place < said.classifiers.get(fact, 0))

    return [name for name in names if not is_listed(name)]


def _shortlist(reader: ArrayReader) -> NDArray[np.int32] | None:
    """Token ids, each once, if there are any; who uses them holds them against the model's vocabulary."""
    ids = reader.arrays.get("shortlist")
    if ids is None:
        return None
    if ids.dtype != np.int32 or ids.ndim != 1 or not len(ids) or len(np.unique(ids)) < len(ids):
        raise reader.refused("the shortlist is not of token ids, each once")
    return ids


def _lens(reader: ArrayReader, said: _HeadsHeader) -> Lens[Weights] | None:
    """The lens that a header speaks of."""
    if not said.lens:
        return None
    hidden, rank = said.model.hidden_size, said.lens_rank
    if rank is not None and rank > hidden:
        raise reader.refused(f"a lens of rank {rank}, which is not 1 to {hidden}")
    absent = ("inward", "outward") if rank is None else ("weight",)
    arrays = reader.part(Lens, {"h": hidden, "r": rank or 0}, absent, shared=False)
    for name in Lens.JUDGED:
        if f"lens.{name}" in reader.arrays:
            arrays[name] = reader.take(f"lens.{name}", (), np.float64)
    lens = Lens(**arrays)
    if lens.explained is not None and np.any(lens.explained > 1):
        raise reader.refused("lens.explained holds a share above 1")
    if lens.penalty is not None and np.any(lens.penalty < 0):
        raise reader.refused("lens.penalty holds a number below 0")
    return lens


def _network(reader: ArrayReader, said: _HeadsHeader) -> GatedNetwork[Weights] | None:
    """The networks that a header speaks of."""
    described = said.mlp
    if described is None:
        return None
    sizes = {"h": said.model.hidden_size, "u": described.units}
    arrays: dict[str, Any] = reader.part(GatedNetwork, sizes, shared=True)
    return GatedNetwork(**arrays, epsilon=described.epsilon, adds_to_normed=described.adds_to_normed)


def _output(reader: ArrayReader, said: _HeadsHeader) -> OwnHead[Weights] | None:
    """The norms and output heads that a header speaks of."""
    described = said.output
    if described is None:
        return None
    sizes = {"h": said.model.hidden_size, "v": said.model.vocabulary_size}
    norm, epsilon, absent = described.norm, described.epsilon, described.absent
    if NORM_ARRAYS[norm] and epsilon is None:
        raise reader.refused(f"a {norm} norm takes an epsilon")
    given = [name for name in OwnHead.AXES if name not in absent]
    stray = [name for name in given if name.startswith("norm_") and name not in NORM_ARRAYS[norm]]
    if stray or ("norm_weight" in NORM_ARRAYS[norm] and "norm_weight" not in given):
        raise reader.refused(f"a {norm} norm takes {', '.join(NORM_ARRAYS[norm]) or 'no weights'}")
    if "weight" not in given and (norm == "model" or "bias" in given):
        raise reader.refused("without an output head they must bring a norm, and no bias of logits")
    arrays: dict[str, Any] = reader.part(OwnHead, sizes, absent, shared=True)
    return OwnHead(**arrays, norm=norm, epsilon=epsilon)


def _classifier(reader: ArrayReader, fact: str, layers: int) -> Classifier[Weights]:
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
    auroc = reader.take(f"{fact}.auroc", (), np.float64, finite=False)  # NaN where it is undefined
    base_rate = reader.take(f"{fact}.base_rate", (), np.float64)
    for name, shares in (("auroc", auroc), ("base_rate", base_rate)):
        if np.any((shares < 0) | (shares > 1)):
            raise reader.refused(f"{fact}.{name} holds a number that is not from 0 to 1")
    return Classifier(
        mean=reader.take(f"{fact}.mean", (features,)),
        scale=scale,
        weights=tuple(weights),
        biases=tuple(biases),
        auroc=auroc,
        base_rate=base_rate,
        better_than_chance=reader.take(f"{fact}.better_than_chance", (), np.bool_),
    )


def _maps(reader: ArrayReader, said: _HeadsHeader) -> KeyValueMaps | None:
    """The K,V maps that a header speaks of."""
    described = said.kv_maps
    if described is None:
        return None
    hidden, layers = said.model.hidden_size, said.model.layers
    exits = [of_exit.exit for of_exit in described.maps]
    if not exits or exits != sorted({exit for exit in exits if exit < layers - 1}):
        raise reader.refused(f"the exits {exits} of the K,V maps are not ascending layers below {layers - 1}")
    return KeyValueMaps(
        maps={
            of_exit.exit: _exit_maps(reader, of_exit, hidden, layers - 1 - of_exit.exit)
            for of_exit in described.maps
        },
        documents=described.documents,
        texts=reader.texts(described.documents, "kv_maps.texts.") if described.texts else None,
        provenance=described.provenance,
    )


def _exit_maps(reader: ArrayReader, described: _MapEntry, hidden: int, layers: int) -> ExitMaps[Weights]:
    """The maps of one exit to so many layers."""
    rank, prefix = described.rank, f"kv_maps.{described.exit}."
    if rank is not None and rank > hidden:
        raise reader.refused(f"K,V maps of rank {rank}, which is not 1 to {hidden}")
    absent = ("inward", "outward") if rank is None else ("change",)
    sizes = {"h": hidden, "l": layers, "r": rank or 0}
    explained = reader.take_whole(prefix + "explained", (rank or 1, layers), np.float64)
    if np.any(explained > 1):
        raise reader.refused(f"{prefix}explained holds a share above 1")
    arrays: dict[str, Any] = {
        name: reader.take_whole(prefix + name, tuple(sizes[axis] for axis in axes))
        for name, axes in ExitMaps.AXES.items()
        if name not in absent
    }
    return ExitMaps(**arrays, explained=explained, penalty=described.penalty)
