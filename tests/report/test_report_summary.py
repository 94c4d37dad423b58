"""`summary.json` against its published schema, and the machine's prices in it."""

from __future__ import annotations

import copy
import functools
import json
import math
from dataclasses import replace

import answer_examples as answers
import jsonschema
import numpy as np
import pytest
from report_examples import example_run, first_two, model_shape

from offramp.costs.token import TokenCosts, token_costs
from offramp.errors import InputError
from offramp.report.curves import spread
from offramp.report.page import render
from offramp.report.run_result import PriceList
from offramp.report.summary import summarise, summary_schema
from offramp.scoring.estimate import Estimate


@pytest.fixture(scope="module")
def summary():
    return summarise(example_run())


@pytest.fixture(scope="module")
def short(summary):
    return first_two(summary)


@pytest.fixture(scope="module")
def validator():
    schema = summary_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_summary_is_valid_and_is_json_without_nan(summary, short, validator):
    validator.validate(json.loads(json.dumps(summary, allow_nan=False)))
    validator.validate(short)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("schema_version",), 99),
        (("verdict", "decision"), "maybe"),
        (("verdict", "headline"), ""),
        (("verdict", "by_workload", 0, "net_speedup", "value"), "1.01"),
        (("verdict", "by_workload", 0, "floor_held"), 1),
        (("scores", 0, "documents"), 3.5),
        (("scores", 0, "curves", "values", "agreement"), [0.1, "x"]),
        (("frontier", 0, "speedup"), None),
        (("measured", "plain_seconds_per_token", "threads"), 0),
        (("provenance", "workloads", 0, "mode"), "speech"),
        (("league", 0, "probe_share"), 1.2),
        (("league", 0, "parts", "layers"), "0.04"),
        (("tuned", 0, "certificate", "holds"), None),
        (("tuned", 0, "floor", "kind"), "accuracy"),
        (("machines", 0, "batch"), 0),
        (("hardware", "layer_seconds"), None),
        (("heads", "classifiers", "adainfer", "auroc"), 84),
    ],
)
def test_a_wrong_type_or_a_missing_part_fails(short, validator, path, wrong):
    broken = copy.deepcopy(short)
    *way, last = path
    place = functools.reduce(lambda found, key: found[key], way, broken)
    place[last] = wrong
    assert not validator.is_valid(broken)
    without = {name: value for name, value in short.items() if name != path[0]}
    assert not validator.is_valid(without)


def test_predicted_seconds_are_plain_over_speedup(summary):
    for entry in summary["predicted"]:
        expected = entry["plain_seconds_per_token"] / entry["predicted_speedup"]["value"]
        assert entry["predicted_seconds_per_token"] == pytest.approx(expected)
        assert entry["measured_seconds_per_token"] is None
    assert summary["measured"]["plain_seconds_per_token"]["value"] == 0.0583
    assert summary["measured"]["measured_seconds_per_token"] is None


def with_basis(basis, **changes):
    run = example_run()
    workload = run.workloads[0]
    verdicts = tuple(replace(v, basis=basis) for v in workload.verdicts)
    return replace(run, workloads=(replace(workload, verdicts=verdicts),), **changes)


@pytest.mark.parametrize(
    ("basis", "hardware", "plain"),
    [
        ("local", answers.HARDWARE, answers.HARDWARE.plain_seconds_per_token),
        ("bytes moved", answers.HARDWARE, 0.0583),
        # The profile is gone, but the machines' answers still know its plain seconds at batch size 1.
        ("h100", answers.HARDWARE, 0.00078 * 1.04),
        # A machine that nothing is known of: this machine's stopwatch says nothing about it.
        ("m4", answers.HARDWARE, None),
    ],
)
def test_predicted_seconds_are_those_of_the_verdicts_machine(validator, basis, hardware, plain):
    summary = summarise(with_basis(basis, hardware=hardware))
    validator.validate(first_two(summary))
    for entry, verdict in zip(summary["predicted"], summary["verdict"]["by_workload"], strict=True):
        assert verdict["basis"] == basis
        assert entry["plain_seconds_per_token"] == (None if plain is None else pytest.approx(plain))
        expected = None if plain is None else pytest.approx(plain / verdict["net_speedup"]["value"])
        assert entry["predicted_seconds_per_token"] == expected


def test_a_run_without_a_profile_or_answers_uses_the_stopwatch_if_there_is_one(validator):
    run = with_basis("local", hardware=None, heads=None)
    bare = tuple(replace(w, league=(), tuned=(), machines=(), break_even=()) for w in run.workloads)
    summary = summarise(replace(run, workloads=bare))
    validator.validate(first_two(summary))
    assert {entry["plain_seconds_per_token"] for entry in summary["predicted"]} == {0.0583}
    assert summary["league"] == summary["tuned"] == summary["machines"] == summary["break_even"] == []
    untimed = summarise(with_basis("bytes moved", plain_seconds_per_token=None))
    validator.validate(first_two(untimed))
    assert untimed["measured"]["plain_seconds_per_token"] is None
    assert {entry["predicted_seconds_per_token"] for entry in untimed["predicted"]} == {None}


def test_league_and_certificates_are_there_with_their_workload(summary):
    workload = example_run().workloads[0]
    entries = [entry for entry in summary["league"] if entry["workload"] == "prose"]
    assert [e["policy"] for e in entries] == [str(e.policy) for e in workload.league]
    assert sum(entries[0]["parts"].values()) == pytest.approx(entries[0]["seconds_per_token"]["value"])
    tuned = summary["tuned"][0]
    assert (tuned["certificate"]["documents"], tuned["certificate"]["documents_needed"]) == (15, 230)
    assert tuned["floor"] == {"kind": "agreement", "value": 0.99, "clip": None}
    assert tuned["document_digests"] == {}


def test_a_long_front_keeps_its_ends():
    points = list(range(1001))
    kept = spread(points, 100)
    assert len(kept) == len(set(kept)) == 100
    assert (kept[0], kept[-1]) == (0, 1000)
    assert kept == sorted(kept)
    assert spread(points[:3], 100) == points[:3]


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
    validator.validate(first_two(summary))
    assert summary["scores"][0]["representation"]["value"] is None
    assert summary["scores"][0]["representation"]["undefined"] == "one document"
    assert set(summary["scores"][0]["curves"]["values"]["auroc"]) == {None}


def test_provenance_cannot_replace_what_the_summary_says_itself(validator):
    summary = summarise(replace(example_run(), provenance={"layers": "many", "host": "here"}))
    validator.validate(first_two(summary))
    assert summary["provenance"]["layers"] == 30
    assert summary["provenance"]["host"] == "here"


COSTS = TokenCosts(
    unit="seconds",
    layers=np.array([0.001, 0.003]),
    head=0.006,
    exit_head=0.007,
    probes={"full head": 0.008, "cosine": 0.0001},
    key_value=np.array([0.0002, 0.0004]),
    overhead=0.002,
)


def test_prices_by_hand(validator):
    prices = PriceList("local", "a bench", COSTS, self_check_ratio=0.98, threads=2, load=0.3, note="just now")
    run = replace(example_run(), hardware=prices)
    summary = summarise(run)
    assert summary["hardware"] == {
        "name": "local",
        "source": "a bench",
        "layer_seconds": pytest.approx(0.002),
        "head_seconds": 0.006,
        "probe_seconds": {"full head": 0.008, "cosine": 0.0001},
        "overhead_seconds": 0.002,
        "plain_seconds_per_token": pytest.approx(0.012),
        "key_value_seconds": pytest.approx(0.0003),
        "self_check_ratio": 0.98,
        "threads": 2,
        "load": 0.3,
        "note": "just now",
    }
    validator.validate(first_two(summary))
    assert "4.0 layers" in render(run).replace("\u00a0", " ")


@pytest.mark.parametrize(
    "costs", [replace(COSTS, batch=4), token_costs(model_shape(2), 8.0, "bytes")], ids=["batch", "bytes"]
)
def test_other_prices_are_refused(costs):
    with pytest.raises(InputError, match="cannot be shown in seconds per token"):
        PriceList("local", "a bench", costs)
