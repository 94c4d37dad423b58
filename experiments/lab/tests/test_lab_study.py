"""A small study from its file to its page: killed, gone on with, and what is the lab's alone."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from lab_worlds import sentences

import offramp
import offramp_lab
from offramp_lab.design import REPLICATION
from offramp_lab.endpoints import Sizes
from offramp_lab.runs import SKIPPED_THIRD
from offramp_lab.study import read_study, run_study
from offramp_lab.text import LabText, read_text
from offramp_lab.train import train

LAB = Path(__file__).parents[1]
RUNS = ("run-01", "run-16", "run-25", "run-01-continued", "run-31")
STUDY = f"""runs = {[*RUNS]}
size = "smoke"
rate = 0.004
tokens = 5000
checkpoints = 2
endpoints = ["representation"]
dear = ["skipped", "representation_lens", "required_depth"]

[sizes]
prompts = 2
prompt_tokens = 12
new_tokens = 6
traced = 256
lens_tokens = 1024
lens_steps = 4
context = 64

[text]
sources = []
vocabulary = 300
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was killed as soon as it had kept a model, and then gone on with."""
    place = tmp_path_factory.mktemp("study")
    own = ""
    for kind, count in (("prose", 24), ("code", 24)):
        (place / kind).mkdir()
        for seed in range(count):
            (place / kind / f"{seed:02}.txt").write_text(sentences(seed + 100 * len(kind), count=20))
        own += f'[[text.own]]\nname = "{kind}"\npath = "{kind}"\nkind = "{kind}"\nlicence = "none"\n'
    (place / "study.toml").write_text(STUDY + own)
    command = [
        sys.executable,
        "-m",
        "offramp_lab",
        "study",
        str(place / "study.toml"),
        "-o",
        str(place / "out"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    with subprocess.Popen(command, start_new_session=True, **quiet) as process:  # type: ignore[call-overload]
        while not [*place.glob("out/models/*/training.json")]:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(place / "out" / "report.html")
    return place / "out"


def test_its_table_has_a_line_for_each_kept_model(folder: Path) -> None:
    table = pd.read_csv(folder / "tables" / "runs.csv")
    steps = [("run-01", 10), ("run-01", 20), ("run-01-frozen-exits", 20), ("run-01-continued", 4)]
    steps += [("run-16", 10), ("run-16", 20), ("run-16-frozen-exits", 20)]
    steps += [("run-25", 10), ("run-25", 20), ("run-31", 10), ("run-31", 20)]
    assert [*zip(table["run"], table["step"], strict=True)] == steps
    assert table["representation"].notna().all()
    assert table["loss"].between(2.0, 6.5).all()
    frozen = table[table["arm"] == "frozen_exits"].iloc[0]
    base = table[(table["run"] == "run-01") & (table["step"] == 20)].iloc[0]
    assert frozen["representation"] == base["representation_lens"], "through the lens"
    assert (frozen["block"], frozen["base"], base["hidden"]) == (4, "run-01", 48)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "the gate is not among the runs: nothing can be concluded" in page


def test_what_it_trained_is_what_a_recipe_alone_gives(folder: Path, tmp_path: Path) -> None:
    text = read_text(folder / "text")
    study = read_study(folder.parent / "study.toml")
    from offramp_lab.design import design

    runs = design("smoke", tokens=5000, rate=0.004, vocabulary=text.vocabulary, checkpoints=2)
    train(runs["run-16"].recipe, text, tmp_path / "alone")
    for step in ("", "@10"):
        ours, alone = (
            one / "model.safetensors" for one in (folder / f"models/run-16{step}", tmp_path / f"alone{step}")
        )
        assert ours.read_bytes() == alone.read_bytes()
    assert study.runs == RUNS


@pytest.mark.slow
def test_a_replication_alone_is_run_and_judged(lab_text: LabText, tmp_path: Path) -> None:
    small = read_study(LAB / "replication.toml").model_copy(
        update={
            "runs": ("run-33", "run-34", "run-45", "run-46"),
            "size": "smoke",
            "tokens": 2000,
            "dear": ("representation",),
            "sizes": Sizes(prompts=2, prompt_tokens=12, new_tokens=6, traced=256),
        }
    )
    shutil.copytree(lab_text.folder, tmp_path / "text")
    page = run_study(small, tmp_path).read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "tables" / "runs.csv")
    assert [*zip(table["run"], table["positions"], strict=True)] == [
        *(("run-33", "learned"), ("run-34", "learned"), ("run-45", "rotary"), ("run-46", "rotary"))
    ]
    assert table[[*SKIPPED_THIRD, "representation"]].notna().all(axis=None)
    claims = pd.read_csv(tmp_path / "tables" / "claims.csv")
    assert [*zip(claims["test"], claims["endpoint"], strict=True)] == [
        ("rotary - learned", endpoint) for endpoint in SKIPPED_THIRD
    ]
    assert "the gate of these sizes is that of the study that it repeats" in page
    assert "2 and 2 of 24 trainings, rotary and learned" in page


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("run-31", "run-99"), "there is no run 'run-99'"),
        (("'run-01', ", ""), "needs run-01"),
        (("'run-31'", "'gate-run-01'"), "study.toml, runs"),
        (('"skipped"', '"skiped"'), "there is no endpoint 'skiped'"),
        (("tokens = 5000", 'tokens = "many"'), "tokens"),
        (("vocabulary = 300", "vocabulry = 300"), "vocabulry"),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(tmp_path: Path, change: tuple[str, str], what: str) -> None:
    (tmp_path / "study.toml").write_text(STUDY.replace(*change))
    if what == "study.toml, runs":  # a gate without one of its corners
        (tmp_path / "study.toml").write_text(STUDY.replace(*change).replace("'run-16', ", ""))
    with pytest.raises(offramp.InputError) as error:
        read_study(tmp_path / "study.toml")
    assert what in str(error.value)


def test_the_registered_study_lists_its_runs() -> None:
    from offramp_lab.design import design

    study, replication = (read_study(LAB / f"{name}.toml") for name in ("study", "replication"))
    every = design("narrow", tokens=1, rate=1.0)
    repeated = {name for name, run in every.items() if run.block == REPLICATION}
    assert ({*study.runs}, {*replication.runs}) == ({*every} - repeated, repeated)
    for one in (study, replication):
        assert (one.size, one.rate, one.tokens) == ("narrow", 0.004, 5_000_000)


def test_the_replication_differs_in_positions_alone() -> None:
    from offramp_lab.design import design

    runs = design("narrow", tokens=5_000_000, rate=0.004, checkpoints=1)
    recipes = [run.recipe for run in runs.values() if run.block == REPLICATION]
    first = runs["run-01"].recipe
    own = {"seed", "positions", "against", "factor"}
    assert {one.model_dump_json(exclude=own) for one in recipes} == {first.model_dump_json(exclude=own)}
    assert [one.positions for one in recipes] == ["learned"] * 12 + ["rotary"] * 12
    sizes = {one.weights(2048, one.sized(2048)) for one in recipes}
    assert max(sizes) / min(sizes) < 1.01


def test_nothing_of_offramp_is_used_but_its_public_names() -> None:
    imported = set()
    for path in Path(offramp_lab.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "offramp":
                assert node.module == "offramp", f"{path.name}: {node.module}"
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("offramp.") for alias in node.names), path.name
    assert imported <= {*offramp.__all__}
