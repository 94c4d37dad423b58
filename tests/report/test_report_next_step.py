"""The next step of a run: its reason, its command, what it may bring; what it recommends to decode with."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from report_examples import example_run
from test_report_headline import certificate, run_with, verdict

from offramp.commands import RunCall
from offramp.files import safe_name
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.report.run_findings import next_step, recommended_file
from offramp.report.run_reading import NOT_ASKED
from offramp.report.run_result import RunProgress, RunResult
from offramp.tuning.verdict import Speed, Verdict

RUN = "offramp run smollm2 --dtype bfloat16"
CALL = RunCall(("smollm2", "--dtype", "bfloat16"), {"exits": "5,9", "output": "runs/mine"})
OF_OBJECT = RunCall(None, {"floor": [0.95, 0.9], "tokens": 99})


def asked(run: RunResult, **changes: object) -> RunResult:
    """A run with what it was asked for."""
    fields = {
        "call": CALL,
        "folder": "runs/mine",
        "minutes": 2.5,
        "training": None,
    }
    return replace(run, **{**fields, **changes})


def test_what_pays_is_decoded_with() -> None:
    step = next_step(asked(run_with(verdict("pays", 1.2, 1.1, 1.3))))
    assert step is not None
    words = shlex.split(step.command)
    assert words[:5] == ["offramp", "generate", "smollm2", "--dtype", "bfloat16"]
    assert words[words.index("--policy") + 1] == "runs/mine/policies/prose-tuned-0.95.json"
    assert "exit 20" in step.reason
    in_python = next_step(asked(run_with(verdict("pays", 1.2, 1.1, 1.3)), call=OF_OBJECT))
    assert in_python is not None
    policy = "runs/mine/policies/prose-tuned-0.95.json"
    assert in_python.command == f"offramp.generate(model, 'TEXT', policy='{policy}')"


def test_what_is_open_is_given_more_time() -> None:
    late = verdict("time", policy="never", missing=("time to decode",))
    step = next_step(asked(run_with(late, verdict("does not pay", policy="never"))))
    assert step is not None
    assert step.command == f"{RUN} --exits 5,9 --output runs/mine --minutes 10"
    assert "prose at 95 % is inconclusive; missing: time to decode." in step.reason
    assert "1 of 2 answers may be settled" in step.expected
    # An hour is the most that is asked for.
    assert next_step(asked(run_with(late), minutes=60.0)) is None
    in_python = next_step(asked(run_with(late), call=OF_OBJECT))
    assert in_python is not None
    assert in_python.command == "offramp.run(model, floors=[0.95, 0.9], tokens=99, minutes=10.0)"


def test_what_was_not_to_be_decoded_is_decoded_next() -> None:
    call = replace(CALL, options={**CALL.options, "no_decode": True})
    told = asked(run_with(verdict("time", policy="never", certificate=None)), call=call, minutes=None)
    step = next_step(replace(told, not_decoded={"prose": NOT_ASKED}))
    assert step is not None
    assert step.command == f"{RUN} --exits 5,9 --output runs/mine"
    assert "Decode for real: prose at 95 % is inconclusive by replay alone." in step.reason
    # What lies on disk cannot be decoded.
    assert next_step(replace(told, not_decoded={"prose": "its layers stay on disk"})) is None


def test_too_few_documents_ask_for_less() -> None:
    few = verdict("data", policy="never", certificate=certificate(holds=False))
    step = next_step(asked(run_with(few)))
    assert step is not None
    assert step.command == f"{RUN} --exits 5,9 --floor 0.9"
    assert "is still open after all 96 documents at hand" in step.reason
    short = replace(certificate(holds=False), documents=12, best_floor=0.91)
    step = next_step(asked(run_with(replace(few, certificate=short))))
    assert step is not None
    assert "needs 45 documents that lose nothing, and 12 are at hand" in step.reason


@pytest.mark.parametrize(
    ("options", "fewer", "command"),
    [
        ({"tokens": 1, "document_tokens": 1}, None, RUN),
        ({}, None, f"{RUN} --workload prose:short"),
        ({}, 0.85, f"{RUN} --floor 0.8"),
        ({"tokens": 1}, 0.7, f"{RUN} --tokens 1 --workload prose:short"),
    ],
)
def test_no_floor_is_proposed_that_the_documents_could_not_certify(
    options: dict[str, int], fewer: float | None, command: str
) -> None:
    """fewer: the best floor that they could certify; None where the trace has too few to be judged at all."""
    proof = None if fewer is None else replace(certificate(holds=False), documents=7, best_floor=fewer)
    few = verdict("data", policy="never", certificate=proof)
    step = next_step(asked(run_with(few), call=RunCall(CALL.model, options)))
    assert step is not None
    assert step.command == command


@pytest.mark.parametrize(("floor", "option"), [(0.9, "--floor 0.8"), (0.8, "--workload prose:short")])
def test_a_floor_that_was_asked_for_is_not_asked_for_again(floor: float, option: str) -> None:
    few = verdict("data", policy="never", certificate=certificate(holds=False))
    step = next_step(asked(run_with(few, replace(few, floor=floor))))
    assert step is not None
    assert step.command == f"{RUN} --exits 5,9 {option}"


def test_where_nothing_pays_exits_are_trained_and_no_gain_is_promised() -> None:
    step = next_step(asked(run_with(verdict("does not pay", policy="never"))))
    assert step is not None
    train = "offramp exits train smollm2 --dtype bfloat16 --workload prose --at 15,20 --output exits"
    assert step.command == train
    assert step.then == f"{RUN} --heads exits"  # and their layers, in the place of those of --exits
    assert "not predicted" in step.expected
    trained = asked(run_with(verdict("does not pay", policy="never")), call=OF_OBJECT)
    assert next_step(trained) is None


@pytest.mark.parametrize("name", ["int4", "int4 + shortlist"])
def test_where_the_model_in_few_bits_is_the_best_baseline_it_is_asked_of_that(name: str) -> None:
    refused = replace(verdict("does not pay", policy="never"), without=name)
    step = next_step(asked(run_with(refused)))
    assert step is not None
    assert step.command == f"{RUN} --transform int4 --exits 5,9"
    assert "int4 alone is the best baseline" in step.reason
    other = next_step(asked(run_with(replace(refused, without="shortlist:policy=[never],at=all"))))
    assert other is not None
    assert "exits train" in other.command


@pytest.mark.parametrize("changes", [{"progress": RunProgress((), "tracing", ())}, {"workloads": ()}])
def test_a_run_that_is_not_whole_has_none(changes: dict[str, object]) -> None:
    assert next_step(replace(asked(example_run()), **changes)) is None


def test_where_nothing_was_decoded_nothing_is_refused_and_no_exits_are_trained() -> None:
    replayed = verdict("time", policy="never", certificate=None)
    assert next_step(asked(run_with(replayed), minutes=None)) is None


MEASURED = Speed(1.04, 0.99, 1.09, "measured", "local", True)
SLOWER = Speed(0.967, 0.94, 1.0, "measured", "local", True)


@pytest.mark.parametrize(
    ("changes", "recommended"),
    [
        ({}, True),
        ({"outcome": "interval"}, True),
        ({"decision": "does not pay"}, False),
        ({"speed": SLOWER}, False),  # certified, and predicted to be faster, but the stopwatch says no
        ({"speed": None}, False),
        ({"certified": False}, False),
        ({"policy": Never()}, False),
    ],
)
def test_only_what_is_certified_and_not_found_slower_is_recommended(
    changes: dict[str, Any], recommended: bool
) -> None:
    facts = {
        "decision": "pays",
        "certified": True,
        "policy": StaticExit(4),
        "speed": MEASURED,
        "floor": 0.95,
    }
    verdict = mock.Mock(spec=Verdict, **{**facts, **changes})
    file = Path("run/policies") / f"{safe_name('prose:short')}-tuned-0.95.json"
    assert recommended_file(Path("run"), "prose:short", verdict) == (file if recommended else None)
