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
    assert max(len(line) for line in text.splitlines()) <= width
    for word in ("predicted", "replayed", "measured"):
        assert word in text


def test_markup_in_names_and_undefined_figures():
    run = example_run()
    workload = run.workloads[0]
    card = replace(workload.card, calibration=Estimate(None, undefined="constant confidence"))
    verdicts = tuple(replace(v, net_speedup=Estimate(None, undefined="no tokens")) for v in workload.verdicts)
    workload = replace(workload, name="[red]x[/]", card=card, verdicts=verdicts)
    text = printed(replace(run, workloads=(workload,), measured=None), 140)
    assert "[red]x[/]" in text
    assert "undefined: constant confidence" in text
    assert "undefined: no tokens" in text
    assert "Plain decoding was not timed." in text
