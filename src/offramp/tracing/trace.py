"""A trace: small facts for every (token, exit) of one model on one workload. Reading one needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from offramp.display import ShownAsHtml
from offramp.errors import InputError
from offramp.heads.described import describe_heads, reading_of
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import require_base
from offramp.heads.trained_model import TRAINED_ON
from offramp.kit.arguments import checked
from offramp.kit.rules import suggest
from offramp.models.shape import ModelShape
from offramp.tracing.facts import DOCUMENT_FACTS, FACT_BY_NAME, FACTS, ROUNDING, DocumentFactName, FactName
from offramp.tracing.manifest import (
    DocumentRecord,
    Manifest,
    PartRecord,
    Stamps,
    as_verified,
    damaged_parts,
    read_manifest,
    stamps_of,
)
from offramp.tracing.sealed_parts import (
    MARGINAL_BLOCKS,
    REFERENCE_TOP1,
    TOKEN_COLUMNS,
    Part,
    damaged,
    read_columns,
    read_marginal,
    require_within,
)
from offramp.workloads.shared_text import read_sketch, shares_text

if TYPE_CHECKING:
    import pyarrow

    from offramp.workloads.workload import Workload

FactArray = NDArray[np.float32] | NDArray[np.int32]


@dataclass(frozen=True)
class Marginal:
    """Sums of the final distributions p_L over 16 blocks of documents, so that R_0 can be resampled."""

    sums: NDArray[np.float64]
    """float64 [blocks, vocabulary]."""
    tokens: NDArray[np.int64]
    """int64 [blocks]."""
    block_of_document: NDArray[np.int64]
    """int64 [documents]."""


class Trace(ShownAsHtml):
    """Facts as numpy arrays [tokens, exits], read when first asked for, and none can be written to.

    exits: int [exits], the last is L. token, next_token, document, position: int [tokens]; generated: bool
    [tokens]. `document` indexes `documents`. Rows of one document are contiguous; an invalid one has none.
    Every fact that was recorded is an attribute: `trace.max_prob` is float32 [tokens, exits]. fact_names:
    their names. reference_top1: int32 [tokens], the top-1 of the reference in the same place: a transformed
    model's untransformed form, a trained one's original if that was given; None without.
    """

    def __init__(
        self,
        *,
        exits: NDArray[np.int64],
        tokens: Mapping[str, NDArray[Any]],
        facts: Callable[[str], FactArray],
        documents: tuple[DocumentRecord, ...],
        marginal: Callable[[], Marginal],
        shape: ModelShape,
        provenance: Mapping[str, Any],
        folder: Path | None = None,
        document_facts: Mapping[str, NDArray[np.float64]] | None = None,
        fact_names: Iterable[str] | None = None,
        full_top1: FactArray | None = None,
    ) -> None:
        self.fact_names = tuple(fact.name for fact in FACTS) if fact_names is None else tuple(fact_names)
        self._document_facts = {name: read_only(fact) for name, fact in (document_facts or {}).items()}
        self.exits = read_only(exits)
        tokens = {name: read_only(column) for name, column in tokens.items()}
        self.token: NDArray[np.int32] = tokens["token"]
        self.next_token: NDArray[np.int32] = tokens["next_token"]
        self.document: NDArray[np.int32] = tokens["document"]
        self.position: NDArray[np.int32] = tokens["position"]
        self.generated: NDArray[np.bool_] = tokens["generated"]
        self.reference_top1: NDArray[np.int32] | None = tokens.get(REFERENCE_TOP1)
        self._full_top1 = None if full_top1 is None else read_only(full_top1)
        self.documents = documents
        self.shape = shape
        self.provenance = dict(provenance)
        self.folder = folder
        self._read_fact = facts
        self._read_marginal = marginal
        self._facts: dict[str, FactArray] = {}
        self._marginal: Marginal | None = None
        self.workload: Workload | None = None  # kept, so that given texts are found again by their name

    def to_arrow(self) -> pyarrow.Table:
        """One row per (token, exit), in the order of the tokens: where it stands, and every fact.

        Columns: document (its id), position, token, next_token, generated, exit, reference_top1 where there
        is one, then facts by name.
        """
        import pyarrow

        exits = len(self.exits)
        ids = np.array([record.id for record in self.documents], dtype=object)
        columns: dict[str, NDArray[Any]] = {"document": ids[self.document]}
        columns |= {name: getattr(self, name) for name in ("position", "token", "next_token", "generated")}
        if self.reference_top1 is not None:
            columns[REFERENCE_TOP1] = self.reference_top1
        wide = {name: np.repeat(column, exits) for name, column in columns.items()}
        wide["exit"] = np.tile(self.exits, self.token_count)
        facts = {name: self.fact(name).reshape(-1) for name in self.fact_names}
        return pyarrow.table({**wide, **facts})

    def to_pandas(self) -> Any:
        """The same as a pandas DataFrame. Raises InputError where pandas is not installed."""
        try:
            return self.to_arrow().to_pandas()
        except ModuleNotFoundError as error:
            raise InputError(
                "pandas is not installed",
                where="Trace.to_pandas",
                fix="pip install pandas, or use to_arrow()",
            ) from error

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> Trace:
        """Read a trace folder; every part is checked against the manifest's SHA-256.

        Raises InputError if there is no whole trace, DamagedFileError if a part's bytes changed.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        stamps = stamps_of(folder, manifest)
        for _, error in damaged_parts(folder, manifest):
            raise error
        return cls.open(folder, manifest, stamps)

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, stamps: Stamps) -> Trace:
        """The trace of a manifest whose parts were verified; facts are read when first asked for.

        stamps: of the files, from before they were verified.
        """
        parts, tokens = [part for part in manifest.parts if part.rows], list[dict[str, NDArray[Any]]]()
        for part in parts:
            with as_verified(folder, stamps, part, "tokens") as path:
                tokens.append(read_columns(path))
            if tokens[-1].keys() != tokens[0].keys():
                raise damaged(path, "its columns are not the first part's")
        place = folder.absolute()  # facts are read later, perhaps from another working directory
        facts = partial(_fact_of_parts, place, stamps, tuple(parts), len(manifest.exits), manifest.shape)
        sums = partial(_sums_of_parts, place, stamps, manifest)
        return cls._of_manifest(manifest, tokens, facts, sums, folder)

    @classmethod
    def of_parts(cls, manifest: Manifest, parts: Sequence[Part]) -> Trace:
        """A trace held in memory, of all parts that a manifest describes."""
        return cls._of_manifest(
            manifest,
            [part.tokens for part in parts],
            partial(_fact_in_memory, parts),
            partial(_sums_in_memory, parts),
        )

    @classmethod
    def _of_manifest(
        cls,
        manifest: Manifest,
        tokens: Sequence[Mapping[str, NDArray[Any]]],
        facts: Callable[[str], FactArray],
        sums: Callable[[], Iterable[Mapping[int, NDArray[np.float64]]]],
        folder: Path | None = None,
    ) -> Trace:
        """tokens: columns of each part. sums: of p_L by block, of each part."""

        def column(name: str) -> NDArray[Any]:
            return np.concatenate([columns[name] for columns in tokens])

        return cls(
            exits=np.array(manifest.exits, dtype=np.int64),
            tokens={name: column(name) for name in (*TOKEN_COLUMNS, REFERENCE_TOP1) if name in tokens[0]},
            facts=facts,
            fact_names=[fact.name for fact in manifest.facts],
            document_facts={
                name: column(name).astype(np.float64) for name in DOCUMENT_FACTS if name in tokens[0]
            },
            documents=manifest.documents,
            marginal=partial(_marginal, manifest, sums),
            shape=manifest.shape,
            provenance={
                "request": manifest.request,
                "request_fingerprint": manifest.request_fingerprint,
                "notes": list(manifest.notes),
                "device": manifest.device,
            },
            folder=folder,
        )

    @classmethod
    @checked
    def from_facts(
        cls,
        facts: Mapping[str, FactArray],
        *,
        document: NDArray[np.int32],
        shape: ModelShape,
        exits: NDArray[np.int64] | None = None,
        marginal: Marginal | None = None,
        position: NDArray[np.int32] | None = None,
        provenance: Mapping[str, Any] | None = None,
        document_facts: Mapping[str, NDArray[np.float64]] | None = None,
        reference_top1: NDArray[np.int32] | None = None,
    ) -> Trace:
        """A trace held in memory, for tests and for plug-in authors; `facts` may hold only some columns.

        facts: by name, [tokens, exits]. document: of each token, numbered from 0, the rows of each
        contiguous. exits: layers in rising order, the last L; by default all.

        Raises InputError for arrays that do not fit each other.
        """
        count = len(document)
        exits = np.arange(1, len(shape.layers) + 1) if exits is None else exits
        _require_exits(exits, len(shape.layers))
        _require_arrays(facts, document, len(exits), position, reference_top1)
        zeros = np.zeros(count, dtype=np.int32)
        lengths = np.bincount(document)
        return cls(
            exits=exits,
            tokens={
                "token": zeros,
                "next_token": zeros,
                "document": document,
                "position": zeros if position is None else position,
                "generated": np.zeros(count, dtype=np.bool_),
                **({} if reference_top1 is None else {REFERENCE_TOP1: reference_top1}),
            },
            facts=facts.__getitem__,
            documents=tuple(DocumentRecord(f"document {i}", int(n)) for i, n in enumerate(lengths)),
            marginal=partial(_given, marginal),
            shape=shape,
            provenance=provenance or {},
            document_facts=document_facts,
            fact_names=facts,
        )

    @property
    def request(self) -> Mapping[str, Any]:
        """What the trace answers, as its manifest holds it; empty for a trace made of facts alone."""
        return self.provenance.get("request") or {}

    @property
    def layers(self) -> int:
        """L, the number of decoder layers; exit L is the full model."""
        return len(self.shape.layers)

    @property
    def token_count(self) -> int:
        """Traced tokens (rows)."""
        return len(self.document)

    @property
    def marginal(self) -> Marginal:
        """Sums of the final distribution over blocks of documents."""
        if self._marginal is None:
            self._marginal = self._read_marginal()
        return self._marginal

    @property
    def full_top1(self) -> FactArray:
        """The full model's top-1 over its whole vocabulary, which every output is held against: [tokens]."""
        return self.fact("top1")[:, -1] if self._full_top1 is None else self._full_top1

    @property
    def agreement(self) -> NDArray[np.bool_]:
        """Whether the exit's top-1 equals the full model's: bool [tokens, exits]."""
        return cast("NDArray[np.bool_]", self.fact("top1") == self.full_top1[:, None])

    @property
    def reference_agreement(self) -> NDArray[np.bool_] | None:
        """Whether the exit's top-1 equals the reference's: bool [tokens, exits].

        None for a model whose reference is itself.
        """
        if self.reference_top1 is None:
            return None
        return cast("NDArray[np.bool_]", self.fact("top1") == self.reference_top1[:, None])

    @property
    def token_columns(self) -> dict[str, NDArray[Any]]:
        """The columns [tokens] by name: TOKEN_COLUMNS, and REFERENCE_TOP1 where there is one."""
        columns = {name: getattr(self, name) for name in (*TOKEN_COLUMNS, REFERENCE_TOP1)}
        return {name: column for name, column in columns.items() if column is not None}

    @checked
    def fact(self, name: FactName) -> FactArray:
        """One fact as an array [tokens, exits].

        Raises InputError for an unknown name, with near ones, and for a fact that was not recorded, with the
        option that records it.
        """
        if name not in self.fact_names:
            option = FACT_BY_NAME[name].recorded_with
            raise InputError(
                f"the trace does not hold {name!r}",
                where=str(self.folder or "the trace"),
                fix="trace the model again" if option is None else f"trace again with {option}",
            )
        if name not in self._facts:
            self._facts[name] = read_only(self._read_fact(name))
        return self._facts[name]

    @checked
    def document_fact(self, name: DocumentFactName) -> NDArray[np.float64]:
        """One fact of each token's whole document: float64 [tokens].

        Raises InputError for a name that is not recorded, with the option that records it.
        """
        if name not in self._document_facts:
            raise InputError(
                f"the trace does not hold {name!r}",
                where=str(self.folder or "the trace"),
                fix=f"trace again with {DOCUMENT_FACTS[name].recorded_with}",
            )
        return self._document_facts[name]

    def __getattr__(self, name: str) -> FactArray:
        if name in FACT_BY_NAME:
            return self.fact(name)
        raise AttributeError(f"a trace has no attribute {name!r}; of facts {suggest(name, FACT_BY_NAME)}")

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take over what was copied or pickled, from which arrays come writable."""
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                value = read_only(value)
            elif name in ("_facts", "_document_facts"):
                value = {of: read_only(fact) for of, fact in value.items()}
            setattr(self, name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.fact_names})

    def __repr__(self) -> str:
        documents = sum(document.valid for document in self.documents)
        return f"Trace({self.token_count:,} tokens of {documents:,} documents at {len(self.exits)} exits)"

    def of_request(self, request: Mapping[str, Any], documents: tuple[DocumentRecord, ...]) -> Trace:
        """The same facts as the answer to another request, with what that makes known of the documents."""
        provenance = {**self.provenance, "request": request}
        return self._with(
            facts=self.fact, full_top1=self._full_top1, documents=documents, provenance=provenance
        )

    def with_facts(self, facts: Callable[[str], FactArray], full_top1: FactArray | None = None) -> Trace:
        """The same rows and exits with other facts of the same names.

        full_top1: the full model's top-1 [tokens], where `top1` at exit L is another.
        """
        return self._with(facts=facts, full_top1=full_top1)

    @checked
    def subset(self, documents: NDArray[np.int64]) -> Trace:
        """The rows of some documents, in their old order; the marginal stays that of the whole trace.

        documents: int64, indices into `documents`.
        """
        return self.at_rows(np.flatnonzero(np.isin(self.document, documents)))

    @checked
    def at_rows(
        self,
        rows: NDArray[np.int64] | NDArray[np.bool_],
        document: NDArray[np.int32] | None = None,
        documents: tuple[DocumentRecord, ...] | None = None,
    ) -> Trace:
        """Some rows, int64, in this order, or bool [tokens]; the marginal stays that of the whole trace.

        document, documents: other documents for them, int32 [rows] and what it indexes; None for their own.

        Raises InputError for rows that the trace does not have.
        """
        _require_rows(rows, self.token_count)
        columns = {name: column[rows] for name, column in self.token_columns.items()}
        return self._with(
            tokens=columns if document is None else {**columns, "document": document},
            facts=partial(_fact_at, self, rows),
            documents=self.documents if documents is None else documents,
            folder=None,
            document_facts={name: values[rows] for name, values in self._document_facts.items()},
            full_top1=None if self._full_top1 is None else self._full_top1[rows],
        )

    def _with(self, **changed: Any) -> Trace:
        """A trace that differs from this one in some arguments of its making."""
        arguments: dict[str, Any] = {
            "exits": self.exits,
            "tokens": self.token_columns,
            "documents": self.documents,
            "marginal": partial(getattr, self, "marginal"),
            "shape": self.shape,
            "provenance": self.provenance,
            "folder": self.folder,
            "document_facts": self._document_facts,
            "fact_names": self.fact_names,
        }
        return Trace(**{**arguments, **changed})


def _require_rows(rows: NDArray[np.int64] | NDArray[np.bool_], count: int) -> None:
    """Raise InputError for rows that a trace of so many tokens does not have."""
    if rows.dtype == np.bool_:
        fits = rows.shape == (count,)
        shown = f"bool {list(rows.shape)}"
    else:
        beyond = rows[(rows < -count) | (rows >= count)]
        fits = rows.ndim == 1 and not beyond.size
        shown = f"row {beyond[0]}" if beyond.size else f"rows {list(rows.shape)}"
    if not fits:
        raise InputError(
            f"the trace has {count:,} tokens, and no {shown}",
            where="rows=",
            fix=f"give rows from 0 to {count - 1:,}, or a bool for each token",
        )


def _require_exits(exits: NDArray[np.int64], layers: int) -> None:
    """Raise InputError for exits that no trace of a model has."""
    rising = exits.ndim == 1 and bool((np.diff(exits) > 0).all())
    if not rising or not exits.size or exits[0] < 1 or exits[-1] != layers:
        raise InputError(
            f"the exits {exits.tolist()} do not rise from 1 or more and end at layer {layers}",
            where="exits=",
            fix=f"give layers in rising order, {layers} as the last",
        )


def _require_arrays(
    facts: Mapping[str, FactArray],
    document: NDArray[np.int32],
    exits: int,
    position: NDArray[np.int32] | None,
    reference_top1: NDArray[np.int32] | None,
) -> None:
    """Raise InputError for arrays of a trace that do not fit each other."""
    count = len(document)
    if document.ndim != 1 or not count:
        raise InputError(
            f"the tokens' documents cannot be an array {list(document.shape)}",
            where="document=",
            fix="give int32 [tokens], of one token at least",
        )
    unknown = document[(document < 0) | (document >= count)]
    if unknown.size:
        raise InputError(
            f"{unknown[0]} is no document of {count:,} tokens",
            where="document=",
            fix="number the documents 0, 1, 2 and so on",
        )
    starts = document[np.flatnonzero(np.diff(document, prepend=-1))]
    again = starts[np.bincount(starts)[starts] > 1]
    if again.size:
        raise InputError(
            f"the rows of document {again[0]} are not contiguous",
            where="document=",
            fix="sort the rows of every array by document",
        )
    arrays: dict[str, NDArray[Any] | None] = {**facts, "position": position, "reference_top1": reference_top1}
    for name, array in arrays.items():
        wanted = (count, exits) if name in facts else (count,)
        if array is not None and array.shape != wanted:
            raise InputError(
                f"{name} is an array {list(array.shape)}",
                where=f"facts= {name}" if name in facts else f"{name}=",
                fix=f"give {list(wanted)}: tokens, and exits for a fact",
            )


def read_only(values: NDArray[Any]) -> NDArray[Any]:
    """The same array, which cannot be written to by mistake."""
    view = values.view()
    view.flags.writeable = False
    return view


# What a trace reads with are functions of this module, so that it can be pickled.


def _fact_of_parts(
    folder: Path, stamps: Stamps, parts: Sequence[PartRecord], exits: int, shape: ModelShape, name: str
) -> FactArray:
    # In place, part by part: a fact of a long trace would not fit into memory twice.
    described = FACT_BY_NAME[name]
    fact = np.empty((sum(part.rows for part in parts), exits), dtype=described.dtype)
    start = 0
    for part in parts:
        with as_verified(folder, stamps, part, "facts") as path:
            columns = read_columns(path, [name, *([described.at_most] if described.at_most else [])])
        column = columns[name]
        require_within(path, name, column, described.dtype, *described.limits(shape.vocabulary_size))
        if described.at_most and np.any(column > columns[described.at_most] + ROUNDING):
            raise damaged(path, f"its column {name} is above {described.at_most}")
        fact[start : start + part.rows] = column.reshape(-1, exits)
        start += part.rows
    return fact


def _sums_of_parts(
    folder: Path, stamps: Stamps, manifest: Manifest
) -> Iterator[Mapping[int, NDArray[np.float64]]]:
    for part in manifest.parts:
        with as_verified(folder, stamps, part, "marginal"):
            sums = read_marginal(folder, part.index, part.marginal_rows)
        yield sums


def _fact_in_memory(parts: Sequence[Part], name: str) -> FactArray:
    return np.concatenate([part.facts[name] for part in parts])


def _sums_in_memory(parts: Sequence[Part]) -> Iterator[Mapping[int, NDArray[np.float64]]]:
    return (part.marginal for part in parts)


def _fact_at(trace: Trace, rows: NDArray[np.int64] | NDArray[np.bool_], name: str) -> FactArray:
    return trace.fact(name)[rows]


def _given(marginal: Marginal | None) -> Marginal:
    if marginal is None:
        raise InputError("this trace holds no marginal distribution", fix="trace the model again")
    return marginal


def _marginal(
    manifest: Manifest, sums_of_parts: Callable[[], Iterable[Mapping[int, NDArray[np.float64]]]]
) -> Marginal:
    """The marginal from the sums of every part."""
    sums = np.zeros((MARGINAL_BLOCKS, manifest.shape.vocabulary_size))
    tokens = np.zeros(MARGINAL_BLOCKS, dtype=np.int64)
    for part, of_part in zip(manifest.parts, sums_of_parts(), strict=True):
        for block, column in of_part.items():
            sums[block] += column
            tokens[block] += part.marginal_rows[block]
    blocks = np.array([document.block for document in manifest.documents], dtype=np.int64)
    return Marginal(sums, tokens, blocks)


def heads_documents(trace: Trace) -> frozenset[str]:
    """Ids of the trace's documents that its exit heads, or the model itself as far as that is known, were
    trained on, or that share text with such."""
    workload = trace.request.get("workload", {}).get("fingerprint")
    heads, model = (trace.request.get(name) or {} for name in ("heads", "model"))
    seen = (heads.get("documents") or {}, model.get(TRAINED_ON) or {})
    ids = {identity for documents in seen for identity in documents.get(workload, ())}
    return frozenset(ids) | {document.id for document in trace.documents if document.heads_saw}


def with_maps(trace: Trace, heads: ExitHeads) -> Trace:
    """The same trace as if it had been made with heads that hold K,V maps: its facts are the same without.

    Raises InputError for heads without maps, of another model, or through which exits would be read in
    another way than in the trace.
    """
    if heads.kv_maps is None:
        raise InputError(
            "the exit heads hold no K,V maps",
            where="heads",
            fix="fit some: offramp heads fit MODEL --workload W --kv-maps EXITS -o FILE",
        )
    request = trace.request
    if request.get("model"):
        require_base(heads, request["model"])
    now = describe_heads(heads)
    if reading_of(request.get("heads")) != reading_of(now):
        raise InputError(
            "the trace's exits were read in another way than through these exit heads",
            where=str(trace.folder or "the trace"),
            fix="add the maps to the heads that the trace was made with (offramp heads fit --add-to FILE)",
        )
    return trace.of_request({**request, "heads": now}, _seen_by(trace.documents, heads))


def _seen_by(documents: Sequence[DocumentRecord], heads: ExitHeads) -> tuple[DocumentRecord, ...]:
    """The documents, those known that share text with one that the heads' fitting saw."""
    kept = [place for place, document in enumerate(documents) if document.text is not None]
    sketches = [read_sketch(str(documents[place].text)) for place in kept]
    seen = shares_text(sketches, heads.seen_texts or ())
    saw = {place for place, shares in zip(kept, seen, strict=True) if shares}
    return tuple(
        replace(document, heads_saw=document.heads_saw or place in saw)
        for place, document in enumerate(documents)
    )
