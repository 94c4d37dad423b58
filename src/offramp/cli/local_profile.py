"""The profile `local` that a command predicts with."""

from __future__ import annotations

from offramp.costs.hardware import load_local_profile
from offramp.costs.timings import TimingsProfile
from offramp.kit.defaults import PROFILE_SECONDS
from offramp.models.model import Model
from offramp.timing.local_profile import LocalProfile, profile_of_now
from offramp.tracing.progress import stage


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
    return profile_now(model, kept)


def profile_now(model: Model, kept: TimingsProfile | None) -> LocalProfile:
    """Timings at hand, held against a few plain tokens of now; new ones where there are none or they are off.

    Raises ModelError if the model cannot decode, BusyMachineError if nothing is at hand and others are busy.
    """
    if kept is None:
        with stage("timing layers, head and probes on this machine", PROFILE_SECONDS):
            return profile_of_now(model, None, seconds=PROFILE_SECONDS)
    with stage("holding the kept timings against a few plain tokens, and timing anew if off"):
        return profile_of_now(model, kept, seconds=PROFILE_SECONDS, batches=kept.batches)
