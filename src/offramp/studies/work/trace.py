"""A trace: the model measured at every exit on a workload, in an ordinary trace folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.scoring.documents import NOTHING, TextSize, text_sizes
from offramp.studies.manifest import TRACE, study_file
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import TextWork, heads_of
from offramp.studies.work.passage import FILE as PASSAGE_FILE
from offramp.studies.work.passage import PASSAGE, passages_of
from offramp.studies.work.work import Needed

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.studies.estimates import Sizes
    from offramp.studies.task import TaskCost

TEXT = "text.json"
KEPT_BYTES = 40
"""On disk, for each token at an exit: the facts of every trace, packed."""


@dataclass(frozen=True)
class TracedModel:
    """The model of a trace, for those who read it without loading it.

    name: as shown, transforms included. facts: fingerprints, licence, dtype and the like, as JSON values.
    """

    name: str
    layers: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class TextSizes:
    """How long the text of a trace is: by document, and their sum."""

    sum: TextSize
    documents: Mapping[str, TextSize]


TEXT_FILE = study_file(TextSizes)


@dataclass(frozen=True, kw_only=True)
class TraceWork(TextWork[TracedModel]):
    """Leaves `trace/`, which `offramp.Trace.load` reads and a later try goes on with; `text.json`, and the
    passage that a page shows. heads: that it is read through, None for the logit lens.

    stream: whether the model's layers stay on disk. memory: bytes of weights that may be in memory then. The
    rest is as of `offramp.trace`.
    """

    kind = "trace"

    heads: Needed | None = None
    tokens: int
    exits: str | tuple[int, ...] = "all"
    signals: tuple[str, ...] = ()
    context: int | None = None
    document_tokens: int | None = None
    stream: bool = False
    memory: int | None = None

    def cost(self, sizes: Sizes) -> TaskCost:
        """Every token through all layers, read out at every exit; answers are written first."""
        answered = self.tokens if self.workload.answered else 0
        disk = None if sizes.exits is None else self.tokens * sizes.exits * KEPT_BYTES
        return sizes.on_model(sizes.forwards(self.tokens, sizes.exits), answered=answered, disk_bytes=disk)

    def run(self, context: Context) -> TracedModel:
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
        PASSAGE_FILE.write(context.folder / PASSAGE, passages_of(result, lambda token: model.decode([token])))
        return described(model)

    def traced_model(self, context: Context) -> Model:
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
