"""Exit heads, bound to the model they belong to: how exits are read, classifiers, and K,V maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.heads.arrays import Reader, Weights, named_arrays, text_arrays
from offramp.heads.maps import KeyValueMaps, read_maps
from offramp.heads.readings import ExitMlp, LinearLens, OutputHeads, read_lens, read_mlp, read_output
from offramp.kit.sealed_tensors import Arrays, seal_of
from offramp.kit.typed import from_json
from offramp.workloads.shared_text import Sketch

CLASSIFIER_ARRAYS = ("mean", "scale", "auroc", "base_rate", "better_than_chance")


Figure = TypeVar("Figure")
Flag = TypeVar("Flag")


@dataclass(frozen=True)
class Classifier(Generic[Figure, Flag]):
    """A classifier of features, one linear layer or a network with one hidden layer (ReLU).

    mean, scale: float32 [features], of the standardised features (x - mean) / scale. weights: one array
    [features, outputs] per layer; biases: one [outputs] per layer; the last has one output, the logit of the
    probability. auroc: on held-out documents, NaN where a class was too rare. base_rate: share of positive
    labels among the documents it was fitted on. better_than_chance: whether the log loss on held-out
    documents beats the base rate's by more than chance does in one of twenty. Where a class was too rare the
    weights are 0: it says the base rate.
    """

    NOT_KEPT: ClassVar[tuple[str, ...]] = ("mean", "scale", "weights", "biases")

    mean: Weights
    scale: Weights
    weights: tuple[Weights, ...]
    biases: tuple[Weights, ...]
    auroc: Figure
    base_rate: Figure
    better_than_chance: Flag


@dataclass(frozen=True)
class ExitClassifier(Classifier[NDArray[np.float64], NDArray[np.bool_]]):
    """One per exit below L: the first axis of every array."""


@dataclass(frozen=True, kw_only=True)
class HeadsEntries:
    """What heads say as they are in the header of their file."""

    exits: tuple[int, ...]
    candidate_exit: int | None
    documents: Mapping[str, tuple[str, ...]]
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExitHeads(HeadsEntries):
    """A whole file of fitted heads.

    model: {"name", "fingerprint", "dtype", "layers", "hidden_size", "vocabulary_size"} of the base. exits:
    ascending, below L; the first axis of every array but the K,V maps' and of what all exits share. lens,
    mlp, output: how exits are read, one after the other (see `offramp.heads.readings`); by the logit
    lens if all are None. classifiers: by the fact they give (see `offramp.tracing.facts.HEAD_FACTS`).
    shortlist: token ids of the restricted vocabulary, int32 [tokens], None for the first ids. candidate_exit:
    the exit whose best tokens are the candidates, None without that classifier. documents: ids of the
    documents that fitting saw, by workload fingerprint. texts: sketches of these documents' texts, in the
    same order over all workloads; None where they are not known. provenance: how it was fitted; or, under
    "imported", where it came from. kv_maps: for the KV strategy "mapped", with exits, documents, texts and
    provenance of their own: heads may hold nothing else, and then have no `exits`.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("fingerprint",)
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("shortlist", "texts")

    model: Mapping[str, Any]
    lens: LinearLens | None
    classifiers: Mapping[str, ExitClassifier]
    shortlist: NDArray[np.int32] | None
    output: OutputHeads | None = None
    kv_maps: KeyValueMaps | None = None
    mlp: ExitMlp | None = None
    texts: tuple[Sketch, ...] | None = None

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
            arrays |= named_arrays(fact, classifier, CLASSIFIER_ARRAYS)
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


@dataclass(frozen=True)
class _ModelEntry:
    """What a header says of the model that heads belong to."""

    name: str
    fingerprint: str
    layers: int
    hidden_size: int
    vocabulary_size: int


@dataclass(frozen=True)
class _Header(HeadsEntries):
    """Types of the entries of a header that every file has; arrays and their parts are checked by their
    readers."""

    model: _ModelEntry
    classifiers: Mapping[str, int]
    provenance: Mapping[str, Any]


def build_heads(header: dict[str, Any], arrays: Arrays, where: str) -> ExitHeads:
    """Heads from a header and arrays, every shape, type and number checked.

    where: the file. Raises InputError for arrays that do not belong together, and InvalidRecordError,
    KeyError or TypeError for a header without the parts that `ExitHeads.header` writes.
    """
    said = from_json(_Header, header)
    reader = Reader(arrays, len(said.exits), where)
    heads = ExitHeads(
        model=header["model"],
        exits=said.exits,
        lens=read_lens(reader, header),
        classifiers={fact: _classifier(reader, fact, layers) for fact, layers in said.classifiers.items()},
        shortlist=reader.arrays.get("shortlist"),
        candidate_exit=said.candidate_exit,
        documents=said.documents,
        provenance=said.provenance,
        output=read_output(reader, header),
        texts=reader.texts(header, "texts."),
        mlp=read_mlp(reader, header),
        kv_maps=read_maps(reader, header),
    )
    layers = said.model.layers
    if list(heads.exits) != sorted({exit for exit in heads.exits if 1 <= exit < layers}):
        raise reader.refused(f"the exits {list(heads.exits)} are not ascending layers below {layers}")
    return heads


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
