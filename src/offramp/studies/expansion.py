"""From axes to cells: every combination that the study does not exclude, and the tasks behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from offramp.errors import InputError
from offramp.kit.defaults import LOCAL
from offramp.kit.toml_lines import Location
from offramp.studies.entries import (
    LEAGUE,
    NONE,
    TUNED,
    HeadsEntry,
    MachineEntry,
    PolicyEntry,
    TrainingEntry,
    TransformEntry,
)
from offramp.studies.estimates import Variant
from offramp.studies.fitness import Fitness
from offramp.studies.found import Found, FoundWorkload
from offramp.studies.study import Study
from offramp.studies.study_file import AXES
from offramp.studies.task import Cell, Task
from offramp.studies.tasks import Tasks
from offramp.studies.work.inputs import PricedWork
from offramp.studies.work.registry import works

UNTRANSFORMED = TransformEntry(name=NONE)
RAW = HeadsEntry(name=NONE)


@dataclass(frozen=True)
class Expanded:
    """The cells of a study, and their tasks by key, each after those that it needs.

    names: what a job is called that begins with a task, by its key.
    """

    cells: tuple[Cell, ...]
    tasks: dict[str, Task]
    names: dict[str, str]


def expand(study: Study, found: Found) -> Expanded:
    """Every cell of a study.

    Raises InputError, with the line, for two cells that are one and the same, an exclude that matches
    nothing, and what does not fit a model that it is asked of.
    """
    return _Expansion(study, found).expanded()


@dataclass(frozen=True)
class _Row:
    """A model on a workload through some heads or trained exits: what one trace is of."""

    variant: Variant
    workload: FoundWorkload
    reader: HeadsEntry | TrainingEntry

    @property
    def trained(self) -> bool:
        """Whether its exits are trained."""
        return isinstance(self.reader, TrainingEntry)

    @property
    def name(self) -> str:
        """As shown: "smollm2 + int8 · prose · lens"."""
        reader = () if self.reader.name == NONE else (self.reader.name,)
        return " · ".join((self.variant.name, self.workload.entry.name, *reader))

    def cell(self, kind: str, *, policy: str = "", machine: str = "") -> Cell:
        """A cell of it, whose task is not known yet."""
        reader = "" if self.reader.name == NONE else self.reader.name
        heads, training = ("", reader) if self.trained else (reader, "")
        model, transform = self.variant.model.entry.name, self.variant.transform.label
        return Cell(kind, "", model, transform, self.workload.entry.name, heads, policy, machine, training)


class _Expansion:
    """Collects cells. used: excludes that matched."""

    def __init__(self, study: Study, found: Found) -> None:
        self.study = study
        self.found = found
        self.making = Tasks(study, found)
        self.fitness = Fitness(study, found)
        self.fitness.check_contexts()
        self.cells: dict[str, Cell] = {}  # by task: no two cells have the same
        self.tasks: dict[str, Task] = {}
        self.names: dict[str, str] = {}
        self.traces: dict[tuple[str, str, str], tuple[Variant, Task]] = {}  # by variant, workload, reader
        self.excluded = [exclude.model_dump(exclude_none=True) for exclude in study.exclude]
        self.used: set[int] = set()

    def expanded(self) -> Expanded:
        """All cells, in the order of the axes."""
        for row in self.rows():
            self.add_row(row)
        self.add_combined()
        for place in range(len(self.study.exclude)):
            if place not in self.used:
                raise InputError(
                    "the exclude matches no cell",
                    where=self.study.where("exclude", place),
                    fix="remove it, or correct its names (a cell of a score has no policy and no machine)",
                )
        if not self.cells:
            raise InputError(
                "no cell is left", where=self.study.where("exclude"), fix="remove some of the excludes"
            )
        return Expanded(tuple(self.cells.values()), self.tasks, self.names)

    def rows(self) -> Iterator[_Row]:
        """Every model, transform, workload, and what its exits are read through."""
        for model in self.study.models:
            for transform in self.study.transforms:
                variant = self.making.variant(model.name, transform)
                for workload in self.study.workloads:
                    for reader in self.study.readers:
                        yield _Row(variant, self.found.workloads[workload.name], reader)

    def add_row(self, row: _Row) -> None:
        """The cells of one trace."""
        cells = [cell for cell in self.row_cells(row) if self.wanted(cell)]
        if not cells:
            return
        self.fitness.check_row(row.variant, row.workload, row.reader)
        found, heads = self.found.heads[row.reader.name], None
        if row.reader.name != NONE:
            made = self.making.heads(row.variant, row.reader, row.workload)
            own = f" · {row.workload.entry.name}" if found.own else ""
            heads = self.add(made, f"{made.kind} {row.variant.name} · {row.reader.name}{own}")
        scored = any(cell.kind == "score" for cell in cells)
        raw = self.raw_trace(row) if scored and found.reads_exits else None
        trace = self.add(self.making.trace(row.variant, row.workload, heads), f"trace {row.name}")
        self.traces[row.variant.name, row.workload.entry.name, row.reader.name] = row.variant, trace
        for cell in cells:
            self.add_cell(cell, self.task_of(cell, row, trace, heads, raw), row.variant.name)

    def raw_trace(self, row: _Row) -> Task | None:
        """The same read by the model's own head, to stand on the card beside what other heads read.

        Of runs and of trained exits, where it is traced whether or not it is a row of its own. Fitted heads
        of a study are without: a card that took up a row would be another one as soon as the study grows by
        it.
        """
        if not self.study.inline and not row.trained:
            return None
        raw = dataclasses.replace(row, reader=RAW)
        return self.add(self.making.trace(row.variant, row.workload, None), f"trace {raw.name}")

    def row_cells(self, row: _Row) -> Iterator[Cell]:
        """What there is to know about a row: its score, each policy on each machine, and its decoding."""
        yield row.cell("score")
        kinds = {LEAGUE: "league", TUNED: "tune" if self.study.certify is None else "certify"}
        for policy in self.study.policies:
            for machine in self.study.machines:
                kind = kinds.get(policy.policy, "replay")
                yield row.cell(kind, policy=policy.name, machine=machine.name)
        if self.study.decode is not None:
            yield row.cell(
                "decode", machine=LOCAL if self.decoded_on.source != LOCAL else self.decoded_on.name
            )

        for entry in self.study.works:
            priced = issubclass(works()[entry.name], PricedWork)
            for machine in self.study.machines if priced else ():
                yield row.cell(entry.name, machine=machine.name)
            if not priced:
                yield row.cell(entry.name)

    def task_of(self, cell: Cell, row: _Row, trace: Task, heads: Task | None, raw: Task | None) -> Task:
        """The task of a cell of a row; what it needs is added before it. raw: as of `raw_trace`."""
        variant, workload, roles = row.variant, row.workload, works()[cell.kind].roles()
        machine = next((one for one in self.study.machines if one.name == cell.machine), self.decoded_on)
        needs = {"trace": trace, "raw": raw, "heads": heads}
        if "profile" in roles and machine.source == LOCAL:
            needs["profile"] = self.add(self.making.profile(variant), f"profile {variant.name}")
        for role in ("score", "league", "certify", "tune"):
            if role in roles and role in ("score", "league", self.tuner):
                made = self.making.of_row(role, variant, workload, needs, machine)
                needs[role] = self.add(made, f"{role} {row.name}")
        policy = None
        if cell.kind == "replay":
            policy = self.policy(cell.policy)
            self.fitness.check_policy(variant, policy, workload, row.reader)
        return self.making.of_row(cell.kind, variant, workload, needs, machine, policy)

    @property
    def tuner(self) -> str | None:
        """The kind of work that tunes what is decoded, None where nothing is tuned."""
        if self.study.certify is not None:
            return "certify"
        return "tune" if any(policy.policy == TUNED for policy in self.study.policies) else None

    @property
    def decoded_on(self) -> MachineEntry:
        """This machine's entry; where it has none, the one whose verdicts choose what is decoded."""
        machines = self.study.machines
        return next((one for one in machines if one.source == LOCAL), machines[0])

    def policy(self, name: str) -> PolicyEntry:
        """The entry of the axis of policies with this name."""
        return next(one for one in self.study.policies if one.name == name)

    def add_combined(self) -> None:
        """One cell per untransformed model and workload."""
        if self.study.combine is None:
            return
        for model in self.study.models:
            variant = self.making.variant(model.name, UNTRANSFORMED)
            for workload in self.study.workloads:
                found = self.found.workloads[workload.name]
                cell = Cell("combine", "", model.name, workload=workload.name, machine=LOCAL)
                if self.wanted(cell):
                    self.fitness.check_combine(variant)
                    self.add_cell(cell, self.making.combine(variant, found), variant.name)

    def wanted(self, cell: Cell) -> bool:
        """Whether no exclude matches a cell."""
        names = {key: getattr(cell, key) for key in ("kind", *AXES)}
        if cell.kind != "combine":
            names |= {key: names[key] or NONE for key in ("transform", "heads", "training")}
        matching = {
            place
            for place, given in enumerate(self.excluded)
            if all(names[key] == name for key, name in given.items())
        }
        self.used |= matching
        return not matching

    def add(self, task: Task, name: str) -> Task:
        """Keep a task; one that is there already is the same."""
        self.names.setdefault(task.key, name)
        return self.tasks.setdefault(task.key, task)

    def add_cell(self, cell: Cell, task: Task, name: str) -> None:
        """Keep a cell with its task. Raises InputError if another cell has the same task."""
        self.add(task, f"{cell.kind} {name}")
        cell = dataclasses.replace(cell, task=task.key)
        if task.key in self.cells:
            self.refuse_twin(self.cells[task.key], cell)
        self.cells[task.key] = cell

    def refuse_twin(self, first: Cell, second: Cell) -> None:
        """Raise the error for two cells that ask for one and the same, at the name in which they differ."""
        location: Location = ()
        for key, axis in AXES.items():
            names = [entry.name for entry in getattr(self.study, axis)]
            if getattr(first, key) != getattr(second, key) and getattr(second, key) in names:
                location = (axis, names.index(getattr(second, key)))
        raise InputError(
            f"two cells are one and the same: {first.name} and {second.name}",
            where=self.study.where(*location),
            fix="remove one of the two entries: under different names they say the same",
        )
