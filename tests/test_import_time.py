"""Starting offramp is quick: nothing heavy is loaded before it is needed."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "numpy", "scipy", "pandas", "sklearn", "pyarrow", "pydantic", "psutil"}
HEAVY |= {"lm_eval", "ray"}
HELP = "import sys; sys.argv = ['offramp', '--help']; from offramp.cli.main import main; main()"


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("program", "seconds"),
    [("import offramp", 0.3), (HELP, 0.5)],
    ids=["import offramp", "offramp --help"],
)
def test_starting_takes_little_time(program: str, seconds: float) -> None:
    # Seconds of the processor, the best of five: other processes on the machine can only make it slower.
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = run_python("-c", program)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == 0, result.stderr
        taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if taken < seconds:
            return
    pytest.fail(f"five times it took longer than {seconds} s, at last {taken:.2f} s")


@pytest.mark.parametrize("program", ["import offramp", HELP], ids=["import offramp", "offramp --help"])
def test_starting_loads_nothing_heavy(program: str) -> None:
    result = run_python("-X", "importtime", "-c", program)
    assert result.returncode == 0, result.stderr
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "offramp" in imported
    assert imported & HEAVY == set()
