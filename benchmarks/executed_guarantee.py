"""Does an executed guarantee hold, and a replayed one? Losses that were really decoded are the population.

    python benchmarks/executed_guarantee.py TRACE --executions FOLDER [--prompts 300] [--candidates 12]

TRACE: of a text workload, with at least --prompts documents beside those to search on; its own model is
loaded. Candidates are proposed on the search documents as `offramp tune` does, with rerun risks spread around
the floors, and decode the opening of each other document. That is kept in FOLDER: what was stopped goes on.
Calibration documents are then drawn from these with replacement, and the sequence of candidates is tested on
each draw: by the betting bound document by document, Hoeffding-Bentkus, no test at all (naive), and the
betting bound on the *replayed* losses of the same documents. The floor is broken where the mean executed loss
of what was chosen, over all of these documents, exceeds it. Besides 95 and 90 % the floors are the hardest
that there are, a little above what each candidate keeps: to certify it there is to break the floor. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from numpy.typing import NDArray

from offramp.cli.shared_options import load_traced_model, read_traced_heads
from offramp.costs.machine import Machine
from offramp.decoding.execution.executor import ModelExecutor, opened_executor, strategies_of
from offramp.policies.charge import prices_for
from offramp.policies.prices import machine_for
from offramp.scoring.documents import document_rows
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import METHODS, settle
from offramp.tuning.certificate import losses_in_order, run_sequence
from offramp.tuning.fixed_sequence import Deadline, Proposal
from offramp.tuning.floor import make_floor
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import pricing_of
from offramp.tuning.proposals import Proposals
from offramp.tuning.search import search_pool
from offramp.tuning.splits import Roles, split_roles

FLOORS = (0.95, 0.9)
DELTAS = (0.1, 0.05)
LIMITS = {"0.1": 27, "0.05": 15}
"""Of 200 draws, at most so many may break the floor."""

HARDEST = 0.97
"""A floor just above what a candidate keeps allows so much of its loss."""

SPREAD = 0.2
"""Candidates have rerun risks from 0 to this."""

Matrix = NDArray[np.float64]


class Population:
    """Losses of candidates on documents: executed, replayed: [documents, candidates].

    costs: of the candidates, over plain decoding. reruns, replays: search risks, which order them.
    """

    def __init__(self, candidates: list[Proposal], executed: Matrix, replayed: Matrix) -> None:
        self.executed, self.replayed = executed, replayed
        self.costs = np.array([one.relative_cost for one in candidates])
        self.reruns = np.array([one.risk for one in candidates])
        self.replays = np.array([one.replayed for one in candidates])
        self.risks = executed.mean(axis=0)

    def order(self, risks: NDArray[np.float64], allowed: float) -> list[int]:
        """Candidates from cautious to bold within the allowed search risk, each faster than all before it."""
        found: list[int] = []
        for place in np.lexsort((self.costs, risks)).tolist():
            if risks[place] <= allowed and self.costs[place] < min([1.0, *self.costs[found]]):
                found.append(place)
        return found


def propose(
    executor: ModelExecutor, machine: Machine | None, places: NDArray[np.int64], count: int
) -> list[Proposal]:
    """Candidates with rerun risks spread from 0 to SPREAD on the search documents."""
    trace = executor.trace
    floor = make_floor({"agreement": 1.0 - SPREAD})
    pool = Pool(trace.subset(places), floor, pricing_of(trace, machine))
    search_pool(pool, floor.risk)
    tried = Proposals([pool], executor, partial(prices_for, trace, machine), places, Deadline(None))
    tried.calibrate(floor.risk)
    within = sorted(
        (one for one in tried.found.values() if one.risk <= 1.2 * SPREAD and one.relative_cost < 1.0),
        key=lambda one: (one.risk, one.relative_cost),
    )
    wanted = np.linspace(0, len(within) - 1, min(count, len(within))).round().astype(int)
    return [within[place] for place in dict.fromkeys(wanted.tolist())]


def sequential(
    world: Population, drawn: NDArray[np.int64], risk: float, delta: float
) -> tuple[int | None, int]:
    """The chosen candidate, and the documents decoded in all, of the sequence with the betting bound."""
    chosen, decoded = None, 0
    for place in world.order(world.reruns, risk):
        ended = settle(world.executed[drawn, place], risk, delta, len(drawn))
        assert ended is not None, "all planned documents are at hand"
        outcome, documents = ended
        decoded += documents
        if outcome != "certified":
            break
        chosen = place
    return chosen, decoded


def at_once(
    world: Population, losses: Matrix, order: list[int], risk: float, delta: float, method: str
) -> tuple[int | None, int]:
    """The same of a method that looks at all documents of every candidate that it tests."""
    tested = run_sequence(losses[:, order], world.costs[order].tolist(), risk, delta, METHODS[method])
    return None if tested.chosen is None else order[tested.chosen], tested.tested * len(losses)


def count_broken(world: Population, floor: float, documents: int, draws: int, seed: int) -> dict[str, Any]:
    """How often each way to certify broke a floor, at every delta."""
    risk = 1.0 - floor
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    samples = [rng.integers(0, len(world.executed), documents) for _ in range(draws)]
    for delta in DELTAS:
        for drawn in samples:
            rerun, replayed = world.order(world.reruns, risk), world.order(world.replays, risk)
            outcomes = {
                "wsr sequential": sequential(world, drawn, risk, delta),
                "hb": at_once(world, world.executed[drawn], rerun, risk, delta, "hb"),
                "naive": at_once(world, world.executed[drawn], rerun, risk, delta, "naive"),
                "replay bound": at_once(world, world.replayed[drawn], replayed, risk, delta, "wsr"),
            }
            for name, (chosen, decoded) in outcomes.items():
                entry = found.setdefault(name, {}).setdefault(
                    f"{delta:g}", {"broken": 0, "certified": 0, "risk": [], "speed": [], "documents": []}
                )
                entry["certified"] += int(chosen is not None)
                entry["broken"] += int(chosen is not None and world.risks[chosen] > risk + 1e-12)
                entry["risk"].append(0.0 if chosen is None else world.risks[chosen])
                entry["speed"].append(1.0 if chosen is None else 1.0 / world.costs[chosen])
                entry["documents"].append(0 if name == "replay bound" else decoded)
    for by_delta in found.values():
        for entry in by_delta.values():
            for name in ("risk", "speed", "documents"):
                entry[f"mean_{name}"] = float(np.mean(entry.pop(name)))
    return found


def hardest_floors(world: Population) -> list[float]:
    """A floor just above what each candidate keeps, from 80 to 99 %."""
    floors = (1.0 - HARDEST * risk for risk in sorted(world.risks.tolist()))
    return [round(floor, 4) for floor in floors if 0.8 <= floor <= 0.99]


def decode(
    executor: ModelExecutor, candidates: list[Proposal], prompts: int, roles: Roles
) -> tuple[Matrix, Matrix]:
    """Executed and replayed losses of the first documents with an opening: [documents, candidates] each."""
    openings = executor.openings.certify[:prompts]
    trace = executor.trace
    places = {trace.documents[int(place)].id: int(place) for place in roles.certify}
    where = np.array([places[opening.document] for opening in openings], dtype=np.int64)
    columns = []
    for number, one in enumerate(candidates, start=1):
        started, made = time.perf_counter(), executor.store.made
        columns.append(executor.losses(one.policy, one.kv, 0, len(openings)))
        executed = 1.0 - columns[-1].mean()
        kept = f"replayed {1 - one.replayed:.3f}, rerun {1 - one.risk:.3f}, executed {executed:.3f}"
        new, seconds = executor.store.made - made, time.perf_counter() - started
        print(f"candidate {number} of {len(candidates)}: {one.policy} {one.kv}: {kept}", flush=True)
        print(f"  {new} documents decoded in {seconds:.0f} s", flush=True)
    floor = make_floor({"agreement": 0.95})
    replayed = losses_in_order(trace, where, [one.policy for one in candidates], floor)
    return np.stack(columns, axis=1), replayed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--executions", type=Path, required=True)
    parser.add_argument("--heads", type=Path)
    parser.add_argument("--hardware", help="a machine; by default bytes moved")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=12)
    parser.add_argument("--search", type=int, default=48, help="documents to search on")
    parser.add_argument("--documents", type=int, default=300, help="of one draw")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    strategies_of(options.kv)
    trace = Trace.load(options.trace)
    machine = None if options.hardware is None else machine_for(trace, options.hardware)
    heads = read_traced_heads(trace, options.heads)
    model = load_traced_model(trace, None, heads, instead="there is nothing to measure")
    with opened_executor(
        model,
        trace,
        kv=options.kv,
        heads=heads,
        workload=None,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        folder=options.executions,
        seed=options.seed,
    ) as executor:
        roles = split_roles(trace, options.seed)
        search, rest = roles.search[: options.search], executor.openings.certify
        executor.openings = replace(executor.openings, certify=tuple(one for one in rest if one.traced))
        candidates = propose(executor, machine, search, options.candidates)
        executed, replayed = decode(executor, candidates, options.prompts, roles)
    world = Population(candidates, executed, replayed)
    result: dict[str, Any] = {
        "benchmark": "executed_guarantee",
        "model": model.shown_name,
        "workload": trace.request["workload"]["name"],
        "prompts": len(executed),
        "search_documents": len(search),
        "traced_documents": document_rows(trace).count,
        "documents_of_a_draw": options.documents,
        "draws": options.draws,
        "limits": LIMITS,
        "candidates": [
            {
                "policy": str(one.policy),
                "kv": one.kv,
                "replayed": 1.0 - one.replayed,
                "rerun": 1.0 - one.risk,
                "executed": 1.0 - risk,
                "predicted_speed": 1.0 / one.relative_cost,
            }
            for one, risk in zip(candidates, world.risks.tolist(), strict=True)
        ],
    }
    for floor in (*FLOORS, *hardest_floors(world)):
        counted = count_broken(world, floor, options.documents, options.draws, options.seed)
        result[f"agreement={floor:g}"] = counted
        for name, by_delta in counted.items():
            for delta, entry in by_delta.items():
                print(f"agreement={floor:g} {name:15s} delta {delta:5s} {entry}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
