"""Study files: read, and what they say held against one another."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.commands import LAB_MOVED
from offramp.decoding.measurement.accelerations import EXITS, SPECULATE
from offramp.errors import InputError, ModelError
from offramp.kit.arguments import settled
from offramp.kit.defaults import LOCAL
from offramp.kit.given_file import did_you_mean, read_toml
from offramp.kit.rules import Worth
from offramp.kit.toml_lines import Location
from offramp.models.devices import AUTO as AUTO_DEVICE
from offramp.models.devices import DtypeName, find_device
from offramp.models.memory import parse_size
from offramp.models.shape import DTYPES
from offramp.policies.grammar import parse_policy
from offramp.studies.axis_checks import (
    check_heads,
    check_machines,
    check_policies,
    check_policy_text,
    check_pruning,
    check_transforms,
    check_workloads,
)
from offramp.studies.entries import AUTO, LEAGUE, NONE, TUNED, Entry
from offramp.studies.steps import accelerations_of
from offramp.studies.study import WHAT, Study, placed
from offramp.studies.training_checks import check_trainings
from offramp.studies.work.registry import works
from offramp.studies.work.work import FILLED, OWN_KINDS, settings_of
from offramp.tracing.request import parse_signals

if TYPE_CHECKING:
    from offramp.studies.study import Study

CELLS = ("score", "replay", "league", "tune", "certify", "decode", "combine")
"""Kinds of the cells that tables of the file ask for."""
AXES = {
    "model": "models",
    "transform": "transforms",
    "workload": "workloads",
    "heads": "heads",
    "training": "trainings",
    "policy": "policies",
    "machine": "machines",
}
"""Tables of the file by the key that names one of their entries."""


def check_study(study: Study) -> None:
    """Refuse what the file alone shows to be wrong. Raises InputError with the line and the key."""
    for check in CHECKS:
        check(study)


def check_names(study: Study) -> None:
    """Refuse two entries of one name, and trained exits called as heads are: tables tell them by it."""
    heads = {entry.name: ("heads", place) for place, entry in enumerate(study.heads) if entry.name != NONE}
    for axis in AXES.values():
        seen: dict[str, Location] = dict(heads) if axis == "trainings" else {}
        for place, entry in enumerate(_entries(study, axis)):
            if entry.name in seen:
                both = "heads and trainings" if seen[entry.name][0] != axis else axis
                raise InputError(
                    f"two {both} are called {entry.name!r}",
                    where=study.where(axis, place, "name"),
                    fix=f"rename or remove one; the first is at {study.where(*seen[entry.name])}",
                )
            seen[entry.name] = (axis, place)


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
    for place, floor in enumerate(settings.floors):
        if floor in settings.floors[:place]:
            raise InputError(
                f"the floor {floor:g} is given twice",
                where=study.where("study", "floors", place),
                fix="give it once",
            )


def check_excludes(study: Study) -> None:
    """Refuse excludes of names that no axis has."""
    for place, exclude in enumerate(study.exclude):
        given = exclude.model_dump(exclude_none=True)
        if not given:
            raise InputError(
                "an exclude without a key would leave out everything",
                where=study.where("exclude", place),
                fix=f"give one or more of: kind, {', '.join(AXES)}",
            )
        for key, name in given.items():
            if key == "kind":
                names = [*CELLS, *(entry.name for entry in study.works)]
            else:
                names = [entry.name for entry in _entries(study, AXES[key])]
            if name not in names:
                raise InputError(
                    f"there is no {key} {name!r} to exclude",
                    where=study.where("exclude", place, key),
                    fix=did_you_mean(name, names),
                )


def check_works(study: Study) -> None:
    """Refuse work of a kind that no plug-in brings, given twice, or with settings that it has not."""
    for place, entry in enumerate(study.works):
        where = study.where("works", place)
        kinds = [name for name in works() if name not in OWN_KINDS]
        if entry.name not in kinds:
            raise InputError(
                f"{entry.name} is offramp's own, which the other tables ask for"
                if entry.name in OWN_KINDS
                else f"no plug-in brings work of the kind {entry.name!r}",
                where=where,
                fix="remove it" if entry.name in OWN_KINDS else did_you_mean(entry.name, kinds),
            )
        if entry.name in [other.name for other in study.works[:place]]:
            raise InputError(f"{entry.name} is given twice", where=where, fix="give it once")
        with placed(study, "works", place):
            known = settings_of(works()[entry.name]) - FILLED
        for name in entry.settings:
            if name not in known:
                raise InputError(
                    f"{entry.name} has no setting {name!r}",
                    where=study.where("works", place, "settings", name),
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
            "how many new tokens there is time for is told where verdicts are certified",
            where=study.where("decode", "new_tokens"),
            fix="give a number, or add a table [certify]",
        )
    floor, floors = study.decode.floor, study.settings.floors
    if floor not in floors:
        raise InputError(
            f"the league has no floor {floor:g}",
            where=study.where("decode", "floor"),
            fix="choose one of the study's floors: " + ", ".join(f"{one:g}" for one in floors),
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
        asked = accelerations_of(study.combine)
    leaving = [one for one in asked if one in (EXITS, SPECULATE)]
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


def _entries(study: Study, axis: str) -> Sequence[Entry]:
    entries: Sequence[Entry] = getattr(study, axis)
    return entries


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
    check_decoding,
    check_works,
    check_excludes,
)
"""In the order in which they are made; a later one relies on those before."""


def read_study(path: str | Path) -> Study:
    """The study that a TOML file describes.

    Raises InputError, with the line and the key, for a file that cannot be read, is no TOML, has an unknown
    axis or key, or a value that does not fit; and what `offramp.studies.study_file.check_study` refuses.
    """
    values, source = read_toml(Path(path), WHAT)
    if "lab" in values:
        raise source.refused("the lab is no study of offramp's any more", LAB_MOVED, "lab")
    study = Study.of(values, source)
    check_study(study)
    return study
