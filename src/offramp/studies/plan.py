"""The plan of a study: its cells, the tasks behind them and the jobs that run them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.costs.machine_registry import machine_facts
from offramp.defaults import BYTES, DELTA, LOCAL, PROFILE_SECONDS
from offramp.errors import InputError, OfframpError
from offramp.files import sha256_of_file
from offramp.kit.given_file import Location
from offramp.models.devices import CPU, find_device
from offramp.models.transforms.transform import Transform
from offramp.policies.grammar import parse_policy
from offramp.scoring.text_quality import counter_version
from offramp.studies.named_inputs import Fingerprints, Found, FoundWorkload, find_everything
from offramp.studies.study import Study, StudyFile, StudyPlan
from offramp.studies.study_checks import (
    accelerations_of,
    combined_steps,
    steps_of,
    text_of,
    transforms_of_all,
)
from offramp.studies.study_tables import (
    AUTO,
    LEAGUE,
    NONE,
    TUNED,
    HeadsEntry,
    LoadEntry,
    MachineEntry,
    PolicyEntry,
    TrainingEntry,
    TransformEntry,
    exit_list,
)
from offramp.studies.task import AXES, FINGERPRINTS, StudyCell, StudyJob, Task
from offramp.studies.task_costs import Fitness, StudyVariant, room_of, sizes_of
from offramp.studies.work.baselines import BASELINES_PROMPTS, BASELINES_SECONDS, BaselinesWork
from offramp.studies.work.certify import CertifyWork
from offramp.studies.work.combine import CombineWork
from offramp.studies.work.decode import DecodeWork
from offramp.studies.work.heads import HeadsWork
from offramp.studies.work.inputs import ModelUsed, PricedWork, measured_on
from offramp.studies.work.profile import ProfileWork
from offramp.studies.work.trace import TraceWork
from offramp.studies.work.training import TrainingWork
from offramp.studies.work.work import FILLED, Work, settings_of, works
from offramp.timing.baselines import by_rule
from offramp.tracing.request import parse_signals
from offramp.workloads.audio import AUDIO


def jobs_of(tasks: Mapping[str, Task], names: Mapping[str, str], threads: int) -> tuple[StudyJob, ...]:
    """Jobs in an order in which each comes after what it needs: timings of the machine, heads, traces with
    all that is made of one, certificates, and what is timed in decoding.

    tasks: by key. names: of the jobs that begin with a task, by its key. threads: of torch.
    """
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks.values():
        groups.setdefault((_stage(task), _shared(task)), []).append(task)
    ordered = sorted(groups.items(), key=lambda group: STAGES.index(group[0][0]))
    return tuple(_job(group, names, threads) for _, group in ordered)


OTHERS = "others"
STAGES = ("profile", "heads", "training", "trace", "baselines", "certify", "decode", "combine", OTHERS)


def _stage(task: Task) -> str:
    if task.kind in STAGES:
        return task.kind
    return "trace" if _reads_its_trace(task) else OTHERS


def _reads_its_trace(task: Task) -> bool:
    """Whether it runs in the job of its trace: it loads no model."""
    return "trace" in task.needs and "model" not in task.recipe


def _shared(task: Task) -> str:
    """What the tasks of one job have in common."""
    if _reads_its_trace(task):
        return task.needs["trace"]
    if _stage(task) in ("baselines", "certify", "decode", "combine", OTHERS) and "model" in task.recipe:
        # One after another on one loaded model.
        model = task.recipe["model"]
        return f"{model.get('fingerprint') or model['source']} {model['transforms']}"
    return task.key


def _job(tasks: Sequence[Task], names: Mapping[str, str], threads: int) -> StudyJob:
    own = {task.key for task in tasks}
    needs = dict.fromkeys(key for task in tasks for key in task.needs.values() if key not in own)
    return StudyJob(
        name=names[tasks[0].key],
        tasks=tuple(tasks),
        needs=tuple(needs),
        threads=threads if any("model" in task.recipe for task in tasks) else 1,
        exclusive=any(task.exclusive for task in tasks),
        memory_bytes=max(task.estimate.memory_bytes or 0 for task in tasks),
    )


def make_plan(study: Study, folder: Path | None = None, *, download: bool = False) -> StudyPlan:
    """Lay a study out. Nothing is run and no weight is loaded.

    folder: the study's own, where fingerprints of files are kept from one plan to the next; None: nowhere.
    download: fetch models from the Hub that are not here; without, their tasks are blocked, with the reason.

    Raises InputError, with the line, for what the study names and is not there, does not fit together, or is
    there twice; OfframpError if the disk is full.
    """
    fingerprints = Fingerprints(None if folder is None else folder / FINGERPRINTS)
    try:
        found = find_everything(study, fingerprints, download=download)
    finally:
        fingerprints.save()  # what took long to find out is kept, whatever else is wrong
    expansion = Expansion(study, found)
    expansion.expand()
    jobs = jobs_of(expansion.tasks, expansion.names, study.settings.threads)
    path = study.path
    return StudyPlan(
        _planned(study, found),
        tuple(expansion.cells.values()),
        jobs,
        found.unavailable,
        found.damaged,
        documents={name: workload.documents for name, workload in found.workloads.items()},
        file=StudyFile(str(path.absolute()), sha256_of_file(path)) if path.is_file() else None,
        is_run=study.inline,
    )


def _planned(study: Study, found: Found) -> Study:
    """The study with the sizes that the files of its models say, by its own words alone."""
    models = [found.models[model.name].entry.model_dump(mode="json") for model in study.models]
    return Study.model_validate({**study.to_json(), "models": models})


UNTRANSFORMED = TransformEntry(name=NONE)
RAW = HeadsEntry(name=NONE)


@dataclass(frozen=True)
class _Row:
    """A model on a workload through some heads or trained exits: what one trace is of."""

    variant: StudyVariant
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

    def cell(self, kind: str, *, policy: str = "", machine: str = "", load: str = "") -> StudyCell:
        """A cell of it, whose task is not known yet."""
        reader = "" if self.reader.name == NONE else self.reader.name
        heads, training = ("", reader) if self.trained else (reader, "")
        model, transform = self.variant.model.entry.name, self.variant.transform.label
        return StudyCell(
            kind, "", model, transform, self.workload.entry.name, heads, policy, machine, training, load
        )


class Expansion:
    """Collects the cells of a study, with their tasks: works, whose fields are filled from what the study
    says and what its names stand for.

    cells: by task, since no two have the same. names: what a job is called that begins with a task, by its
    key. used: excludes that matched.
    """

    def __init__(self, study: Study, found: Found) -> None:
        self.study = study
        self.found = found
        self.fitness = Fitness(study, found)
        self.fitness.check_contexts()
        self.cells: dict[str, StudyCell] = {}
        self.tasks: dict[str, Task] = {}
        self.names: dict[str, str] = {}
        # Baselines of a run's first text, with its name; none of a study: its card of another text would be
        # another one as soon as the study grows by a text before it.
        self.first_timed: tuple[str, Task] | None = None
        self.excluded = [exclude.model_dump(exclude_none=True) for exclude in study.exclude]
        self.used: set[int] = set()
        settings = study.settings
        device = find_device(settings.device)
        self._decoding = settings.decode_threads or settings.threads
        self._here = machine_facts(self._decoding, device)
        self._said: dict[str, Any] = {
            **settings.model_dump(),
            "device": None if device == CPU else device,
            "exits": "all" if settings.exits == "all" else tuple(exit_list(settings.exits)),
            "stream": study.streamed,
            "memory": room_of(study) if study.streamed else None,
            "delta": study.shared_delta if study.inline else DELTA,
        }

    def expand(self) -> None:
        """Add all cells, in the order of the axes."""
        for row in self.rows():
            self.add_row(row)
        self.add_combined()
        for index in range(len(self.study.exclude)):
            if index not in self.used:
                raise InputError(
                    "the exclude matches no cell",
                    where=self.study.where("exclude", index),
                    fix="remove it, or correct its names (a cell of a score has no policy and no machine)",
                )
        if not self.cells:
            raise InputError(
                "no cell is left", where=self.study.where("exclude"), fix="remove some of the excludes"
            )

    def rows(self) -> Iterator[_Row]:
        """Every model, transform, workload, and what its exits are read through."""
        for model in self.study.models:
            for transform in self.study.transforms:
                variant = self.variant(model.name, transform)
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
            made = self.heads(row.variant, row.reader, row.workload)
            own = f" · {row.workload.entry.name}" if found.own else ""
            heads = self.add(made, f"{made.kind} {row.variant.name} · {row.reader.name}{own}")
        scored = any(cell.kind == "score" for cell in cells)
        raw = self.raw_trace(row) if scored and found.reads_exits else None
        trace = self.add(self.trace(row.variant, row.workload, heads), f"trace {row.name}")
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
        return self.add(self.trace(row.variant, row.workload, None), f"trace {raw.name}")

    def row_cells(self, row: _Row) -> Iterator[StudyCell]:
        """What there is to know about a row: its score, each policy on each machine, and its decoding."""
        yield row.cell("score")
        kinds = {LEAGUE: "league", TUNED: "tune" if self.study.certify is None else "certify"}
        for policy in self.study.policies:
            for machine in self.study.machines:
                kind = kinds.get(policy.policy, "replay")
                yield row.cell(kind, policy=policy.name, machine=machine.name)
        timed = [machine for machine in self.study.machines if machine.source != BYTES]
        for load, machine in itertools.product(self.study.loads, timed):
            yield row.cell("load", machine=machine.name, load=load.name)
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

    def task_of(self, cell: StudyCell, row: _Row, trace: Task, heads: Task | None, raw: Task | None) -> Task:
        """The task of a cell of a row; what it needs is added before it. raw: as of `raw_trace`."""
        variant, workload, roles = row.variant, row.workload, works()[cell.kind].roles()
        if self.tuner in roles:  # whose answers settle the league's verdicts
            roles = (*roles, "league")
        machine = next(
            (entry for entry in self.study.machines if entry.name == cell.machine), self.decoded_on
        )
        needs = {"trace": trace, "raw": raw, "heads": heads}
        if "profile" in roles and machine.source == LOCAL:
            timings = self.made(ProfileWork, variant, values={"seconds": PROFILE_SECONDS})
            needs["profile"] = self.add(timings, f"profile {variant.name}")
        sought = ("score", "league", "baselines", self.tuner)
        for role in ("score", "league", "baselines", "certify", "tune"):
            if role == "baselines" and not ("profile" in needs and self.by_rule(variant)):
                continue  # what is not timed here, or has none
            if role in roles and role in sought:
                name, first = self.first_timed or ("", None)
                before = first if role == "baselines" and name != row.workload.entry.name else None
                made = self.of_row(role, variant, workload, {**needs, "before": before}, machine)
                needs[role] = self.add(made, f"{role} {row.name}")
                if role == "baselines" and first is None and self.study.inline:
                    self.first_timed = row.workload.entry.name, made
        asked: PolicyEntry | LoadEntry | None = None
        if cell.kind == "replay":
            asked = next(entry for entry in self.study.policies if entry.name == cell.policy)
            self.fitness.check_policy(variant, asked, workload, row.reader)
        elif cell.kind == "load":
            asked = next(entry for entry in self.study.loads if entry.name == cell.load)
        return self.of_row(cell.kind, variant, workload, needs, machine, asked)

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
        return next((entry for entry in machines if entry.source == LOCAL), machines[0])

    def add_combined(self) -> None:
        """One cell per untransformed model and workload."""
        if self.study.combine is None:
            return
        for model in self.study.models:
            variant = self.variant(model.name, UNTRANSFORMED)
            for workload in self.study.workloads:
                text = self.found.workloads[workload.name]
                cell = StudyCell("combine", "", model.name, workload=workload.name, machine=LOCAL)
                if self.wanted(cell):
                    self.fitness.check_combine(variant)
                    self.add_cell(cell, self.combine(variant, text), variant.name)

    def wanted(self, cell: StudyCell) -> bool:
        """Whether no exclude matches a cell."""
        names = {key: getattr(cell, key) for key in ("kind", *AXES)}
        if cell.kind != "combine":
            names |= {key: names[key] or NONE for key in ("transform", "heads", "training")}
        matching = {
            index
            for index, exclude in enumerate(self.excluded)
            if all(names[key] == name for key, name in exclude.items())
        }
        self.used |= matching
        return not matching

    def add(self, task: Task, name: str) -> Task:
        """Keep a task; one that is there already is the same."""
        self.names.setdefault(task.key, name)
        return self.tasks.setdefault(task.key, task)

    def add_cell(self, cell: StudyCell, task: Task, name: str) -> None:
        """Keep a cell with its task. Raises InputError if another cell has the same task."""
        self.add(task, f"{cell.kind} {name}")
        cell = dataclasses.replace(cell, task=task.key)
        if task.key in self.cells:
            self.refuse_twin(self.cells[task.key], cell)
        self.cells[task.key] = cell

    def refuse_twin(self, first: StudyCell, second: StudyCell) -> None:
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

    # --- the tasks

    def variant(self, model: str, transform: TransformEntry) -> StudyVariant:
        """A model of the study with what an entry of the axis does to it."""
        steps = steps_of(transform)
        source = self.found.models[model]
        return StudyVariant(source, transform, steps, sizes_of(self.study, source, steps))

    def trace(self, variant: StudyVariant, workload: FoundWorkload, heads: Task | None) -> Task:
        """A trace. heads: that it is read through, None for the logit lens."""
        signals = tuple(parse_signals(self.study.settings.signals, workload.mode))
        return self.made(TraceWork, variant, workload, {"heads": heads}, values={"signals": signals})

    def heads(
        self, variant: StudyVariant, entry: HeadsEntry | TrainingEntry, workload: FoundWorkload
    ) -> Task:
        """Exit heads of a model: fitted, trained, or copied from their file. workload: that is traced through
        them.
        """
        found = self.found.heads[entry.name]
        if found.file is not None and found.content is not None:
            copied: dict[str, Any] = {
                "tokens": 0,
                "seed": 0,
                "exits": "all",
                "file": found.content.fingerprint,
            }
            return self.made(HeadsWork, variant, sources={"heads": found.file}, values=copied)
        texts = (*found.workloads, *((workload,) if found.own else ()))
        values = {
            **entry.model_dump(exclude={"kind", "at", "text"}),
            "workloads": tuple(text.used for text in texts),
        }
        sources = {f"workload {index}": text.source for index, text in enumerate(texts)}
        blocked = next((text.why_missing for text in texts if text.missing), None)
        if isinstance(entry, TrainingEntry):
            at = self.study.exits_of(entry)
            at = "all" if at == "all" else tuple(exit_list(at))
            values |= {"exit_kind": entry.kind, "at": at}
            return self.made(TrainingWork, variant, sources=sources, blocked=blocked, values=values)
        values |= {"classifiers": tuple(sorted(entry.classifiers)), "file": None}
        return self.made(HeadsWork, variant, sources=sources, blocked=blocked, values=values)

    def of_row(
        self,
        kind: str,
        variant: StudyVariant,
        workload: FoundWorkload,
        needs: Mapping[str, Task | None],
        on: MachineEntry,
        asked: PolicyEntry | LoadEntry | None = None,
    ) -> Task:
        """What there is to know about a trace.

        needs: what it may need, by role. on: the machine that it is priced on, if it is. asked: of a replay
        its policy, of a load its entry.
        Raises InputError for settings that work of a plug-in lacks or does not take.
        """
        certify, decode = self.study.certify, self.study.decode
        index = next((at for at, entry in enumerate(self.study.works) if entry.name == kind), None)
        work, values = works()[kind], dict[str, Any]()
        made_of: list[Any] = []
        if isinstance(asked, PolicyEntry):
            parsed = parse_policy(asked.policy)
            made_of.append(parsed)
            values = {"policy": str(parsed), "kv": asked.kv, "batch": asked.batch}
        elif isinstance(asked, LoadEntry):
            made_of += [parse_policy(text) for text in asked.policies if text != TUNED]
            values = asked.model_dump(include={"policies", "options"})
        elif kind == CertifyWork.kind and certify is not None:
            # Installed later, it makes another task of what words were not counted of.
            counted_by = counter_version() if workload.used.kind == AUDIO.name else None
            values = {**certify.model_dump(), "delta": self.study.shared_delta, "counted_by": counted_by}
        elif kind in (DecodeWork.kind, BaselinesWork.kind) and decode is not None:
            rule, apart = self.by_rule(variant), kind == BaselinesWork.kind
            # Those by rule alone are timed before: what else is asked for changes nothing that is certified.
            named = (one for text in decode.beside for one in (rule if text == AUTO else (text,)))
            beside = rule if apart else tuple(dict.fromkeys(named))
            made_of += transforms_of_all(beside)
            values = {**decode.model_dump(), "beside": beside, "by_rule": rule}
            if decode.new_tokens == AUTO and certify is not None:
                values["new_tokens"] = certify.new_tokens
            values["tried"] = tuple(step.text for step in made_of)
            if apart:
                values |= {"prompts": BASELINES_PROMPTS, "rounds": 1, "seconds": BASELINES_SECONDS}
        if index is None:
            return self.made(work, variant, workload, needs, on=on, values=values, made_of=made_of)
        try:
            task = self.made(work, variant, workload, needs, on=on, values=self.study.works[index].settings)
            work.of(task)
        except (TypeError, OfframpError) as error:
            what = str(error) if isinstance(error, TypeError) else error.what
            settings = sorted(settings_of(work) - FILLED)
            raise InputError(
                f"work of the kind {kind} cannot be asked for so: {what}",
                where=self.study.where("works", index),
                fix=f"mend its settings; it has {', '.join(settings) or 'none'}",
            ) from error
        return task

    def by_rule(self, variant: StudyVariant) -> tuple[str, ...]:
        """The baselines by rule on a model, where they are asked for."""
        if self.study.decode is None or AUTO not in self.study.decode.beside:
            return ()
        return by_rule(self._said["device"], variant.texts, variant.model.model_type)

    def combine(self, variant: StudyVariant, workload: FoundWorkload) -> Task:
        """Accelerations of an untransformed model, alone and together."""
        table = self.study.combine
        assert table is not None, "asked for with a table [combine] only"
        steps = combined_steps(table)
        tried = tuple(step.text for step in steps)
        policy = None if table.policy is None else parse_policy(table.policy)
        values = {
            **table.model_dump(),
            "accelerations": tuple(map(text_of, accelerations_of(table))),
            "tried": tried,
            "policy": None if policy is None else str(policy),
            "model": self._model(variant, steps),
        }
        blocked = next((self.found.unfit[text] for text in tried if text in self.found.unfit), None)
        made_of = steps if policy is None else (*steps, policy)
        return self.made(CombineWork, variant, workload, blocked=blocked, made_of=made_of, values=values)

    def made(
        self,
        kind: type[Work[Any]],
        variant: StudyVariant,
        workload: FoundWorkload | None = None,
        needs: Mapping[str, Task | None] | None = None,
        *,
        on: MachineEntry | None = None,
        sources: Mapping[str, str] | None = None,
        blocked: str | None = None,
        made_of: Sequence[object] = (),
        values: Mapping[str, Any] | None = None,
    ) -> Task:
        """The task of a work whose fields are filled by their names: from what is asked, and what the study
        says and has.

        needs: by role; those that the work has no field for are left out. on: the machine that it is priced
        on, if it is, unless a profile of this one is needed. made_of: policies and the like, whose code may
        be a plug-in's.
        """
        names = {field.name for field in dataclasses.fields(kind)}
        present = {role: task for role, task in (needs or {}).items() if role in names}
        needed = {role: task.key for role, task in present.items() if task is not None}
        filled = {**self._said, "model": self._model(variant), "machine": self._here}
        filled |= {"threads": self._decoding} if kind.by_token else {}
        lie = dict(sources or {})
        if issubclass(kind, PricedWork) and on is not None:
            machine = self.found.machines[on.name]
            filled["machine"] = None if "profile" in needed else machine.fingerprint
            if "profile" not in needed:
                lie["machine"] = machine.source
                made_of = made_of if machine.machine is None else (*made_of, machine.machine)
        text = workload if "workload" in names else None
        if text is not None:
            filled["workload"] = text.used
            lie["workload"] = text.source
        filled |= {**(values or {}), **needed}
        work = kind(**{name: value for name, value in filled.items() if name in names})
        if work.loads:
            lie["model"] = variant.model.source
            made_of = (*made_of, *variant.steps)
            blocked = blocked or self._why_not(variant)
        blocked = blocked or (None if text is None else text.why_missing)
        work = dataclasses.replace(work, sources=lie)
        return work.task(work.cost(variant.sizes), blocked, made_of)

    def _model(self, variant: StudyVariant, others: Sequence[Transform] = ()) -> ModelUsed:
        """Which model it is. others: transforms that are tried on it beside those of the variant."""
        identity, entry = variant.model.identity, variant.model.entry
        measuring = measured_on([*variant.steps, *others])
        return ModelUsed(
            fingerprint=None if identity is None else identity.base_fingerprint,
            transforms=tuple(variant.texts),
            attention=variant.model.attention,
            trust_remote_code=entry.trust_remote_code,
            source=variant.model.source if identity is None else None,
            measured_on=tuple(self.found.measuring[source].used for source in measuring),
        )

    def _why_not(self, variant: StudyVariant) -> str | None:
        """Why a model cannot be had here with what is done to it, None if it can."""
        unfit = (self.found.unfit[text] for text in variant.texts if text in self.found.unfit)
        measuring = (self.found.measuring[source] for source in measured_on(variant.steps))
        unread = (text.why_missing for text in measuring if text.missing)
        why = variant.model.missing or next(itertools.chain(unfit, unread), None)
        return None if why is None else f"{variant.name}: {why}"
