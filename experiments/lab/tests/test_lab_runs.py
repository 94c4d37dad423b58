"""Which runs count, what they are compared at, and tables of runs that are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lab_worlds import LLAMA, study_rows

from offramp import InputError
from offramp_lab.runs import Study, at_loss, make_block, read_models


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


def run_of(
    name: str, losses: list[float], *, block: str = "1", kind: str = "dense", **more: Any
) -> pd.DataFrame:
    places = range(len(losses))
    about = {
        "run": name,
        "block": block,
        "base": "",
        "arm": "",
        **LLAMA,
        "kind": kind,
        "layers": 12,
        "hidden": 96,
    }
    models = {
        "step": places,
        "tokens": places,
        "loss": losses,
        "diverged": False,
        "x": [float(one) for one in places],
    }
    return pd.DataFrame({"seed": 1, **models, **about, **more})


def test_runs_are_compared_at_the_loss_that_all_reach() -> None:
    def block_of(*models: pd.DataFrame, endpoints: tuple[str, ...] = ("x",)) -> Any:
        study = Study(pd.concat(models, ignore_index=True))
        return make_block(study, study.runs, endpoints)

    a, b, c = run_of("a", [6, 5, 4]), run_of("b", [6, 5, 4.2]), run_of("c", [6, 5, 4.1])
    block = block_of(a, b, c, endpoints=("x", "nowhere"))
    assert (block.endpoints, block.loss, block.not_measured) == (("x",), 4.2, {})
    assert block.matched[:, 0] == pytest.approx([1.8, 2.0, 1 + 0.8 / 0.9])
    early = block_of(a, run_of("b", [3.9, 3.9, 3.8]))
    assert early.below == ("b",)
    assert early.matched[:, 0] == pytest.approx([2.0, 0.0])
    # The worst run was not measured: its loss is what others are compared at all the same.
    lacking = block_of(a, b.assign(x=np.nan), c)
    assert (lacking.loss, lacking.not_measured) == (4.2, {"b": "x"})
    assert lacking.runs["run"].tolist() == ["a", "c"]
    assert block_of(a.assign(x=np.nan), b.assign(x=np.nan)) is None


def test_runs_that_diverged_do_not_count_and_kinds_and_sizes_that_differ_are_no_divergence() -> None:
    models = [run_of(name, [6, 5, 4]) for name in "abc"]
    models += [
        run_of("nan", [6, np.nan, 4]),
        run_of("stuck", [6, 5, 4.5], block="2"),
        run_of("short", [6, 5]),
        run_of("marked", [6, 5, 4], diverged=True),
        *(run_of(f"m{place}", [6, 5, 4.6], block="3", kind="mamba2") for place in range(3)),
        run_of("x", [6, 5, 4], block="3", kind="mixture"),
        run_of("small", [6, 5, 5], block="6"),
        run_of("large", [6, 5, 3], block="6"),
        run_of("tuned", [4.9], block="5", arm="tuned"),
        run_of("plain", [4], block="5", arm="plain"),
    ]
    assert Study(pd.concat(models, ignore_index=True)).left_out == {
        "nan": "a loss is not finite",
        "stuck": "its last loss is 0.50 nat above the median",
        "short": "it ends after step 1 of 2",
        "marked": "it diverged",
    }


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = study_rows(1)
    study = Study(read_models(write_rows(tmp_path / "runs.csv", rows[::-1])))
    assert len(study.runs) == 4 + 32 + 18 + 12
    run = study.runs[study.runs["run"] == "run-16-early_exit_loss"].iloc[0]
    assert (run["block"], run["base"], run["arm"], run["kind"]) == ("4", "run-16", "early_exit_loss", "dense")
    both = study.runs[study.runs["run"] == "run-17"]
    assert {*zip(both["block"], both["arm"], strict=True)} == {("2", ""), ("4", "frozen_exits")}
    runs = study.runs[study.runs["arm"] == ""].set_index("run", drop=False)
    assert np.isnan(runs.loc["gate-run-01", "skipped"])
    assert study.models_of(runs.loc["run-03"])["step"].is_monotonic_increasing
    assert runs.loc["run-25", "norm"] == ""


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (lambda text: text.replace("norm,mlp", "nrom,mlp"), 0, "no column 'norm'"),
        (lambda text: text.replace(",skipped,", ",skiped,"), 1, "did you mean skipped"),
        (lambda text: text.replace("layernorm", "layernom", 1), 2, "no such norm"),
        (lambda text: re.sub(r"(\nrun-02,1,,),", r"\1again,", text, count=1), 0, "the arm is none"),
        (lambda text: text.replace("\nrun-02,1,,", "\nrun-02,1,run-01,", 1), 0, "the base does not fit"),
        (lambda text: text.replace("dense", "sparse", 1), 2, "no such kind"),
        (lambda text: text.replace("false", "perhaps", 1), 2, "diverged is neither"),
        (lambda text: text.replace("run-01,1,,,layernorm", "run-01,1,,,rmsnorm", 1), 0, "two values of norm"),
        (lambda text: text.splitlines()[0], 0, "the table has no runs"),
        (lambda text: text.replace(",12,96,", ",twelve,96,"), 0, "layers is no number"),
        (lambda text: re.sub(r",1953,", ",976,", text, count=1), 0, "two lines of one step"),
        (lambda text: text.replace("0.", "nan0.", 1), 0, "is no number"),
        (lambda text: re.sub(r",(0\.\d+)(?=[,\n])", r",1\1", text), 0, "a share is from 0 to 1"),
    ],
)
def test_a_wrong_table_is_refused_by_its_line(
    tmp_path: Path, change: Callable[[str], str], line: int, what: str
) -> None:
    path = write_rows(tmp_path / "runs.csv", study_rows(1, blocks=("gate", "1")))
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as error:
        read_models(path)
    assert what in str(error.value)
    assert f"line {line}" in str(error.value) or not line
