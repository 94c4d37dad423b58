"""`train_gates`: exits by what leaving costs and loses, trained for one machine and one floor, and judged."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp.costs.machine import Machine
from offramp.costs.machine_registry import find_machine
from offramp.decoding.options import HeadsSource, read_heads_source
from offramp.errors import InputError
from offramp.heads.at_work import describe_base
from offramp.heads.described import describe_heads
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import EXITS_FILE, require_base, write_heads
from offramp.heads.parts import Classifier, ExitReading, Weights, stacked
from offramp.models.model import Model, in_evaluation
from offramp.models.training_record import TRAINING_FILE
from offramp.policies.rules.threshold import Threshold
from offramp.tracing.fitting.classifiers import Samples, fit_classifier
from offramp.tracing.fitting.fit import describe_fitting
from offramp.tracing.fitting.fitting_documents import FittingRows, plan_rows, seen_by_all
from offramp.tracing.fitting.fitting_inputs import FIRST_POSITION, Readings, require_one_stream, take_readings
from offramp.tracing.progress import step_bar, token_bar
from offramp.tracing.request import parse_exits
from offramp.training.folder import GATES_FOLDER
from offramp.training.gate import (
    HALF,
    GateJudge,
    GateProblem,
    GateRows,
    chosen_apart,
    judged_gates,
    learn_gates,
    probabilities_of,
    reading_at,
    spread,
    steps_of,
)
from offramp.training.record import GATE, GATE_RECORD, GateRecord, Spent, spent_before
from offramp.training.request import TRAININGS, GateTraining
from offramp.tuning.pricing import pricing_of
from offramp.workloads.shared_text import Sketcher, text_groups, without_shared_text
from offramp.workloads.workload import Document, Workload

NETWORK = "correctness_network"
"""The fact of networks of the same size and features that say whether an exit agrees: from where gates start,
and what they are held against."""


@dataclass(frozen=True)
class TrainedGates:
    """The heads with the fact `gate`, and how its training went."""

    heads: ExitHeads
    record: GateRecord


@in_evaluation
def train_gates(
    model: Model,
    workloads: str | Workload | Sequence[str | Workload],
    *,
    machine: Machine | str,
    floor: float,
    heads: HeadsSource = None,
    progress: bool | None = None,
    **options: Any,
) -> TrainedGates:
    """Gates for the least seconds of a token on a machine at a floor on agreement (`offramp.training.gate`).

    heads: exits that are read through these, or their file or folder, get gates, on documents of the
    workloads' later half, or next to it, that nothing of them has seen; without, exits are read by the logit
    lens. options: others of `offramp.training.request.GateTraining`, as follows; each may be left out. at:
    exits below L that get gates, by default all of the heads. tokens: over all workloads. context: positions
    of a sequence. kv: the K,V strategy whose prices are charged. seed. steps: by default some 40 passes over
    the tokens to learn from. A third of the documents is held out, to judge the gates beside the best
    thresholds of a network of the same size and features that predicts agreement.

    Raises InputError for options or text that do not fit, heads of another model or with output heads of
    their own, and a machine that is not known; ModelError as `fit_heads` does.
    """
    named = {"model": model.shown_name, "workloads": workloads, "output": None, "start": heads}
    given = {**named, "hardware": machine, "floor": floor, **options}
    asked = TRAININGS.request(GateTraining.kind, given, call="train_gates")
    return train(model, asked.texts(), asked, progress=progress)


@in_evaluation
def train(
    model: Model, workloads: Sequence[Workload], asked: GateTraining, *, progress: bool | None = None
) -> TrainedGates:
    """Carry out what is asked for, on texts that are read, and write it if a folder is named.

    Raises what `train_gates` raises.
    """
    output = None if asked.output is None else Path(asked.output)
    with GATES_FOLDER.claimed(output, overwrite=asked.overwrite) as folder:
        start = read_heads_source(asked.start)
        exits = _exits(model, start, asked.at)
        if start is not None:
            require_base(start, describe_base(model))
            if start.output is not None:
                raise InputError(
                    "gates of exits that have output heads of their own cannot be trained",
                    where="--from",
                    fix="train exits that are read through a lens, or give no --from",
                )
        require_one_stream(model)
        shown = sys.stderr.isatty() if progress is None else progress
        machine = _machine(model, asked.hardware) if isinstance(asked.hardware, str) else asked.hardware
        parts = [(work, _unseen(work, start)) for work in workloads]
        rows = plan_rows(model, parts, asked.tokens, context=asked.context, shown=shown)
        earlier = spent_before(model, asked.start, start)
        trained = GateJob(model, tuple(workloads), asked, start, exits, rows, machine, shown, earlier).run()
        write_heads(trained.heads, folder / EXITS_FILE)
        GATE_RECORD.write(folder / TRAINING_FILE, trained.record)
    return trained


def _exits(model: Model, heads: ExitHeads | None, at: str | Sequence[int] | None) -> tuple[int, ...]:
    """The exits that get gates."""
    named = heads.exits if at is None and heads is not None else at
    assert named is not None, "checked by `GateTraining`"
    exits = parse_exits(named, model.layers, "--at")[:-1]
    missing = [] if heads is None else [exit for exit in exits if exit not in heads.exits]
    if missing or not exits:
        known = range(1, model.layers) if heads is None else heads.exits
        raise InputError(
            f"the exits hold none at {missing[0]}" if missing else "there is no exit below the last layer",
            where="--at",
            fix="choose among " + ", ".join(map(str, known)),
        )
    return exits


def _machine(model: Model, name: str) -> Machine:
    """The machine of that name, "local" being the profile of this model here."""
    return find_machine(
        name,
        model_fingerprint=model.identity.fingerprint,
        dtype=model.dtype,
        device=str(model.stack.device),
        attention=model.attention,
        model=model.described,
    )


def _unseen(workload: Workload, heads: ExitHeads | None) -> tuple[Document, ...]:
    """Documents of the later half that nothing of the heads has seen, the last first.

    Where these are less than a quarter of all, since the heads were fitted there, also of the quarter before.
    """
    documents, count = workload.documents, len(workload.documents)
    if heads is None:
        return documents[count // 2 :][::-1]
    seen, texts = heads.seen_documents.get(workload.fingerprint, ()), heads.seen_texts or ()
    for first in (count // 2, count // 4):
        unseen = [document for document in reversed(documents[first:]) if document.id not in seen]
        free = without_shared_text(unseen, texts, Sketcher.of(documents))
        if len(free) >= count // 4:
            break
    return free


@dataclass(frozen=True)
class GateJob:
    """Gates being trained."""

    model: Model
    workloads: tuple[Workload, ...]
    asked: GateTraining
    heads: ExitHeads | None
    exits: tuple[int, ...]
    """That get one."""
    read: FittingRows
    machine: Machine
    shown: bool
    earlier: Spent | None

    def run(self) -> TrainedGates:
        """Read the exits, train, and judge."""
        started, floor = time.perf_counter(), self.asked.wanted
        # 1. Every exit, read on documents to learn from, to choose by and to judge on.
        readings = self._readings()
        try:
            fit, apart, held_out = self._rows(readings)
        finally:
            readings.states.close()
        judge = GateJudge(
            shape=self.model.shape,
            exits=self.exits,
            heads={} if self.heads is None else describe_heads(self.heads),
            position=float(readings.position.mean()),
            floor=floor,
            pricing=functools.partial(pricing_of, machine=self.machine, batch=1, kv=self.asked.kv),
        )
        # 2. Networks that predict agreement, from which gates start.
        network = self._network(fit, apart)
        read = time.perf_counter()
        # 3. The gates.
        steps = steps_of(len(fit)) if self.asked.steps is None else self.asked.steps
        prices = judge.prices(apart)
        problem = GateProblem(
            fit,
            apart,
            prices,
            floor.risk,
            start=network,
            at_floor=judge.at_floor(apart),
            seed=self.asked.seed,
        )
        with step_bar(f"{self.model.name}: gates", steps, shown=self.shown) as on_step:
            gates, course = learn_gates(problem, steps=steps, on_start=lambda progress: on_step)
        gates = judged_gates(gates, course.multiplier, held_out, prices)
        trained = time.perf_counter()
        # 4. Both, chosen on the same documents, on those that nothing was chosen on.
        rules = judge.fastest(apart, probabilities_of(network, apart), NETWORK)
        heads = self._heads(gates, steps)
        record = GateRecord(
            **vars(course),
            exits=self.exits,
            machine=self.machine.name,
            floor=floor.value,
            kv=self.asked.kv,
            seed=self.asked.seed,
            rows=(len(fit), len(apart), len(held_out)),
            gate=judge.judged(
                held_out, probabilities_of(gates, held_out), GATE, Threshold(GATE, HALF, self.exits)
            ),
            thresholds=judge.judged(held_out, probabilities_of(network, held_out), NETWORK, rules),
            plain=prices.plain,
            tokens=self.read.tokens,
            steps=steps,
            took=(self.read.answering + read - started, trained - read),
            heads=heads.fingerprint,
            earlier=self.earlier,
        )
        return TrainedGates(heads, record)

    def _readings(self) -> Readings:
        """Every exit that gets a gate, read as the heads read it."""
        reading = ExitReading[Weights]() if self.heads is None else reading_at(self.heads, self.exits)
        nothing = torch.zeros(1, dtype=torch.int64)  # no short list is looked at
        with token_bar(f"{self.model.name}: reading exits", self.read.tokens, shown=self.shown) as advance:
            return take_readings(self.model, self.read.contexts, self.exits, reading, None, nothing, advance)

    def _rows(self, readings: Readings) -> tuple[GateRows, GateRows, GateRows]:
        """Tokens to learn from, to choose by and to judge on, without the first position of a sequence.

        Raises InputError for too few documents.
        """
        order = np.argsort(readings.document, kind="stable")
        order = order[readings.position[order] >= FIRST_POSITION]
        places = torch.from_numpy(order)
        rows = GateRows(
            torch.stack([readings.hidden(exit)[places] for exit in range(len(self.exits))]),
            torch.from_numpy(readings.agrees[order].T.copy()),
            readings.document[order],
        )
        held_out = self.read.held_out
        apart = chosen_apart(text_groups(self.read.texts), held_out)
        parts = [rows.of_documents(chosen) for chosen in (~held_out & ~apart, apart, held_out)]
        if not all(map(len, parts)):
            raise InputError(
                f"there are {len(held_out)} documents for gates that nothing has seen; they need one to "
                "learn from, one to choose by and one to judge on",
                where="--workload",
                fix="give more text, or raise --tokens",
            )
        return parts[0], parts[1], parts[2]

    def _network(self, fit: GateRows, apart: GateRows) -> Classifier[Weights]:
        """Networks that predict agreement, one an exit."""

        def samples(rows: GateRows, place: int) -> Samples:
            return Samples(rows.states[place].numpy(), rows.agrees[place].numpy(), rows.document)

        return stacked(
            [
                fit_classifier(samples(fit, place), samples(apart, place), network=True, seed=self.asked.seed)
                for place in range(len(self.exits))
            ]
        )

    def _heads(self, gates: Classifier[Weights], steps: int) -> ExitHeads:
        """The heads with the gates, and with the documents that these have seen."""
        provenance = {
            "seed": self.asked.seed,
            "exits": list(self.exits),
            "machine": self.machine.name,
            "floor": self.asked.wanted.value,
            "kv": self.asked.kv,
            "steps": steps,
            **describe_fitting(self.workloads, {"gates": self.read}),
        }
        heads = self.heads or ExitHeads(
            model=describe_base(self.model),
            exits=self.exits,
            lens=None,
            classifiers={},
            shortlist=None,
            candidate_exit=None,
            documents={},
            texts=(),
        )
        documents, texts = seen_by_all((heads.documents, heads.texts), (self.read.ids, self.read.texts))
        return replace(
            heads,
            classifiers={**heads.classifiers, GATE: spread(gates, self.exits, heads.exits)},
            documents=documents,
            texts=texts,
            provenance={**heads.provenance, GATE: provenance},
        )
