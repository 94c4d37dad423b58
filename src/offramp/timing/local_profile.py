"""The profile `local` of a model at hand: kept timings that hold at this moment, or new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from offramp.costs.hardware import load_local_profile, save_local_profile
from offramp.costs.timings import TimingsProfile
from offramp.decoding.generation.generate import FULL_MODEL
from offramp.decoding.generation.prompts import PromptBatch
from offramp.errors import BusyMachineError
from offramp.kit.defaults import PROFILE_SECONDS
from offramp.models.model import Model
from offramp.scoring.estimate import Estimate
from offramp.timing.answers import median
from offramp.timing.decoder import LoopRunning, Stepping
from offramp.timing.machine_profiler import measure_hardware
from offramp.timing.timed_steps import prompt_ids
from offramp.timing.timing_tables import whole_at
from offramp.tracing.progress import stage

TOKENS = 12
"""Decoded at a time; more only while the answer is open."""
MOST_TIMES = 3
FARTHEST = 1.03
"""A profile that is off by more is measured again."""


@dataclass(frozen=True)
class StepCheck:
    """The profile's plain step beside steps of now, at the same position and batch size."""

    ratio: Estimate[float]
    """The profile's seconds over those of now, with 95 % limits, of the noise on both sides."""
    seconds: float
    """Of a plain step now."""
    tokens: int
    """How many steps were made."""

    @property
    def holds(self) -> bool:
        """Whether it is not certain to be off by more than 3 %."""
        low, high = _limits(self.ratio)
        return low <= FARTHEST and high >= 1.0 / FARTHEST

    @property
    def settled(self) -> bool:
        """Whether more steps would say nothing else."""
        low, high = _limits(self.ratio)
        return not self.holds or (low >= 1.0 / FARTHEST and high <= FARTHEST)

    @property
    def sentence(self) -> str:
        """What was found."""
        low, high = _limits(self.ratio)
        found = (
            f"a plain token takes {1e3 * self.seconds:.3g} ms now, "
            f"{1e3 * self.ratio.value * self.seconds:.3g} ms by the kept timings (ratio "
            f"{self.ratio.value:.3f}, {low:.3f} to {high:.3f})"
        )
        return found if self.holds else f"{found}: off by more than {FARTHEST - 1:.0%}"


def _limits(ratio: Estimate[float]) -> tuple[float, float]:
    """Of few steps, whose median has none, anything may be true."""
    low, high = ratio.low, ratio.high
    return (0.0, math.inf) if low is None or high is None else (low, high)


def check_profile(model: Model, profile: TimingsProfile) -> StepCheck:
    """Decode a few plain tokens, by the loop that the profile timed, and compare.

    profile: as `measure_hardware` gives it, of this model.

    Raises ModelError if the model cannot decode.
    """
    position, batch = int(profile.details["positions"][0]), profile.batches[0]
    room = TOKENS if model.context_length is None else model.context_length - position - 2
    count = max(1, min(TOKENS, room))
    price = profile.token_costs(model.shape, position + (count + 1) / 2, batch=batch).plain
    samples: list[float] = []
    for _ in range(MOST_TIMES):
        samples += plain_steps(model, batch, position, count)
        found = _compared(profile, price, samples)
        if found.settled:
            break
    return found


def _compared(profile: TimingsProfile, price: float, samples: list[float]) -> StepCheck:
    now = median(samples)
    ratio = Estimate(price / now.value)
    if now.low is not None and now.high is not None:
        noise = 1.0 + math.hypot((now.high - now.low) / (2 * now.value), _noise_of(profile))
        ratio = Estimate(ratio.value, ratio.value / noise, ratio.value * noise)
    return StepCheck(ratio, now.value, len(samples))


def _noise_of(profile: TimingsProfile) -> float:
    """Relative half-width of a 95 % interval of the profile's own whole steps.

    1.57 distances of the quartiles over the root of their number: McGill, Tukey and Larsen 1978, The American
    Statistician 32, 12.
    """
    samples = profile.details["samples"][str(profile.batches[0])]
    timed = [samples[whole_at(position)] for position in profile.details["positions"]]
    count = sum(steps["count"] for steps in timed)
    spread = sum((steps["high"] - steps["low"]) / steps["median"] for steps in timed) / len(timed)
    return float(1.57 * spread / math.sqrt(count))


def plain_steps(model: Model, batch: int, position: int, count: int) -> list[float]:
    """Seconds of plain steps of so many sequences, from position + 1 on."""
    ids = prompt_ids(model, batch, position)
    # The first new token is the prompt's; the step after it may still warm up.
    options = replace(FULL_MODEL, new_tokens=count + 2)
    stepping = Stepping(
        lambda prompts, new_tokens: LoopRunning(model, prompts, options),
        PromptBatch(ids, torch.ones_like(ids)),
        options.new_tokens,
    )
    while not stepping.over:
        stepping.take(1)
    return [seconds * batch for seconds in stepping.finish().blocks[1:]]


@dataclass(frozen=True)
class LocalProfile:
    """Timings to predict with."""

    profile: TimingsProfile
    note: str
    """How they were come by, in a sentence."""


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
        timed = replace(timed, details={**timed.details, **details})
    save_local_profile(timed)
    return LocalProfile(timed, f"{before}timed just now")


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
