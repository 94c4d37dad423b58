"""Study files: read, and what they say held against one another."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from offramp.commands import LAB_MOVED
from offramp.costs.machine_registry import find_machine
from offramp.defaults import BYTES, LOCAL
from offramp.errors import InputError, ModelError
from offramp.kit.arguments import settled
from offramp.kit.given_file import Location, did_you_mean, read_toml
from offramp.kit.rules import Worth
from offramp.models.devices import AUTO as AUTO_DEVICE
from offramp.models.devices import DtypeName, find_device
from offramp.models.process import parse_size
from offramp.models.shape import DTYPES
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import TRANSFORMS, Transform, parse_transform, parse_transforms
from offramp.policies.grammar import parse_policy
from offramp.policies.names import StrategyName
from offramp.serving.request import Load
from offramp.studies.study import WHAT, Study, placed, resolved
from offramp.studies.study_tables import (
    AUTO,
    FILE_SOURCES,
    LEAGUE,
    NONE,
    OWN,
    TUNED,
    AxisEntry,
    Combine,
    HeadsEntry,
    TrainingEntry,
    TransformEntry,
)
from offramp.studies.task import AXES
from offramp.studies.work.inputs import measured_on
from offramp.studies.work.load import ASKED
from offramp.studies.work.work import FILLED, OWN_KINDS, settings_of, works
from offramp.timing.accelerations import DECODERS, OF_THE_POLICY, read_beside
from offramp.tracing.asked import names_layers
from offramp.tracing.facts import HEAD_FACTS, TRAINED_FACTS
from offramp.tracing.request import parse_signals
from offramp.workloads.registry import describe_workloads, is_given, sizes_of, split_continued

CELLS = ("score", "replay", "league", "tune", "certify", "load", "decode", "combine")
"""Kinds of the cells that tables of the file ask for."""


def steps_of(entry: TransformEntry) -> tuple[Transform, ...]:
    """The transforms of an entry, in order. Raises InputError for a text that is none, or one given twice."""
    return parse_transforms(entry.steps)


def layers_left(layers: int, steps: Iterable[Transform], model: str) -> int:
    """How many layers a model keeps. Raises InputError for layers that it does not have, or all of them."""
    for step in steps:
        if isinstance(step, Prune):
            step.check_depth(layers, model)
            layers -= step.count
    return layers


def accelerations_of(combine: Combine) -> tuple[str | Transform, ...]:
    """What is combined: ways to decode by name, and transforms.

    Raises InputError for one that is unknown or given twice.
    """
    accelerations = tuple(text if text in DECODERS else _acceleration(text) for text in combine.accelerations)
    texts = [text_of(acceleration) for acceleration in accelerations]
    for index, text in enumerate(texts):
        if text in texts[:index]:
            raise InputError(f"{text} is given twice", fix="give it once")
    return accelerations


def text_of(acceleration: str | Transform) -> str:
    """As it is asked for."""
    return acceleration if isinstance(acceleration, str) else acceleration.text


def combined_steps(combine: Combine) -> tuple[Transform, ...]:
    """The transforms among what is combined."""
    return tuple(step for step in accelerations_of(combine) if not isinstance(step, str))


def transforms_of_all(beside: Sequence[str], dtype: str | None = None) -> tuple[Transform, ...]:
    """Those of the models that are decoded beside, each once; of what is asked for by name.

    Raises what `read_beside` raises.
    """
    named = [text for text in beside if text != AUTO]
    parts = [part for combination in read_beside(named, dtype) for part in combination]
    return tuple({part.text: part.transform for part in parts if part.transform is not None}.values())


def all_steps(study: Study) -> Iterator[tuple[Transform, Location]]:
    """Every transform that a study names, with its place in the file."""
    for index, entry in enumerate(study.transforms):
        for step in steps_of(entry):
            yield step, ("transforms", index)
    if study.combine is not None:
        for step in combined_steps(study.combine):
            yield step, ("combine", "accelerations")
    if study.decode is not None:
        with placed(study, "decode", "beside"):
            beside = transforms_of_all(study.decode.beside, study.settings.dtype)
        for step in beside:
            yield step, ("decode", "beside")


def _acceleration(text: str) -> Transform:
    kind = text.partition(":")[0]
    if kind not in TRANSFORMS:
        raise InputError(f"unknown acceleration {text!r}", fix=did_you_mean(kind, (*DECODERS, *TRANSFORMS)))
    return parse_transform(text)


def check_study(study: Study) -> None:
    """Refuse what the file alone shows to be wrong. Raises InputError with the line and the key."""
    for check in CHECKS:
        check(study)


def check_names(study: Study) -> None:
    """Refuse two entries of one name, and trained exits called as heads are: tables tell them by it."""
    heads = {entry.name: ("heads", index) for index, entry in enumerate(study.heads) if entry.name != NONE}
    for axis in AXES.values():
        seen: dict[str, Location] = dict(heads) if axis == "trainings" else {}
        for index, entry in enumerate(_entries(study, axis)):
            if entry.name in seen:
                both = "heads and trainings" if seen[entry.name][0] != axis else axis
                raise InputError(
                    f"two {both} are called {entry.name!r}",
                    where=study.where(axis, index, "name"),
                    fix=f"rename or remove one; the first is at {study.where(*seen[entry.name])}",
                )
            seen[entry.name] = (axis, index)


def check_settings(study: Study) -> None:
    """Refuse a device that is not here, and a dtype, exits, signals or floors that mean nothing."""
    settings = study.settings
    settled("dtype", settings.dtype, DtypeName, "str", ModelError, study.where("study", "dtype"))
    if settings.dtype == AUTO_DEVICE:
        raise InputError(
            "the dtype of a study is the same for all of its models",
            where=study.where("study", "dtype"),
            fix=f"write one of: {', '.join(DTYPES)}",
        )
    if settings.device != AUTO_DEVICE:
        find_device(settings.device, study.where("study", "device"))
    if isinstance(settings.exits, str) and not re.fullmatch(r"all|\d+(\s*[,+]\s*\d+)*", settings.exits):
        raise InputError(
            f"the exits {settings.exits!r} are not a list of layers",
            where=study.where("study", "exits"),
            fix='write exits = [10, 20, 30] or "all"',
        )
    with placed(study, "study", "worth"):
        settled("worth", settings.worth, Worth, "float")
    with placed(study, "study", "signals"):
        parse_signals(settings.signals, "generation")
    for index, floor in enumerate(settings.floors):
        if floor in settings.floors[:index]:
            raise InputError(
                f"the floor {floor:g} is given twice",
                where=study.where("study", "floors", index),
                fix="give it once",
            )


def check_excludes(study: Study) -> None:
    """Refuse excludes of names that no axis has."""
    for index, exclude in enumerate(study.exclude):
        wanted = exclude.model_dump(exclude_none=True)
        if not wanted:
            raise InputError(
                "an exclude without a key would leave out everything",
                where=study.where("exclude", index),
                fix=f"give one or more of: kind, {', '.join(AXES)}",
            )
        for key, name in wanted.items():
            if key == "kind":
                names = [*CELLS, *(entry.name for entry in study.works)]
            else:
                names = [entry.name for entry in _entries(study, AXES[key])]
            if name not in names:
                raise InputError(
                    f"there is no {key} {name!r} to exclude",
                    where=study.where("exclude", index, key),
                    fix=did_you_mean(name, names),
                )


def check_works(study: Study) -> None:
    """Refuse work of a kind that no plug-in brings, given twice, or with settings that it has not."""
    for index, entry in enumerate(study.works):
        where = study.where("works", index)
        kinds = [name for name in works() if name not in OWN_KINDS]
        if entry.name not in kinds:
            raise InputError(
                f"{entry.name} is offramp's own, which the other tables ask for"
                if entry.name in OWN_KINDS
                else f"no plug-in brings work of the kind {entry.name!r}",
                where=where,
                fix="remove it" if entry.name in OWN_KINDS else did_you_mean(entry.name, kinds),
            )
        if entry.name in [earlier.name for earlier in study.works[:index]]:
            raise InputError(f"{entry.name} is given twice", where=where, fix="give it once")
        with placed(study, "works", index):
            known = settings_of(works()[entry.name]) - FILLED
        for name in entry.settings:
            if name not in known:
                raise InputError(
                    f"{entry.name} has no setting {name!r}",
                    where=study.where("works", index, "settings", name),
                    fix=did_you_mean(name, sorted(known)),
                )


def check_decoding(study: Study) -> None:
    """Refuse decoding that nothing chooses policies for, or that cannot be timed."""
    for name, table in (("decode", study.decode), ("combine", study.combine)):
        if table is not None and study.streamed:
            raise InputError(
                "models whose layers stay on disk cannot be timed in decoding",
                where=study.where(name),
                fix=f"remove the table [{name}], or [large]",
            )
    if study.decode is None:
        return
    if study.certify is None and not any(entry.source == LOCAL for entry in study.machines):
        raise InputError(
            "decoding is timed on this machine, which is not among the machines",
            where=study.where("decode"),
            fix='add "local" to machines',
        )
    if not any(entry.policy == LEAGUE for entry in study.policies):
        raise InputError(
            "what is decoded is chosen from the league, which is not among the policies",
            where=study.where("decode"),
            fix='add "league" to policies',
        )
    if study.certify is None and study.decode.new_tokens == AUTO:
        raise InputError(
            "no answers are certified whose length they could have",
            where=study.where("decode", "new_tokens"),
            fix="give a number, or add a table [certify]",
        )
    floor, floors = study.decode.floor, study.settings.floors
    if floor not in floors:
        raise InputError(
            f"the league has no floor {floor:g}",
            where=study.where("decode", "floor"),
            fix="choose one of the study's floors: " + ", ".join(f"{floor:g}" for floor in floors),
        )


def check_certify(study: Study) -> None:
    """Refuse certificates that nothing is searched for, or that cannot be decoded for."""
    if study.certify is None:
        return
    where = study.where("certify")
    if study.streamed:
        raise InputError(
            "models whose layers stay on disk decode nothing for a certificate",
            where=where,
            fix="remove the table [certify], or [large]",
        )
    if not any(entry.policy == TUNED for entry in study.policies):
        raise InputError(
            "what is certified is the tuner's, which is not among the policies",
            where=where,
            fix='add "tuned" to policies',
        )


def check_combine(study: Study) -> None:
    """Refuse accelerations that are unknown or given twice, and exits without a policy."""
    if study.combine is None:
        return
    with placed(study, "combine", "accelerations"):
        accelerations = accelerations_of(study.combine)
    leaving = [decoder for decoder in accelerations if decoder in OF_THE_POLICY]
    if bool(leaving) != (study.combine.policy is not None):
        raise InputError(
            f"{leaving[0]} needs a policy that says where tokens leave"
            if leaving
            else "a policy means nothing without exits",
            where=study.where("combine"),
            fix="give policy =" if leaving else "remove policy =, or add exits or speculate",
        )
    if study.combine.policy is not None:
        check_policy_text(study, study.combine.policy, ("combine", "policy"))
        if not parse_policy(study.combine.policy).reachable:
            raise InputError(
                "nothing can decode with an oracle",
                where=study.where("combine", "policy"),
                fix="choose a policy that decides from signals",
            )


def check_loads(study: Study) -> None:
    """Refuse options that `offramp load` has not, policies that serve nobody, machines without times."""
    for index, entry in enumerate(study.loads):
        for policy in entry.policies:
            if policy != TUNED:
                check_policy_text(study, policy, ("loads", index, "policies"))
            elif not any(known.policy == TUNED for known in study.policies):
                raise InputError(
                    "a load asks about the tuner's answers, which are not among the policies",
                    where=study.where("loads", index, "policies"),
                    fix='add "tuned" to policies, or name others',
                )
        for name in entry.options:
            if name not in ASKED:
                where = study.where("loads", index, "options", name)
                raise InputError(f"a load has no {name!r}", where=where, fix=did_you_mean(name, ASKED))
        with placed(study, "loads", index, "options"):
            named = [text for text in entry.policies if text != TUNED]
            Load("a trace", **entry.options, policy=named or "never")
    if study.loads and all(entry.source == BYTES for entry in study.machines):
        what, fix = "bytes moved say nothing of a load", "name a machine that has times"
        raise InputError(what, where=study.where("machines"), fix=fix)


def check_large(study: Study) -> None:
    """Refuse an amount of memory that is none, or that says nothing."""
    if study.large is None or study.large.memory is None:
        return
    with placed(study, "large"):
        parse_size(study.large.memory, "memory")
    if not study.large.stream:
        raise InputError(
            "memory says how much of a streamed model may be in memory, stream = false that none is streamed",
            where=study.where("large", "memory"),
            fix="remove one of them",
        )


def _entries(study: Study, axis: str) -> Sequence[AxisEntry]:
    entries: Sequence[AxisEntry] = getattr(study, axis)
    return entries


def check_workloads(study: Study) -> None:
    """Refuse sources that no workload is known by; whether a file is there is told when it is read."""
    known = _known_workloads()
    for index, workload in enumerate(study.workloads):
        _check_source(study, workload.source, ("workloads", index, "source"), known)
    names = {workload.name for workload in study.workloads}
    for axis, key in (("heads", "fit"), ("trainings", "text")):
        for index, entry in enumerate(getattr(study, axis)):
            for number, text in enumerate(getattr(entry, key)):
                if text not in names and text != OWN:
                    _check_source(study, text, (axis, index, key, number), known, names)


def _known_workloads() -> frozenset[str]:
    """Names of workloads, asked once for a whole study: plug-ins are looked for each time."""
    return frozenset(description.name for description in describe_workloads())


def _check_source(
    study: Study, source: str, location: Location, known: Collection[str], names: Collection[str] = ()
) -> None:
    """Refuse a source that is unknown or has no such size. known: workloads. names: that would do as well."""
    prefix, text = split_continued(source)
    if prefix:
        with placed(study, *location):
            sizes_of(prefix, text)
    if is_given(text):
        return
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
    for index, heads in enumerate(study.heads):
        where = study.where("heads", index)
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
        fitting = heads.model_fields_set - {"name", "file"}
        if not heads.fit and fitting:
            raise InputError(
                f"{min(fitting)} is of fitted heads", where=where, fix="remove it, or give fit = [...]"
            )
        _check_fitting(study, heads, index, known)


def _check_fitting(study: Study, heads: HeadsEntry, index: int, known: Sequence[str]) -> None:
    for number, name in enumerate(heads.classifiers):
        if name not in known or name in heads.classifiers[:number]:
            what = "is given twice" if name in known else "is unknown"
            raise InputError(
                f"the classifier {name!r} {what}",
                where=study.where("heads", index, "classifiers", number),
                fix=did_you_mean(name, known),
            )
    if heads.fit and not heads.lens and not heads.classifiers:
        raise InputError(
            f"the heads {heads.name!r} are neither a lens nor classifiers",
            where=study.where("heads", index),
            fix='give lens = true or classifiers = ["correctness"]',
        )


def check_policies(study: Study) -> None:
    """Refuse texts that are no policies, and strategies for K and V that there are not."""
    for index, entry in enumerate(study.policies):
        if entry.searched:
            charged = entry.model_fields_set & {"kv", "batch"}
            if charged:
                raise InputError(
                    f"{entry.policy} is charged for propagate, one sequence at a time",
                    where=study.where("policies", index, min(charged)),
                    fix=f"remove {min(charged)}, or name a policy",
                )
            continue
        check_policy_text(study, entry.policy, ("policies", index))
        settled("kv", entry.kv, StrategyName, "str", where=study.where("policies", index, "kv"))


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
    """Refuse entries that are nothing at once, and steps that are no transforms."""
    for index, entry in enumerate(study.transforms):
        if (entry.name == NONE) != (not entry.steps):
            raise InputError(
                f"the transform {entry.name!r} has {'no steps' if not entry.steps else 'steps'}",
                where=study.where("transforms", index),
                fix=f'give steps = ["int8"], or the name {NONE!r} alone',
            )
        with placed(study, "transforms", index):
            steps_of(entry)


def check_pruning(study: Study) -> None:
    """Refuse to prune by what the file does not pin down, or what stays on disk."""
    known = _known_workloads()
    for step, location in all_steps(study):
        if isinstance(step, Prune) and step.trace is not None:
            raise InputError(
                "which layers a study prunes may not depend on a trace from elsewhere",
                where=study.where(*location),
                fix="leave out trace=, or name the layers: prune:drop=21+22",
            )
        for source in measured_on([step]):
            _check_source(study, source, location, known)
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


def check_machines(study: Study) -> None:
    """Refuse machines that are unknown, and timing on this one where that cannot be done."""
    for index, entry in enumerate(study.machines):
        if entry.source == LOCAL:
            if study.streamed:
                raise InputError(
                    "models whose layers stay on disk cannot be timed on this machine",
                    where=study.where("machines", index),
                    fix='name another machine, such as machines = ["h100"]',
                )
            continue
        if entry.source == BYTES:
            continue
        with placed(study, "machines", index):
            find_machine(resolved(study, entry.source))


def check_trainings(study: Study) -> None:
    """Refuse trainings that are neither of a kind, nor there, nor "none", or several of these at once; and
    heads that no row would be read through."""
    unread = [entry.name for entry in study.heads if entry not in study.readers and entry.name != NONE]
    if unread:
        raise InputError(
            f"trained exits bring heads of their own: nothing is read through the heads {unread[0]!r}",
            where=study.where("trainings"),
            fix=f"add {NONE!r} to trainings, or remove the heads",
        )
    for index, entry in enumerate(study.trainings):
        where = study.where("trainings", index)
        ways = [entry.kind is not None, entry.folder is not None, entry.name == NONE]
        if sum(ways) != 1:
            raise InputError(
                f"the training {entry.name!r} is {'several things at once' if sum(ways) else 'of no kind'}",
                where=where,
                fix=f'give one of kind = "block", folder = "exits", or the name {NONE!r} alone',
            )
        trained = entry.model_fields_set - {"name", "folder"}
        if entry.kind is None and trained:
            raise InputError(
                f"{min(trained)} is of exits that the study trains",
                where=where,
                fix='remove it, or give kind = "block" in the place of a folder',
            )
        if entry.kind is not None:
            _check_kind(study, entry, index)


def _check_kind(study: Study, entry: TrainingEntry, index: int) -> None:
    """Refuse kinds that are unknown or begin from other exits, and models that stay on disk."""
    from offramp.training.request import TRAININGS, LensTraining

    with placed(study, "trainings", index, "kind"):
        training = TRAININGS.named(str(entry.kind))
    if not issubclass(training, LensTraining):
        raise InputError(
            f"exits of the kind {entry.kind} begin from others, which a study does not train first",
            where=study.where("trainings", index, "kind"),
            fix="train them with offramp exits train --from, and give folder = in the place of kind",
        )
    if study.streamed:
        raise InputError(
            "exits are trained on a model in memory, and these models stay on disk",
            where=study.where("trainings", index),
            fix="remove the training, or the table [large]",
        )
    if isinstance(entry.at, str) and not names_layers(entry.at):
        raise InputError(
            f"the exits {entry.at!r} are not a list of layers",
            where=study.where("trainings", index, "at"),
            fix="write at = [12, 20]",
        )


CHECKS: tuple[Callable[[Study], None], ...] = (
    check_names,
    check_settings,
    check_large,
    check_workloads,
    check_heads,
    check_trainings,
    check_policies,
    check_transforms,
    check_machines,
    check_combine,
    check_pruning,
    check_certify,
    check_loads,
    check_decoding,
    check_works,
    check_excludes,
)
"""In the order in which they are made; a later one relies on those before."""


def read_study(path: str | Path) -> Study:
    """The study that a TOML file describes.

    Raises InputError, with the line and the key, for a file that cannot be read, is no TOML, has an unknown
    axis or key, or a value that does not fit; and what `offramp.studies.study_checks.check_study` refuses.
    """
    values, source = read_toml(Path(path), WHAT)
    if "lab" in values:
        raise source.refused("the lab is no study of offramp's any more", LAB_MOVED, "lab")
    study = Study.of(values, source)
    check_study(study)
    return study
