"""Several fresh processes as one measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_cases import made_up_result

from offramp.decoding.measurement.intervals import ratio_of
from offramp.decoding.measurement.processes import merged
from offramp.decoding.measurement.results import BenchResult, Cluster, Contender, Interval

LOGS = ((0.69, 0.70, 0.68), (0.60, 0.62, 0.61), (0.75, 0.74, 0.76))


def process(logs: tuple[float, ...], **changes: object) -> BenchResult:
    """One process in which the policy had these log-ratios, and the twin none."""
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


def test_the_twins_are_judged_over_all_processes() -> None:
    sound = merged([process(logs) for logs in LOGS])
    assert (sound.defects, sound.contender(sound.plain).answer) == ((), "equivalent")
    slowed = []
    for place in range(4):
        one = process(LOGS[0])
        twins = tuple(Cluster(0, prompt, 0.5 + 0.001 * (prompt + place), 8) for prompt in range(4))
        contenders = tuple(replace(c, clusters=twins) if c.role == "a/a" else c for c in one.contenders)
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
    assert merged([made_up_result()]).contender(made_up_result().plain).ratio == Interval(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="nothing to merge"):
        merged([])
