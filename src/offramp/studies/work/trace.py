"""A trace: the model measured at every exit on a workload, in an ordinary trace folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.scoring.text_size import text_sizes
from offramp.studies.manifest import TRACE, study_file
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import heads_of, model_of, require_planned, workload_of
from offramp.studies.work.passage import FILE as PASSAGE_FILE
from offramp.studies.work.passage import PASSAGE, passages_of
from offramp.studies.work.text_size import write_text_sizes

if TYPE_CHECKING:
    from offramp.models.model import Model

MODEL = "model.json"


@dataclass(frozen=True)
class TracedModel:
    """The model of a trace, for those who read it without loading it.

    name: as shown, transforms included. facts: fingerprints, licence, dtype and the like, as JSON values.
    """

    name: str
    layers: int
    facts: Mapping[str, Any]


MODEL_FILE = study_file(TracedModel)


class TraceWork:
    """Leaves `trace/`, which `offramp.Trace.load` reads and a later try goes on with; `model.json`,
    `text.json`, and the passage that a page shows.
    """

    kind = "trace"

    def run(self, task: Task, context: Context) -> None:
        """Trace. Raises what `offramp.trace` raises, OfframpError for inputs that are not the recipe's."""
        from offramp.tracing.tracer import trace

        require_planned(task)
        recipe = task.recipe
        stream, memory = bool(recipe["stream"]), recipe.get("memory")
        workload = workload_of(task)
        model = model_of(task, context, stream=stream, memory=memory)
        folder = context.folder / TRACE
        result = trace(
            model,
            workload,
            tokens=recipe["tokens"],
            exits=recipe["exits"],
            signals=recipe["signals"],
            heads=heads_of(task, context),
            context=recipe["context"],
            document_tokens=recipe["document_tokens"],
            output=folder,
            # The folder is this task's alone: what does not fit or is damaged is the rest of an earlier try.
            overwrite=True,
            repair=True,
            memory=memory if stream else None,
            progress=context.progress,
        )
        _leave_out_times(folder)
        write_text_sizes(context.folder, text_sizes(result, partial(model.decode, special=False)))
        PASSAGE_FILE.write(context.folder / PASSAGE, passages_of(result, lambda token: model.decode([token])))
        MODEL_FILE.write(context.folder / MODEL, described(model))


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


def _leave_out_times(folder: Path) -> None:
    """Take the clock out of the manifest, which its seal leaves out anyway: equal traces, equal bytes."""
    from offramp.tracing.manifest import read_manifest, write_manifest

    manifest = read_manifest(folder)
    if manifest.timestamps is not None:
        write_manifest(folder, manifest, seconds=None)
