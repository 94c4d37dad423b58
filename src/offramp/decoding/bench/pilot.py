"""The pilot: which plain decoder is the fastest here, on times that answer nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.decoding.bench.clusters import trimmed_mean
from offramp.decoding.bench.contenders import GENERATE, ONE_CALL
from offramp.decoding.bench.entrant import Entrant, PromptBatch
from offramp.decoding.bench.visits import Timed, Visit, log_ratios, visit
from offramp.errors import InputError

PILOT_TOKENS, PILOT_VISITS = 16, 2
MARGIN = 0.05
"""By how much `generate()` in one call must beat the fastest in steps to be the baseline instead: what so few
whole decodings can tell apart."""


@dataclass(frozen=True)
class Pilot:
    """The fastest plain decoder. seconds: per token of each that was tried. note: in words."""

    plain: str
    seconds: dict[str, float]
    note: str


def choose_plain(
    entrants: Sequence[Entrant],
    prompts: PromptBatch,
    new_tokens: int,
    *,
    visits: int = PILOT_VISITS,
    seed: int = 0,
) -> Pilot:
    """Time plain decoders in turns, and take the fastest.

    Of those that decode in steps the one with the shortest blocks; `generate()` in one call only if it is
    faster than that by more than `MARGIN`, since it cannot take turns.

    Raises what a decoder raises.
    """
    order = random.Random(seed)
    tokens = min(new_tokens, PILOT_TOKENS)
    found = [visit(entrants, prompts, tokens, order) for _ in range(visits)]
    seconds = {one.name: _seconds([each[one.name] for each in found]) for one in entrants}
    in_steps = [one.name for one in entrants if one.start is not None]
    plain = min(in_steps, key=lambda name: seconds[name])
    said = [f"{plain} was the fastest plain decoder of a pilot"]
    if ONE_CALL in seconds:
        if _over(found, ONE_CALL, plain) < 1.0 / (1.0 + MARGIN):
            plain = ONE_CALL
            said = [f"{plain} was the fastest plain decoder of a pilot; it cannot take turns in blocks"]
        if GENERATE in seconds:
            more = _over(found, ONE_CALL, GENERATE) - 1.0
            way = "more" if more > 0.0 else "less"
            said.append(f"in one call generate() took {abs(more):.1%} {way} than in steps")
    return Pilot(plain, seconds, "; ".join(said))


def given_plain(entrants: Sequence[Entrant], name: str) -> Pilot:
    """The plain decoder that was chosen elsewhere. Raises InputError if it is not at hand."""
    names = [one.name for one in entrants]
    if name not in names:
        raise InputError(
            f"there is no plain decoder {name!r} here",
            where="plain",
            fix=f"choose one of: {', '.join(names)}",
        )
    return Pilot(name, {}, f"{name} is the plain decoder that was chosen before")


def _seconds(timed: Sequence[Timed]) -> float:
    """Per token: geometric, trimmed over blocks; of the whole decodings without any."""
    blocks = [seconds for one in timed for seconds in one.blocks or (one.decoded.seconds_per_token,)]
    return math.exp(trimmed_mean([math.log(seconds) for seconds in blocks]))


def _over(visits: Sequence[Visit], above: str, below: str) -> float:
    """Seconds of the one over seconds of the other, whole decodings side by side."""
    ratios = [ratio for found in visits for ratio in log_ratios(found[above], found[below])]
    return math.exp(math.fsum(ratios) / len(ratios))
