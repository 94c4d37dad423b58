"""Whose turn it is when in a timing, by a clock that made-up contenders move."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from bench_cases import Clock, Fake

from golden.recorder import Recorder

PROMPTS = [[1] * length for length in range(2, 8)]
NEW_TOKENS = 13


def record(recorder: Recorder) -> None:
    """Single visits, and a whole timing, block by block."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        for seed in (0, 1):
            recorder.keep(f"visit-{seed}.turns", recorder.normal.text(visited(clock, seed)))
        recorder.keep("timing.turns", recorder.normal.text(timed(clock)))


def contenders(clock: Clock) -> list[Fake]:
    """Plain decoding, policies, drafts of three tokens, and two that cannot be stopped."""
    draws = random.Random(3)

    def noisy(clock: Clock) -> float:
        return 0.1 * (1.0 + 0.2 * (draws.random() - 0.5))

    return [
        Fake(clock, "plain", 0.1, prompt=0.5, role="plain"),
        Fake(clock, "other plain", noisy, role="plain"),
        Fake(clock, "fast", 0.05, prompt=0.25),
        Fake(clock, "near", noisy, prompt=0.25),
        Fake(clock, "drafts", 0.08, at_once=3),
        Fake(clock, "again", 0.1, role="a/a"),
        Fake(clock, "peer", 0.09, role="peer", stepping=False),
        Fake(clock, "short list", 0.095, role="short list", full_depth=True),
    ]


def visited(clock: Clock, seed: int) -> str:
    """One prompt, decoded by all: who took how many tokens, one after another, and what was kept."""
    from offramp.timing.decoder import batches_of
    from offramp.timing.turns import visit

    clock.log.clear()
    (prompt,) = batches_of(PROMPTS[:1], 1)
    found = visit([fake.decoder for fake in contenders(clock)], prompt, NEW_TOKENS, random.Random(seed))
    kept = [f"{name}: blocks {rounded(decoded.blocks)}" for name, decoded in sorted(found.items())]
    return "\n".join([*turns_of(clock), *kept])


def timed(clock: Clock) -> str:
    """Turns until all is answered: the order of all blocks, and what the timing says."""
    from offramp.timing.decoder import batches_of
    from offramp.timing.stopping import Budget
    from offramp.timing.turns import Turns

    clock.log.clear()
    began = clock.now
    turns = Turns(
        decoders=[fake.decoder for fake in contenders(clock)],
        given=None,
        questions=["fast", "near"],
        prompts=batches_of(PROMPTS, 1),
        new_tokens=NEW_TOKENS,
        worth=0.05,
    )
    turns.take(Budget(90.0), seed=5)
    lines = turns_of(clock)
    lines.append(f"ended by {turns.stopped}, {len(turns.visits)} visits, against {turns.plain}")
    for name, series in sorted(turns.series.items()):
        ratio = series.over_plain()
        shown = None if ratio is None else rounded((ratio.value, ratio.low, ratio.high))
        lines.append(f"{name}: {shown} at {series.level:.6g}")
    return "\n".join([*lines, f"{clock.now - began:.6g} seconds"])


def turns_of(clock: Clock) -> list[str]:
    """Blocks in the order in which they were taken."""
    turns = itertools.groupby(clock.log, key=lambda step: step[0])
    return [f"{name} {' '.join(str(new) for _, new in steps)}" for name, steps in turns]


def rounded(values: Any) -> str:
    return " ".join("none" if value is None else f"{value:.6g}" for value in values)
