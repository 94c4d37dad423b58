"""`trace`: from a model and a workload to facts for every token and exit, resumable part by part."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp.errors import DamagedFileError, InputError, ModelError
from offramp.files import require_path
from offramp.heads.at_work import require_exits, require_readable, require_sizes
from offramp.heads.described import describe_heads
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads, require_base, require_layers
from offramp.heads.output_head import state_shape_of
from offramp.heads.statistics import choose_reductions
from offramp.heads.trained_model import TrainedOn, trained_on
from offramp.kit.code import code_of
from offramp.kit.numbers import Count
from offramp.models.devices import device_name
from offramp.models.loading import Placement, load_source
from offramp.models.model import Model, in_evaluation
from offramp.models.streaming import load_streamed, would_not_fit
from offramp.tracing.folder import TRACE_FOLDER, remove_part, require_whole
from offramp.tracing.group_measurer import make_measurer, measure_part
from offramp.tracing.manifest import (
    MANIFEST,
    REQUEST,
    DocumentText,
    Manifest,
    damaged_parts,
    describe_trace,
    read_manifest,
    stamps_of,
    write_manifest,
)
from offramp.tracing.plan import TracePlan, plan_with_answers, usable_context
from offramp.tracing.progress import token_bar
from offramp.tracing.request import (
    DEFAULT_TOKENS,
    MODEL_CODE,
    TraceRequest,
    library_versions,
    parse_exits,
    parse_signals,
)
from offramp.tracing.sealed_parts import Part, Reference, read_part, seal_path, write_part
from offramp.tracing.states import remove_states
from offramp.tracing.streamed_layers import capture_for, needed_bytes, require_given_text, require_room
from offramp.tracing.trace import Trace
from offramp.workloads.given import read_workload
from offramp.workloads.shared_text import Sketch, shares_text, sketches_of, write_sketch
from offramp.workloads.workload import Workload


@in_evaluation
def trace(
    model: Model,
    workload: Any,
    tokens: Count = DEFAULT_TOKENS,
    exits: str | Sequence[int] = "all",
    signals: str | Sequence[str] = (),
    heads: str | Path | ExitHeads | None = None,
    *,
    context: int | None = None,
    document_tokens: Count | None = None,
    reference: Model | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    repair: bool = False,
    memory: Count | None = None,
    progress: bool | None = None,
) -> Trace:
    """Measure a model at every exit on a workload.

    workload: a name as `load_workload` takes it, a Workload, or what `workload_of` makes one of: texts, token
    ids, conversations, a dataset.
    tokens: rows to trace; all there are if the workload has fewer (a note says so). exits: "all", "10,20,30"
    or layers; the last layer is always traced. context: tokens of one sequence at most, by default 512 or as
    many as the model takes. document_tokens: rows of one document at most; by default many documents are
    traced a little rather than few wholly.
    signals: what to record beyond the facts of every trace, names of `offramp.tracing.facts.SIGNAL_FACTS` and
    `DOCUMENT_FACTS`, or "all" that the workload's mode allows. heads: a file that `offramp heads fit` or
    `offramp heads import` wrote, or its content: every exit below L is then read through its lens or its
    output head, and its classifiers' facts are recorded.
    reference: another model of the same vocabulary whose top-1 at every row is kept as
    `Trace.reference_top1`: that which a trained model was before. Of a transformed model it is the
    untransformed one, by default loaded from where the model came from, and let go of again.
    output: a folder for the trace; a run that was stopped there is resumed. Without it the trace stays in
    memory. overwrite: replace another trace in that folder. repair: trace damaged parts of a finished trace
    again.
    memory: of a model whose weights stay on disk, bytes for weights and hidden states together; without an
    output folder it decides whether these are kept in memory or in temporary files.
    progress: a bar on standard error; by default if that is a terminal.

    Raises InputError for sizes, exits, signals, heads, a reference or an output folder that do not fit,
    ModelError for a transformed model without a reference, WorkloadError for the workload.

    >>> offramp.trace(model, "prose:short", tokens=64, exits="2").top1.shape
    (64, 2)
    """
    check_reference(model, reference)
    work = read_workload(workload)
    recorded = parse_signals(signals, work.mode)
    if model.streamed is not None:
        require_given_text(model.name, work, sum(model.streamed.layer_bytes))
    layers = parse_exits(exits, len(model.stack))
    content = None if heads is None else _heads_of(heads, model, layers)
    rows_times_exits = tokens * len(layers)
    device = model.stack.head_device
    seen = trained_on(model)
    request = TraceRequest(
        model={
            "name": model.shown_name,
            **model.identity.to_json(),
            **model.asked_attention,
            **seen.described,
        },
        workload={
            "name": work.name,
            "mode": work.mode,
            "chat": work.chat,
            "fingerprint": work.fingerprint,
            "licence": work.licence,
            "source": work.source,
        },
        dtype=model.dtype,
        exits=layers,
        tokens=tokens,
        context=usable_context(model, context, work.reads),
        document_tokens=document_tokens,
        reductions=choose_reductions(rows_times_exits * model.shape.vocabulary_size, device.type),
        threads=torch.get_num_threads(),
        code=code_of(__name__, MODEL_CODE),
        versions=library_versions(model.reads),
        signals=recorded,
        heads=None if content is None else describe_heads(content),
        device=device_name(device),
        reference=describe_reference(model, reference),
    )
    shown = sys.stderr.isatty() if progress is None else progress
    run = _Run(model, work, request, content, reference, memory, shown, seen)
    if output is None:
        result = run.in_memory()
        result.workload = work
        return result
    require_path(output)
    folder = Path(output)
    # Bad input is refused before the folder is made; only answers need a folder to be planned.
    plan = run.plan(None) if work.mode == "text" else None
    TRACE_FOLDER.require(folder, overwrite=True)
    if model.streamed is not None and plan is not None and not (folder / REQUEST).exists():
        require_room(folder, needed_bytes(model, plan, range(len(plan.parts)), request))
    with TRACE_FOLDER.claimed(folder, request.to_json(), overwrite=overwrite, repair=repair) as claimed:
        require_whole(claimed, repair=repair)
        result = run.in_folder(claimed, plan, repair=repair)
    if claimed != folder:
        result = Trace.load(folder)
    result.workload = work
    return result


@dataclass(frozen=True)
class _Run:
    """One request being answered."""

    model: Model
    workload: Workload
    request: TraceRequest
    heads: ExitHeads | None
    reference: Model | None
    memory: int | None
    shown: bool
    trained: TrainedOn

    def in_memory(self) -> Trace:
        """The trace without files."""
        plan = self.plan(None)
        parts: list[Part] = []
        self._measure(plan, range(len(plan.parts)), parts.append, None)
        return Trace.of_parts(self.described(plan, parts), parts)

    def in_folder(self, folder: Path, plan: TracePlan | None, *, repair: bool) -> Trace:
        """The trace in a prepared folder: what is whole there is kept, the rest is measured."""
        started = time.monotonic()
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            stamps = stamps_of(folder, manifest)
            broken = damaged_parts(folder, manifest)
            if not broken:
                remove_states(folder)  # which a run that was killed after its last step left behind
                return Trace.open(folder, manifest, stamps)
            if not repair:
                raise broken[0][1]
            for index, _ in broken:
                remove_part(folder, index)
        plan = plan or self.plan(folder)
        done = self._whole_parts(folder, plan)
        missing = [index for index in range(len(plan.parts)) if index not in done]
        exits = np.array(self.request.exits)

        def keep(part: Part) -> None:
            write_part(folder, part, exits, self.request.fingerprint)
            done[part.index] = part

        self._measure(plan, missing, keep, folder)
        manifest = self.described(plan, [done[index] for index in range(len(plan.parts))])
        write_manifest(folder, manifest, time.monotonic() - started)
        remove_states(folder)
        return Trace.load(folder)

    def plan(self, folder: Path | None) -> TracePlan:
        """What is traced; the folder keeps the answers of generation mode."""
        return plan_with_answers(
            self.model,
            self.workload,
            tokens=self.request.tokens,
            context=self.request.context,
            document_tokens=self.request.document_tokens,
            shown=self.shown,
            folder=folder,
            request=self.request.fingerprint,
        )

    def described(self, plan: TracePlan, parts: Sequence[Part]) -> Manifest:
        """The manifest of all parts. Raises ModelError if there is no row in any of them."""
        if not any(part.rows for part in parts):
            record = parts[0].documents[0]
            raise ModelError(
                "every document met a non-finite number, so nothing was traced",
                where=f"{plan.document_ids[record.index]}: {record.reason}",
                fix="load the model in float32 (--dtype float32), or check the model's weights",
            )
        texts = document_texts(self.workload, plan.document_ids, self.heads, self.trained.texts)
        device = device_name(self.model.stack.head_device)
        notes = plan.notes if self.reference is not None else (*plan.notes, *self.trained.notes)
        shape = self.model.shape_given(plan.contexts)
        return describe_trace(self.request, parts, plan.document_ids, shape, notes, texts, device)

    def _whole_parts(self, folder: Path, plan: TracePlan) -> dict[int, Part]:
        """Parts that an earlier run finished; one that is not as it was written is measured again."""
        done = {}
        names = [fact.name for fact in self.request.recording.facts]
        for index in range(len(plan.parts)):
            if not seal_path(folder, index).exists():
                continue
            try:
                done[index] = read_part(
                    folder, index, len(self.request.exits), self.request.fingerprint, names
                )
            except DamagedFileError as error:
                print(f"offramp: traced again: {error.what}", file=sys.stderr)
                remove_part(folder, index)
        return done

    def _measure(
        self, plan: TracePlan, indices: Sequence[int], keep: Callable[[Part], None], folder: Path | None
    ) -> None:
        if not indices:
            return
        references = measure_references(
            self.model,
            self.reference,
            self.request,
            plan,
            indices,
            title=f"{self.workload.name}: {'untransformed' if self.model.transforms else 'reference'}",
            shown=self.shown,
        )
        missing = sum(context.rows for index in indices for context in plan.parts[index])
        with capture_for(
            self.model,
            plan,
            indices,
            self.request,
            folder=folder,
            memory=self.memory,
            title=self.workload.name,
            shown=self.shown,
        ) as capture:
            measurer = make_measurer(self.model, self.request, self.heads, capture)
            with token_bar(
                f"{self.workload.name}: tracing", plan.tokens, shown=self.shown, done=plan.tokens - missing
            ) as advance:
                for index in indices:
                    contexts, reference = plan.parts[index], references.get(index)
                    keep(measure_part(measurer, index, contexts, len(plan.document_ids), advance, reference))


def _heads_of(heads: str | Path | ExitHeads, model: Model, exits: tuple[int, ...]) -> ExitHeads:
    """The heads of these exits, refused if they were fitted on another model or do not fit this one."""
    content = heads if isinstance(heads, ExitHeads) else read_heads(heads)
    require_base(content, {"name": model.name, **model.identity.to_json()})
    require_layers(content, model.layers)
    require_sizes(content, state_shape_of(model).features, model.shape.vocabulary_size)
    require_exits(content, exits)
    require_readable(content, model.stack)
    return content


def document_texts(
    workload: Workload, ids: Sequence[str], heads: ExitHeads | None, trained: Sequence[Sketch] = ()
) -> tuple[DocumentText, ...]:
    """What is kept of the documents with these ids. trained: texts that the model itself was trained on."""
    sketches = sketches_of(workload, ids)
    saw = shares_text(sketches, (*((heads.seen_texts if heads is not None else None) or ()), *trained))
    return tuple(
        DocumentText(write_sketch(sketch), bool(seen)) for sketch, seen in zip(sketches, saw, strict=True)
    )


def check_reference(model: Model, given: Model | None) -> None:
    """Refuse a transformed model without its untransformed form, a form that is not its own, and of a model
    without transforms a reference that is itself or of another vocabulary.

    given: the reference; None for none, or to load the untransformed model from where the model came from.

    Raises InputError, or ModelError if the model was built in memory and none is given.
    """
    if given is None:
        if model.transforms and model.source is None:
            raise ModelError(
                "the model was made in memory: its untransformed form cannot be loaded to compare it with",
                where=model.shown_name,
                fix="give the untransformed model as reference=, or use load_model(name, transforms=...)",
            )
        return
    if not model.transforms:
        _require_same_vocabulary(model, given)
        return
    if given.identity.fingerprint != model.identity.base_fingerprint or given.dtype != model.dtype:
        raise InputError(
            f"the reference, {given.name} in {given.dtype}, is not the untransformed model",
            where=f"reference= for {model.shown_name} in {model.dtype}",
            fix="give the untransformed model, loaded in the same dtype",
        )


def _require_same_vocabulary(model: Model, given: Model) -> None:
    """Raise InputError unless both are of one vocabulary, and two models."""
    where = f"reference= (--reference): {given.shown_name}, for {model.shown_name}"
    if given.identity.fingerprint == model.identity.fingerprint:
        raise InputError(
            "the reference is the model itself", where=where, fix="leave it out: a model is its own reference"
        )
    same = model.identity.tokenizer == given.identity.tokenizer or _tokens(model) == _tokens(given)
    if model.shape.vocabulary_size != given.shape.vocabulary_size or not same:
        raise InputError(
            "the reference has another vocabulary, so its tokens cannot be compared",
            where=where,
            fix="give the model that this one was before it was trained",
        )


def _tokens(model: Model) -> dict[str, int] | None:
    """Ids by token; None without a tokenizer that lists them."""
    listed = getattr(model.tokenizer, "get_vocab", None)
    return None if listed is None else dict(listed())


def describe_reference(model: Model, given: Model | None) -> dict[str, str] | None:
    """What a trace's request says of a reference; nothing of a transformed model's own."""
    if given is None or model.transforms:
        return None
    return {
        "name": given.shown_name,
        "fingerprint": given.identity.fingerprint,
        "dtype": given.dtype,
        "source": given.identity.source,
    }


def measure_references(
    model: Model,
    given: Model | None,
    request: TraceRequest,
    plan: TracePlan,
    indices: Sequence[int],
    *,
    title: str,
    shown: bool,
) -> dict[int, Reference]:
    """The reference's top-1 on the contexts of some parts, by the part's number.

    It is measured as exit L of any trace is: the same batches, the logits in float32. Empty for a model
    without transforms for which none is given. The untransformed model is loaded for this, unless given, and
    let go of; its layers are read from disk one at a time if the transformed one's are, or if it does not fit
    beside that.

    title, shown: of the progress bar.
    """
    if not model.transforms and given is None:
        return {}
    references = _measured(given or _load_untransformed(model), request, plan, indices, title, shown)
    gc.collect()  # models hold references to themselves, and the transformed one now needs the memory
    return references


def _measured(
    plain: Model, request: TraceRequest, plan: TracePlan, indices: Sequence[int], title: str, shown: bool
) -> dict[int, Reference]:
    """plain: the reference."""
    alone = replace(request, exits=(plain.layers,), signals=(), heads=None)
    documents = len(plan.document_ids)
    rows = sum(context.rows for index in indices for context in plan.parts[index])
    with capture_for(
        plain, plan, indices, alone, folder=None, memory=None, title=title, shown=shown
    ) as capture:
        measurer = make_measurer(plain, alone, None, capture)
        with token_bar(title, rows, shown=shown) as advance:
            kind = "untransformed model" if request.model.get("transforms") else "reference"
            return {
                index: _reference_of(
                    measure_part(measurer, index, plan.parts[index], documents, advance), kind
                )
                for index in indices
            }


def _load_untransformed(model: Model) -> Model:
    """The model as it was before any transform."""
    assert model.source is not None  # `check_reference` has seen to it
    on_disk = model.streamed is not None or would_not_fit(model.source, model.dtype)
    if on_disk:
        return load_streamed(model.source, dtype=model.dtype, trust_remote_code=model.runs_own_code)
    # Where the transformed one is, spread over several devices as that is.
    placement = Placement(str(model.stack.device), getattr(model.hf, "hf_device_map", None), model.attention)
    return load_source(
        model.source, dtype=model.dtype, trust_remote_code=model.runs_own_code, placement=placement
    )


def _reference_of(part: Part, kind: str) -> Reference:
    """What is kept of a part that was measured on the reference. kind: what that is called."""
    return Reference(
        document=part.tokens["document"],
        top1=part.facts["top1"][:, 0],
        reasons={
            document.index: f"the {kind} gives a non-finite number"
            for document in part.documents
            if not document.valid
        },
    )
