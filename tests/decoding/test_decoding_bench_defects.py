"""Defects: what is one, in words; and warnings, which are none."""

from __future__ import annotations

from typing import Any

import pytest

from offramp.decoding.measurement.defects import (
    A_A_FREEDOM,
    CHECKS,
    Difference,
    Evidence,
    a_a_defect,
    defects_of,
    warnings_of,
)
from offramp.decoding.measurement.results import Interval

QUIET: dict[str, Any] = {"cores": 2, "threads": 2, "other_load": 0.05, "omp_wait_policy": "passive"}
WRONG = Difference(prompt=1, place=2, token=99, expected=8)


def evidence(**changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "name": "a decoder", "output_must_match": True, "difference": None, "claimed": 120, "counted": 120,
    }  # fmt: skip
    return Evidence(**{**values, **changes})


def test_an_honest_decoder_has_none() -> None:
    assert defects_of(evidence()) == []
    assert defects_of(evidence(claimed=None)) == []  # who says nothing of layers does not lie
    assert defects_of(evidence(output_must_match=False, difference=WRONG)) == []


def test_a_wrong_output_is_named_with_its_place() -> None:
    (sentence,) = defects_of(evidence(difference=WRONG))
    assert "a decoder must give the full model's output, but new token 3 of prompt 2 is 99 instead of 8" in (
        sentence
    )


def test_a_wrong_claim_of_layers_is_named() -> None:
    (sentence,) = defects_of(evidence(claimed=1200, counted=1260))
    assert "says that it ran 1,200 layers for the tokens of a trial, but 1,260 ran" in sentence


def test_wrong_results_are_all_named() -> None:
    assert len(defects_of(evidence(difference=WRONG, claimed=1))) == len(CHECKS) == 2


@pytest.mark.parametrize(
    ("a_a", "defect"),
    [
        (Interval(1.01, 0.97, 1.05), False),  # wide is no defect
        (Interval(1.0, 0.9, 1.0), False),
        (Interval(1.2), False),
        (Interval(1.03, 1.001, 1.06), True),
        (Interval(0.97, 0.95, 0.999), True),
    ],
)
def test_the_same_decoder_twice(a_a: Interval, defect: bool) -> None:
    found = a_a_defect(a_a)
    assert (found is not None) is defect
    assert a_a_defect(a_a, A_A_FREEDOM - 1) is None  # of so few prompts anything may come
    assert found is None or "comes out unequal: ratio" in found


@pytest.mark.parametrize(
    ("circumstances", "said"),
    [
        ({}, []),
        ({"other_load": 0.9}, ["other work kept 0.9 processors busy, 0.3 are tolerable"]),
        ({"cores": 16, "threads": 4, "other_load": 12.2}, []),
        ({"cores": 16, "threads": 4, "other_load": 12.4}, ["other work kept 12.4 processors busy"]),
        ({"omp_wait_policy": None}, ["OMP_WAIT_POLICY is not set"]),
        ({"omp_wait_policy": "PASSIVE"}, []),
    ],
)
def test_noise_is_said_and_is_no_defect(circumstances: dict[str, Any], said: list[str]) -> None:
    found = warnings_of(QUIET | circumstances)
    assert len(found) == len(said)
    assert all(sentence in line for sentence, line in zip(said, found, strict=True))
