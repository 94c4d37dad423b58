"""The profile `local` of a model at hand: kept timings that hold at this moment, or new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.cli.console import stage
from offramp.costs.hardware import disturbed, load_local_profile, save_local_profile
from offramp.costs.machine import machine_fingerprint
from offramp.costs.timings import TimingsProfile
from offramp.decoding.measurement.machine_profiler import BATCHES, measure_hardware
from offramp.decoding.measurement.plain_timing import check_profile
from offramp.errors import InputError
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
    return _held(model, _load(model))


def local_profile(model: Model, *, used_before: str | None = None) -> LocalProfile:
    """The same, measured if none are kept.

    used_before: fingerprint of timings that predicted what need not be decoded again: they are not held
    against this moment.

    Raises ModelError if the model cannot be timed.
    """
    try:
        kept = _load(model)
    except InputError:  # none are kept yet
        return measured_profile(model)
    if machine_fingerprint(kept) == used_before:
        return LocalProfile(kept, "those that what was decoded before was predicted with")
    return _held(model, kept)


def _load(model: Model) -> TimingsProfile:
    return load_local_profile(
        model.identity.fingerprint, model.dtype, model=model.name, transforms=model.identity.transforms
    )


def _held(model: Model, kept: TimingsProfile) -> LocalProfile:
    """Kept timings held against a few plain tokens of now, or new ones in their place."""
    with stage("holding the kept timings against a few plain tokens"):
        check = check_profile(model, kept)
    if check.holds:
        return LocalProfile(kept, check.sentence)
    fresh = measured_profile(model, kept.batches)
    return LocalProfile(fresh.profile, f"{check.sentence}; {fresh.note}")


def measured_profile(model: Model, batches: Sequence[int] = BATCHES) -> LocalProfile:
    """New timings, which are kept unless they were taken under load. Raises ModelError as `local_profile`."""
    with stage("timing layers, head and probes on this machine", MEASURING_SECONDS):
        profile = measure_hardware(model, batches=batches, budget_seconds=MEASURING_SECONDS)
    save_local_profile(profile)
    busy = disturbed(profile)
    return LocalProfile(profile, "timed just now" if busy is None else f"timed just now and not kept: {busy}")
