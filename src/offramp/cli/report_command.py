"""`offramp report`: the page of what is done, whatever did it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from offramp.cli.compare_command import CompareCommand, Mixed, compare
from offramp.cli.console import Output
from offramp.kit.request import Request, argument, flags
from offramp.tracing.progress import stage


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Mixed, Request):
    """Write the page of a run or a study again, from what is done so far; of several folders, one for all."""

    folders: Annotated[tuple[Path, ...], argument, flags(metavar="DIR")]
    """Folders of offramp run and offramp study run."""


def report(asked: ReportCommand, out: Output) -> None:
    """Write the page that the folders are of."""
    if len(asked.folders) > 1:
        compare(CompareCommand(folders=asked.folders, mixed=asked.mixed), out)
        return
    from offramp.report.pages import write_study_page
    from offramp.report.run_reading import RunReader
    from offramp.runs.folder import RUN_FOLDER
    from offramp.runs.outputs import require_done, write_outputs
    from offramp.studies.folder import StudyFolder

    folder = StudyFolder(asked.folders[0])
    if folder.read_plan().is_run:
        require_done(folder)
        with RUN_FOLDER.held(folder.path), stage("writing the page"):
            page = write_outputs(RunReader(folder.path)).report
    else:
        page = write_study_page(folder, mixed=asked.mixed)
    out.say_page(page)
    out.finish({"folder": str(folder.path), "report": str(page)})
