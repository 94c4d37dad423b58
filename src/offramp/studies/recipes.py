"""The task of each kind: a recipe that holds everything that changes its result, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.costs.hardware import machine_facts
from offramp.kit.defaults import DELTA, PROFILE_SECONDS
from offramp.models.devices import CPU, find_device
from offramp.models.memory import parse_size
from offramp.models.transforms.transform import Transform
from offramp.policies.grammar import parse_policy
from offramp.studies.computing import code_of, plug_ins_of, versions_of
from offramp.studies.entries import HeadsEntry, MachineEntry, PolicyEntry, TrainingEntry, TransformEntry
from offramp.studies.estimates import (
    COPYING,
    decoding_estimate,
    exit_list,
    heads_estimate,
    reading_estimate,
    sizes_of,
    timing_estimate,
    trace_estimate,
    training_estimate,
)
from offramp.studies.found import Found, FoundWorkload
from offramp.studies.steps import accelerations_of, combined_steps, measured_on, steps_of, text_of
from offramp.studies.study import Study
from offramp.studies.task import Task, TaskCost
from offramp.studies.training_checks import exits_of_training
from offramp.studies.variant import Variant
from offramp.tracing.request import parse_signals

TRAINED_BY = ("kind", "steps", "minutes", "units", "short_list", "loss_vocabulary", "precision")
"""Keys of a training's entry that decide its exits, beside text, tokens and exits."""


class Recipes:
    """Makes the tasks of a study from what its names stand for."""

    def __init__(self, study: Study, found: Found) -> None:
        self.study = study
        self.settings = study.settings
        self.found = found
        self._device = find_device(self.settings.device)
        self._machine = machine_facts(self.settings.threads, self._device)

    @property
    def _exits(self) -> str | list[int]:
        exits = self.settings.exits
        return "all" if exits == "all" else exit_list(exits)

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
        settings, large = self.settings, self.study.large
        budget = None if large is None or large.memory is None else parse_size(large.memory, "memory")
        recipe = {
            "model": self._model(variant),
            "workload": _workload(workload),
            "dtype": settings.dtype,
            "tokens": settings.tokens,
            "context": settings.context,
            "document_tokens": settings.document_tokens,
            "exits": self._exits,
            "signals": list(parse_signals(settings.signals, workload.mode)),
            "stream": self.study.streamed,
            "memory": budget if self.study.streamed else None,
        }
        return self._task(
            "trace",
            recipe,
            trace_estimate(self.study, variant.sizes, workload),
            needs={} if heads is None else {"heads": heads.key},
            variant=variant,
            workload=workload,
        )

    def heads(self, variant: Variant, entry: HeadsEntry | TrainingEntry, workload: FoundWorkload) -> Task:
        """Exit heads of a model: fitted, trained, or copied from their file. workload: that is traced through
        them.
        """
        found = self.found.heads[entry.name]
        kind, estimate = "heads", COPYING
        made_on = (*found.workloads, *((workload,) if found.own else ()))
        sources = {f"workload {place}": one.source for place, one in enumerate(made_on)}
        blocked = next((_missing(one) for one in made_on if one.missing), None)
        written = sum(one.mode == "generation" for one in made_on) / max(1, len(made_on))
        recipe: dict[str, Any] = {
            "workloads": [_workload(one) for one in made_on],
            "tokens": entry.tokens,
            "seed": self.settings.seed,
        }
        if found.file is not None and found.given is not None:
            recipe, sources = {"file": found.given.fingerprint}, {"heads": found.file}
        elif isinstance(entry, TrainingEntry):
            kind, estimate = "training", training_estimate(self.study, variant.sizes, entry, written)
            exits = exits_of_training(self.study, entry)
            settings = entry.model_dump(include={*TRAINED_BY})
            recipe |= {**settings, "at": "all" if exits == "all" else exit_list(exits)}
        else:
            estimate = heads_estimate(self.study, variant.sizes, entry, written)
            classifiers = sorted(entry.classifiers)
            recipe |= {"exits": self._exits, "lens": entry.lens, "classifiers": classifiers}
        recipe |= {"model": self._model(variant), "dtype": self.settings.dtype}
        return self._task(
            kind,
            recipe,
            estimate,
            variant=variant,
            sources=sources,
            exclusive=kind == "training",  # what it took is part of what it is
            blocked=blocked,
        )

    def profile(self, variant: Variant) -> Task:
        """The timings of this machine on a model."""
        recipe = {
            "model": self._model(variant),
            "dtype": self.settings.dtype,
            "machine": self._machine,
            "seconds": PROFILE_SECONDS,
        }
        estimate = timing_estimate(self.study, variant.sizes, PROFILE_SECONDS)
        return self._task("profile", recipe, estimate, variant=variant, exclusive=True)

    def score(self, variant: Variant, trace: Task, raw: Task | None = None) -> Task:
        """The score card of a trace. raw: the same read by the model's own head, None if this one is."""
        recipe = {"draws": self.settings.draws, "seed": self.settings.seed}
        estimate = reading_estimate(self.study, variant.sizes, "score")
        needs = {"trace": trace.key} | ({} if raw is None else {"raw": raw.key})
        return self._task("score", recipe, estimate, needs=needs, variant=variant)

    def searched(
        self, kind: str, variant: Variant, trace: Task, machine: MachineEntry, profile: Task | None
    ) -> Task:
        """A league ("league") or the tuner's answers ("tune") on a machine. profile: if it is this one."""
        recipe: dict[str, Any] = {"floors": list(self.settings.floors), "seed": self.settings.seed}
        if kind == "tune":
            recipe["delta"] = self.shared_delta if self.study.inline else DELTA
        if kind == "league":
            recipe |= {"worth": self.settings.worth, "details": self.settings.details}
        estimate = reading_estimate(self.study, variant.sizes, kind, rounds=len(self.settings.floors))
        return self._priced(kind, recipe, estimate, variant, trace, machine, profile)

    def replay(
        self, variant: Variant, trace: Task, policy: PolicyEntry, machine: MachineEntry, profile: Task | None
    ) -> Task:
        """One policy on a machine. profile: if it is this one."""
        parsed = parse_policy(policy.policy)
        recipe = {
            "policy": str(parsed),
            "kv": policy.kv,
            "batch": policy.batch,
            "seed": self.settings.seed,
        }
        estimate = reading_estimate(self.study, variant.sizes, "replay")
        return self._priced("replay", recipe, estimate, variant, trace, machine, profile, [parsed])

    def certify(
        self,
        variant: Variant,
        workload: FoundWorkload,
        machine: MachineEntry,
        needs: Mapping[str, Task],
    ) -> Task:
        """The tuner's answers, executed. needs: "trace", maybe "heads", and "profile" of this machine."""
        table = self.study.certify
        assert table is not None, "asked for with a table [certify] only"
        recipe: dict[str, Any] = {
            **table.model_dump(),
            "floors": list(self.settings.floors),
            "worth": self.settings.worth,
            "delta": self.shared_delta,
            "model": self._model(variant),
            "workload": _workload(workload),
            "dtype": self.settings.dtype,
            "seed": self.settings.seed,
        }
        found = self.found.machines[machine.name]
        sources = {}
        if "profile" not in needs:
            recipe["machine"] = found.fingerprint
            sources["machine"] = found.source
        return self._task(
            "certify",
            recipe,
            timing_estimate(self.study, variant.sizes, table.seconds),
            needs={role: task.key for role, task in needs.items()},
            variant=variant,
            workload=workload,
            sources=sources,
            exclusive=True,
            made_of=() if found.machine is None else (found.machine,),
        )

    def decode(self, variant: Variant, workload: FoundWorkload, needs: Mapping[str, Task]) -> Task:
        """Decoding with the best policies of a league, or with those of verdicts that were certified.

        needs: "trace", "league", "profile" where this machine was timed, maybe "certify" and "heads".
        """
        table = self.study.decode
        assert table is not None, "asked for with a table [decode] only"
        recipe = {
            **table.model_dump(),
            "machine": self._machine,
            "model": self._model(variant),
            "workload": _workload(workload),
            "dtype": self.settings.dtype,
            "seed": self.settings.seed,
        }
        return self._task(
            "decode",
            recipe,
            decoding_estimate(self.study, variant.sizes, table, table.best),
            needs={role: task.key for role, task in needs.items()},
            variant=variant,
            workload=workload,
            exclusive=True,
        )

    def combine(self, variant: Variant, workload: FoundWorkload) -> Task:
        """Accelerations of an untransformed model, alone and together."""
        table = self.study.combine
        assert table is not None, "asked for with a table [combine] only"
        steps = combined_steps(table)
        texts = [step.text for step in steps]
        models = 2 ** len(texts)
        contenders = models * (1 + len(table.accelerations) - len(texts)) - 1
        policy = None if table.policy is None else parse_policy(table.policy)
        recipe = {
            **table.model_dump(),
            "accelerations": [text_of(one) for one in accelerations_of(table)],
            "policy": None if policy is None else str(policy),
            "machine": self._machine,
            "model": self._model(variant, steps),
            "workload": _workload(workload),
            "dtype": self.settings.dtype,
            "seed": self.settings.seed,
        }
        unfit = next((self.found.unfit[text] for text in texts if text in self.found.unfit), None)
        return self._task(
            "combine",
            recipe,
            decoding_estimate(self.study, variant.sizes, table, contenders, models=models),
            variant=variant,
            workload=workload,
            exclusive=True,
            blocked=unfit,
            transforms=texts,
            made_of=steps if policy is None else (*steps, policy),
        )

    def _priced(
        self,
        kind: str,
        recipe: Mapping[str, Any],
        estimate: TaskCost,
        variant: Variant,
        trace: Task,
        machine: MachineEntry,
        profile: Task | None,
        made_of: Sequence[object] = (),
    ) -> Task:
        found = self.found.machines[machine.name]
        if profile is not None:
            needs = {"trace": trace.key, "profile": profile.key}
            return self._task(kind, recipe, estimate, needs=needs, variant=variant, made_of=made_of)
        return self._task(
            kind,
            {**recipe, "machine": found.fingerprint},
            estimate,
            needs={"trace": trace.key},
            variant=variant,
            sources={"machine": found.source},
            made_of=made_of if found.machine is None else (*made_of, found.machine),
        )

    def _task(
        self,
        kind: str,
        recipe: Mapping[str, Any],
        estimate: TaskCost,
        *,
        needs: Mapping[str, str] | None = None,
        variant: Variant | None = None,
        workload: FoundWorkload | None = None,
        sources: Mapping[str, str] | None = None,
        exclusive: bool = False,
        blocked: str | None = None,
        transforms: Sequence[str] = (),
        made_of: Sequence[object] = (),
    ) -> Task:
        """A task with what is common to all of them.

        transforms: that it does beside those of the variant. made_of: policies, machines and the like, whose
        code may be a plug-in's.
        """
        loads = "model" in recipe and "file" not in recipe
        texts = [*(variant.texts if variant is not None and loads else ()), *transforms]
        found = dict(sources or {})
        if variant is not None and loads:
            made_of = (*made_of, *variant.steps)
            found["model"] = variant.model.source
            blocked = blocked or self._why_not(variant)
        if workload is not None:
            found["workload"] = workload.source
            blocked = blocked or _missing(workload)
        everything = {
            **recipe,
            "code": code_of(kind),
            "versions": versions_of(kind, tuple(texts) if loads else None),
            "threads": self.settings.threads,
        }
        plug_ins = plug_ins_of(made_of)
        if plug_ins:
            everything["plug_ins"] = plug_ins
        if loads and self._device != CPU:
            everything["device"] = self._device
            exclusive = True  # an accelerator has room for one model at a time
        return Task(kind, everything, dict(needs or {}), exclusive, found, estimate, blocked)

    def _model(self, variant: Variant, others: Sequence[Transform] = ()) -> dict[str, Any]:
        """Who a model is: its fingerprint before any transform, or where it comes from if that is not known.

        others: transforms that are tried on it beside those of the variant.
        """
        identity = variant.model.identity
        described: dict[str, Any] = {
            "fingerprint": None if identity is None else identity.base_fingerprint,
            "transforms": variant.texts,
        }
        if variant.model.attention is not None:
            described["attention"] = variant.model.attention
        if variant.model.entry.trust_remote_code:
            described["trust_remote_code"] = True
        if identity is None:
            described["source"] = variant.model.source
        measuring = [self.found.measuring[source] for source in measured_on([*variant.steps, *others])]
        if measuring:
            described["measured_on"] = [_workload(one) for one in measuring]
        return described

    def _why_not(self, variant: Variant) -> str | None:
        why = self.found.why_not(variant.model, variant.texts)
        measuring = (self.found.measuring[source] for source in measured_on(variant.steps))
        why = why or next((_missing(one) for one in measuring if one.missing), None)
        return None if why is None else f"{variant.name}: {why}"


def _workload(workload: FoundWorkload) -> dict[str, Any]:
    """Which text it is: its fingerprint, or where it comes from if that is not known; and of which kind."""
    described = {"kind": workload.kind, "fingerprint": workload.fingerprint}
    return described if workload.fingerprint else {**described, "source": workload.source}


def _missing(workload: FoundWorkload) -> str | None:
    return None if workload.missing is None else f"{workload.entry.name}: {workload.missing}"
