"""A trace: the model measured at every exit on a workload; and what a page shows of it word by word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from offramp.display import ShownAsHtml
from offramp.errors import InputError, shortened
from offramp.kit.numbers import Count, Layers, Whole
from offramp.scoring.components import first_match, saturation
from offramp.scoring.documents import NOTHING, TextSize, text_sizes
from offramp.studies.task import TRACE, study_file
from offramp.studies.work.inputs import TextWork, heads_of
from offramp.studies.work.work import Needed, WorkContext
from offramp.tracing.facts import ROUNDING
from offramp.tracing.request import Sampling
from offramp.tracing.trace import Trace

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes


Decode = Callable[[int], str]
PASSAGE = "passage.json"
PASSAGE_TOKENS = 140


@dataclass(frozen=True)
class PassageToken:
    """One token of a passage and what every exit said in its place.

    first_match_exit, saturation_exit: layer of the first exit that agrees with the full model, and of the
    first from which all later ones agree. predictions, max_prob, agrees: one per exit of the passage.
    """

    piece: str
    """The token as text."""
    full_prediction: str
    """What the full model says there (the same in generation mode)."""
    first_match_exit: Whole
    saturation_exit: Whole
    predictions: tuple[str, ...]
    max_prob: tuple[Annotated[float, Ge(-ROUNDING), Le(1 + ROUNDING)], ...]
    agrees: tuple[bool, ...]


@dataclass(frozen=True)
class Passage:
    """The start of one document, token by token."""

    document: str
    """Its id."""
    exits: tuple[Layers, ...]
    """The traced layers."""
    lead: str
    """The input before the first token, as text."""
    tokens: tuple[PassageToken, ...]
    document_tokens: Count
    """How many traced tokens the whole document has."""

    def __post_init__(self) -> None:
        """Refuse tokens of other exits, with a ValueError."""
        for token in self.tokens:
            found = len(token.predictions), len(token.max_prob), len(token.agrees)
            if found != (len(self.exits),) * 3:
                raise ValueError(f"{shortened(token.piece)} has not one value for each exit")
            if not {token.first_match_exit, token.saturation_exit} <= {*self.exits}:
                raise ValueError(f"{shortened(token.piece)} agrees at an exit that was not traced")


@dataclass(frozen=True)
class Passages(ShownAsHtml):
    """What a page shows of one trace word by word."""

    passage: Passage


FILE = study_file(Passages)


def passages_of(trace: Trace, decode: Decode) -> Passages:
    """Of the trace's typical document. Raises InputError if it has no tokens."""
    document = typical_document(trace)
    return Passages(passage_from_trace(trace, decode, document))


def passages(model: Model, trace: Trace) -> Passages:
    """A typical document of a trace word by word: coloured by where each could have stopped, in a notebook.

    Raises InputError if the trace has no tokens, or is of another model.

    >>> offramp.passages(model, trace).passage.exits
    (1, 2, 3, 4)
    """
    from offramp.decoding.rerun.trace_sequences import require_model  # a page needs no torch, a model has it

    require_model(model, trace)
    return passages_of(trace, lambda token: model.decode([token]))


def typical_document(trace: Trace) -> int:
    """The document of median mean saturation exit, so that the passage shown is not hand-picked.

    Only documents of at least half the longest one's tokens are considered.
    """
    depth = trace.exits[saturation(trace.agreement)]
    count = np.bincount(trace.document, minlength=len(trace.documents))
    if not count.any():
        raise InputError("the trace has no tokens to show", fix="trace a workload with at least one document")
    total = np.bincount(trace.document, weights=depth, minlength=len(trace.documents))
    candidates = np.flatnonzero(2 * count >= count.max())
    order = candidates[np.argsort(total[candidates] / count[candidates], kind="stable")]
    return int(order[(len(order) - 1) // 2])


def document_rows(trace: Trace, document: int, limit: int) -> NDArray[np.int64]:
    """The first rows of one document, at most `limit`.

    Raises InputError if the document has no traced token.
    """
    rows = np.flatnonzero(trace.document == document)[:limit]
    if not len(rows):
        raise InputError(f"document {document} has no traced tokens", fix="choose a valid document")
    return rows


def passage_from_trace(
    trace: Trace, decode: Decode, document: int, *, max_tokens: int = PASSAGE_TOKENS
) -> Passage:
    """The start of one document with what every exit says, token by token.

    decode: token id to text; document: index into `trace.documents`.
    """
    rows = document_rows(trace, document, max_tokens)
    agreement = trace.agreement[rows]
    top1, max_prob = trace.fact("top1")[rows], trace.fact("max_prob")[rows]
    first = trace.exits[first_match(agreement)]
    settled = trace.exits[saturation(agreement)]
    tokens = tuple(
        PassageToken(
            piece=decode(int(trace.next_token[row])),
            full_prediction=decode(int(top1[i, -1])),
            first_match_exit=int(first[i]),
            saturation_exit=int(settled[i]),
            predictions=tuple(decode(int(token)) for token in top1[i]),
            max_prob=tuple(float(value) for value in max_prob[i]),
            agrees=tuple(bool(value) for value in agreement[i]),
        )
        for i, row in enumerate(rows)
    )
    return Passage(
        document=trace.documents[document].id,
        exits=tuple(int(layer) for layer in trace.exits),
        lead=decode(int(trace.token[rows[0]])),
        tokens=tokens,
        document_tokens=int((trace.document == document).sum()),
    )


TEXT = "text.json"
KEPT_BYTES = 40
"""On disk, for each token at an exit: the facts of every trace, packed."""


@dataclass(frozen=True)
class TracedModel:
    """The model of a trace, for those who read it without loading it."""

    name: str
    """As shown, transforms included."""
    layers: Layers
    facts: Mapping[str, Any]
    """Fingerprints, licence, dtype and the like, as JSON values."""


@dataclass(frozen=True)
class TextSizes:
    """How long the text of a trace is: by document, and their sum."""

    sum: TextSize
    documents: Mapping[str, TextSize]


TEXT_FILE = study_file(TextSizes)


@dataclass(frozen=True, kw_only=True)
class TraceWork(Sampling, TextWork[TracedModel]):
    """Leaves `trace/`, which `offramp.Trace.load` reads and a later try goes on with; `text.json`, and the
    passage that a page shows. Its settings are as of `offramp.trace`.
    """

    kind = "trace"

    heads: Needed | None = None
    """That it is read through, None for the logit lens."""
    exits: str | tuple[Whole, ...] = "all"
    stream: bool = False
    """Whether the model's layers stay on disk."""
    memory: Whole | None = None
    """Bytes of weights that may be in memory then."""

    def cost(self, sizes: Sizes) -> TaskCost:
        """Every token through all layers, read out at every exit; answers are written first."""
        answered = self.tokens if self.workload.answered else 0
        disk = None if sizes.exits is None else self.tokens * sizes.exits * KEPT_BYTES
        return sizes.on_model(sizes.forwards(self.tokens, sizes.exits), answered=answered, disk_bytes=disk)

    def run(self, context: WorkContext) -> TracedModel:
        """Trace. Raises what `offramp.trace` raises, OfframpError for inputs that are not the recipe's."""
        from offramp.tracing.tracer import trace

        workload = self.load_workload()
        model = self.traced_model(context)
        folder = context.folder / TRACE
        result = trace(
            model,
            workload,
            tokens=self.tokens,
            exits=self.exits if isinstance(self.exits, str) else list(self.exits),
            signals=list(self.signals),
            heads=heads_of(context, self.heads),
            context=self.context,
            document_tokens=self.document_tokens,
            output=folder,
            # The folder is this task's alone: what does not fit or is damaged is the rest of an earlier try.
            overwrite=True,
            repair=True,
            memory=self.memory if self.stream else None,
            progress=context.progress,
        )
        _leave_out_times(folder)
        write_text_sizes(context.folder, text_sizes(result, partial(model.decode, special=False)))
        FILE.write(context.folder / PASSAGE, passages_of(result, lambda token: model.decode([token])))
        return described(model)

    def traced_model(self, context: WorkContext) -> Model:
        """The model, loaded as it is traced. Raises as `load_model`."""
        return self.load_model(context, stream=self.stream, memory=self.memory)


def described(model: Model) -> TracedModel:
    """What is kept of a model beside its trace."""
    from offramp.models.source import weights_note

    identity = model.identity
    about_weights = weights_note(identity.weights)
    facts = {
        "model_source": identity.source,
        "model_licence": identity.licence,
        **({} if about_weights is None else {"model_weights": about_weights}),
        "model_fingerprint": identity.fingerprint,
        "transforms": list(identity.transforms),
        "tokenizer_fingerprint": identity.tokenizer,
        "dtype": model.dtype,
        "bos": model.bos_policy.source,
        "readout": model.stack.readout_kind,
    }
    return TracedModel(model.shown_name, model.layers, facts)


def write_text_sizes(folder: Path, sizes: Mapping[str, TextSize]) -> None:
    """Keep the sizes by document, and their sum, in one sealed file of a folder."""
    TEXT_FILE.write(folder / TEXT, TextSizes(sum(sizes.values(), start=NOTHING), sizes))


def read_text_sizes(folder: Path) -> dict[str, TextSize]:
    """What `write_text_sizes` wrote. Raises DamagedFileError if its bytes changed."""
    return dict(TEXT_FILE.read(folder / TEXT).documents)


def _leave_out_times(folder: Path) -> None:
    """Take the clock out of the manifest, which its seal leaves out anyway: equal traces, equal bytes."""
    from offramp.tracing.manifest import read_manifest, write_manifest

    manifest = read_manifest(folder)
    if manifest.timestamps is not None:
        write_manifest(folder, manifest, seconds=None)
