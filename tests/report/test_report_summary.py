"""`summary.json` against its published schema."""

import copy
import json
import math
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from report_examples import example_run

from offramp.report.summary import finite_json, summarise, summary_schema
from offramp.scoring.estimate import Estimate


@pytest.fixture(scope="module")
def summary():
    return summarise(example_run())


@pytest.fixture(scope="module")
def validator():
    schema = summary_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_summary_is_valid_and_is_json_without_nan(summary, validator):
    validator.validate(summary)
    validator.validate(json.loads(json.dumps(summary, allow_nan=False)))


def test_top_level_keys(summary):
    assert set(summary) == {
        "schema_version",
        "verdict",
        "scores",
        "frontier",
        "predicted",
        "measured",
        "provenance",
    }


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("schema_version",), 99),
        (("verdict", "decision"), "maybe"),
        (("verdict", "headline"), ""),
        (("verdict", "by_workload", 0, "floor"), "0.95"),
        (("verdict", "by_workload", 0, "net_speedup"), 1.01),
        (("verdict", "by_workload", 0, "net_speedup", "value"), "1.01"),
        (("verdict", "by_workload", 0, "floor_held"), 1),
        (("scores", 0, "representation", "low"), "low"),
        (("scores", 0, "documents"), 3.5),
        (("scores", 0, "curves", "values", "agreement"), [0.1, "x"]),
        (("frontier", 0, "speedup"), None),
        (("predicted", 0, "measured_seconds_per_token"), "none"),
        (("measured", "plain_seconds_per_token"), 0.0583),
        (("measured", "plain_seconds_per_token", "threads"), 0),
        (("provenance", "workloads", 0, "mode"), "speech"),
        (("provenance", "command"), 5),
    ],
)
def test_a_wrong_type_fails(summary, validator, path, wrong):
    broken = copy.deepcopy(summary)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    assert not validator.is_valid(broken)


@pytest.mark.parametrize("key", ["verdict", "scores", "frontier", "predicted", "measured", "provenance"])
def test_a_missing_part_fails(summary, validator, key):
    assert not validator.is_valid({name: value for name, value in summary.items() if name != key})


def test_predicted_seconds_are_plain_over_speedup(summary):
    for entry in summary["predicted"]:
        expected = entry["plain_seconds_per_token"] / entry["predicted_speedup"]["value"]
        assert entry["predicted_seconds_per_token"] == pytest.approx(expected)
        assert entry["measured_seconds_per_token"] is None
    assert summary["measured"]["plain_seconds_per_token"]["value"] == 0.0583
    assert summary["measured"]["measured_seconds_per_token"] is None


def test_without_timing_nothing_is_in_seconds(validator):
    summary = summarise(replace(example_run(), measured=None))
    validator.validate(summary)
    assert summary["measured"]["plain_seconds_per_token"] is None
    assert {entry["predicted_seconds_per_token"] for entry in summary["predicted"]} == {None}


def test_frontiers_keep_their_ends_and_infinite_thresholds_become_null(summary):
    frontier = example_run().workloads[0].frontiers[0]
    entry = summary["frontier"][0]
    assert entry["all_points"] == len(frontier.agreement)
    assert len(entry["agreement"]) == 200
    assert entry["threshold"][0] is None
    assert entry["agreement"][0] == frontier.agreement[0]
    assert entry["agreement"][-1] == frontier.agreement[-1]


def test_an_undefined_figure_is_null_with_its_reason(validator):
    run = example_run()
    workload = run.workloads[0]
    card = replace(workload.card, representation=Estimate(None, undefined="one document"))
    nan = np.full(len(card.curves.exits), math.nan)
    card = replace(card, curves=replace(card.curves, values={**card.curves.values, "auroc": nan}))
    summary = summarise(replace(run, workloads=(replace(workload, card=card),)))
    validator.validate(summary)
    assert summary["scores"][0]["representation"]["value"] is None
    assert summary["scores"][0]["representation"]["undefined"] == "one document"
    assert set(summary["scores"][0]["curves"]["values"]["auroc"]) == {None}


def test_finite_json():
    value = {"a": (np.float32(0.5), np.int64(3), math.inf), 1: [math.nan, True, None, "x"]}
    assert finite_json(value) == {"a": [0.5, 3, None], "1": [None, True, None, "x"]}


def test_provenance_cannot_replace_what_the_summary_says_itself(validator):
    summary = summarise(replace(example_run(), provenance={"layers": "many", "host": "here"}))
    validator.validate(summary)
    assert summary["provenance"]["layers"] == 30
    assert summary["provenance"]["host"] == "here"
