"""How often the answers of a timing are wrong, and how fast they become precise.

    python benchmarks/timing.py                                the simulation, then this machine
    python benchmarks/timing.py --parts simulation
    python benchmarks/timing.py --parts machine --seconds 30,60,120

simulation: blocks of two contenders in random order on a machine whose speed wanders, at pair spreads of 2,
3, 5.5 and 10 %, through the very statistics of `offramp bench`: how often equal contenders are called faster
or slower, how often contenders that differ by exactly the worth are called equivalent, and how often the
right answer is given. machine: the full model in our loop against itself, once for each budget, on this
machine: the half-width against the seconds spent. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from offramp.scoring.estimate import Estimate
from offramp.timing.stopping import Looks, PairedTimes, answer_of, resolution_of

SPREADS = (0.02, 0.03, 0.055, 0.10)
PROMPT_SPREAD = 0.02
"""Of a contender's gain over prompts, where it has one at all."""


@dataclass(frozen=True)
class World:
    """A machine, a contender and plain decoders on it.

    ratio: plain seconds over the contender's. pair_spread: standard deviation of the log-ratio of a pair of
    blocks. prompt_spread: of the contender's true log-ratio over prompts. drift: standard deviation of the
    machine's log-speed from one block to the next; it wanders. prompts, pairs: visited, and in each visit.
    plain: how many equally fast plain decoders there are, of which the times choose one.
    """

    ratio: float = 1.0
    pair_spread: float = 0.055
    prompt_spread: float = 0.0
    drift: float = 0.01
    prompts: int = 12
    pairs: int = 8
    worth: float = 0.05
    plain: int = 1


@dataclass(frozen=True)
class Outcome:
    """What one series of blocks came to.

    holds: whether the interval holds the true ratio; alone_holds: whether that of the least speed over a
    plain decoder would, which does not know that it is the least of several.
    """

    answer: str
    half_width: float
    prompts: int
    holds: bool
    alone_holds: bool


def timed(world: World, random: np.random.Generator) -> Outcome:
    """One series of blocks, looked at on schedule until it is over or all prompts were visited."""
    plain = [f"plain {place}" for place in range(world.plain)]
    series, looks = PairedTimes(plain), Looks()
    shape = (world.prompts, world.pairs, 1 + world.plain)
    blocks = random.normal(0.0, world.drift, shape).cumsum().reshape(-1, shape[-1])
    noise = random.normal(0.0, world.pair_spread / math.sqrt(2.0), blocks.shape)
    speed = (random.permuted(blocks, axis=1) + noise).reshape(shape)
    gains = math.log(world.ratio) + random.normal(0.0, world.prompt_spread, world.prompts)
    seconds = np.exp(speed)
    seconds[:, :, 1:] *= np.exp(gains)[:, None, None]
    visited = 0
    for prompt, blocks in enumerate(seconds):
        visited = prompt + 1
        for name, others in zip(plain, blocks.T[1:], strict=True):
            series.add(name, prompt, list(zip(others.tolist(), blocks[:, 0].tolist(), strict=True)))
        level = looks.due(visited / world.prompts) if visited < world.prompts else None
        if level is not None:
            series.look(level)
            if series.is_over(world.worth):
                break
    else:
        series.look(looks.last())
    ratio = series.over_plain()
    assert ratio is not None  # a prompt was visited
    return Outcome(
        answer_of(ratio, world.worth),
        resolution_of(ratio) or 0.0,
        visited,
        _holds(ratio, world.ratio),
        _holds(min((series.ratio(name) for name in plain), key=_value), world.ratio),
    )


def _value(ratio: Estimate[float] | None) -> float:
    return math.inf if ratio is None else ratio.value


def _holds(ratio: Estimate[float] | None, true: float) -> bool:
    if ratio is None or ratio.low is None or ratio.high is None:
        return True
    return ratio.low <= true <= ratio.high


def rates(world: World, runs: int, seed: int = 0) -> dict[str, Any]:
    """Shares of the answers over so many runs, with medians of half-width and prompts."""
    random = np.random.default_rng(seed)
    found = [timed(world, random) for _ in range(runs)]
    answers = Counter(one.answer for one in found)
    return {
        **{answer: answers[answer] / runs for answer in ("faster", "slower", "equivalent", "unresolved")},
        "interval_misses": 1.0 - float(np.mean([one.holds for one in found])),
        "alone_misses": 1.0 - float(np.mean([one.alone_holds for one in found])),
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


def machine(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Equal contenders timed for real: what `offramp bench` resolves in so many seconds here."""
    import offramp
    from offramp.decoding.openings import prompts_of
    from offramp.decoding.options import DecodingOptions
    from offramp.timing.bench import run, settle
    from offramp.timing.contenders import DYNAMIC, NEVER, WHOLE, Extent
    from offramp.timing.stopping import TimeLimits
    from offramp.workloads.registry import load_workload

    model = offramp.load_model(options.model)
    prompts = prompts_of(
        model, load_workload(options.workload), 1, most=options.prompts, new_tokens=options.new_tokens
    )
    setting = settle(model, [DecodingOptions.read("never", new_tokens=options.new_tokens)], prompts=prompts)
    rows = []
    for budget in map(float, options.seconds.split(",")):
        extent = Extent((NEVER, DYNAMIC, WHOLE), NEVER)
        result = run(setting, limits=TimeLimits(budget, worth=options.worth), extent=extent).result
        ratio = result.main.ratio
        assert ratio is not None  # it was timed
        row = {
            "budget_seconds": budget,
            "seconds_spent": result.seconds_spent,
            "stopped": result.stopped,
            "prompts": result.prompts,
            "answer": result.answer,
            "ratio": ratio.value,
            "low": ratio.low,
            "high": ratio.high,
            "half_width": result.resolution,
            "pair_spread": _pair_spread(result.contender(f"{NEVER} again").clusters),
            "other_load": result.circumstances["other_load"],
            "defects": list(result.defects),
        }
        rows.append(row)
        print(
            f"{result.seconds_spent:.0f} of {budget:.0f} s ({result.stopped}): {result.prompts} prompts, "
            f"{result.answer}, {ratio.value:.4f} ± {result.resolution or math.nan:.2%}"
        )
    return rows


def _pair_spread(clusters: Sequence[Any]) -> float | None:
    """Of one pair, from the spread of clusters of equal contenders: theirs times the root of their pairs."""
    if len(clusters) < 2:
        return None
    logs = np.array([one.log_ratio for one in clusters])
    return float(logs.std(ddof=1) * math.sqrt(np.mean([one.pairs for one in clusters])))


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "simulation": simulation,
    "machine": machine,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for."""
    options = _options(arguments)
    names = list(PARTS) if options.parts == "all" else options.parts.split(",")
    print(json.dumps({"settings": vars(options), **{name: PARTS[name](options) for name in names}}))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", default="all", help=f"of {', '.join(PARTS)}, or all")
    parser.add_argument("--runs", type=int, default=4000, help="of each simulated case")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=8, help="of blocks, on each simulated prompt")
    parser.add_argument("--worth", type=float, default=0.05)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--workload", default="prose")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seconds", default="30,60,120", help="budgets on this machine")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
