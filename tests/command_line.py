"""Running `offramp` in this process (quick) or in one of its own, and reading what it says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from consistency import require_consistent

if TYPE_CHECKING:
    from offramp.studies.engines.engine import EngineOptions
    from offramp.studies.folder import StudyFolder
    from offramp.studies.task import StudyJob

# For timing a tiny model on this machine, which a run does once per model; twelve for users.
TIMING_SECONDS = 1.0
MAIN = "from offramp.cli.main import main; main()"
PROGRAM = [sys.executable, "-c", MAIN]


@dataclass(frozen=True)
class Outcome:
    """What one command ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, which must be the only one with a JSON object."""
        lines = self.out.splitlines()
        assert sum(line.startswith("{") for line in lines) == 1, self.out
        return json.loads(lines[-1])

    def require(self, code: int) -> Outcome:
        """The outcome itself if the exit code is this one; a traceback is never fine."""
        assert self.code == code, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.out + self.err
        return self


def run_offramp(*arguments: object) -> Outcome:
    """Run a command line in this process, as the installed script does; a run's texts must not contradict."""
    import torch

    from offramp.cli.main import main
    from offramp.models.process import with_threads
    from offramp.scoring.estimate import Estimate
    from offramp.studies import plan
    from offramp.timing import local_profile as profiles

    def holds(*_: object) -> profiles.StepCheck:
        # Steps of a tiny model take a millisecond: its timings never hold to three percent.
        return profiles.StepCheck(Estimate(1.0, 0.99, 1.01), 1e-3, 12)

    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["offramp", *map(str, arguments)]),
        mock.patch.dict(os.environ, COLUMNS="80"),
        mock.patch.object(profiles, "PROFILE_SECONDS", TIMING_SECONDS),
        mock.patch.object(profiles, "check_profile", holds),
        mock.patch.object(plan, "PROFILE_SECONDS", TIMING_SECONDS),
        with_threads(torch.get_num_threads()),  # a process of its own would end with its threads
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    outcome = Outcome(code, out.getvalue(), err.getvalue())
    report = re.search("^Report: (.*)$", outcome.out + outcome.err, re.M)
    if arguments[:1] == ("run",) and code == 0 and report is not None:
        require_consistent(Path(report.group(1)).parent)
    return outcome


@dataclass(frozen=True)
class Here:
    """An engine that runs a study's jobs in this process, which has loaded torch already."""

    name: str = "local"

    def run(
        self,
        jobs: Sequence[StudyJob],
        folder: StudyFolder,
        options: EngineOptions,
        on_change: Callable[[], None],
    ) -> None:
        """Run them one after another; the threads that a task asks for are given back."""
        import torch

        from offramp.studies.runner import run_job

        threads = torch.get_num_threads()
        try:
            for job in jobs:
                run_job(job, folder)
                on_change()
        finally:
            torch.set_num_threads(threads)


def start_offramp(*arguments: object, folder: Path | None = None, before: str = "") -> subprocess.Popen[str]:
    """Start a command line in a process of its own, in `folder`, with as many threads as this one has.

    before: a statement that is executed first.
    """
    import torch

    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{MAIN}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        preexec_fn=_hear_signals,
    )


def _hear_signals() -> None:
    """A shell's background jobs are born deaf to Ctrl-C, and what `nohup` started to a hang-up."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Outcome:
    """Wait for a started command."""
    out, err = process.communicate(timeout=timeout)
    return Outcome(process.returncode, out, err)


def summary_of(outcome: Outcome) -> dict[str, Any]:
    """The summary.json that the JSON object of `offramp run` names."""
    value: dict[str, Any] = json.loads(Path(outcome.json["summary"]).read_text(encoding="utf-8"))
    return value


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by path, without timestamps in JSON; locks and records of
    what was written left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (".lock", ".offramp.json"):
            content = path.read_bytes()
            if path.name == "manifest.json":
                value = json.loads(content)
                value.pop("timestamps", None)
                content = json.dumps(value).encode()
            found[str(path.relative_to(folder))] = content
    return found


def run_arguments(model: Path, documents: Path) -> list[object]:
    """The command line of the finished run that tests share, without its folder."""
    return ["run", model, "-w", f"jsonl:{documents}#text", "-w", "chat", "--tokens", 960]


def assert_refused(arguments: Sequence[str], said: str, names: Mapping[str, object], out: Path) -> None:
    """A command line, its words replaced by what they name, is refused, says so, and leaves nothing there."""
    found = run_offramp(*(names.get(word, word) for word in arguments)).require(2)
    assert said in found.err
    assert not out.exists()


def assert_bench_decodes(model: Path, workload: str) -> None:
    """Answers to what documents give are decoded, by the policy and by plain decoders."""
    found = run_offramp(
        *("bench", model, "--policy", "static:exit=2", "--workload", workload, "--prompts", 2),
        *("--new-tokens", 8, "--seconds", 0, "--no-peers", "--no-quality", "--json"),
    ).require(0)
    names = {contender["name"] for contender in found.json["contenders"]}
    assert {"static:exit=2 (propagate)", "generate()", "never exit"} <= names
