"""A server the plain way, one step and one row after the other; made-up prices and policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from offramp.policies.grammar import parse_policy
from offramp.scoring.documents import DocumentRows
from offramp.serving.contenders import POLICY, LoadContender, Rung
from offramp.serving.prices import StepPrices
from offramp.serving.request import ServerLimits
from offramp.serving.simulator import Demand


def prices(
    stops: Sequence[int] = (), layers: int = 6, rows: int = 8, *, slope: float = 0.0, **given: Any
) -> StepPrices:
    """A layer takes 1 + 0.25 a row more (and `slope` a row and position), K and V a tenth of that."""
    many = np.arange(rows + 1.0)
    some = many > 0
    contexts = np.array([0.0, 100.0])
    sizes = np.diff([0, *stops, layers])[:, None, None]
    layer = np.where(some, 0.75 + 0.25 * many, 0.0)[:, None] + slope * many[:, None] * contexts
    values: dict[str, Any] = {
        "stops": tuple(stops),
        "depth": layers,
        "contexts": contexts,
        "layers": sizes * layer,
        "repair": 0.1 * sizes * layer,
        "probe": np.tile(0.2 * some + 0.01 * many, (len(stops), 1)),
        "exit_head": np.tile(0.5 * some + 0.05 * many, (len(stops), 1)),
        "answered": np.zeros(len(stops), dtype=np.bool_),
        "final": 0.6 * some + 0.05 * many,
        "overhead": 0.3 + 0.02 * many,
        "prompt": lambda tokens, past: 0.4 * tokens + 0.001 * tokens * past,
        "first_token": 0.65,
        "rates": (0.5,) * len(stops),
    }
    return StepPrices(**(values | given))


def contender(
    stops: Sequence[int] = (), layers: int = 6, tokens: int = 400, seed: int = 0, name: str = "policy"
) -> LoadContender:
    """Tokens that leave at random stops, or not at all; four of five of those that leave are right."""
    draw = np.random.default_rng(seed)
    exits = draw.choice([*stops, layers], tokens)
    kept = draw.random((len(stops) + 1, tokens)) < 0.8
    kept[-1] = True
    rung = Rung(parse_policy("never"), exits, {}, kept, tuple(stops), layers)
    return LoadContender(name, POLICY, (rung,))


def documents(lengths: Sequence[int]) -> DocumentRows:
    """Documents of so many tokens, one after the other."""
    own = np.array(lengths)
    place = np.arange(len(own))
    return DocumentRows(np.cumsum(own) - own, own, place, place, own.astype(np.float64))


def some_demand(count: int, rate: float, seed: int, *, prompt: int = 12, output: int = 9) -> Demand:
    draw = np.random.default_rng(seed)
    return Demand(
        np.cumsum(draw.exponential(1.0 / rate, count)),
        draw.integers(1, prompt, count),
        draw.integers(1, output, count),
        draw.random((count, 2)),
    )


def served_slowly(
    demand: Demand,
    answers: Sequence[Any],
    served_by: LoadContender,
    by: StepPrices,
    limits: ServerLimits,
) -> list[list[float]]:
    """When each token of each request was there."""
    times: list[list[float]] = [[] for _ in range(len(demand))]
    filled = [0] * len(demand)
    now, waiting, active, arrived = 0.0, [], [], 0
    while any(len(found) < output for found, output in zip(times, demand.output, strict=True)):
        while arrived < len(demand) and demand.arrival[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        if not waiting and not active:
            now = float(demand.arrival[arrived])
            continue
        decoding = [one for one in active if filled[one] == demand.prompt[one]]
        room, seconds, spoke = limits.budget - len(decoding), 0.0, []
        begun = [one for one in active if filled[one] < demand.prompt[one]]
        while room > 0 and (begun or (waiting and len(active) < limits.rows)):
            one = begun.pop(0) if begun else waiting.pop(0)
            if one not in active:
                active.append(one)
            piece = min(room, int(demand.prompt[one]) - filled[one])
            seconds += by.prompt(piece, filled[one])
            filled[one] += piece
            room -= piece
            if filled[one] == demand.prompt[one]:
                spoke.append(one)
                seconds += by.first_token
        if decoding:
            own = [int(served_by.rungs[0].exits[answers[one][len(times[one])]]) for one in decoding]
            positions = [int(demand.prompt[one]) + len(times[one]) - 1 for one in decoding]
            read = max(positions) if limits.padded else sum(positions) / len(positions)
            seconds += _step_seconds(by, own, read, limits.rule)
        else:
            seconds += float(by.overhead[0])
        now += seconds
        for one in [*spoke, *decoding]:
            times[one].append(now)
        active = [one for one in active if len(times[one]) < demand.output[one]]
    return times


def _step_seconds(by: StepPrices, own: Sequence[int], context: float, rule: str) -> float:
    def at(table: Any, rows: int) -> float:
        share = context / 100.0
        return float(table[rows, 0] * (1 - share) + table[rows, 1] * share)

    count = len(own)
    total, going, free = float(by.overhead[count]), list(range(count)), set()
    for place in range(len(by.stops) + 1):
        total += at(by.layers[place], len(going)) + at(by.repair[place], count - len(going))
        if place == len(by.stops):
            break
        asked = [row for row in going if row not in free]
        if asked and (rule == "lockstep" or by.worth_asking[place, len(asked)]):
            total += float(by.probe[place, len(asked)])
            free |= {row for row in asked if own[row] <= by.stops[place]}
        out = [row for row in going if row in free]
        if not out:
            continue
        stay = len(going) - len(out)
        later = range(place + 1, len(by.stops) + 1)
        saved = sum(at(by.layers[one], len(going)) - at(by.layers[one], stay) for one in later)
        saved += float(by.final[len(going)] - by.final[stay]) - float(by.exit_head[place, len(out)])
        saved -= sum(
            at(by.repair[one], count - stay) - at(by.repair[one], count - len(going)) for one in later
        )
        if not stay if rule == "lockstep" else saved > 0:
            total += float(by.exit_head[place, len(out)])
            going = [row for row in going if row not in free]
    return total + float(by.final[len(going)])
