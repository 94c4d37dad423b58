"""The tasks of a study: works, whose fields are filled from what it says and what its names stand for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.costs.hardware import machine_facts
from offramp.errors import InputError, OfframpError
from offramp.kit.defaults import DELTA, PROFILE_SECONDS
from offramp.models.devices import CPU, find_device
from offramp.models.transforms.transform import Transform
from offramp.policies.grammar import parse_policy
from offramp.studies.entries import (
    HeadsEntry,
    MachineEntry,
    PolicyEntry,
    TrainingEntry,
    TransformEntry,
)
from offramp.studies.estimates import Variant, exit_list, room_of, sizes_of
from offramp.studies.found import Found, FoundWorkload
from offramp.studies.steps import accelerations_of, combined_steps, steps_of, text_of
from offramp.studies.study import Study
from offramp.studies.task import Task
from offramp.studies.training_checks import exits_of_training
from offramp.studies.work.certify import CertifyWork
from offramp.studies.work.combine import CombineWork
from offramp.studies.work.decode import DecodeWork
from offramp.studies.work.heads import HeadsWork
from offramp.studies.work.inputs import ModelUsed, PricedWork, measured_on
from offramp.studies.work.profile import ProfileWork
from offramp.studies.work.registry import works
from offramp.studies.work.trace import TraceWork
from offramp.studies.work.training import TrainingWork
from offramp.studies.work.work import FILLED, Work, settings_of
from offramp.tracing.request import parse_signals


class Tasks:
    """Makes the tasks of a study. Roles are given as tasks, None for what is not needed."""

    def __init__(self, study: Study, found: Found) -> None:
        self.study = study
        self.found = found
        settings = study.settings
        device = find_device(settings.device)
        self._here = machine_facts(settings.threads, device)
        self._said: dict[str, Any] = {
            **settings.model_dump(),
            "device": None if device == CPU else device,
            "exits": "all" if settings.exits == "all" else tuple(exit_list(settings.exits)),
            "stream": study.streamed,
            "memory": room_of(study) if study.streamed else None,
            "delta": self.shared_delta if study.inline else DELTA,
        }

    @property
    def shared_delta(self) -> float:
        """The chance that a certificate is wrong, shared by all that a headline may be about."""
        study = self.study
        axes = (study.models, study.transforms, study.workloads, study.readers)
        return DELTA / math.prod(map(len, axes))

    def variant(self, model: str, transform: TransformEntry) -> Variant:
        """A model of the study with what an entry of the axis does to it."""
        steps = steps_of(transform)
        found = self.found.models[model]
        return Variant(found, transform, steps, sizes_of(self.study, found, steps))

    def trace(self, variant: Variant, workload: FoundWorkload, heads: Task | None) -> Task:
        """A trace. heads: that it is read through, None for the logit lens."""
        signals = tuple(parse_signals(self.study.settings.signals, workload.mode))
        return self.made(TraceWork, variant, workload, {"heads": heads}, asked={"signals": signals})

    def heads(self, variant: Variant, entry: HeadsEntry | TrainingEntry, workload: FoundWorkload) -> Task:
        """Exit heads of a model: fitted, trained, or copied from their file. workload: that is traced through
        them.
        """
        found = self.found.heads[entry.name]
        if found.file is not None and found.given is not None:
            copied: dict[str, Any] = {"tokens": 0, "seed": 0, "exits": "all", "file": found.given.fingerprint}
            return self.made(HeadsWork, variant, sources={"heads": found.file}, asked=copied)
        texts = (*found.workloads, *((workload,) if found.own else ()))
        asked = {
            **entry.model_dump(exclude={"kind", "at", "text"}),
            "workloads": tuple(text.used for text in texts),
        }
        sources = {f"workload {place}": text.source for place, text in enumerate(texts)}
        blocked = next((text.why_missing for text in texts if text.missing), None)
        if isinstance(entry, TrainingEntry):
            at = exits_of_training(self.study, entry)
            at = "all" if at == "all" else tuple(exit_list(at))
            asked |= {"exit_kind": entry.kind, "at": at}
            return self.made(TrainingWork, variant, sources=sources, blocked=blocked, asked=asked)
        asked |= {"classifiers": tuple(sorted(entry.classifiers)), "file": None}
        return self.made(HeadsWork, variant, sources=sources, blocked=blocked, asked=asked)

    def profile(self, variant: Variant) -> Task:
        """The timings of this machine on a model."""
        return self.made(ProfileWork, variant, asked={"seconds": PROFILE_SECONDS})

    def of_row(
        self,
        kind: str,
        variant: Variant,
        workload: FoundWorkload,
        needs: Mapping[str, Task | None],
        on: MachineEntry,
        policy: PolicyEntry | None = None,
    ) -> Task:
        """What there is to know about a trace.

        needs: what it may need, by role. on: the machine that it is priced on, if it is. policy: of a replay.
        Raises InputError for settings that work of a plug-in lacks or does not take.
        """
        certify, decode = self.study.certify, self.study.decode
        place = next((at for at, entry in enumerate(self.study.works) if entry.name == kind), None)
        work, made_of, asked = works()[kind], [], {}
        if policy is not None:
            parsed = parse_policy(policy.policy)
            made_of.append(parsed)
            asked = {"policy": str(parsed), "kv": policy.kv, "batch": policy.batch}
        elif kind == CertifyWork.kind and certify is not None:
            asked = {**certify.model_dump(), "delta": self.shared_delta}
        elif kind == DecodeWork.kind and decode is not None:
            asked = decode.model_dump()
        if place is None:
            return self.made(work, variant, workload, needs, on=on, asked=asked, made_of=made_of)
        try:
            task = self.made(work, variant, workload, needs, on=on, asked=self.study.works[place].settings)
            work.of(task)
        except (TypeError, OfframpError) as error:
            what = str(error) if isinstance(error, TypeError) else error.what
            settings = sorted(settings_of(work) - FILLED)
            raise InputError(
                f"work of the kind {kind} cannot be asked for so: {what}",
                where=self.study.where("works", place),
                fix=f"mend its settings; it has {', '.join(settings) or 'none'}",
            ) from error
        return task

    def combine(self, variant: Variant, workload: FoundWorkload) -> Task:
        """Accelerations of an untransformed model, alone and together."""
        table = self.study.combine
        assert table is not None, "asked for with a table [combine] only"
        steps = combined_steps(table)
        tried = tuple(step.text for step in steps)
        policy = None if table.policy is None else parse_policy(table.policy)
        asked = {
            **table.model_dump(),
            "accelerations": tuple(text_of(one) for one in accelerations_of(table)),
            "tried": tried,
            "policy": None if policy is None else str(policy),
            "model": self._model(variant, steps),
        }
        blocked = next((self.found.unfit[text] for text in tried if text in self.found.unfit), None)
        made_of = steps if policy is None else (*steps, policy)
        return self.made(CombineWork, variant, workload, blocked=blocked, made_of=made_of, asked=asked)

    def made(
        self,
        kind: type[Work[Any]],
        variant: Variant,
        workload: FoundWorkload | None = None,
        needs: Mapping[str, Task | None] | None = None,
        *,
        on: MachineEntry | None = None,
        sources: Mapping[str, str] | None = None,
        blocked: str | None = None,
        made_of: Sequence[object] = (),
        asked: Mapping[str, Any] | None = None,
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
        given = {**self._said, "model": self._model(variant), "machine": self._here}
        lie = dict(sources or {})
        if issubclass(kind, PricedWork) and on is not None:
            found = self.found.machines[on.name]
            given["machine"] = None if "profile" in needed else found.fingerprint
            if "profile" not in needed:
                lie["machine"] = found.source
                made_of = made_of if found.machine is None else (*made_of, found.machine)
        text = workload if "workload" in names else None
        if text is not None:
            given["workload"] = text.used
            lie["workload"] = text.source
        given |= {**(asked or {}), **needed}
        work = kind(**{name: value for name, value in given.items() if name in names})
        if work.loads:
            lie["model"] = variant.model.source
            made_of = (*made_of, *variant.steps)
            blocked = blocked or self._why_not(variant)
        blocked = blocked or (None if text is None else text.why_missing)
        work = dataclasses.replace(work, sources=lie)
        return work.task(work.cost(variant.sizes), blocked, made_of)

    def _model(self, variant: Variant, others: Sequence[Transform] = ()) -> ModelUsed:
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

    def _why_not(self, variant: Variant) -> str | None:
        why = self.found.why_not(variant.model, variant.texts)
        measuring = (self.found.measuring[source] for source in measured_on(variant.steps))
        why = why or next((text.why_missing for text in measuring if text.missing), None)
        return None if why is None else f"{variant.name}: {why}"
