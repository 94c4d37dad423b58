"""lm-eval's own command line on the bundled model: accuracy, and the exits beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'offramp[harness]'"
)

sys.path.insert(0, str(Path(__file__).parent))

from harness_cases import TASKS, write_tasks

PROGRAM = """
import functools
import lm_eval.tasks
# Reading the thousands of tasks that lm-eval brings takes longer than all else.
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
from offramp.decoding.harness.__main__ import main
main()
"""


@pytest.mark.slow
@pytest.mark.real_model
def test_the_bundled_model_runs_three_tasks_with_a_static_exit(tmp_path: Path) -> None:
    tasks, results = write_tasks(tmp_path / "tasks"), tmp_path / "results.json"
    arguments = (
        "--model offramp --model_args pretrained=smollm2,policy=static:exit=24,kv=propagate,dtype=float32 "
        f"--tasks {','.join(TASKS)} --include_path {tasks} --limit 2 --output_path {results} --log_samples"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments.split()],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **offline},
        cwd=tmp_path,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    for task in TASKS:
        assert f"|{task}" in run.stdout
    assert "of 30" in run.stdout
    (written,) = tmp_path.glob("results*.json")
    found = json.loads(written.read_text(encoding="utf-8"))
    assert 0 <= found["results"]["own_choices"]["acc,none"] <= 1
    own = found["config"]["offramp"]
    assert (own["policy"], own["kv"], own["layers"]) == ("static:exit=24", "propagate", 30)
    scored = own["depth"]["own_texts"]["loglikelihood_rolling"]
    assert (scored["mean_exit"], scored["requests"]) == (24.0, 2)
    assert scored["layers_skipped"] == pytest.approx(0.2)
    generated = own["depth"]["own_sums"]["generate_until"]
    assert 24 < generated["mean_exit"] < 30  # the first token of each answer comes out of the prompt
    assert generated["layers_skipped"] == pytest.approx(0.2)
