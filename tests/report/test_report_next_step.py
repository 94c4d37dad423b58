"""The next step of a run: its reason, its command, and what it may bring."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from report_examples import example_run
from test_report_headline import certificate, run_with, verdict

from offramp.report.next_step import next_step, with_option
from offramp.report.run_result import Progress, RunResult


def asked(run: RunResult, **changes: object) -> RunResult:
    """A run with what its command line was."""
    fields = {
        "command": "offramp run smollm2 -o runs/mine",
        "elsewhere": "offramp run smollm2",
        "folder": "runs/mine",
        "model_argument": ("smollm2",),
        "minutes": 2.5,
        "training": None,
    }
    return replace(run, **{**fields, **changes})


def test_what_pays_is_decoded_with() -> None:
    step = next_step(asked(run_with(verdict("pays", 1.2, 1.1, 1.3))))
    assert step is not None
    words = shlex.split(step.command)
    assert words[:3] == ["offramp", "generate", "smollm2"]
    assert words[words.index("--policy") + 1] == "runs/mine/policies/prose-tuned-0.95.json"
    assert "exit 20" in step.reason


def test_what_is_open_is_given_more_time() -> None:
    late = verdict("not settled", policy="never", missing=("time to decode",))
    step = next_step(asked(run_with(late, verdict("does not pay", policy="never"))))
    assert step is not None
    assert step.command == "offramp run smollm2 -o runs/mine --minutes 10"
    assert "prose at 95 % is not settled; missing: time to decode." in step.reason
    assert "1 of 2 answers may be settled" in step.expected
    # An hour is the most that is asked for.
    assert next_step(asked(run_with(late), minutes=60.0)) is None
    in_python = next_step(asked(run_with(late), command="offramp.run(model)", model_argument=()))
    assert in_python is not None
    assert in_python.command == "offramp.run(model, minutes=10)"


def test_too_few_documents_ask_for_less() -> None:
    few = verdict("not enough documents", policy="never", certificate=certificate(holds=False))
    step = next_step(asked(run_with(few)))
    assert step is not None
    assert step.command == "offramp run smollm2 --floor 0.9"
    assert "needs 45 documents that lose nothing, and 96 are at hand" in step.reason


def test_where_nothing_pays_exits_are_trained_and_no_gain_is_promised() -> None:
    step = next_step(asked(run_with(verdict("does not pay", policy="never"))))
    assert step is not None
    assert step.command == "offramp exits train smollm2 --workload prose --at 15,20 --output exits"
    assert step.then == "offramp run smollm2 --heads exits"
    assert "not predicted" in step.expected
    trained = asked(run_with(verdict("does not pay", policy="never")), model_argument=())
    assert next_step(trained) is None


@pytest.mark.parametrize("changes", [{"progress": Progress((), "tracing", ())}, {"workloads": ()}])
def test_a_run_that_is_not_whole_has_none(changes: dict[str, object]) -> None:
    assert next_step(replace(asked(example_run()), **changes)) is None


def test_where_nothing_was_decoded_nothing_is_refused_and_no_exits_are_trained() -> None:
    replayed = verdict("not settled", policy="never", certificate=None)
    assert next_step(asked(run_with(replayed), minutes=None)) is None


def test_options_are_added_to_commands_and_calls() -> None:
    assert with_option("offramp run x", "floor", "0.9") == "offramp run x --floor 0.9"
    assert with_option("offramp.run(model)", "floors", "0.9") == "offramp.run(model, floors=0.9)"
