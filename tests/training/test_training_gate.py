"""Gates: what they cost is what a replay bills, expectations by enumeration, gradients, and training."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from offramp.costs.machine import Machine
from offramp.costs.machine_registry import find_machine
from offramp.costs.probes import ProbeSizes
from offramp.heads.parts import Classifier, stacked
from offramp.models.shape import ModelShape
from offramp.policies.prices import costs_of
from offramp.policies.replay import replay
from offramp.policies.rules.threshold import Threshold
from offramp.tracing.fitting.classifiers import Samples, fit_classifier
from offramp.tracing.trace import Trace
from offramp.training.gate import (
    HALF,
    AtFloor,
    FindFloor,
    GateJudge,
    GatePrices,
    GateProblem,
    GateRows,
    Outcome,
    chosen_apart,
    expected_outcome,
    judged_gates,
    lagrangian,
    learn_gates,
    probabilities_of,
    spread,
    steps_of,
)
from offramp.training.record import GateCourse
from offramp.tuning.floor import make_floor
from offramp.tuning.pricing import pricing_of
from policy_traces import make_shape, make_trace, timed

EXITS = (2, 3, 5)
PRICES = GatePrices(leave=np.array([2.0, 3.5, 5.5]), stay=7.0, plain=6.0)


def gated_trace(*, lens: bool) -> Trace:
    """Six layers, 400 tokens, with a fact `gate` that knows a little of agreement."""
    trace = make_trace(tokens=400, documents=8)
    gate = np.random.default_rng(1).random((400, 6)) * 0.7 + 0.2 * trace.agreement
    facts = {name: trace.fact(name) for name in trace.fact_names} | {"gate": gate.astype(np.float32)}
    heads = {"lens": lens, "mlp_units": 4 if lens else 0}
    return Trace.from_facts(
        facts,
        document=trace.document,
        position=trace.position,
        shape=trace.shape,
        provenance={"request": {"heads": heads}},
    )


@pytest.mark.parametrize("lens", [False, True])
@pytest.mark.parametrize("machine", [find_machine("cpu-2core"), find_machine("h100"), timed()])
def test_the_expected_cost_of_hard_gates_is_the_bill_of_a_replay(machine: Machine, lens: bool) -> None:
    if lens and machine.name == "bench":
        lens = False  # made-up timings price no network behind a lens
    trace = gated_trace(lens=lens)
    billed = replay(trace, "threshold:signal=gate,value=0.5,exits=2+3+5", machine=machine)
    columns = np.array(EXITS) - 1
    leaving = torch.from_numpy((trace.fact("gate")[:, columns] >= 0.5).T).double()
    agrees = torch.from_numpy(trace.agreement[:, columns].T.copy())
    outcome = expected_outcome(leaving, agrees, GatePrices.of(costs_of(trace, machine), EXITS))
    assert np.bincount(billed.exits, minlength=7)[[2, 3, 5, 6]].min() > 10
    assert billed.seconds_per_token == pytest.approx(float(outcome.seconds.mean()), rel=1e-12)
    assert billed.agreement == pytest.approx(1 - float(outcome.disagreement.mean()), rel=1e-12)


def enumerated(leaving: np.ndarray, agrees: np.ndarray, prices: GatePrices) -> tuple[float, float]:
    """Seconds and disagreement of one token, over every outcome of every gate by itself: [exits] each."""
    seconds = lost = 0.0
    for opens in itertools.product((False, True), repeat=len(leaving)):
        chance = float(np.prod([g if one else 1 - g for g, one in zip(leaving, opens, strict=True)]))
        if not any(opens):
            seconds += chance * prices.stay
            continue
        first = opens.index(True)
        seconds += chance * prices.leave[first]
        lost += chance * (not agrees[first])
    return seconds, lost


def random_rows(exits: int = 3, rows: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float64 [exits, rows], and agreement bool."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(exits, rows, generator=generator, dtype=torch.float64)
    return logits, torch.rand(exits, rows, generator=generator) < 0.5


def enumerated_lagrangian(logits: np.ndarray, agrees: np.ndarray, temperature: float, by: float) -> float:
    leaving = 1 / (1 + np.exp(-logits / temperature))
    each = np.array([enumerated(leaving[:, row], agrees[:, row], PRICES) for row in range(logits.shape[1])])
    return float(each[:, 0].mean() / PRICES.plain + by * each[:, 1].mean())


def test_expectations_are_those_of_every_outcome_enumerated() -> None:
    logits, agrees = random_rows()
    leaving = torch.sigmoid(logits)
    outcome = expected_outcome(leaving, agrees, PRICES)
    each = [enumerated(leaving[:, row].numpy(), agrees[:, row].numpy(), PRICES) for row in range(7)]
    np.testing.assert_allclose(outcome.seconds, [seconds for seconds, _ in each], rtol=1e-12)
    np.testing.assert_allclose(outcome.disagreement, [lost for _, lost in each], rtol=1e-12)
    whole = lagrangian(logits, agrees, PRICES, 0.4, 2.5)
    assert float(whole) == pytest.approx(enumerated_lagrangian(logits.numpy(), agrees.numpy(), 0.4, 2.5))


def test_the_gradient_is_that_of_finite_differences_of_the_enumeration() -> None:
    logits, agrees = random_rows()
    variable = logits.clone().requires_grad_()
    lagrangian(variable, agrees, PRICES, 0.4, 2.5).backward()
    assert variable.grad is not None
    step = 1e-5
    for place in np.ndindex(*logits.shape):
        moved = [logits.numpy().copy() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (enumerated_lagrangian(one, agrees.numpy(), 0.4, 2.5) for one in moved)
        assert float(variable.grad[place]) == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-9)


def made_up(rows: int, seed: int) -> GateRows:
    """Two exits whose states say what to expect: the first agrees where x > 0, the second also where y > 0.

    Up to noise, of which the first has more.
    """
    generator = torch.Generator().manual_seed(seed)
    states, noise = (torch.randn(2, rows, size, generator=generator) for size in (4, 2))
    states[1, :, :2] = states[0, :, :2]
    first = states[0, :, 0] + noise[0, :, 0] > 0
    second = states[0, :, :2].amax(-1) + 0.3 * noise[0, :, 1] > 0
    return GateRows(states, torch.stack([first, second]), np.arange(rows) // 50)


CHEAP = GatePrices(leave=np.array([0.5, 0.75]), stay=1.02, plain=1.0)
RISK = 0.1
FIT, APART, ELSEWHERE = (made_up(rows, seed) for rows, seed in ((3000, 1), (2000, 2), (2000, 3)))


def agreement_networks(fit: GateRows, apart: GateRows) -> Classifier:
    """Networks that say whether each exit agrees."""

    def samples(rows: GateRows, place: int) -> Samples:
        return Samples(rows.states[place].numpy(), rows.agrees[place].numpy(), rows.document)

    both = (
        fit_classifier(samples(fit, place), samples(apart, place), network=True, seed=0) for place in (0, 1)
    )
    return stacked(list(both))


START = agreement_networks(FIT, APART)


def plain_at_floor(rows: GateRows, risk: float, prices: GatePrices, thresholds: int = 101) -> FindFloor:
    """The fastest threshold that keeps the floor, so many tried in turn."""

    def found(probabilities: np.ndarray) -> AtFloor | None:
        tried = []
        for threshold in np.quantile(probabilities, np.linspace(0, 1, thresholds), method="nearest"):
            leaving = torch.from_numpy((probabilities >= threshold).T).double()
            outcome = expected_outcome(leaving, rows.agrees, prices)
            if float(outcome.disagreement.mean()) <= risk:
                tried.append((float(outcome.seconds.mean()), float(threshold)))
        return AtFloor(min(tried)[1], min(tried)[0]) if tried else None

    return found


class Fit(NamedTuple):
    """Trained gates, and how that went."""

    gates: Classifier
    course: GateCourse


def trained(
    fit: GateRows = FIT, apart: GateRows = APART, start: Classifier = START, seed: int = 0, steps: int = 200
) -> Fit:
    at_floor = plain_at_floor(apart, RISK, CHEAP)
    problem = GateProblem(fit, apart, CHEAP, RISK, start, at_floor, seed=seed)
    return Fit(*learn_gates(problem, steps=steps))


@pytest.fixture(scope="module")
def found() -> Fit:
    return trained()


def hard(gates: Classifier, rows: GateRows) -> Outcome:
    leaving = torch.from_numpy(probabilities_of(gates, rows).T >= HALF).double()
    return expected_outcome(leaving, rows.agrees, CHEAP)


def test_trained_gates_keep_the_floor_at_half_and_are_faster_than_one_threshold(found: Fit) -> None:
    outcome = hard(found.gates, APART)
    # Moved to the threshold in float32, a logit next to it may end on its other side.
    assert RISK - 0.015 < float(outcome.disagreement.mean()) < RISK + 0.002
    assert float(outcome.seconds.mean()) == pytest.approx(found.course.seconds[-1], abs=0.002)
    assert found.course.seconds[-1] < found.course.seconds[0] - 0.002
    # On rows that nothing was learned from or chosen by:
    elsewhere = hard(found.gates, ELSEWHERE)
    assert float(elsewhere.disagreement.mean()) == pytest.approx(RISK, abs=0.02)
    at_floor = plain_at_floor(ELSEWHERE, RISK, CHEAP)
    start, now = (at_floor(probabilities_of(one, ELSEWHERE)) for one in (START, found.gates))
    assert start is not None
    assert now is not None
    assert now.seconds < start.seconds - 0.001


def test_the_same_seed_gives_the_same_gates_and_another_one_others() -> None:
    def arrays(one: Fit) -> list[np.ndarray]:
        return [*one.gates.weights, *one.gates.biases, one.course.seconds, one.course.disagreement]

    first, second, other = (arrays(trained(seed=seed, steps=40)) for seed in (0, 0, 1))
    for array, same in zip(first, second, strict=True):
        np.testing.assert_array_equal(array, same)
    assert not np.array_equal(first[0], other[0])


def test_steps_are_so_many_passes_over_the_rows_within_bounds() -> None:
    assert [steps_of(rows) for rows in (10, 2560, 10_600, 25_600, 10**6)] == [100, 100, 414, 1000, 2000]
    few, more = trained(steps=20), trained(steps=50)
    assert len(few.course.seconds) == 21, "lambda moves in every one of 20 evaluations"
    assert len(more.course.seconds) == 1 + 17, "every third step"


def test_where_no_exit_ever_agrees_no_token_leaves() -> None:
    nothing, never = (replace(rows, agrees=torch.zeros_like(rows.agrees)) for rows in (FIT, APART))
    found = trained(nothing, never, agreement_networks(nothing, never), steps=40)
    assert float(hard(found.gates, never).disagreement.sum()) == 0.0
    np.testing.assert_array_equal(found.course.seconds, 1.02)


def test_what_held_out_rows_say_of_gates(found: Fit) -> None:
    rows = ELSEWHERE
    judged = judged_gates(found.gates, found.course.multiplier, rows, CHEAP)
    probabilities = probabilities_of(found.gates, rows)
    for place in range(2):
        right, wrong = (probabilities[rows.agrees[place].numpy() == side, place] for side in (True, False))
        by_pairs = (right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean()
        assert judged.auroc[place] == pytest.approx(by_pairs, abs=1e-9)
    assert judged.better_than_chance.all()
    # A loss so dear that what leaves does not pay for it.
    dear = judged_gates(found.gates, 1e4, rows, CHEAP)
    assert not dear.better_than_chance.any()


def test_gates_of_some_exits_let_nothing_leave_at_the_others(found: Fit) -> None:
    whole = spread(found.gates, (2, 5), (1, 2, 4, 5))
    states = torch.randn(4, 30, 4)
    four = GateRows(states, torch.ones(4, 30, dtype=torch.bool), np.zeros(30, dtype=np.int64))
    two = GateRows(states[[1, 3]], four.agrees[:2], four.document)
    probabilities = probabilities_of(whole, four)
    np.testing.assert_array_equal(probabilities[:, [1, 3]], probabilities_of(found.gates, two))
    assert probabilities[:, [0, 2]].max() < 1e-8
    assert spread(found.gates, (2, 5), (2, 5)) is found.gates


def test_documents_to_choose_by_are_apart_from_all_others() -> None:
    groups = np.array([0, 1, 2, 2, 4, 5, 5, 7])
    held_out = np.isin(groups, [1, 7])
    chosen = chosen_apart(groups, held_out)
    assert chosen.tolist() == [False, False, True, True, False, False, False, False]
    assert not (chosen & held_out).any()


def judge_of(
    shape: ModelShape, floor: float, machine: Machine, heads: Mapping[str, Any] = {}, kv: str = "propagate"
) -> GateJudge:
    """Of exits 2 and 5, at token 40."""
    pricing = functools.partial(pricing_of, machine=machine, batch=1, kv=kv)
    return GateJudge(shape, (2, 5), heads, 40.0, make_floor({"agreement": floor}), pricing)


def test_a_judge_charges_as_a_replay_and_finds_the_fastest_threshold_of_all() -> None:
    rows = made_up(400, 4)
    shape = make_shape(head=3000)
    machine = find_machine("cpu-2core")
    judge = judge_of(shape, 0.85, machine)
    probabilities = np.random.default_rng(5).random((400, 2)).astype(np.float32) * 0.5
    probabilities += 0.5 * rows.agrees.t().numpy()
    prices = judge.prices(rows)
    costs = machine.token_costs(shape, 40.0, batch=1, lens=False)
    assert prices.plain == costs.plain
    assert prices.stay == pytest.approx(costs.plain + 2 * costs.probes["network"], rel=1e-12)
    best = judge.at_floor(rows)(probabilities)
    expected = plain_at_floor(rows, 0.15, prices, 2000)(probabilities)
    assert best is not None
    assert expected is not None
    assert best.seconds == pytest.approx(expected.seconds, rel=1e-9)
    found = judge.judged(rows, probabilities, "gate", Threshold("gate", best.threshold, (2, 5)))
    leaving = torch.from_numpy((probabilities >= best.threshold).T).double()
    outcome = expected_outcome(leaving, rows.agrees, prices)
    assert found.seconds_per_token == pytest.approx(float(outcome.seconds.mean()), rel=1e-9)
    assert found.agreement == pytest.approx(1 - float(outcome.disagreement.mean()), rel=1e-9)
    assert found.saved == pytest.approx(1 - found.seconds_per_token / prices.plain, rel=1e-9)
    tuned = judge.judged(rows, probabilities, "gate", judge.fastest(rows, probabilities, "gate"))
    assert tuned.agreement >= 0.85 - 1e-9
    assert tuned.seconds_per_token <= best.seconds * (1 + 1e-12)


def test_where_nothing_is_faster_than_the_full_model_no_check_is_made() -> None:
    rows = made_up(200, 4)
    judge = judge_of(make_shape(), 0.99, find_machine("cpu-2core"))
    nothing = replace(rows, agrees=torch.zeros_like(rows.agrees))
    probabilities = np.full((200, 2), 0.4, dtype=np.float32)  # all leave, or none does
    assert str(judge.fastest(nothing, probabilities, "gate")) == "never"
    assert judge.at_floor(nothing)(probabilities) is None


def test_mapped_keys_and_values_are_charged_where_a_map_is_applied() -> None:
    rows, shape = made_up(200, 4), make_shape()
    heads = {"kv_maps": {"ranks": {"2": 4}}}
    machine = find_machine("cpu-2core")
    plain, mapped = (judge_of(shape, 0.85, machine, heads, kv).prices(rows) for kv in ("propagate", "mapped"))
    sizes = ProbeSizes(kv_maps=((2, 4),))
    maps = machine.token_costs(shape, 40.0, batch=1, lens=False, sizes=sizes).maps
    np.testing.assert_allclose(mapped.leave - plain.leave, [maps[2], 0.0], rtol=1e-9, atol=1e-18)
    assert maps[2] > 0
    assert mapped.stay == plain.stay
