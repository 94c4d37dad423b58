"""Does a timing's interval cover, and does a copy of the best baseline ever pay? Simulated from kept turns.

    python benchmarks/verdict_simulated.py RUN [RUN ...] [--draws 200] [--worth 0.05]

RUN: folders of `offramp run` or studies, whose decode tasks kept what each prompt took. The timed prompts of
one text are the population; as many are drawn from it with replacement, and so are the decoded documents that
have a price. Of each draw:

1. *coverage*: whether the 95 % interval of a policy's speed over the best baseline at a floor holds that of
   the whole population.
2. *a copy*: a contender that is the best baseline, slower or faster by what the same decoder differed from
   itself on a prompt (the a/a pairs, their mean taken away). It must not pay.
3. *8 %*: the same, faster by 8 %. It should pay.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from offramp.defaults import WORTH
from offramp.studies.work.decode import DecodedPolicies, DecodeWork
from offramp.timing.ratios import as_fast, ratio_over
from offramp.timing.results import A_A, BenchResult, Cluster

INJECTED = 0.08
FLOORS = (0.99, 0.95, 0.9)


def drawn(clusters: Sequence[Cluster], places: Sequence[int]) -> list[Cluster]:
    """The clusters of drawn prompts, each a prompt of its own."""
    return [replace(clusters[place], prompt=number) for number, place in enumerate(places)]


def shared(bench: BenchResult, name: str, over: str) -> tuple[list[Cluster], list[Cluster]]:
    """Clusters of a contender and of a baseline over the same plain decoder, on the prompts of both."""
    own = {cluster.prompt: cluster for cluster in bench.contender(name).clusters}
    if over == bench.plain:
        return list(own.values()), as_fast(list(own.values()))
    theirs = {cluster.prompt: cluster for cluster in bench.contender(over).clusters}
    both = sorted(own.keys() & theirs.keys())
    return [own[prompt] for prompt in both], [theirs[prompt] for prompt in both]


def simulate(bench: BenchResult, name: str, floor: float, draws: int, worth: float, seed: int) -> Any:
    """What came of the draws; None where the credit has no interval."""
    credit = bench.credit(name, floor)
    if credit is None:
        return None
    own, theirs = shared(bench, name, credit.over)
    prices, rng = np.array(bench.contender(name).prices), np.random.default_rng(seed)
    whole = ratio_over(own, theirs, prices=prices.tolist())
    assert whole is not None
    again = next(one for one in bench.contenders if one.role == A_A)
    noise = np.array([cluster.log_ratio for cluster in again.clusters])
    noise = (noise - noise.mean()) * math.sqrt(len(noise) / max(1, len(noise) - 1))
    covered, copies, faster, widths = 0, 0, 0, []
    for _ in range(draws):
        places = rng.integers(len(own), size=len(own)).tolist()
        some = rng.choice(prices, len(prices)).tolist() if len(prices) else []
        found = ratio_over(drawn(own, places), drawn(theirs, places), prices=some)
        if found is None or found.low is None or found.high is None:
            continue
        covered += found.low <= whole.value <= found.high
        widths.append(math.sqrt(found.high / found.low) - 1.0)
        baseline, apart = drawn(theirs, places), rng.choice(noise, len(places))
        for gain in (0.0, INJECTED):
            copy = [
                replace(one, log_ratio=one.log_ratio + math.log1p(gain) + away)
                for one, away in zip(baseline, apart.tolist(), strict=True)
            ]
            ratio = ratio_over(copy, baseline)
            pays = ratio is not None and ratio.low is not None and ratio.low > 1.0 + worth
            copies, faster = copies + (pays and not gain), faster + (pays and gain > 0.0)
    return {
        "policy": name,
        "floor": floor,
        "over": credit.over,
        "credit": [credit.value, credit.low, credit.high],
        "prompts": len(own),
        "documents": len(prices),
        "noise": float(noise.std()),
        "half_width": float(np.median(widths)),
        "coverage": covered / len(widths),
        "copies_that_pay": copies / len(widths),
        "faster_that_pay": faster / len(widths),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--worth", type=float, default=WORTH)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for path in (path for run in options.runs for path in sorted(run.glob("tasks/decode/*/result.json"))):
        result = DecodeWork.read(json.loads(path.read_text()))
        if not isinstance(result, DecodedPolicies):
            continue
        found: dict[tuple[str, str], Any] = {}
        for choice, floor in ((choice, floor) for choice in result.chosen for floor in FLOORS):
            row = simulate(result.bench, choice.contender, floor, options.draws, options.worth, options.seed)
            if row is not None:
                found.setdefault((row["policy"], row["over"]), row)
        for row in found.values():
            rows.append({"run": path.parents[3].name, **row})
            print(json.dumps(rows[-1]), flush=True)
    figures = ("half_width", "coverage", "copies_that_pay", "faster_that_pay")
    means = {name: float(np.mean([row[name] for row in rows])) for name in figures} if rows else {}
    print(json.dumps({"benchmark": "verdict_simulated", "draws": options.draws, "rows": rows, **means}))


if __name__ == "__main__":
    main()
