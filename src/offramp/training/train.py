"""`train_exits`: exits that learn to say what the full model says, in a folder that can be gone on with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.decoding.options import read_heads_source
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads
from offramp.kit.code import code_of
from offramp.kit.typed import to_json
from offramp.models.model import Model, in_evaluation
from offramp.models.source import folder_source
from offramp.models.training_record import TRAINING_FILE
from offramp.tracing.fitting.fit import check_short_list
from offramp.tracing.fitting.fitting_inputs import require_one_stream
from offramp.tracing.request import MODEL_CODE
from offramp.training.divergence import trainable_head
from offramp.training.executed_maps import prepare_maps, start_of
from offramp.training.folder import CHECKPOINT, TRAINING_FOLDER, clear_working_files
from offramp.training.job import Job, Prepared
from offramp.training.lens_and_block import prepare_readings
from offramp.training.recipe import make_recipe
from offramp.training.record import RECORD, TrainingIdentity, TrainingRecord, spent_before
from offramp.training.regularised import prepare_model
from offramp.training.request import (
    TRAININGS,
    BlockTraining,
    ExecutedTraining,
    GateTraining,
    LensTraining,
    Regularisation,
    RegularisedTraining,
    ResumableTraining,
)
from offramp.workloads.workload import Workload

PROBLEMS: Mapping[str, Callable[[Job], Prepared]] = {
    LensTraining.kind: prepare_readings,
    BlockTraining.kind: prepare_readings,
    ExecutedTraining.kind: prepare_maps,
    RegularisedTraining.kind: prepare_model,
}
"""What is trained, of each kind: each reads its text."""


@dataclass(frozen=True)
class TrainedExits:
    """What a training gave. found: the heads, None where the model itself was trained. folder: where it lies,
    None if none was named; a trained model is loaded from there."""

    found: ExitHeads | None
    record: TrainingRecord
    folder: Path | None

    @property
    def heads(self) -> ExitHeads:
        """The trained exits. Raises InputError where the model itself was trained."""
        if self.found is None:
            raise InputError(
                "the model itself was trained, and its own norm and head read its exits: there are no heads",
                where=str(self.folder),
                fix="load the folder as a model: offramp.load_model(trained.folder)",
            )
        return self.found

    def __repr__(self) -> str:
        record = self.record
        exits = ", ".join(
            f"{place}: {exit.agreement:.2f}"
            for place, exit in zip(record.places, record.trained, strict=True)
        )
        return f"TrainedExits({record.request.recipe.kind}, agreement {exits}, {record.steps} steps)"


@in_evaluation
def train_exits(
    model: Model,
    workloads: str | Workload | Sequence[str | Workload],
    *,
    kind: str = "block",
    regularisation: Regularisation | None = None,
    output: str | Path | None = None,
    progress: bool | None = None,
    on_size: Callable[[int], object] | None = None,
    **options: Any,
) -> TrainedExits:
    """Train exits of a frozen model on its own distributions, on documents of the workloads' later half.

    options: those of its kind (`offramp.training.request`), as follows; each may be left out.
    kind: "lens" or "block" (see `offramp.training.request`); "executed": the K,V maps of heads, trained by
    what they do to tokens that stay (see `offramp.training.executed_maps`); "regularised": the model itself,
    as `regularisation` says, whose trained form is a model folder, the output (see
    `offramp.training.regularised`); the model at hand stays as it is. at: exits below L; of "executed", by
    default all that have maps. start: heads that "executed" starts from, their file or folder. leave: share
    of the tokens that leave while it trains, 0.3 by default. minutes: of all of it on this
    machine, 20 by default: what there is no time for is left out, tokens, then steps, which the record says;
    or steps, which give the same exits again. tokens: over all workloads. units: of a
    block. rank: of the lenses, whole by default. shared: whether all exits use one network behind their
    lenses. loss_vocabulary: tokens that the loss looks at, 0 for all. classifiers, kv_maps: whether they are
    fitted afterwards, as they are by default; the classifiers on documents that training did not see.
    short_list: tokens of the restricted vocabulary. These four and rank are of "lens" and "block".
    precision: of the products with the output head while it trains, of "regularised" of all products. output:
    a folder; a training that was killed goes on there to the same exits, and a finished one is read.
    overwrite: replace what is there, if it is finished or another; what was killed of the same goes on.
    on_size: told the bytes of hidden states on disk.

    Raises InputError for options or text that do not fit, or another training in the folder; ModelError for a
    model whose exits cannot be trained; DiskFullError.
    """
    if kind == GateTraining.kind:
        raise InputError(
            "gates are trained by a function of their own",
            where="kind= (--kind)",
            fix="call offramp.train_gates, or give --kind gate",
        )
    given = {**options, **({} if regularisation is None else vars(regularisation))}
    given = {name: value for name, value in given.items() if value is not None}
    named = {"model": model.shown_name, "workloads": workloads, "output": output}
    asked = TRAININGS.request(kind, {**named, **given}, call="train_exits")
    return train(model, asked.texts(), asked, progress=progress, on_size=on_size)


@in_evaluation
def train(
    model: Model,
    workloads: Sequence[Workload],
    asked: ResumableTraining,
    *,
    progress: bool | None = None,
    on_size: Callable[[int], object] | None = None,
) -> TrainedExits:
    """Carry out what is asked for, on texts that are read. Raises what `train_exits` raises."""
    # 1. What it starts from, and how it trains.
    start = asked.start if isinstance(asked, ExecutedTraining) else None
    heads = start_of(model, read_heads_source(start)) if isinstance(asked, ExecutedTraining) else None
    earlier = spent_before(model, start, heads)
    mapped = () if heads is None or heads.kv_maps is None else heads.kv_maps.exits
    shape = model.shape
    recipe = make_recipe(
        asked,
        layers=model.layers,
        hidden=shape.hidden_size,
        vocabulary=shape.vocabulary_size,
        mapped=mapped,
    )
    reading = asked if isinstance(asked, LensTraining) else None
    if reading is not None:
        check_short_list(reading.short_list, shape.vocabulary_size)
    require_one_stream(model)
    trainable_head(model)
    # 2. What makes it another training.
    identity = TrainingIdentity(
        recipe=recipe,
        model={
            "name": model.shown_name,
            "fingerprint": model.identity.fingerprint,
            "dtype": model.dtype,
            **model.asked_attention,
        },
        workloads=tuple({"name": work.name, "fingerprint": work.fingerprint} for work in workloads),
        classifiers=reading is not None and reading.classifiers,
        kv_maps=reading is not None and reading.kv_maps,
        short_list=0 if reading is None else reading.short_list,
        device=model.stack.head_device.type,
        code=code_of(__name__, MODEL_CODE),
        start=None if heads is None else heads.fingerprint,
    )
    shown = sys.stderr.isatty() if progress is None else progress
    output = None if asked.output is None else Path(asked.output)
    # 3. In its folder it is read, gone on with, or begun.
    with TRAINING_FOLDER.claimed(output, identity, overwrite=asked.overwrite) as folder:
        if (folder / TRAINING_FILE).is_file():
            record = RECORD.read(folder / TRAINING_FILE)
            if to_json(record.request) != to_json(identity):
                raise InputError(
                    "the record of the training there is of another training than its folder",
                    where=str(folder),
                    fix="give --overwrite to train again, or copy the whole folder again from where it came",
                )
            found = None if isinstance(asked, RegularisedTraining) else read_heads(folder)
            if found is None:
                folder_source(folder)  # as the training left it
        else:
            job = Job(model, tuple(workloads), identity, folder, shown, on_size, heads)
            try:
                found, record = job.train(PROBLEMS[asked.kind](job), earlier)
            except InputError:  # refused before it trained
                if not (folder / CHECKPOINT).exists():
                    clear_working_files(folder)
                raise
        clear_working_files(folder)  # also where it was killed after its last file was written
    return TrainedExits(found, record, None if output is None else folder)
