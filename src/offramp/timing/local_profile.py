"""The profile `local` of a model at hand: kept timings that hold at this moment, or new ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offramp.costs.hardware import save_local_profile
from offramp.costs.timings import TimingsProfile
from offramp.errors import BusyMachineError
from offramp.models.model import Model
from offramp.timing.machine_profiler import measure_hardware
from offramp.timing.plain_timing import check_profile


@dataclass(frozen=True)
class LocalProfile:
    """Timings to predict with. note: how they were come by, in a sentence."""

    profile: TimingsProfile
    note: str


def profile_of_now(
    model: Model,
    kept: TimingsProfile | None,
    *,
    seconds: float,
    batches: tuple[int, ...] | None = None,
    details: Mapping[str, Any] | None = None,
) -> LocalProfile:
    """Kept timings held against a few plain tokens of now; new ones, which are then kept, if they are off.

    kept: None if there are none. seconds, batches: of a new timing. details: that new ones state beside.
    Where others keep the machine busy, so that nothing can be timed, the kept ones of a quieter time stay.

    Raises ModelError for a model that cannot be timed, BusyMachineError if nothing is kept and the machine is
    not quiet.
    """
    check = None if kept is None else check_profile(model, kept)
    if kept is not None and check is not None and check.holds:
        return LocalProfile(kept, check.sentence)
    before = "" if check is None else f"{check.sentence}; "
    try:
        timed = measure_hardware(model, batches=batches, budget_seconds=seconds)
    except BusyMachineError as error:
        if kept is None:
            raise
        return LocalProfile(kept, f"{before}{error.what}: the kept ones are of a quieter time, and stay")
    if details:
        timed = dataclasses.replace(timed, details={**timed.details, **details})
    save_local_profile(timed)
    return LocalProfile(timed, f"{before}timed just now")
