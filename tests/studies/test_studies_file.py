"""Reading study files: defaults, short forms, and heads that lie in a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from study_files import SETTINGS, plan_of, small_world, study_of

import offramp
from offramp.errors import InputError
from offramp.models.source import find_source
from offramp.studies.study_file import read_study
from offramp.tracing.exit_heads import ExitHeads, LinearLens
from offramp.tracing.heads_file import write_heads


def test_short_forms_and_long_forms_say_the_same(tmp_path: Path) -> None:
    short = study_of(
        tmp_path,
        'models = ["smollm2"]\nworkloads = ["prose"]\npolicies = ["league", "never"]\n'
        'transforms = ["none", "prune:drop=1"]\nmachines = ["h100"]\nheads = ["none"]\n',
    )
    long = study_of(
        tmp_path,
        """
[[models]]
name = "smollm2"
source = "smollm2"
base = "smollm2"
[[workloads]]
name = "prose"
source = "prose"
[[policies]]
name = "league"
policy = "league"
[[policies]]
name = "never"
policy = "never"
[[transforms]]
name = "none"
[[transforms]]
name = "prune:drop=1"
steps = ["prune:drop=1"]
[[machines]]
name = "h100"
source = "h100"
[[heads]]
name = "none"
""",
    )
    assert short.to_json() == long.to_json()
    assert short.fingerprint == long.fingerprint


def test_defaults(tmp_path: Path) -> None:
    study = study_of(tmp_path, 'models = ["smollm2"]\nworkloads = ["prose"]\n', 'name = "s"\n')
    assert study.name == "s"
    assert study.settings.tokens == 1600
    assert study.settings.threads == len(os.sched_getaffinity(0))
    assert [entry.name for entry in study.policies] == ["league", "tuned"]
    assert [entry.name for entry in study.machines] == ["local"]
    assert [entry.name for entry in (*study.transforms, *study.heads)] == ["none", "none"]
    assert not study.streamed


def test_the_public_name_reads_a_study(tmp_path: Path) -> None:
    study_of(tmp_path, 'models = ["smollm2"]\nworkloads = ["prose"]\n')
    assert offramp.read_study(tmp_path / "STUDY.toml") == read_study(tmp_path / "STUDY.toml")


def test_heads_in_a_file_belong_to_one_model(tmp_path: Path) -> None:
    small_world(tmp_path)
    identity = find_source(str(tmp_path / "a")).identity
    sizes = {"dtype": "float32", "hidden_size": 8, "vocabulary_size": 32}
    lens = LinearLens(
        weight=np.zeros((3, 8, 8), dtype=np.float32),
        bias=np.zeros((3, 8), dtype=np.float32),
        penalty=np.ones(3),
        explained=np.zeros(3),
    )
    heads = ExitHeads(
        model={"name": "a", "fingerprint": identity.fingerprint, "layers": 4, **sizes},
        exits=(1, 2, 3),
        lens=lens,
        classifiers={},
        candidate_exit=None,
        shortlist=None,
        documents={},
        provenance={},
    )
    write_heads(heads, tmp_path / "lens.safetensors")
    text = 'models = ["a"]\nworkloads = ["txt:one.txt"]\nmachines = ["h100"]\n'
    table = '[[heads]]\nname = "lens"\nfile = "lens.safetensors"\n'
    plan = plan_of(tmp_path, text + table)
    (task,) = [task for task in plan.tasks.values() if task.kind == "heads"]
    assert task.recipe["file"] == heads.fingerprint
    assert task.sources == {"heads": str(tmp_path / "lens.safetensors")}
    with pytest.raises(InputError, match="fitted on a ") as caught:
        plan_of(tmp_path, text.replace('"a"', '"b"') + table)
    settings = SETTINGS.count("\n")
    assert f"line {3 + 1 + settings + 4}, heads[1].file" in caught.value.where
    # Which layers are dropped is measured when it runs: only then it is known whose heads these are.
    measured = 'transforms = ["prune:by=angular,layers=1"]\n'
    assert plan_of(tmp_path, text + measured + table).tasks
    with pytest.raises(InputError, match="fitted on a "):
        plan_of(tmp_path, text + 'transforms = ["prune:drop=1"]\n' + table)
