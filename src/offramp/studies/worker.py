"""The process that runs a job: `python -m offramp.studies.worker FOLDER NAME`.

The job comes as one line of JSON on standard input, which stays open for as long as the engine lives: when it
closes, the worker ends at once, so that nothing is computed for an engine that is gone. The outcome goes to
standard output as JSON; whatever libraries print goes to standard error, which is the job's log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from offramp.files import parse_json
from offramp.kit.typed import from_json, to_json
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import start_beating
from offramp.studies.runner import run_job
from offramp.studies.task import Job

ORPHANED = 3
"""The exit code of a worker whose engine is gone."""


def main() -> None:
    """Run the job that standard input holds, in the study's folder that the command line names.

    The second argument is the worker's name: what it touches while it lives has it.
    """
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Ctrl-C reaches every process of a terminal; the engine decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = from_json(Job, parse_json(_read_line()))
    threading.Thread(target=_end_with_engine, daemon=True).start()
    folder = StudyFolder(Path(sys.argv[1]))
    start_beating(folder.alive_path(sys.argv[2]))
    outcome = run_job(job, folder)
    with os.fdopen(answer, "w") as file:
        json.dump(to_json(outcome), file)


def _read_line() -> bytes:
    """The first line of standard input; unbuffered, since a thread goes on reading."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            os._exit(ORPHANED)
        line += part
    return bytes(line)


def _end_with_engine() -> None:
    """End the process when standard input closes, whatever else runs in it."""
    while os.read(0, 1):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
