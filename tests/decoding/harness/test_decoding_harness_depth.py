"""How deep an evaluation's tokens went: sums worked by hand, and the table for people."""

from __future__ import annotations

import pytest

from offramp.decoding.harness.model import Depth, Depths, depth_table


def test_means_are_those_worked_by_hand() -> None:
    # Two generations of 3 and 2 tokens in a model of 10 layers: exits 10, 4, 4 and 10, 7.
    depth = Depth(10, requests=1, tokens=3, exits=18, fed=2, layers_executed=8).plus(
        Depth(10, requests=1, tokens=2, exits=17, fed=1, layers_executed=7)
    )
    assert depth.mean_exit == 35 / 5
    assert depth.layers_skipped == pytest.approx(1 - 15 / 30)
    assert depth.to_json() == {
        "requests": 2,
        "tokens": 5,
        "mean_exit": 7.0,
        "layers_executed": 15,
        "layers_of_full_model": 30,
        "layers_skipped": 0.5,
    }


def test_without_a_token_nothing_is_known() -> None:
    depth = Depth(10, requests=1, tokens=1, exits=10)
    assert depth.layers_skipped is None
    assert Depth(10).mean_exit is None


def test_tasks_and_types_are_kept_apart_and_shown() -> None:
    depths = Depths(10)
    depths.add("sums", "generate_until", Depth(10, requests=1, tokens=2, exits=14, fed=1, layers_executed=4))
    depths.add("sums", "loglikelihood", Depth(10, requests=1, tokens=1, exits=3, fed=1, layers_executed=3))
    depths.add("sums", "generate_until", Depth(10, requests=1, tokens=2, exits=14, fed=1, layers_executed=4))
    depths.add("none", "loglikelihood", Depth(10, requests=1))
    found = depths.to_json()
    assert list(found) == ["sums", "none"]
    assert found["sums"]["generate_until"]["tokens"] == 4
    assert found["sums"]["loglikelihood"]["mean_exit"] == 3.0
    assert depth_table(depths).splitlines() == [
        "|Tasks|Request type  |Tokens| Mean exit|Layers skipped|",
        "|-----|--------------|-----:|---------:|-------------:|",
        "|sums |generate_until|     4|7.00 of 10|        60.0 %|",
        "|sums |loglikelihood |     1|3.00 of 10|        70.0 %|",
        "|none |loglikelihood |     0|         -|             -|",
    ]
