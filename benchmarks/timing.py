"""How often the answers of a timing are wrong, and how fast they become precise.

    python benchmarks/timing.py                                the simulation, then this machine
    python benchmarks/timing.py --parts simulation
    python benchmarks/timing.py --parts machine --seconds 30,60,120

simulation: blocks of two contenders in random order on a machine whose speed wanders, at pair spreads of 2,
3, 5.5 and 10 %, through the very statistics of `offramp bench`: how often equal contenders are called faster
or slower, how often contenders that differ by exactly the worth are called equivalent, and how often the
right answer is given. machine: the same decoder twice as policy and as baseline, for several budgets: half-width
against seconds spent. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from offramp.decoding.bench.answers import Looks, answer_of, resolution_of
from offramp.decoding.bench.series import Series

SPREADS = (0.02, 0.03, 0.055, 0.10)
PROMPT_SPREAD = 0.02
"""Of a contender's gain over prompts, where it has one at all."""


@dataclass(frozen=True)
class World:
    """A machine and two contenders on it.

    ratio: plain seconds over the contender's. pair_spread: standard deviation of the log-ratio of a pair of
    blocks. prompt_spread: of the contender's true log-ratio over prompts. drift: standard deviation of the
    machine's log-speed from one block to the next; it wanders. prompts, pairs: visited, and in each visit.
    """

    ratio: float = 1.0
    pair_spread: float = 0.055
    prompt_spread: float = 0.0
    drift: float = 0.01
    prompts: int = 12
    pairs: int = 8
    worth: float = 0.05


@dataclass(frozen=True)
class Outcome:
    """What one series of blocks came to. holds: whether the interval holds the true ratio."""

    answer: str
    half_width: float
    prompts: int
    holds: bool


def timed(world: World, random: np.random.Generator) -> Outcome:
    """One series of blocks, looked at on schedule until it is over or all prompts were visited."""
    series, looks = Series(), Looks()
    blocks = random.normal(0.0, world.drift, (world.prompts, world.pairs, 2)).cumsum().reshape(-1, 2)
    noise = random.normal(0.0, world.pair_spread / math.sqrt(2.0), blocks.shape)
    order = random.random(len(blocks)) < 0.5
    speed = np.where(order[:, None], blocks, blocks[:, ::-1]) + noise
    gains = math.log(world.ratio) + random.normal(0.0, world.prompt_spread, world.prompts)
    pairs = (speed[:, 0] - speed[:, 1]).reshape(world.prompts, world.pairs) + gains[:, None]
    visited = 0
    for prompt, log_ratios in enumerate(pairs):
        visited = prompt + 1
        series.add(prompt, log_ratios.tolist())
        level = looks.due(visited / world.prompts) if visited < world.prompts else None
        if level is not None:
            series.look(level)
            if series.is_over(world.worth):
                break
    else:
        series.look(looks.last())
    ratio = series.ratio
    assert ratio is not None  # a prompt was visited
    assert ratio.low is not None
    assert ratio.high is not None
    return Outcome(
        answer_of(ratio, world.worth),
        resolution_of(ratio) or 0.0,
        visited,
        ratio.low <= world.ratio <= ratio.high,
    )


def rates(world: World, runs: int, seed: int = 0) -> dict[str, Any]:
    """Shares of the answers over so many runs, with medians of half-width and prompts."""
    random = np.random.default_rng(seed)
    found = [timed(world, random) for _ in range(runs)]
    answers = Counter(one.answer for one in found)
    return {
        **{answer: answers[answer] / runs for answer in ("faster", "slower", "equivalent", "unresolved")},
        "interval_misses": 1.0 - float(np.mean([one.holds for one in found])),
        "half_width": float(np.median([one.half_width for one in found])),
        "prompts": float(np.mean([one.prompts for one in found])),
    }


def simulation(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Errors and power at every pair spread."""
    rows = []
    for spread in SPREADS:
        world = World(pair_spread=spread, prompts=options.prompts, pairs=options.pairs, worth=options.worth)
        at_worth = replace(world, prompt_spread=PROMPT_SPREAD)
        equal = rates(world, options.runs)
        margins = [
            rates(replace(at_worth, ratio=(1 + options.worth) ** way), options.runs, seed)
            for way, seed in ((1, 1), (-1, 2))
        ]
        twice = rates(replace(at_worth, ratio=(1 + options.worth) ** 2), options.runs, 3)
        row = {
            "pair_spread": spread,
            "equal_said_different": equal["faster"] + equal["slower"],
            "equal_said_equivalent": equal["equivalent"],
            "at_worth_said_equivalent": max(margin["equivalent"] for margin in margins),
            "twice_worth_said_faster": twice["faster"],
            "interval_misses": max(one["interval_misses"] for one in (equal, *margins, twice)),
            "half_width": equal["half_width"],
        }
        rows.append(row)
        print(
            f"pair spread {spread:.1%}: equal called different {row['equal_said_different']:.2%}, at ± "
            f"{options.worth:.0%} called equivalent {row['at_worth_said_equivalent']:.2%}; equal called "
            f"equivalent {row['equal_said_equivalent']:.1%}, at {(1 + options.worth) ** 2:.3f} called faster "
            f"{row['twice_worth_said_faster']:.1%}; intervals that miss the truth "
            f"{row['interval_misses']:.2%}; half-width {row['half_width']:.2%}"
        )
    return rows
