"""Does a guarantee hold, and does it leave any speed? A real trace as the population, and a simulated world.

    python benchmarks/guarantee.py TRACE --floors 0.99 0.95    calibration documents drawn from a real trace
    python benchmarks/guarantee.py                             the simulated world alone

With a trace of at least 600 documents as the population, calibration documents are drawn from it with
replacement, as many as it holds, and tuned on as `offramp tune` does: roles, search, sequence, test. The
exact risk of what was chosen is that on the population. Documents that the trace's exit heads were fitted on
are no part of it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from numpy.typing import NDArray

from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import machine_for
from offramp.scoring.documents import document_rows
from offramp.tracing.trace import Trace, heads_documents
from offramp.tuning.bounds import METHODS
from offramp.tuning.certificate import losses_in_order, ordered_candidates, run_sequence
from offramp.tuning.floor import Floor, make_floor
from offramp.tuning.pool import ROUNDING, Pool, SearchEvidence
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.search import search_pool
from offramp.tuning.splits import split_roles

DELTAS = (0.1, 0.05)

Matrix = NDArray[np.float64]


class Population:
    """All documents of a trace but those that exit heads were fitted on, and policies' true figures there."""

    def __init__(self, trace: Trace, floor: Floor, pricing: Pricing) -> None:
        used = heads_documents(trace)
        places = document_rows(trace).index
        free = [place for place in places if trace.documents[place].id not in used]
        self.trace = trace if len(free) == len(places) else trace.subset(np.array(free, dtype=np.int64))
        self.rows = document_rows(self.trace)
        self.facts = {name: self.trace.fact(name) for name in self.trace.fact_names}
        self.pricing = pricing
        self.evidence = SearchEvidence(self.trace, floor)

    def draw(self, rng: np.random.Generator) -> Trace:
        """As many documents as there are, drawn with replacement; a document drawn twice is two documents."""
        drawn = rng.integers(0, self.rows.count, self.rows.count)
        starts, lengths = self.rows.starts[drawn], self.rows.lengths[drawn]
        rows = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
        request = self.trace.request
        return Trace.from_facts(
            {name: fact[rows] for name, fact in self.facts.items()},
            document=np.repeat(np.arange(len(drawn)), lengths).astype(np.int32),
            position=self.trace.position[rows],
            exits=self.trace.exits,
            shape=self.trace.shape,
            provenance={"request": request},
        )

    def figures(self, policy: ExitPolicy) -> tuple[float, float]:
        """The exact risk and the net speedup of a policy."""
        risk, counts = self.evidence.outcome(policy)
        return risk, self.pricing.plain / self.pricing.of_counts(counts)


def tune_on_draws(world: Population, floor: Floor, draws: int, seed: int) -> dict[str, Any]:
    """How often each method broke the floor, and the speed that it leaves."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {
        name: {f"{delta:g}": {"broken": 0, "certified": 0, "risks": [], "speedups": []} for delta in DELTAS}
        for name in METHODS
    }
    for number in range(draws):
        drawn = world.draw(rng)
        roles = split_roles(drawn, seed + number)
        pool = Pool(drawn.subset(roles.search), floor, world.pricing)
        search_pool(pool, floor.risk)
        candidates = ordered_candidates(pool, floor.risk)
        policies = [candidate.policy for candidate in candidates]
        costs = [candidate.cost for candidate in candidates]
        losses = losses_in_order(drawn, roles.certify, policies, floor)
        for name, method in METHODS.items():
            for delta in DELTAS:
                tested = run_sequence(losses, costs, floor.risk, delta, method)
                entry = found[name][f"{delta:g}"]
                risk, speedup = 0.0, 1.0
                if tested.chosen is not None:
                    risk, speedup = world.figures(policies[tested.chosen])
                    entry["certified"] += 1
                entry["broken"] += int(risk > floor.risk + ROUNDING)
                entry["risks"].append(risk)
                entry["speedups"].append(speedup)
    for by_delta in found.values():
        for entry in by_delta.values():
            entry["mean_risk"] = float(np.mean(entry.pop("risks")))
            entry["mean_speedup"] = float(np.mean(entry.pop("speedups")))
    return found


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
        machine = None if options.hardware is None else machine_for(trace, options.hardware)
        for value in options.floors:
            started = time.perf_counter()
            floor = make_floor({"agreement": value})
            world = Population(trace, floor, pricing_of(trace, machine))
            result["population"] = {"documents": world.rows.count, "tokens": world.trace.token_count}
            outcome = tune_on_draws(world, floor, options.draws, options.seed)
            result[str(floor)] = outcome
            print(f"{floor}: {time.perf_counter() - started:.1f} s")
            for name, by_delta in outcome.items():
                for delta, entry in by_delta.items():
                    print(f"  {name:6s} delta {delta:5s} {entry}")
    result["simulated"] = simulate(min(options.draws, 100), options.seed)
    for name, counts in result["simulated"].items():
        print(f"  simulated: {name} {counts}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
