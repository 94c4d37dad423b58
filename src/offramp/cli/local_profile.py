"""The profile `local` that a command predicts with."""

from __future__ import annotations

from offramp.cli.console import stage
from offramp.costs.hardware import load_local_profile
from offramp.decoding.measurement.local_profile import LocalProfile, profile_of_now
from offramp.models.model import Model

MEASURING_SECONDS = 12.0


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
    with stage("holding the kept timings against a few plain tokens, and timing anew if they are off"):
        return profile_of_now(model, kept, seconds=MEASURING_SECONDS, batches=kept.batches)
