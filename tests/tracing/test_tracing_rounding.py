"""The bounds on rounding hold for right arithmetic and for nothing else: every planted error is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from naive_facts import (
    COSINES,
    Readings,
    assert_facts,
    assert_signals,
    following_of,
    logits_of,
    readings_of,
    signals_of_logits,
)
from rounding import (
    DEVIATIONS,
    UNIT,
    assert_best,
    assert_ranks,
    assert_within,
    logit_bounds,
    product_bounds,
    signal_bounds,
    spread,
)
from test_tracing_facts import trace_numbers
from tracing_models import build_family, independent_readout, llama, tiny_model

from offramp.models.discovery import find_stack
from offramp.models.model import Model
from offramp.tracing.facts import FACTS
from offramp.tracing.trace import Trace

IDS = [17, 202, 5, 77, 77, 430, 91, 8, 255, 64, 310, 12]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(build_family("llama"), name="llama", head_scale=20.0)


@pytest.fixture(scope="module")
def traced(model: Model) -> tuple[Trace, Readings, np.ndarray]:
    found, sequences = trace_numbers(model, 503, signals="all")
    return found, readings_of(model, sequences), following_of(sequences)


# -- right arithmetic


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon_h1"])
def test_the_models_float32_logits_are_as_far_from_float64_as_bounded(family: str) -> None:
    """And not much nearer: a bound a hundred times the error would find nothing."""
    model = tiny_model(build_family(family), head_scale=20.0)
    (deviation,) = spread(model, lambda: (logits_of(model, IDS),))
    twin = copy.deepcopy(model.hf).double()
    layers = find_stack(twin, name=family).layers
    exact = [
        independent_readout(twin, layers, torch.tensor([IDS]), exit)[0] for exit in range(1, 1 + len(layers))
    ]
    error = np.abs(logits_of(model, IDS) - torch.stack(exact).numpy())
    share = error.max(-1) / logit_bounds(deviation)
    assert 0.02 < share.max() <= 1
    assert 0.2 < np.sqrt((error**2).mean() / (deviation**2).mean()) < 1


@pytest.mark.parametrize("features", [8, 64, 1024])
@pytest.mark.parametrize("signs", [True, False])
def test_a_product_summed_in_any_order_lies_within_its_bound(features: int, signs: bool) -> None:
    generator = np.random.default_rng(features)
    x, weight = (generator.normal(size=(count, features)).astype(np.float32) for count in (20, 50))
    if not signs:
        x, weight = np.abs(x), np.abs(weight)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    bound = product_bounds(x[None].astype(np.float64), weight.astype(np.float64))[0, :, None]
    backwards = np.zeros((20, 50), dtype=np.float32)
    for feature in reversed(range(features)):  # one after another, without a fused product
        backwards += x[:, feature, None] * weight[None, :, feature]
    if signs:
        assert_within(backwards, exact, bound)
    assert_within(x @ weight.T, exact, bound)
    assert_within(exact + 3 * bound * (exact > 0) * (bound > 0), exact, 4 * bound)
    with pytest.raises(AssertionError, match="off"):
        assert_within(exact + 1.01 * bound + UNIT * np.abs(exact), exact, bound)


# -- planted errors in facts


def replaced(found: Trace, **columns: Any) -> Trace:
    return found.with_facts(lambda name: columns.get(name, found.fact(name)))


def test_the_bounds_are_narrow(traced: tuple[Trace, Readings, np.ndarray]) -> None:
    _, readings, following = traced
    _, bounds = readings.facts(following)
    assert set(bounds) == {fact.name for fact in FACTS if fact.dtype == "float32"}
    for name, bound in bounds.items():
        assert np.median(bound) < (1e-4 if name in COSINES else 3e-4), name
    for name, bound in signal_bounds(readings.logits, readings.error, range(503)).items():
        assert np.median(bound) < 3e-4, name


def test_a_fact_that_is_off_by_a_thousandth_is_found(traced: tuple[Trace, Readings, np.ndarray]) -> None:
    found, readings, following = traced
    assert_facts(found, readings, following)
    for place, name in enumerate(fact.name for fact in FACTS if fact.dtype == "float32"):
        amount = np.float32(1e-3 * (-1) ** place)
        with pytest.raises(AssertionError, match=name):
            assert_facts(replaced(found, **{name: found.fact(name) + amount}), readings, following)
    assert_signals(found, readings.logits, readings.error, range(503))
    for name in ("logit_gap", "restricted_max_prob", "kl_to_previous", "js_to_previous"):
        spoilt = replaced(found, **{name: found.fact(name) + np.float32(1e-3)})
        with pytest.raises(AssertionError, match=name):
            assert_signals(spoilt, readings.logits, readings.error, range(503))


PLANTED: dict[str, Callable[[Trace], dict[str, Any]]] = {
    "centring left out": lambda found: {"centred_logit_cosine": found.logit_cosine},
    "entropy in bits": lambda found: {"entropy": found.entropy / np.float32(np.log(2))},
    "the exit before": lambda found: {"max_prob": np.roll(found.max_prob, 1, axis=1)},
    "the row before": lambda found: {"nll": np.roll(found.nll, 1, axis=0)},
    "not another token's": lambda found: {"shuffled_logit_cosine": found.logit_cosine},
    "the second best": lambda found: {"top1": np.roll(found.top1, 1, axis=0)},
    "a rank too far": lambda found: {"final_rank": found.final_rank + np.int32(2)},
}


@pytest.mark.parametrize("error", PLANTED)
def test_a_wrong_formula_is_found(error: str, traced: tuple[Trace, Readings, np.ndarray]) -> None:
    found, readings, following = traced
    columns = PLANTED[error](found)
    with pytest.raises(AssertionError, match=next(iter(columns))):
        assert_facts(replaced(found, **columns), readings, following)


def test_centring_left_out_is_found_in_a_small_vocabulary() -> None:
    model = tiny_model(llama(3), head_scale=3.0)
    found, sequences = trace_numbers(model, 3)
    spoilt = replaced(found, centred_logit_cosine=found.logit_cosine)
    with pytest.raises(AssertionError, match="centred_logit_cosine"):
        assert_facts(spoilt, readings_of(model, sequences), following_of(sequences))


def test_one_column_more_or_less_among_the_best_is_found() -> None:
    z = np.random.default_rng(0).normal(size=(2, 5, 40))
    error = np.full((2, 5), DEVIATIONS * UNIT * 5)
    exact = signals_of_logits(z, range(40))["top_k_overlap"]
    bound = signal_bounds(z, error, range(40))["top_k_overlap"]
    with pytest.raises(AssertionError):
        assert_within(exact + 0.1, exact, bound)


def test_a_near_tie_may_go_either_way_and_no_other_pair_may() -> None:
    z = np.array([[[1.0, 1.0 + 1e-7, 0.0], [1.0, 1.1, 0.0]]])
    error = np.full((1, 2), 1e-6)
    assert_best(np.array([[0], [1]]), z, error)
    with pytest.raises(AssertionError, match="1 of 2"):
        assert_best(np.array([[1], [0]]), z, error)
    assert_ranks(np.array([[1], [0]]), z, error)
    with pytest.raises(AssertionError):
        assert_ranks(np.array([[0], [2]]), z, error)


# -- planted errors in a model


def skip_the_norm(hf: Any) -> Any:
    return hf.model.norm.register_forward_hook(lambda module, arguments, output: arguments[0])


def wrong_epsilon(hf: Any) -> Any:
    def normed(module: Any, arguments: Any, output: Any) -> Any:
        wide = arguments[0]
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-3) * module.weight

    return hf.model.norm.register_forward_hook(normed)


def half_precision(hf: Any) -> Any:
    return hf.model.norm.register_forward_hook(
        lambda module, arguments, output: output.to(torch.bfloat16).float()
    )


@pytest.mark.parametrize("plant", [skip_the_norm, wrong_epsilon, half_precision])
def test_a_wrong_readout_is_found(
    plant: Callable[[Any], Any], model: Model, traced: tuple[Trace, Readings, np.ndarray]
) -> None:
    _, readings, following = traced
    handle = plant(model.hf)
    try:
        found, _ = trace_numbers(model, 503)
    finally:
        handle.remove()
    with pytest.raises(AssertionError, match="off"):
        assert_facts(found, readings, following)
