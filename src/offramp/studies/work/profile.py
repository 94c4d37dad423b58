"""Timings of this machine on a model: the hardware profile `local` of a study."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from offramp.costs.hardware import RECIPE, load_local_profile
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

        A kept one that is off from a few plain tokens of now is measured again. A profile of other code,
        libraries or budget would be filed under a recipe that it is not of.

        Raises ModelError for a model that cannot be timed, and where others keep the machine busy: prices
        that are not fit to be kept decide nothing. OfframpError if model or machine are not the recipe's.
        """
        require_planned(task)
        require_this_machine(task, task.recipe["machine"])
        from offramp.decoding.measurement.local_profile import profile_of_now

        model = model_of(task, context)
        stated = {RECIPE: dict(task.recipe)}
        found = profile_of_now(model, _kept(model, task), seconds=task.recipe["seconds"], details=stated)
        details = {**found.profile.details, NOTE: found.note}
        PROFILE_FILE.write(context.folder / PROFILE, dataclasses.replace(found.profile, details=details))


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
