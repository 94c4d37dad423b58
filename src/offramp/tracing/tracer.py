"""`trace`: from a model and a workload to facts for every token and exit, resumable part by part."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from offramp.errors import DamagedFileError, InputError, ModelError
from offramp.files import locked_folder, sweep_temporary_files
from offramp.models.model import Model
from offramp.tracing.answers import Answerer
from offramp.tracing.facts import FACTS
from offramp.tracing.folder import prepare_folder, refuse_foreign_files, remove_part
from offramp.tracing.group import GroupFacts, GroupMeasurer
from offramp.tracing.head import make_head
from offramp.tracing.part import FILE_KINDS, Part, PartDocument, part_path, read_part, write_part
from offramp.tracing.plan import TracePlan, plan_trace, usable_context
from offramp.tracing.progress import token_bar
from offramp.tracing.reductions import choose_reductions
from offramp.tracing.request import TraceRequest, code_fingerprint, library_versions, parse_exits
from offramp.tracing.rows import groups_of
from offramp.tracing.sizes import DEFAULT_TOKENS
from offramp.tracing.states import StateShape
from offramp.tracing.storage import (
    MANIFEST,
    block_of,
    open_trace,
    read_manifest,
    read_trace,
    trace_from_parts,
    verify_parts,
    write_manifest,
)
from offramp.tracing.trace import Trace
from offramp.workloads.packing import Context
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Workload


def trace(
    model: Model,
    workload: str | Workload,
    tokens: int = DEFAULT_TOKENS,
    exits: str | Sequence[int] = "all",
    signals: Sequence[str] = (),
    heads: str | Path | None = None,
    *,
    context: int | None = None,
    document_tokens: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    repair: bool = False,
    progress: bool | None = None,
) -> Trace:
    """Measure a model at every exit on a workload.

    tokens: rows to trace; all there are if the workload has fewer (a note says so). exits: "all", "10,20,30"
    or layers; the last layer is always traced. context: tokens of one sequence at most, by default 512 or as
    many as the model takes. document_tokens: rows of one document at most; by default many documents are
    traced a little rather than few wholly.
    output: a folder for the trace; a run that was stopped there is resumed. Without it the trace stays in
    memory. overwrite: replace another trace in that folder. repair: trace damaged parts of a finished trace
    again.
    progress: a bar on standard error; by default if that is a terminal.

    Raises InputError for sizes, exits or an output folder that do not fit, WorkloadError for the workload.
    """
    if signals or heads is not None:
        raise InputError(
            "extra signals and exit heads cannot be traced in this version",
            where="signals" if signals else "heads",
            fix="leave the option out: the facts of every trace serve max_prob, margin and entropy policies",
        )
    work = load_workload(workload) if isinstance(workload, str) else workload
    layers = parse_exits(exits if isinstance(exits, str) else list(exits), len(model.stack))
    rows_times_exits = tokens * len(layers)
    request = TraceRequest(
        model={"name": model.name, **model.identity.to_json()},
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
        context=usable_context(model, context),
        document_tokens=document_tokens,
        reductions=choose_reductions(rows_times_exits * model.shape.vocabulary_size),
        threads=torch.get_num_threads(),
        code=code_fingerprint(),
        versions=library_versions(),
    )
    shown = sys.stderr.isatty() if progress is None else progress
    run = _Run(model, work, request, shown)
    if output is None:
        return run.in_memory()
    folder = Path(output)
    # Bad input is refused before the folder is made; only answers need a folder to be planned.
    plan = run.plan(None) if work.mode == "text" else None
    refuse_foreign_files(folder)
    with locked_folder(folder):
        prepare_folder(folder, request, overwrite=overwrite, repair=repair)
        sweep_temporary_files(folder)
        return run.in_folder(folder, plan, repair=repair)


@dataclass(frozen=True)
class _Run:
    """One request being answered."""

    model: Model
    workload: Workload
    request: TraceRequest
    shown: bool

    def in_memory(self) -> Trace:
        """The trace without files."""
        plan = self.plan(None)
        parts: list[Part] = []
        self._measure(plan, range(len(plan.parts)), parts.append)
        _require_rows(parts, plan)
        return trace_from_parts(parts, self.request, plan.document_ids, self.model.shape, plan.notes)

    def in_folder(self, folder: Path, plan: TracePlan | None, *, repair: bool) -> Trace:
        """The trace in a prepared folder: what is whole there is kept, the rest is measured."""
        started = time.monotonic()
        if (folder / MANIFEST).exists():
            manifest = read_manifest(folder)
            problems = verify_parts(folder, manifest)
            if not problems:
                return open_trace(folder, manifest)
            if not repair:
                raise problems[0][1]
            for index, _ in problems:
                remove_part(folder, index)
        plan = plan or self.plan(folder)
        done = self._whole_parts(folder, plan)
        missing = [index for index in range(len(plan.parts)) if index not in done]
        exits = np.array(self.request.exits)

        def keep(part: Part) -> None:
            write_part(folder, part, exits, self.request.fingerprint)
            done[part.index] = part

        self._measure(plan, missing, keep)
        parts = [done[index] for index in range(len(plan.parts))]
        _require_rows(parts, plan)
        write_manifest(
            folder,
            self.request,
            parts,
            plan.document_ids,
            self.model.shape,
            plan.notes,
            time.monotonic() - started,
        )
        return read_trace(folder)

    def plan(self, folder: Path | None) -> TracePlan:
        """What is traced; the folder keeps the answers of generation mode."""
        title = f"{self.workload.name}: answers"
        with contextlib.ExitStack() as bars:

            def answerer() -> Answerer:
                bar = bars.enter_context(token_bar(title, self.request.tokens, shown=self.shown))
                return Answerer(self.model, folder=folder, request=self.request.fingerprint, on_tokens=bar)

            return plan_trace(
                self.model,
                self.workload,
                answerer,
                tokens=self.request.tokens,
                context=self.request.context,
                document_tokens=self.request.document_tokens,
            )

    def _whole_parts(self, folder: Path, plan: TracePlan) -> dict[int, Part]:
        """Parts that an earlier run finished; one that cannot be read is measured again."""
        done = {}
        for index in range(len(plan.parts)):
            if not part_path(folder, FILE_KINDS[-1], index).exists():
                continue
            try:
                done[index] = read_part(folder, index, len(self.request.exits), self.request.fingerprint)
            except DamagedFileError as error:
                print(f"offramp: traced again: {error.what}", file=sys.stderr)
                remove_part(folder, index)
        return done

    def _measure(self, plan: TracePlan, indices: Sequence[int], keep: Callable[[Part], None]) -> None:
        if not indices:
            return
        measurer = make_measurer(self.model, self.request, plan.parts[0][0])
        missing = sum(context.rows for index in indices for context in plan.parts[index])
        with token_bar(
            f"{self.workload.name}: tracing", plan.tokens, shown=self.shown, done=plan.tokens - missing
        ) as advance:
            for index in indices:
                keep(measure_part(measurer, index, plan.parts[index], len(plan.document_ids), advance))


def make_measurer(model: Model, request: TraceRequest, first: Context) -> GroupMeasurer:
    """The measurer of a request; one short forward shows the shape of a layer's output."""
    shapes: list[StateShape] = []

    def on_layer(layer: int, before: torch.Tensor, after: torch.Tensor) -> None:
        if not shapes:
            shapes.append(StateShape.of(after, model.stack.position_axis))

    model.stack.capture(torch.tensor([first.ids[:8]]), on_layer)
    with torch.no_grad():
        head = make_head(model.stack, model.shape.vocabulary_size, shapes[0], request.reductions)
        return GroupMeasurer(model.stack, head, request.exits, shapes[0], getattr(torch, model.dtype))


def measure_part(
    measurer: GroupMeasurer,
    index: int,
    contexts: Sequence[Context],
    documents: int,
    advance: Callable[[int], None],
) -> Part:
    """Measure the contexts of one part, group by group, and leave out documents with a non-finite number."""
    groups: list[GroupFacts] = []
    for group in groups_of(contexts):
        groups.append(measurer.measure(group))
        advance(sum(context.rows for context in group))
    defects = {document: defect for group in reversed(groups) for document, defect in group.defects.items()}
    kept = ~np.isin(np.concatenate([group.document for group in groups]), list(defects))
    marginal: dict[int, np.ndarray] = {}
    marginal_rows: dict[int, int] = {}
    records = []
    for document in dict.fromkeys(context.document for context in contexts):
        rows = sum(context.rows for context in contexts if context.document == document)
        if document in defects:
            defect = defects[document]
            reason = f"a non-finite number at layer {defect.layer}, position {defect.position}"
            records.append(PartDocument(document, 0, valid=False, reason=reason))
            continue
        records.append(PartDocument(document, rows))
        block = block_of(document, documents)
        sums = np.sum(
            [group.marginal[document].double().numpy() for group in groups if document in group.marginal], 0
        )
        marginal[block] = marginal.get(block, 0.0) + sums
        marginal_rows[block] = marginal_rows.get(block, 0) + rows
    return Part(
        index=index,
        tokens={name: column[kept] for name, column in _token_columns(contexts).items()},
        facts={
            fact.name: np.concatenate([group.facts[fact.name] for group in groups])[kept] for fact in FACTS
        },
        marginal=marginal,
        marginal_rows=marginal_rows,
        documents=tuple(records),
    )


def _token_columns(contexts: Sequence[Context]) -> dict[str, np.ndarray]:
    def column(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int32)

    generated = [context.generated for context in contexts for _ in range(context.rows)]
    return {
        "token": column([token for context in contexts for token in context.ids[context.first_row :]]),
        "next_token": column([token for context in contexts for token in context.next_tokens]),
        "document": column([context.document for context in contexts for _ in range(context.rows)]),
        "position": column([p for context in contexts for p in range(context.first_row, len(context.ids))]),
        "generated": np.array(generated, dtype=np.bool_),
    }


def _require_rows(parts: Sequence[Part], plan: TracePlan) -> None:
    if sum(part.rows for part in parts):
        return
    record = parts[0].documents[0]
    raise ModelError(
        "every document met a non-finite number, so nothing was traced",
        where=f"{plan.document_ids[record.index]}: {record.reason}",
        fix="try --dtype float32, or check the model's weights",
    )
