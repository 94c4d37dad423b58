"""The terminal summary."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from report_examples import example_run
from rich.console import Console

from offramp.report.headline import headline
from offramp.report.terminal import print_summary
from offramp.scoring.estimate import Estimate


def printed(run, width=100, report=None) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(run, console, report)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_everything_that_matters_is_there(width):
    run = example_run()
    text = printed(run, width, Path("out/report.html"))
    assert " ".join(text.split()).startswith(headline(run))
    for workload in run.workloads:
        assert workload.name in text
    assert "out/report.html" in text
    assert max(len(line) for line in text.splitlines() if " = " not in line) <= width
    for word in ("predicted", "replayed", "measured"):
        assert word in text


def test_markup_in_names_and_undefined_figures():
    run = example_run()
    workload = run.workloads[0]
    card = replace(workload.card, calibration=Estimate(None, undefined="constant confidence"))
    verdicts = tuple(replace(v, speed=None) for v in workload.verdicts)
    workload = replace(workload, name="[red]x[/]", card=card, verdicts=verdicts)
    text = printed(replace(run, workloads=(workload,), measured=None), 140)
    assert "[red]x[/]" in text
    assert "undefined: constant confidence" in text
    assert "is faster than plain decoding" in text
    assert "Plain decoding was not timed." in text


def test_one_line_each_for_league_certificate_and_machines():
    run = example_run()
    lines = printed(run, 2000).splitlines()
    for name, words in {
        "Best policy: ": "code correctness, 3 exits",
        "Certificates: ": "prose 99 % agreement: not certifiable (15 documents, 230 needed)",
        "Where it would pay: ": "prose on this machine no; yes on a100 and h100 at batch 1",
    }.items():
        found = [line for line in lines if line.startswith(name)]
        assert len(found) == 1
        assert words in found[0]
    bare = replace(run, workloads=tuple(replace(w, league=(), tuned=(), machines=()) for w in run.workloads))
    text = printed(bare, 2000)
    assert not any(word in text for word in ("Best policy:", "Certificates:", "Where it would pay:"))
