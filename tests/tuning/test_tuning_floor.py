from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from offramp.errors import InputError
from offramp.tuning.floor import (
    document_losses,
    document_weights,
    make_floor,
    parse_floor,
    risk_to_quality,
    token_losses,
)
from policy_traces import make_trace


def test_floors_and_what_they_allow() -> None:
    assert parse_floor("agreement=0.99").risk == pytest.approx(0.01)
    assert parse_floor("nll=0.02").risk == pytest.approx(0.02)
    half = parse_floor("kl=0.05", clip=0.5)
    assert half.risk == pytest.approx(0.1)
    assert risk_to_quality(half, 0.1) == pytest.approx(0.05)
    assert str(half) == "kl=0.05"
    assert make_floor(half) is half


@pytest.mark.parametrize(
    ("text", "clip", "message"),
    [
        ("agreement=1", None, r"a share of agreement below 1, not 1.0(.|\n)*can never be certified"),
        ("agreement=0", None, "value must be above 0"),
        ("agreement=99", None, "a share of agreement below 1, not 99.0"),
        ("agreement=nan", None, "is no floor"),
        ("agreement", None, "is no floor"),
        ("agreement=much", None, "is no floor"),
        ("agrement=0.9", None, "kind must be 'agreement', .* not 'agrement'(.|\n)*did you mean 'agreement'"),
        ("agreement=0.9", 1.0, "clip must be left out at a floor on agreement"),
        ("nll=0", None, "value must be above 0"),
        ("nll=-1", None, "value must be above 0"),
        ("nll=inf", None, "value must be 1e\\+30 at most"),
        ("nll=2", None, "clip must be above the 2.0 nats of the floor, not 1.0"),
        ("kl=0.1", 0.05, "clip must be above the 0.1 nats of the floor, not 0.05"),
        ("kl=0.1", math.inf, "clip must be 1e\\+30 at most"),
    ],
)
def test_floors_that_are_none_are_refused(text: str, clip: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_floor(text, clip)


def test_several_floors_at_once_are_refused() -> None:
    with pytest.raises(InputError, match="2 floors were given"):
        make_floor({"agreement": 0.9, "kl": 0.1})


def test_hand_worked_losses() -> None:
    top1 = np.array([[1, 7, 7], [7, 7, 7], [1, 1, 7]], dtype=np.int32)
    nll = np.array([[3.0, 1.5, 1.0], [0.5, 1.0, 2.0], [2.2, 2.1, 2.0]], dtype=np.float32)
    kl = np.array([[3.0, 0.5, 0.1], [0.0, 0.2, 0.0], [0.4, 0.3, 0.0]], dtype=np.float32)
    facts: dict[str, Any] = {"top1": top1, "nll": nll, "kl_to_final": kl}
    trace = make_trace(tokens=3, layers=3, documents=2, **facts)
    # make_trace sorts rows by document: tokens 0 and 1 are of document 0, token 2 is of document 1.
    np.testing.assert_array_equal(trace.document, [0, 0, 1])
    disagree = token_losses(trace, parse_floor("agreement=0.9"))
    np.testing.assert_array_equal(disagree, [[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    increase = token_losses(trace, parse_floor("nll=0.1", clip=1.0))
    np.testing.assert_allclose(increase, [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.2, 0.1, 0.0]], rtol=1e-5)
    divergence = token_losses(trace, parse_floor("kl=0.1", clip=0.5))
    np.testing.assert_allclose(divergence, [[1.0, 1.0, 0.0], [0.0, 0.4, 0.0], [0.8, 0.6, 0.0]], rtol=1e-6)
    exits = np.array([1, 2, 1])
    by_document = document_losses(trace, disagree, exits)
    assert sorted(by_document) == [0.5, 1.0]
    # Each document counts once, however many tokens it has.
    weights = document_weights(trace)
    np.testing.assert_allclose(weights, [0.25, 0.25, 0.5])
    taken = disagree[np.arange(3), exits - 1]
    assert taken @ weights == pytest.approx(by_document.mean())


def test_a_loss_that_is_not_a_number_is_refused() -> None:
    nll = np.zeros((60, 6), dtype=np.float32)
    nll[7, 2] = np.nan
    with pytest.raises(InputError, match="nll is not a number for 1 tokens") as error:
        token_losses(make_trace(nll=nll), parse_floor("nll=0.1"))
    assert "document 0" in error.value.where
    # An infinite loss of the full model has no increase.
    nll[7] = np.inf
    with pytest.raises(InputError, match="nll is not a number for 1 tokens"):
        token_losses(make_trace(nll=nll), parse_floor("nll=0.1"))
    # An infinite divergence is cut like any other.
    kl = np.zeros((60, 6), dtype=np.float32)
    kl[7, 2] = np.inf
    assert token_losses(make_trace(kl_to_final=kl), parse_floor("kl=0.1"))[7, 2] == 1.0


@pytest.mark.parametrize("floor", [{"nll": 1e-320}, {"kl": 1e-7}, {"agreement": 1.0 - 1e-9}])
def test_a_floor_that_no_sample_could_certify_is_refused(floor: dict[str, float]) -> None:
    with pytest.raises(InputError, match="no sample could certify it"):
        make_floor(floor)
