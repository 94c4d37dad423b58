"""What is wrong with the entries of a study's axes: workloads, heads, policies, transforms, machines; what is
wrong with trainings tells `offramp.studies.training_checks`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.costs.hardware import find_machine
from offramp.errors import InputError
from offramp.kit.arguments import settled
from offramp.kit.defaults import LOCAL
from offramp.kit.given_file import did_you_mean
from offramp.kit.toml_lines import Location
from offramp.models.transforms.prune import Prune
from offramp.policies.grammar import parse_policy
from offramp.policies.names import StrategyName
from offramp.studies.entries import BYTES, FILE_SOURCES, NONE, OWN, HeadsEntry, TransformEntry
from offramp.studies.steps import all_steps, steps_of
from offramp.studies.study import placed, resolved
from offramp.studies.work.inputs import measured_on
from offramp.tracing.facts import HEAD_FACTS, TRAINED_FACTS
from offramp.workloads.continued import sizes_of, split_continued
from offramp.workloads.registry import describe_workloads, is_given

if TYPE_CHECKING:
    from offramp.studies.study import Study


def check_workloads(study: Study) -> None:
    """Refuse sources that no workload is known by; whether a file is there is told when it is read."""
    for place, workload in enumerate(study.workloads):
        _check_source(study, workload.source, ("workloads", place, "source"))
    names = {workload.name for workload in study.workloads}
    for axis, key in (("heads", "fit"), ("trainings", "text")):
        for place, entry in enumerate(getattr(study, axis)):
            for number, text in enumerate(getattr(entry, key)):
                if text not in names and text != OWN:
                    _check_source(study, text, (axis, place, key, number), names)


def _check_source(study: Study, source: str, location: Location, names: Collection[str] = ()) -> None:
    """Refuse a source that is unknown or has no such size. names: that would do as well."""
    prefix, text = split_continued(source)
    if prefix:
        with placed(study, *location):
            sizes_of(prefix, text)
    if is_given(text):
        return
    known = {description.name for description in describe_workloads()}
    kind, _, argument = text.partition(":")
    # One that takes no argument is known by its name alone, and by each of its sizes.
    takes_argument = kind not in known and any(name.startswith(f"{kind}:") for name in known)
    if text not in known and not (takes_argument and argument):
        raise InputError(
            f"there is no workload {text!r}",
            where=study.where(*location),
            fix=did_you_mean(text, {*known, *names}),
        )


def check_heads(study: Study) -> None:
    """Refuse heads that are neither fitted, nor given, nor "none", or several of these at once."""
    known = [fact.name for fact in HEAD_FACTS if fact.name not in TRAINED_FACTS]
    for place, heads in enumerate(study.heads):
        where = study.where("heads", place)
        ways = [bool(heads.fit), heads.file is not None, heads.name == NONE]
        if sum(ways) != 1:
            raise InputError(
                f"the heads {heads.name!r} are {'several things at once' if sum(ways) else 'of no kind'}",
                where=where,
                fix=f'give one of fit = ["chat"], file = "x.safetensors", or the name {NONE!r} alone',
            )
        if heads.fit and study.streamed:
            raise InputError(
                "heads are fitted on a model in memory, and these models stay on disk",
                where=where,
                fix="remove the heads, or the table [large]",
            )
        given = heads.model_fields_set - {"name", "file"}
        if not heads.fit and given:
            raise InputError(
                f"{min(given)} is of fitted heads", where=where, fix="remove it, or give fit = [...]"
            )
        _check_fitting(study, heads, place, known)


def _check_fitting(study: Study, heads: HeadsEntry, place: int, known: Sequence[str]) -> None:
    for number, name in enumerate(heads.classifiers):
        if name not in known or name in heads.classifiers[:number]:
            what = "is given twice" if name in known else "is unknown"
            raise InputError(
                f"the classifier {name!r} {what}",
                where=study.where("heads", place, "classifiers", number),
                fix=did_you_mean(name, known),
            )
    if heads.fit and not heads.lens and not heads.classifiers:
        raise InputError(
            f"the heads {heads.name!r} are neither a lens nor classifiers",
            where=study.where("heads", place),
            fix='give lens = true or classifiers = ["correctness"]',
        )


def check_policies(study: Study) -> None:
    """Refuse texts that are no policies, and strategies for K and V that there are not."""
    for place, entry in enumerate(study.policies):
        if entry.searched:
            given = entry.model_fields_set & {"kv", "batch"}
            if given:
                raise InputError(
                    f"{entry.policy} is charged for propagate, one sequence at a time",
                    where=study.where("policies", place, min(given)),
                    fix=f"remove {min(given)}, or name a policy",
                )
            continue
        check_policy_text(study, entry.policy, ("policies", place))
        settled("kv", entry.kv, StrategyName, "str", where=study.where("policies", place, "kv"))


def check_policy_text(study: Study, text: str, location: Location) -> None:
    """Refuse a text that is no policy. location: where it stands in the file."""
    if text.endswith(".json"):
        raise InputError(
            "a study names its policies by their texts",
            where=study.where(*location),
            fix='write the policy as offramp tune prints it, such as "threshold:signal=margin,value=0.9"',
        )
    with placed(study, *location):
        parse_policy(text)


def check_transforms(study: Study) -> None:
    """Refuse steps that are no transforms, and those whose result the file does not pin down."""
    for place, entry in enumerate(study.transforms):
        _check_steps(study, entry, place)


def check_pruning(study: Study) -> None:
    """Refuse to prune by what the file does not pin down, or what stays on disk."""
    for step, location in all_steps(study):
        if isinstance(step, Prune) and step.trace is not None:
            raise InputError(
                "which layers a study prunes may not depend on a trace from elsewhere",
                where=study.where(*location),
                fix="leave out trace=, or name the layers: prune:drop=21+22",
            )
        for source in measured_on([step]):
            _check_source(study, source, location)
            kind, _, path = split_continued(source)[1].partition(":")
            if kind in FILE_SOURCES and not Path(path).is_absolute():
                raise InputError(
                    f"{source} in a transform is found from wherever the study runs",
                    where=study.where(*location),
                    fix=f"give the whole path: {kind}:{(study.folder / path).absolute()}",
                )
        if study.streamed and isinstance(step, Prune):
            raise InputError(
                "a model whose layers stay on disk cannot be pruned",
                where=study.where(*location),
                fix="remove the transform, or the table [large]",
            )


def _check_steps(study: Study, entry: TransformEntry, place: int) -> None:
    if (entry.name == NONE) != (not entry.steps):
        raise InputError(
            f"the transform {entry.name!r} has {'no steps' if not entry.steps else 'steps'}",
            where=study.where("transforms", place),
            fix=f'give steps = ["int8"], or the name {NONE!r} alone',
        )
    with placed(study, "transforms", place):
        steps_of(entry)


def check_machines(study: Study) -> None:
    """Refuse machines that are unknown, and timing on this one where that cannot be done."""
    for place, entry in enumerate(study.machines):
        if entry.source == LOCAL:
            if study.streamed:
                raise InputError(
                    "models whose layers stay on disk cannot be timed on this machine",
                    where=study.where("machines", place),
                    fix='name another machine, such as machines = ["h100"]',
                )
            continue
        if entry.source == BYTES:
            continue
        with placed(study, "machines", place):
            find_machine(resolved(study, entry.source))
