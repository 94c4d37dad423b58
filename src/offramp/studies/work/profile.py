"""Timings of this machine on a model: the hardware profile `local` of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offramp.costs.local_store import load_local_profile, save_local_profile
from offramp.errors import InputError
from offramp.files import write_sealed_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import PROFILE, model_of, require_planned, require_this_machine

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile
    from offramp.models.model import Model


class ProfileWork:
    """Leaves `profile.json`, sealed. Takes timings, so that it runs alone on the machine."""

    kind = "profile"

    def run(self, task: Task, context: Context) -> None:
        """Take the profile that is kept for this model, dtype and thread count, or measure and keep one.

        Raises ModelError for a model that cannot be timed, OfframpError if it or this machine are not the
        recipe's.
        """
        require_planned(task)
        require_this_machine(task, task.recipe["machine"])
        profile = _profile(model_of(task, context), task)
        write_sealed_json(context.folder / PROFILE, profile.to_json())


def _profile(model: Model, task: Task) -> TimingsProfile:
    from offramp.decoding.hardware import measure_hardware

    try:
        return load_local_profile(model.identity.fingerprint, model.dtype, threads=task.recipe["threads"])
    except InputError:  # none is kept yet
        profile = measure_hardware(model, budget_seconds=task.recipe["seconds"])
        save_local_profile(profile)
        return profile
