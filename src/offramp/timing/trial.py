"""Before anything is timed: one decoding by every contender, and a pilot of the plain decoders."""

from __future__ import annotations

import ctypes
import gc
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from offramp.decoding.generation.prompts import PromptBatch
from offramp.errors import InputError, ModelError, OfframpError
from offramp.kit.defaults import SEED
from offramp.models.devices import CPU
from offramp.timing.answers import cluster_of
from offramp.timing.contenders import FAILURES, GENERATE, ONE_CALL, why
from offramp.timing.decoder import DecodedBatch, Decoder, LayerCount, Setting, left_out
from offramp.timing.results import Contender
from offramp.timing.turns import Visit, pairs_of, visit

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_HIGH_WATER_MARK = "5"


def start_peak(device: torch.device) -> Callable[[], int | None]:
    """Start to watch; what is returned gives the peak since then, in bytes above the start, None if unknown.

    On an accelerator the largest sum of tensors, where its allocator keeps that. On Linux the process's
    high-water mark of resident memory (VmHWM of proc(5), reset by writing 5 to clear_refs), to the page;
    blocks that the allocator kept from earlier work and hands out again do not show, so what it keeps is
    given back first where it can be.
    """
    gc.collect()
    if device.type in ("cuda", "xpu"):
        module = getattr(torch, device.type)
        module.reset_peak_memory_stats(device)
        held = module.memory_allocated(device)
        return lambda: int(module.max_memory_allocated(device)) - held
    if device.type != CPU:
        return lambda: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    try:
        CLEAR.write_text(RESET_HIGH_WATER_MARK)
    except OSError:  # not Linux, or not allowed
        return lambda: None
    before = _status("VmRSS")
    return lambda: max(_status("VmHWM") - before, 0)


def _status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


TRIAL_TOKENS = 12
"""New tokens of a trial, at most."""


@dataclass(frozen=True)
class TriedOut:
    """One untimed decoding of the first batch of prompts.

    counted: rows times layers that hooks saw. peak_memory_bytes: above what was held before, None if unknown.
    """

    decoded: DecodedBatch
    counted: int
    peak_memory_bytes: int | None


def try_out(
    decoders: Sequence[Decoder], setting: Setting, *, warm_up_tokens: int
) -> tuple[dict[str, TriedOut], list[Contender]]:
    """Trials by name, and the contenders that failed in theirs. warm_up_tokens: decoded before.

    Raises what a required one raises; an error of transformers' as a ModelError.
    """
    trials, failed = {}, []
    tokens, prompts = min(setting.new_tokens, TRIAL_TOKENS), setting.prompts[0]
    for decoder in decoders:
        model = (decoder.on or setting).model
        try:
            # What a decoder sets up once (which layers can be cut, say) would be counted as layers of its
            # first tokens.
            decoder.decode(prompts, min(tokens, warm_up_tokens))
            count, peak = LayerCount(model.stack), start_peak(torch.device(prompts.ids.device))
            with count.attached():
                decoded = decoder.decode(prompts, tokens)
            trials[decoder.name] = TriedOut(decoded, count.rows, peak())
        except FAILURES as error:
            if not decoder.required:
                failed.append(left_out(decoder.name, decoder.role, why(error), full_depth=decoder.full_depth))
            elif isinstance(error, OfframpError):
                raise
            else:
                raise ModelError(
                    f"{decoder.name} fails on this model: {why(error)}",
                    where=str(model.hf.config.name_or_path),
                    fix="this model cannot be timed; trace and replay it instead",
                ) from error
    return trials, failed


PILOT_TOKENS, PILOT_VISITS = 16, 2
MARGIN = 0.05
"""By how much `generate()` in one call must beat the fastest in steps to be the baseline instead: what so few
whole decodings can tell apart."""


@dataclass(frozen=True)
class Pilot:
    """The plain decoder that came out the fastest. seconds: per token of each. notes: what else it showed."""

    plain: str
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


def choose_plain(
    decoders: Sequence[Decoder],
    prompts: PromptBatch,
    new_tokens: int,
    *,
    visits: int = PILOT_VISITS,
    seed: int = SEED,
) -> Pilot:
    """Time plain decoders in turns, and take the fastest.

    Of those that decode in steps the one with the shortest blocks; `generate()` in one call only if it is
    faster than that by more than `MARGIN`, since it cannot take turns.

    Raises what a decoder raises.
    """
    order = random.Random(seed)
    tokens = min(new_tokens, PILOT_TOKENS)
    found = [visit(decoders, prompts, tokens, order) for _ in range(visits)]
    seconds = {one.name: _seconds([each[one.name] for each in found]) for one in decoders}
    in_steps = [one.name for one in decoders if one.start is not None]
    plain = min(in_steps, key=lambda name: seconds[name])
    said = []
    if ONE_CALL in seconds:
        if _over(found, ONE_CALL, plain) < 1.0 / (1.0 + MARGIN):
            plain = ONE_CALL
            said.append(f"{plain} was clearly the fastest in a pilot; it cannot take turns in blocks")
        if GENERATE in seconds:
            more = _over(found, ONE_CALL, GENERATE) - 1.0
            way = "more" if more > 0.0 else "less"
            said.append(f"in one call generate() took {abs(more):.1%} {way} than in steps")
    return Pilot(plain, seconds, tuple(said))


def given_plain(decoders: Sequence[Decoder], name: str) -> Pilot:
    """The plain decoder that was chosen elsewhere. Raises InputError if it is not at hand."""
    names = [one.name for one in decoders]
    if name not in names:
        raise InputError(
            f"there is no plain decoder {name!r} here",
            where="plain",
            fix=f"choose one of: {', '.join(names)}",
        )
    return Pilot(name, {})


def _seconds(timed: Sequence[DecodedBatch]) -> float:
    """Per token: median over blocks, which a burst of other work spoils; of whole decodings without any."""
    return median([seconds for one in timed for seconds in one.blocks or (one.seconds_per_token,)])


def _over(visits: Sequence[Visit], above: str, below: str) -> float:
    """Seconds of the one over seconds of the other, whole decodings side by side."""
    pairs = [pair for found in visits for pair in pairs_of(found[above], found[below])]
    return math.exp(cluster_of(0, 0, pairs).log_ratio)
