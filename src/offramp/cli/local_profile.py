"""The profile `local` of a model at hand: kept timings that hold at this moment, or new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.cli.console import stage
from offramp.costs.hardware import disturbed, load_local_profile, save_local_profile
from offramp.costs.timings import TimingsProfile
from offramp.decoding.measurement.machine_profiler import measure_hardware
from offramp.decoding.measurement.plain_timing import check_profile
from offramp.models.model import Model

MEASURING_SECONDS = 12.0


@dataclass(frozen=True)
class LocalProfile:
    """Timings to predict with. note: how they were come by, in a sentence, and what they must not be."""

    profile: TimingsProfile
    note: str


def kept_profile(model: Model) -> LocalProfile:
    """The kept timings of a model, measured again if they are off from a few plain tokens of now.

    Raises InputError if none are kept; ModelError if the model cannot decode.
    """
    kept = load_local_profile(
        model.identity.fingerprint,
        model.dtype,
        device=str(model.stack.device),
        attention=model.attention,
        model=model.described,
    )
    with stage("holding the kept timings against a few plain tokens"):
        check = check_profile(model, kept)
    if check.holds:
        return LocalProfile(kept, check.sentence)
    fresh = measured_profile(model, kept.batches)
    return LocalProfile(fresh.profile, f"{check.sentence}; {fresh.note}")


def measured_profile(model: Model, batches: Sequence[int] | None = None) -> LocalProfile:
    """New timings, kept unless taken under load. Raises ModelError for a model that cannot be timed."""
    with stage("timing layers, head and probes on this machine", MEASURING_SECONDS):
        profile = measure_hardware(model, batches=batches, budget_seconds=MEASURING_SECONDS)
    save_local_profile(profile)
    busy = disturbed(profile)
    return LocalProfile(profile, "timed just now" if busy is None else f"timed just now and not kept: {busy}")
