"""Does a guarantee hold, and does it leave any speed? A real trace as the population, and a simulated world.

    python benchmarks/guarantee.py TRACE --floors 0.99 0.95    calibration documents drawn from a real trace
    python benchmarks/guarantee.py                             the simulated world alone

With a trace of at least 600 documents as the population, calibration documents are drawn from it with
replacement, as many as it holds, a policy is tuned on them, and its exact risk on the population is compared
with the floor. Candidates are the policies near the front of the whole population; which of them are tested,
and in which order, is searched anew on each draw's own search documents. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from numpy.typing import NDArray

from offramp.policies.charging import walk_costs
from offramp.policies.walk import walk
from offramp.scoring.documents import document_rows
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import METHODS
from offramp.tuning.certify import order_places, run_sequence
from offramp.tuning.losses import document_losses, make_floor
from offramp.tuning.pool import Pool, Scored
from offramp.tuning.pricing import pricing_of
from offramp.tuning.searching import search_pool
from offramp.tuning.splits import REPORT_SHARE, SEARCH_SHARE
from offramp.tuning.tune import find_hardware

DELTAS = (0.1, 0.05)
# Policies kept for each of these risks, in allowed risks, near the population's front.
RISKS = tuple(float(risk) for risk in np.linspace(0.0, 3.0, 61))
KEPT = 4
DENSER = (0.9, 1.0, 1.1, 1.2, 1.35, 1.6, 2.0, 3.0)

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """What each policy does to each document.

    losses, costs: float64 [documents, policies]. tokens: [documents]. plain: cost of a full token.
    """

    losses: Matrix
    costs: Matrix
    tokens: NDArray[np.float64]
    plain: float


def near_the_front(pool: Pool, risk: float) -> list[Scored]:
    """A few of the fastest policies at each of many risks, and every one only once."""
    kept: dict[str, Scored] = {}
    for factor in RISKS:
        within = sorted(
            (scored for scored in pool.found if scored.risk <= factor * risk + 1e-12),
            key=lambda scored: scored.cost,
        )
        kept.update({str(scored.policy): scored for scored in within[:KEPT]})
    return [scored for scored in kept.values() if scored.cost < pool.pricing.plain]


def population_of(trace: Trace, floor: float, hardware: str | None) -> Population:
    """Every candidate's loss and cost on every document."""
    checked = make_floor({"agreement": floor})
    pricing = pricing_of(trace, find_hardware(trace, hardware))
    pool = Pool(trace, checked, pricing)
    # Several searches, so that candidates lie densely around the allowed risk, as they do on any one draw.
    for factor in DENSER:
        search_pool(pool, factor * checked.risk, thorough=False)
    rows = document_rows(trace)
    losses, costs = [], []
    for scored in near_the_front(pool, checked.risk):
        walked = walk(scored.policy, trace)
        losses.append(document_losses(trace, pool.losses, walked.exits))
        costs.append(rows.sums(walk_costs(pricing.costs, walked)))
    empty = np.zeros((rows.count, 0))
    return Population(
        np.stack(losses, axis=1) if losses else empty,
        np.stack(costs, axis=1) if costs else empty,
        rows.tokens,
        pricing.plain,
    )


def draw_and_tune(world: Population, floor: float, draws: int, seed: int) -> dict[str, Any]:
    """Tune on draws of documents: how often each method broke the floor, and the speed that it leaves."""
    risk = 1.0 - floor
    rng = np.random.default_rng(seed)
    count = len(world.tokens)
    search, report = round(SEARCH_SHARE * count), round(REPORT_SHARE * count)
    truth = world.losses.mean(axis=0)
    speed = world.plain * world.tokens.sum() / world.costs.sum(axis=0)
    outcome: dict[str, Any] = {
        name: {f"{delta:g}": {"broken": 0, "certified": 0, "speedups": []} for delta in DELTAS}
        for name in METHODS
    }
    for _ in range(draws):
        drawn = rng.integers(0, count, count)
        looked, certify = drawn[:search], drawn[search : count - report]
        costs = world.costs[looked].sum(axis=0) / world.tokens[looked].sum()
        places = order_places(world.losses[looked].mean(axis=0), costs, world.plain, risk)
        losses = world.losses[certify][:, places]
        for name, method in METHODS.items():
            for delta in DELTAS:
                tested = run_sequence(losses, [float(costs[place]) for place in places], risk, delta, method)
                entry = outcome[name][f"{delta:g}"]
                if tested.chosen is None:
                    entry["speedups"].append(1.0)
                    continue
                chosen = places[tested.chosen]
                entry["certified"] += 1
                entry["broken"] += int(truth[chosen] > risk + 1e-12)
                entry["speedups"].append(float(speed[chosen]))
    for by_delta in outcome.values():
        for entry in by_delta.values():
            entry["mean_speedup"] = float(np.mean(entry.pop("speedups")))
    return outcome


def clustered_losses(
    rng: np.random.Generator, documents: int, tokens: int, risks: NDArray[np.float64], difficult: float
) -> Matrix:
    """Losses of documents in a world where a share `difficult` of them bears all of it: [documents, risks].

    Every policy has the true risk that `risks` says.
    """
    hard = rng.random(documents) < difficult
    rates = np.minimum(risks / difficult, 1.0)
    return np.where(hard[:, None], rng.binomial(tokens, rates, (documents, len(risks))) / tokens, 0.0)


def simulate(draws: int, seed: int) -> dict[str, Any]:
    """How often bounds on documents, and the same bounds on tokens taken as independent, break a floor."""
    rng = np.random.default_rng(seed)
    documents, tokens, allowed, difficult = 120, 256, 0.05, 0.1
    risks = np.linspace(0.005, 0.1, 20)
    costs = [-float(risk) for risk in risks]  # the bolder, the faster
    found: dict[str, Any] = {
        "documents": documents,
        "tokens_per_document": tokens,
        "allowed_risk": allowed,
        "draws": draws,
    }
    for name in ("wsr", "hb"):
        for unit in ("document", "token"):
            found[f"{name}_{unit}_level"] = {f"{delta:g}": 0 for delta in DELTAS}
    for _ in range(draws):
        by_document = clustered_losses(rng, documents, tokens, risks, difficult)
        # Token by token, in random order: what a bound that knows no documents sees.
        lost = np.rint(by_document.sum(axis=0) * tokens).astype(np.int64)
        by_token = np.zeros((documents * tokens, len(risks)))
        for place, number in enumerate(lost):
            by_token[rng.permutation(documents * tokens)[:number], place] = 1.0
        for name in ("wsr", "hb"):
            for unit, losses in (("document", by_document), ("token", by_token)):
                for delta in DELTAS:
                    tested = run_sequence(losses, costs, allowed, delta, METHODS[name])
                    broken = tested.chosen is not None and risks[tested.chosen] > allowed + 1e-12
                    found[f"{name}_{unit}_level"][f"{delta:g}"] += int(broken)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--floors", type=float, nargs="+", default=[0.99, 0.95])
    parser.add_argument("--hardware", help="a machine; by default bytes moved")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "guarantee",
        "draws": options.draws,
        "limits": {"0.1": 27, "0.05": 15},
    }
    if options.trace is not None:
        trace = Trace.load(options.trace)
        result["population"] = {"documents": document_rows(trace).count, "tokens": trace.token_count}
        for floor in options.floors:
            started = time.perf_counter()
            world = population_of(trace, floor, options.hardware)
            outcome = draw_and_tune(world, floor, options.draws, options.seed)
            result[f"agreement={floor:g}"] = outcome
            seconds = time.perf_counter() - started
            print(f"agreement={floor:g}: {world.losses.shape[1]} candidates, {seconds:.1f} s")
            for name, by_delta in outcome.items():
                for delta, entry in by_delta.items():
                    print(f"  {name:6s} delta {delta:5s} {entry}")
    result["simulated"] = simulate(min(options.draws, 100), options.seed)
    for name, counts in result["simulated"].items():
        print(f"  simulated: {name} {counts}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
