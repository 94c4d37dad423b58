"""Defects: what is one, in words; and warnings, which are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from bench_cases import made_up_result

from offramp.scoring.estimate import Estimate
from offramp.timing.bench import merged
from offramp.timing.defects import (
    A_A_FREEDOM,
    Difference,
    a_a_defect,
    defects_of,
    warnings_of,
)
from offramp.timing.ratios import ratio_of
from offramp.timing.results import BenchResult, Cluster, Contender

QUIET: dict[str, Any] = {"cores": 2, "threads": 2, "other_load": 0.05, "omp_wait_policy": "passive"}
WRONG = Difference(prompt=1, place=2, token=99, expected=8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"claimed": None}, []),  # who says nothing of layers does not lie
        ({"output_must_match": False, "difference": WRONG}, []),
        ({"difference": WRONG}, ["new token 3 of prompt 2 is 99 instead of 8"]),
        ({"claimed": 1200, "counted": 1260}, ["ran 1,200 layers for the tokens of a trial, but 1,260 ran"]),
        ({"difference": WRONG, "claimed": 1}, ["instead of 8", "but 120 ran"]),
    ],
)
def test_each_wrong_result_is_named_with_its_place(changes: dict[str, Any], said: list[str]) -> None:
    values: dict[str, Any] = {
        "name": "a decoder", "output_must_match": True, "difference": None, "claimed": 120, "counted": 120,
    }  # fmt: skip
    found = defects_of(**{**values, **changes})
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


@pytest.mark.parametrize(
    ("a_a", "defect"),
    [
        (Estimate(1.01, 0.97, 1.05), False),  # wide is no defect
        (Estimate(1.0, 0.9, 1.0), False),
        (Estimate(1.2), False),
        (Estimate(1.03, 1.001, 1.06), True),
        (Estimate(0.97, 0.95, 0.999), True),
    ],
)
def test_the_same_decoder_twice(a_a: Estimate[float], defect: bool) -> None:
    found = a_a_defect(a_a)
    assert (found is not None) is defect
    assert a_a_defect(a_a, A_A_FREEDOM - 1) is None  # of so few prompts anything may come
    assert found is None or "comes out unequal: ratio" in found


@pytest.mark.parametrize(
    ("circumstances", "said"),
    [
        ({}, []),
        ({"other_load": 0.9}, ["other work kept 0.9 of 2 processors busy, 0.3 are tolerable"]),
        ({"cores": 16, "threads": 4, "other_load": 12.2}, []),
        ({"cores": 16, "threads": 4, "other_load": 12.4}, ["other work kept 12.4 of 16 processors busy"]),
        ({"omp_wait_policy": None}, ["OMP_WAIT_POLICY is not set"]),
        ({"omp_wait_policy": "PASSIVE"}, []),
    ],
)
def test_noise_is_said_and_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, circumstances: dict[str, Any], said: list[str]
) -> None:
    monkeypatch.setattr("offramp.costs.timings.TOLERABLE_LOAD", 0.3)
    found = warnings_of(QUIET | circumstances)
    assert len(found) == len(said)
    assert all(sentence in line for sentence, line in zip(said, found, strict=True))


LOGS = ((0.69, 0.70, 0.68) * 2, (0.60, 0.62, 0.61) * 2, (0.75, 0.74, 0.76) * 2)


def process(logs: tuple[float, ...], **changes: object) -> BenchResult:
    """One process in which the policy had these log-ratios, and the again none."""
    made = made_up_result()
    own = tuple(Cluster(0, prompt, log, 8) for prompt, log in enumerate(logs))
    flat = tuple(Cluster(0, prompt, 0.001 * prompt, 8) for prompt in range(3))
    by_role = {"policy": own, "a/a": flat}
    contenders = tuple(
        replace(one, clusters=by_role.get(one.role, ()), **(changes if one.role == "policy" else {}))
        for one in made.contenders
    )
    return replace(made, contenders=contenders)


def test_clusters_are_of_process_and_prompt() -> None:
    found = merged([process(logs) for logs in LOGS])
    assert found.processes == 3
    assert found.seconds_spent == pytest.approx(3 * 41.5)
    expected = [
        Cluster(place, prompt, log, 8) for place, logs in enumerate(LOGS) for prompt, log in enumerate(logs)
    ]
    assert list(found.main.clusters) == expected
    assert found.main.ratio == ratio_of(expected)
    assert found.answer == "faster"
    assert len(found.main.samples) == 9
    # What processes do to their times is in the interval: far wider than over nine prompts of one process.
    alone = ratio_of([replace(one, process=0, prompt=place) for place, one in enumerate(expected)])
    assert found.resolution is not None
    assert found.main.ratio is not None
    assert found.main.ratio.low is not None
    assert alone.low is not None
    assert found.main.ratio.low < alone.low


def test_the_a_a_is_judged_over_all_processes() -> None:
    sound = merged([process(logs) for logs in LOGS])
    assert (sound.defects, sound.contender(sound.plain).answer) == ((), "equivalent")
    slowed = []
    for place in range(4):
        one = process(LOGS[0])
        again = tuple(Cluster(0, prompt, 0.5 + 0.001 * (prompt + place), 8) for prompt in range(4))
        contenders = tuple(replace(c, clusters=again) if c.role == "a/a" else c for c in one.contenders)
        slowed.append(replace(one, contenders=contenders))
    assert merged(slowed[:3]).defects == ()  # of so few anything may come
    found = merged(slowed)
    assert "the same decoder twice comes out unequal" in found.defects[0]
    assert found.answer == "defect"


def test_a_wrong_claim_in_one_process_is_a_defect_of_all() -> None:
    wrong = process(LOGS[1], claimed_layers_per_token=2.0)
    found = merged([process(LOGS[0]), replace(wrong, defects=("a decoder says that it ran less",))])
    assert found.answer == "defect"
    assert found.defects == ("a decoder says that it ran less",)
    assert found.contender(found.plain).answer == "equivalent"


def test_what_was_left_out_stays_so_and_nothing_is_nothing() -> None:
    missing = Contender("a peer", "peer", left_out="it cannot")
    results = [replace(one, contenders=(*one.contenders, missing)) for one in map(process, LOGS)]
    assert merged(results).contender("a peer") == missing
    assert merged([made_up_result()]).contender(made_up_result().plain).ratio == Estimate(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="nothing to merge"):
        merged([])
