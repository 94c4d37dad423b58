"""Timings of this machine on a model: the hardware profile `local` of a study."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from offramp.costs.hardware import RECIPE, disturbed, load_local_profile, save_local_profile
from offramp.errors import InputError
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import (
    PROFILE,
    PROFILE_FILE,
    device_of,
    model_of,
    require_planned,
    require_this_machine,
)

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile
    from offramp.models.model import Model


NOTE = "note"
"""Of a profile's details: how it was come by, in a sentence. It alone may differ for the same recipe."""


class ProfileWork:
    """Leaves `profile.json`, sealed. Takes timings, so that it runs alone on the machine."""

    kind = "profile"

    def run(self, task: Task, context: Context) -> None:
        """Take the profile that a task of this very recipe measured and kept, or measure one and keep it.

        A kept one that is off from a few plain tokens of now is measured again; one that was timed under load
        is used by this study, and not kept for others. A profile of other code, libraries or budget would be
        filed under a recipe that it is not of.

        Raises ModelError for a model that cannot be timed, OfframpError if it or this machine are not the
        recipe's.
        """
        require_planned(task)
        require_this_machine(task, task.recipe["machine"])
        profile = _profile(model_of(task, context), task)
        PROFILE_FILE.write(context.folder / PROFILE, profile)


def _profile(model: Model, task: Task) -> TimingsProfile:
    from offramp.decoding.measurement.machine_profiler import measure_hardware
    from offramp.decoding.measurement.plain_timing import check_profile

    kept = _kept(model, task)
    check = None if kept is None else check_profile(model, kept)
    if kept is not None and check is not None and check.holds:
        return noted(kept, check.sentence)
    profile = stating(measure_hardware(model, budget_seconds=task.recipe["seconds"]), task)
    save_local_profile(profile)
    busy = disturbed(profile)
    taken = "timed just now" if busy is None else f"timed just now and not kept: {busy}"
    return noted(profile, taken if check is None else f"{check.sentence}; {taken}")


def noted(profile: TimingsProfile, note: str) -> TimingsProfile:
    """The profile with how it was come by among its details."""
    return dataclasses.replace(profile, details={**profile.details, NOTE: note})


def _kept(model: Model, task: Task) -> TimingsProfile | None:
    """What a task of this very recipe kept, None if none did."""
    recipe = task.recipe
    try:
        return load_local_profile(
            model.identity.fingerprint,
            model.dtype,
            device=device_of(task),
            attention=model.attention,
            threads=recipe["threads"],
            recipe=recipe,
        )
    except InputError:
        return None


def stating(profile: TimingsProfile, task: Task) -> TimingsProfile:
    """The profile with the recipe of the task that measured it among its details."""
    return dataclasses.replace(profile, details={**profile.details, RECIPE: dict(task.recipe)})
