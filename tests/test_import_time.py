"""Starting offramp is quick: nothing heavy is loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "transformers", "scipy", "pandas", "sklearn", "pyarrow", "pydantic", "lm_eval", "ray"}
HELP = "import sys; sys.argv = ['offramp', '--help']; from offramp.cli.main import main; main()"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("program", "seconds"),
    [("import offramp", 0.3), (HELP, 0.5)],
    ids=["import offramp", "offramp --help"],
)
def test_starting_takes_little_time(program: str, seconds: float) -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        result = run_python("-c", program)
        times.append(time.perf_counter() - started)
        assert result.returncode == 0, result.stderr
    # The best of three: other processes on the machine can only make it slower.
    assert min(times) < seconds


@pytest.mark.parametrize("program", ["import offramp", HELP], ids=["import offramp", "offramp --help"])
def test_starting_loads_nothing_heavy(program: str) -> None:
    result = run_python("-X", "importtime", "-c", program)
    assert result.returncode == 0, result.stderr
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "offramp" in imported
    assert imported & HEAVY == set()


def test_help_names_the_run_command() -> None:
    result = run_python("-c", HELP)
    assert result.returncode == 0, result.stderr
    assert "run" in result.stdout
