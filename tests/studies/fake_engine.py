"""Run the study of a folder with the local engine and made-up kinds of work: `fake_engine.py FOLDER`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from fake_works import FAKE_WORKER

from offramp.studies.engines.engine import EngineOptions
from offramp.studies.engines.local import LocalEngine
from offramp.studies.folder import StudyFolder


def start(folder: StudyFolder) -> subprocess.Popen[str]:
    """This script as a process, at the head of a group of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), str(folder.path)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )


def main() -> None:
    folder = StudyFolder(Path(sys.argv[1]))
    # Every test process has the same few cores; the engine must not wait for more of them.
    options = EngineOptions(workers=2)
    LocalEngine(FAKE_WORKER).run(folder.read_plan().jobs, folder, options, lambda: None)


if __name__ == "__main__":
    # Tests that run in the background inherit an ignored interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        os._exit(130)
