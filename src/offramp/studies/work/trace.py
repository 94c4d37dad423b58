"""A trace: the model measured at every exit on a workload, in an ordinary trace folder."""

from __future__ import annotations

from pathlib import Path

from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import TRACE, heads_of, model_of, require_planned, workload_of
from offramp.studies.work.nameless import nameless_model
from offramp.studies.work.text_size import text_sizes, write_text_sizes


class TraceWork:
    """Leaves `trace/`, which `offramp.Trace.load` reads and a later try goes on with, and `text.json`."""

    kind = "trace"

    def run(self, task: Task, context: Context) -> None:
        """Trace. Raises what `offramp.trace` raises, OfframpError for inputs that are not the recipe's."""
        from offramp.tracing.tracer import trace

        require_planned(task)
        recipe = task.recipe
        stream, memory = bool(recipe["stream"]), recipe.get("memory")
        workload = workload_of(task)
        model = nameless_model(model_of(task, context, stream=stream, memory=memory))
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
            progress=False,
        )
        _leave_out_times(folder)

        def decode(tokens: object) -> str:
            return str(
                model.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )

        write_text_sizes(context.folder, text_sizes(result, decode))


def _leave_out_times(folder: Path) -> None:
    """Take the clock out of the manifest, which its seal leaves out anyway: equal traces, equal bytes."""
    from offramp.tracing.manifest import read_manifest, write_manifest

    manifest = read_manifest(folder)
    if manifest.timestamps is not None:
        write_manifest(folder, manifest, seconds=None)
