"""Timings of this machine on a model: the hardware profile `local` of a study."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.costs.machine_registry import RECIPE, load_local_profile
from offramp.errors import InputError
from offramp.kit.numbers import NotNegative
from offramp.models.devices import CPU
from offramp.studies.work.inputs import PROFILE, PROFILE_FILE, TimedWork
from offramp.studies.work.work import WorkContext

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile
    from offramp.models.model import Model
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes


NOTE = "note"
"""Of a profile's details: how it was come by, in a sentence. It alone may differ for the same recipe."""


@dataclass(frozen=True, kw_only=True)
class ProfileWork(TimedWork[None]):
    """Leaves `profile.json`, sealed. Takes timings, so that it runs alone on the machine."""

    kind = "profile"
    exclusive = True

    seconds: NotNegative

    def cost(self, sizes: Sizes) -> TaskCost:
        """It measures for so long."""
        return sizes.timing(self.seconds)

    def run(self, context: WorkContext) -> None:
        """Take the profile that a task of this very recipe measured and kept, or measure one and keep it.

        A kept one that is off from a few plain tokens of now is measured again. A profile of other code,
        libraries or budget would be filed under a recipe that it is not of.

        Raises ModelError for a model that cannot be timed, and where others keep the machine busy: prices
        that are not fit to be kept decide nothing. OfframpError if model or machine are not the recipe's.
        """
        self.require_here()
        from offramp.timing.local_profile import profile_of_now

        model = self.load_model(context)
        stated = {RECIPE: dict(context.recipe)}
        measured = profile_of_now(model, self.kept(model, context), seconds=self.seconds, details=stated)
        details = {**measured.profile.details, NOTE: measured.note}
        PROFILE_FILE.write(context.folder / PROFILE, dataclasses.replace(measured.profile, details=details))

    def kept(self, model: Model, context: WorkContext) -> TimingsProfile | None:
        """What a task of this very recipe kept, None if none did."""
        try:
            return load_local_profile(
                model.identity.fingerprint,
                model.dtype,
                device=self.device or CPU,
                attention=model.attention,
                threads=self.threads,
                recipe=context.recipe,
            )
        except InputError:
            return None
