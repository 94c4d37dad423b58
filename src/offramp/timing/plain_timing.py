"""The stopwatch on plain decoding, and a profile of this machine held against a few plain tokens of now."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from offramp.costs.timings import TimingsProfile
from offramp.decoding.generation.generate import FULL_MODEL, generate_batch
from offramp.errors import ModelError
from offramp.models.devices import synchronise
from offramp.models.discovery import UNFIT_ERRORS
from offramp.models.model import Model
from offramp.timing.answers import SAMPLES_NEEDED, median
from offramp.timing.decoder import own_config, plain_config
from offramp.timing.results import Timing
from offramp.timing.timed_steps import prompt_ids
from offramp.timing.timing_tables import whole_at
from offramp.tracing.answers import cannot_generate

TOKENS = 12
"""Decoded at a time; more only while the answer is open."""
MOST_TIMES = 3
FARTHEST = 1.03
"""A profile that is off by more is measured again."""


@dataclass(frozen=True)
class ProfileCheck:
    """The profile's plain step beside steps of now, at the same position and batch size.

    ratio: the profile's seconds over those of now. interval: its 95 % limits, of the noise on both sides.
    holds: whether it is not certain to be off by more than 3 %. profile_seconds, seconds: of one plain step.
    tokens: how many steps were made.
    """

    ratio: float
    interval: tuple[float, float]
    holds: bool
    profile_seconds: float
    seconds: float
    tokens: int

    @property
    def sentence(self) -> str:
        """What was found."""
        low, high = self.interval
        found = (
            f"a plain token takes {1e3 * self.seconds:.3g} ms now, {1e3 * self.profile_seconds:.3g} ms by "
            f"the kept timings (ratio {self.ratio:.3f}, {low:.3f} to {high:.3f})"
        )
        return found if self.holds else f"{found}: off by more than {FARTHEST - 1:.0%}"


def check_profile(model: Model, profile: TimingsProfile) -> ProfileCheck:
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
        samples += _plain_steps(model, batch, position, count)
        found = _compared(profile, price, samples)
        if _settled(found):
            break
    return found


def _compared(profile: TimingsProfile, price: float, samples: list[float]) -> ProfileCheck:
    now = median(samples)
    noise = math.inf
    if now.low is not None and now.high is not None:
        noise = math.hypot((now.high - now.low) / (2 * now.value), _noise_of(profile))
    ratio = price / now.value
    low, high = ratio / (1.0 + noise), ratio * (1.0 + noise)
    off = low > FARTHEST or high < 1.0 / FARTHEST
    return ProfileCheck(ratio, (low, high), not off, price, now.value, len(samples))


def _settled(check: ProfileCheck) -> bool:
    low, high = check.interval
    return not check.holds or (low >= 1.0 / FARTHEST and high <= FARTHEST)


def _noise_of(profile: TimingsProfile) -> float:
    """Relative half-width of a 95 % interval of the profile's own whole steps.

    1.57 distances of the quartiles over the root of their number: McGill, Tukey and Larsen 1978, The American
    Statistician 32, 12.
    """
    samples = profile.details["samples"][str(profile.batches[0])]
    timed = [samples[whole_at(position)] for position in profile.details["positions"]]
    count = sum(one["count"] for one in timed)
    spread = sum((one["high"] - one["low"]) / one["median"] for one in timed) / len(timed)
    return float(1.57 * spread / math.sqrt(count))


def _plain_steps(model: Model, batch: int, position: int, count: int) -> list[float]:
    """Seconds of plain steps from position + 1 on."""
    stamps = _Stamps()
    # The first new token is the prompt's; the step after it may still warm up.
    new_tokens = count + 2
    with own_config(model.hf, plain_config(new_tokens)):
        ids = prompt_ids(model, batch, position)
        generate_batch(
            model, ids, options=replace(FULL_MODEL, new_tokens=new_tokens), streamer=stamps, eos_token_id=None
        )
    at = stamps.at[-count - 1 :]
    return [later - sooner for sooner, later in itertools.pairwise(at)]


@dataclass
class _Stamps:
    """A streamer that notes when tokens came: transformers hands it the prompt, then the loop new ones.

    Those are on the host by then, so that an accelerator has done all that they took.
    """

    at: list[float] = field(default_factory=list)

    def put(self, tokens: Tensor) -> None:
        """Some more came."""
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to say."""


NEW_TOKENS = 16
REPEATS = SAMPLES_NEEDED


@dataclass(frozen=True, kw_only=True)
class PlainTiming(Timing):
    """Of plain greedy `generate()`, batch 1: the median of the repeats.

    samples: seconds per token of each repeat, in order.
    """

    samples: tuple[float, ...]
    new_tokens: int


def time_plain_decoding(
    model: Model, prompt: Sequence[int], *, new_tokens: int = NEW_TOKENS, repeats: int = REPEATS
) -> PlainTiming:
    """Time `generate()` after one warm-up.

    A model with a short context gets a shorter prompt, and fewer new tokens if that does not suffice.
    The time of a call with one new token (the prompt) is taken away from that of a call with `new_tokens`
    more, so that the figure is one of decoding alone. No end token stops it early.

    Raises ModelError if transformers cannot generate with this model, or too fast to be timed.
    """
    from transformers import GenerationConfig

    model.require_loaded("decoding")
    room = (model.context_length or len(prompt) + new_tokens + 1) - 1
    new_tokens = max(1, min(new_tokens, room - 1))
    ids = torch.tensor([list(prompt)[: max(1, room - new_tokens)]], device=model.hf.device)

    def seconds(count: int) -> float:
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
        )
        synchronise(ids.device)
        started = time.perf_counter()
        try:
            with torch.no_grad():
                model.hf.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        except UNFIT_ERRORS as error:
            raise cannot_generate(model, error) from error
        synchronise(ids.device)
        return time.perf_counter() - started

    load = os.getloadavg()[0]
    seconds(2)
    samples = [(seconds(new_tokens + 1) - seconds(1)) / new_tokens for _ in range(repeats)]
    found = median(samples)
    if found.value <= 0.0:
        raise ModelError(
            "a token takes too little time to be told apart from the prompt",
            where=model.name,
            fix="time a larger model, or a quieter machine",
        )
    return PlainTiming(
        value=found.value,
        low=found.low,
        high=found.high,
        samples=tuple(samples),
        new_tokens=new_tokens,
        threads=torch.get_num_threads(),
        load=load,
    )
