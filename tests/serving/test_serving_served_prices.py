"""Prices fitted to served steps: parts that made them up are found again, and price steps as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from slow_server import contender

from offramp.policies.grammar import parse_policy
from offramp.policies.rules.short_list import with_short_head
from offramp.serving.loop import StepLog
from offramp.serving.served import priced_step
from offramp.serving.served_prices import KNOTS, PARTS, FittedSteps, ServedSteps, counted, hats

DEPTH, STOPS = 6, (2, 4)


def some_logs(count: int, seed: int, most: int = 8) -> list[StepLog]:
    draw = np.random.default_rng(seed)
    logs = []
    for _ in range(count):
        rows = int(draw.integers(0, most + 1))
        exits = draw.choice([*STOPS, DEPTH], rows)
        asked = tuple(int((exits >= stop).sum()) for stop in STOPS)
        left = tuple(int((exits == stop).sum()) for stop in STOPS)
        pieces = [tuple(draw.integers(1, 40, 2).tolist()) for _ in range(int(draw.integers(not rows, 3)))]
        contexts = tuple(draw.integers(1, 90, rows).tolist())
        logs.append(StepLog(tuple(pieces), contexts, tuple(exits.tolist()), asked, left))  # type: ignore[arg-type]
    return logs


def test_knots() -> None:
    found = hats([0, 1, 5, 8, 2048])
    assert (found[0] == 0).all()
    assert found[1:] @ KNOTS == pytest.approx([1, 5, 8, 2048])
    assert found[1:].sum(1) == pytest.approx(np.ones(4))


def test_parts_that_made_up_the_steps_are_found_again() -> None:
    draw = np.random.default_rng(0)
    own = np.concatenate([np.cumsum(draw.uniform(0.1, 1.0, len(KNOTS))), draw.uniform(0.01, 0.5, len(PARTS))])
    logs, others = some_logs(900, 1), some_logs(50, 2)
    seconds = [float(counted(log, DEPTH) @ own) for log in logs]
    (fitted,) = FittedSteps.of([ServedSteps(contender(STOPS, DEPTH), logs, seconds)])
    assert fitted.error < 1e-6
    again = np.concatenate([fitted.layers, [fitted.parts[name] for name in PARTS]])
    for log in others:
        assert counted(log, DEPTH) @ again == pytest.approx(counted(log, DEPTH) @ own, rel=1e-4)


def test_a_step_is_priced_as_it_was_counted() -> None:
    draw = np.random.default_rng(3)
    own = np.concatenate([np.cumsum(draw.uniform(0.1, 1.0, len(KNOTS))), draw.uniform(0.01, 0.5, len(PARTS))])
    fitted = FittedSteps(own[: len(KNOTS)], dict(zip(PARTS, own[len(KNOTS) :].tolist(), strict=True)), 0.0)
    prices = fitted.step_prices(contender(layers=DEPTH), 8, 100)
    for log in some_logs(60, 4):
        whole = StepLog(log.prompts, log.contexts, (DEPTH,) * len(log.exits), (), ())
        assert priced_step(prices, whole) == pytest.approx(counted(whole, DEPTH) @ own)


def test_steps_that_something_held_up_count_less() -> None:
    logs = some_logs(400, 5)
    own = np.full(len(KNOTS) + len(PARTS), 0.1)
    own[: len(KNOTS)] = np.arange(1.0, len(KNOTS) + 1)
    seconds = np.array([float(counted(log, DEPTH) @ own) for log in logs])
    held_up = np.random.default_rng(6).random(400) < 0.03
    took = (seconds * np.where(held_up, 4.0, 1.0)).tolist()
    (fitted,) = FittedSteps.of([ServedSteps(contender(STOPS, DEPTH), logs, took)])
    again = np.concatenate([fitted.layers, [fitted.parts[name] for name in PARTS]])
    total = sum(float(counted(log, DEPTH) @ again) for log in logs)
    assert total == pytest.approx(seconds.sum(), rel=0.05)


def test_what_two_heads_differ_in_is_no_difference_of_two_errors() -> None:
    """Steps that scatter by a tenth: the layers of both are one, and the cut head's time is found."""
    draw, shared = np.random.default_rng(8), np.full(len(KNOTS) + len(PARTS), 0.05)
    shared[: len(KNOTS)] = 1.0 + 0.1 * np.arange(len(KNOTS))
    full, cut = shared.copy(), shared.copy()
    place = len(KNOTS) + list(PARTS).index("final")
    full[place], cut[place] = 3.0, 0.5
    served, never = [], parse_policy("never")
    for name, policy, own in (("plain", never, full), ("cut head", with_short_head(never), cut)):
        serves = contender((), DEPTH, name=name)
        serves = replace(serves, rungs=(replace(serves.rungs[0], policy=policy),))
        logs = [
            StepLog(log.prompts, log.contexts, (DEPTH,) * len(log.exits), (), ()) for log in some_logs(300, 9)
        ]
        seconds = [float(counted(log, DEPTH) @ own * draw.lognormal(0.0, 0.1)) for log in logs]
        served.append(ServedSteps(serves, logs, seconds))
    together = FittedSteps.of(served)
    alone = [FittedSteps.of([steps])[0] for steps in served]

    def apart(fits: list[FittedSteps]) -> float:
        log = StepLog((), (20,) * 4, (DEPTH,) * 4, (), ())
        one, other = (
            priced_step(fit.step_prices(steps.contender, 8, 100), log)
            for fit, steps in zip(fits, served, strict=True)
        )
        return one - other

    assert together[0].layers.tolist() == together[1].layers.tolist()
    assert apart(together) == pytest.approx(2.5, abs=0.25)
    assert abs(apart(together) - 2.5) < abs(apart(alone) - 2.5)
