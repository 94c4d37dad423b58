"""A whole request: by hand, against one token after another, and where its encoder was not timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.costs.counting import layer_bytes, request_bytes, request_flops
from offramp.costs.machine_registry import find_machine
from offramp.kit.typed import from_json, to_json
from offramp.models.shape import CrossShape, EncoderShape, ModelShape
from offramp.policies.prices import costs_of
from offramp.policies.whole_request import WholeRequest, of_request, request_of
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from policy_traces import make_shape, make_trace, timed


def with_encoder(positions: float = 20.0) -> ModelShape:
    """Six layers that attend to what an encoder of 5,000 weights read."""
    shape = make_shape()
    crossing = tuple(replace(layer, cross=CrossShape(10, 100)) for layer in shape.layers)
    return replace(shape, layers=crossing, encoder=EncoderShape(5000, positions, 30))


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace(shape=with_encoder())


def test_a_request_by_hand(trace: Trace) -> None:
    """Every layer, the head and the rest of a step take a second; 60 tokens in 6 documents."""
    request = request_of(trace, timed(encoder_seconds=((10.0, 8.0), (30.0, 32.0))))
    assert request is not None
    # Half-way between the timed lengths; 1 + 6 + 1 seconds a token, 1 + 3 + 1 where it leaves half-way.
    assert (request.once, request.how, request.tokens) == (20.0, "timed", 10.0)
    assert (request.plain, request.halfway, request.exit) == (8.0, 5.0, 3)
    assert request.ceiling == pytest.approx((20 + 80) / (20 + 50))
    assert request.once_share == pytest.approx(0.2)
    assert (request.refuses(0.42), request.refuses(0.43)) == (False, True)
    assert request.speed(2.0) == pytest.approx(100 / (20 + 40))
    assert request.needed(0.25) == pytest.approx(80 / 60 - 1)
    assert request.needed(4.0) == float("inf")  # the encoder alone is a fifth of it
    # Over a decoder of half the seconds a token: 20 + 40 seconds a request.
    assert of_request(request, Estimate(2.0, 1.0, 4.0), 4.0) == Estimate(60 / 40, 1.0, 60 / 30)
    assert of_request(None, Estimate(2.0)) == Estimate(2.0)
    assert of_request(request, Estimate(None, undefined="none")).undefined == "none"
    assert from_json(WholeRequest, to_json(request)) == request
    assert to_json(request)["ceiling"] == request.ceiling


@given(
    once=st.floats(0.0, 1e3),
    tokens=st.integers(1, 50),
    plain=st.floats(0.1, 10.0),
    decoding=st.floats(0.2, 5.0),
    over=st.floats(0.2, 1.0),
)
def test_a_request_is_as_fast_as_its_tokens_one_after_another(
    once: float, tokens: int, plain: float, decoding: float, over: float
) -> None:
    request = WholeRequest(
        machine="m", tokens=tokens, once=once, how="timed", plain=plain, halfway=0.5 * plain, exit=3
    )
    before = after = half = whole = once
    for _ in range(tokens):
        before, after = before + plain * over, after + plain * over / decoding
        half, whole = half + 0.5 * plain, whole + plain
    assert request.speed(decoding, over) == pytest.approx(before / after)
    assert request.ceiling == pytest.approx(whole / half)
    if decoding > 1.0:
        gain = request.speed(decoding) - 1.0
        assert 1.0 + request.needed(gain) == pytest.approx(decoding, rel=1e-6)


def test_what_was_not_timed_is_derived_and_says_so(trace: Trace) -> None:
    """As many rows as it prices: 16, in which a layer takes 6 seconds on the line through 1 and 4 rows."""
    request = request_of(trace, timed())
    assert request is not None
    flops = 20 * (2 * (5000 + 6 * 100) + 4 * 30 * 20)
    assert request_flops(trace.shape) == flops
    assert request.how == "derived"
    assert request.once == pytest.approx(36.0 * flops / (16 * 6 * (2 * 1000 + 4 * 20)))
    # Of one row alone by bytes: at the pace of FLOPs a row is all that its weights are read for.
    alone = request_of(trace, timed((1,), (1.0,)))
    assert alone is not None
    moved = 2 * (5000 + 6 * 100 + 6 * 20 * 10)
    assert request_bytes(trace.shape) == moved
    own = replace(trace.shape, encoder=None)
    assert alone.once == pytest.approx(6.0 * moved / layer_bytes(own, 0.0).sum())


@pytest.mark.parametrize("machine", ["h100", "l4"])
def test_a_longer_source_takes_longer_on_every_machine(machine: str) -> None:
    short, long = (
        request_of(make_trace(shape=with_encoder(positions)), find_machine(machine))
        for positions in (200.0, 1500.0)
    )
    assert short is not None
    assert long is not None
    assert 0.0 < short.once < long.once
    assert long.ceiling < short.ceiling


def test_bytes_moved_give_no_lower_limit_of_a_requests_speed(trace: Trace) -> None:
    request = request_of(trace, None)
    assert request is not None
    assert (request.how, request.once) == ("counted", request_bytes(trace.shape))
    assert request.plain == costs_of(trace, "bytes").plain
    found = of_request(request, Estimate(1.2, 1.1, 1.3))
    assert found.low is None
    assert found.value is not None
    assert found.high is not None
    assert 1.0 < found.value < found.high


def test_a_model_without_an_encoder_has_no_request() -> None:
    assert request_of(make_trace(), timed()) is None
    assert "encoder_seconds" not in to_json(timed())
