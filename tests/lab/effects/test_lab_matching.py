"""Which runs count, what they are compared at, and tables of runs that are wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lab_worlds import LLAMA, study_rows, write_rows
from offramp.errors import InputError
from offramp.lab.effects.matching import at_loss, left_out, make_block
from offramp.lab.effects.runs import Run, read_rows, runs_of


def test_values_at_a_loss_lie_between_the_models_around_it() -> None:
    losses, values = np.array([6.0, 5.0, 4.0, 4.2, 3.0]), np.arange(5.0)
    assert at_loss(losses, values, 5.5) == pytest.approx(0.5)
    # 4.1 is reached, lost and reached again: from the fourth model's 4.2 to the fifth's 3.0.
    assert at_loss(losses, values, 4.1) == pytest.approx(3 + 0.1 / 1.2)
    assert at_loss(losses, values, 3.0) == pytest.approx(4.0)
    assert at_loss(losses, values, 7.0) == pytest.approx(0.0)
    values[3] = np.nan
    assert at_loss(losses, values, 3.0) == 4.0, "the model before is not needed"
    assert np.isnan(at_loss(losses, values, 4.1))


def run_of(name: str, losses: list[float], *, block: str = "1", kind: str = "dense", arm: str = "") -> Run:
    places = tuple(range(len(losses)))
    values = {"x": np.arange(len(losses), dtype=np.float64)}
    return Run(name, block, "", arm, LLAMA, kind, 12, 96, 1, places, places, np.array(losses), False, values)


def test_runs_are_compared_at_the_loss_that_all_reach() -> None:
    runs = [run_of("a", [6, 5, 4]), run_of("b", [6, 5, 4.2]), run_of("c", [6, 5, 4.1])]
    block = make_block(runs, ["x", "nowhere"])
    assert block is not None
    assert (block.endpoints, block.loss, block.not_measured) == (("x",), 4.2, {})
    assert block.matched[:, 0] == pytest.approx([1.8, 2.0, 1 + 0.8 / 0.9])
    early = make_block([runs[0], run_of("b", [3.9, 3.9, 3.8])], ["x"])
    assert early is not None
    assert early.below == ("b",)
    assert early.matched[:, 0] == pytest.approx([2.0, 0.0])
    # The worst run was not measured: its loss is what others are compared at all the same.
    lacking = make_block([runs[0], replace(runs[1], values={}), runs[2]], ["x"])
    assert lacking is not None
    assert (lacking.loss, lacking.not_measured) == (4.2, {"b": "x"})
    assert [run.name for run in lacking.runs] == ["a", "c"]
    assert make_block([replace(run, values={}) for run in runs], ["x"]) is None
    assert make_block([], ["x"]) is None


def test_runs_that_diverged_do_not_count_and_kinds_and_sizes_that_differ_are_no_divergence() -> None:
    alike = [run_of(name, [6, 5, 4]) for name in "abc"]
    odd = [
        run_of("nan", [6, np.nan, 4]),
        run_of("stuck", [6, 5, 4.5], block="2"),
        run_of("short", [6, 5]),
        replace(run_of("marked", [6, 5, 4]), diverged=True),
    ]
    others = [run_of(f"m{place}", [6, 5, 4.6], block="3", kind="mamba2") for place in range(3)]
    others += [run_of("x", [6, 5, 4], block="3", kind="mixture"), run_of("small", [6, 5, 5], block="6")]
    others += [run_of("large", [6, 5, 3], block="6"), run_of("tuned", [4.9], block="5", arm="tuned")]
    others += [run_of("plain", [4], block="5", arm="plain")]
    assert left_out([*alike, *odd, *others]) == {
        "nan": "a loss is not finite",
        "stuck": "its last loss is 0.50 nat above the median",
        "short": "it ends after step 1 of 2",
        "marked": "it diverged",
    }


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = study_rows(1)
    read = runs_of(read_rows(write_rows(tmp_path / "runs.csv", rows)))
    assert len(read) == 4 + 32 + 18 + 12
    run = next(one for one in read if one.name == "run-16-early_exit_loss")
    assert (run.block, run.base, run.arm, run.kind) == ("4", "run-16", "early_exit_loss", "dense")
    assert {(one.block, one.arm) for one in read if one.name == "run-17"} == {
        ("2", ""),
        ("4", "frozen_exits"),
    }
    runs = {one.name: one for one in read if not one.arm}
    assert np.isnan(runs["gate-run-01"].at("skipped")).all()
    assert np.isnan(run.at("no such endpoint")).tolist() == [True]
    assert runs["run-03"].steps == tuple(sorted(runs["run-03"].steps))
    assert runs["run-25"].levels["norm"] == ""


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (lambda text: text.replace("norm,mlp", "nrom,mlp"), 1, "no column 'norm'"),
        (lambda text: text.replace(",skipped,", ",skiped,"), 1, "no endpoint 'skiped'"),
        (lambda text: text.replace(",skipped,", ",loss,"), 1, "two columns have one name"),
        (lambda text: text.replace("layernorm", "layernom", 1), 2, "did you mean 'layernorm'"),
        (lambda text: re.sub(r"(\nrun-02,1,,),", r"\1again,", text, count=1), 0, "arm is 'again'"),
        (lambda text: text.replace("\nrun-02,1,,", "\nrun-02,1,run-01,", 1), 0, "names a base"),
        (lambda text: text.replace("dense", "sparse", 1), 2, "kind is 'sparse'"),
        (lambda text: text.replace("false", "perhaps", 1), 2, "diverged is 'perhaps'"),
        (lambda text: text.replace("run-01,1,,,layernorm", "run-01,1,,,rmsnorm", 1), 0, "two values of norm"),
        (lambda text: text.splitlines()[0], 0, "the table has no runs"),
        (lambda text: text.replace(",96,", ",96,1,", 1), 2, "a line has"),
        (lambda text: text.replace(",12,96,", ",twelve,96,"), 0, "layers is 'twelve'"),
        (lambda text: re.sub(r",1953,", ",976,", text, count=1), 0, "two lines of step 976"),
        (lambda text: text.replace("0.", "nan0.", 1), 0, "which is no number"),
        (lambda text: re.sub(r",[-\d.]+\n(?=run-02)", ",nan\n", text, count=1), 0, "leave it empty"),
        (lambda text: re.sub(r",(0\.\d+)(?=[,\n])", r",1\1", text), 0, "a share is from 0 to 1"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(tmp_path: Path, change: object, line: int, what: str) -> None:
    path = write_rows(tmp_path / "runs.csv", study_rows(1, blocks=("gate", "1")))
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(InputError) as error:
        runs_of(read_rows(path), str(path))
    assert what in str(error.value)
    assert f"line {line}" in str(error.value) or not line
