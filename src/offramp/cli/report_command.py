"""`offramp report`: the page of what is done, whatever did it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.compare_command import DEFAULT_FOLDER, compare
from offramp.cli.console import Output
from offramp.cli.options import AsJson, Mixed
from offramp.errors import InputError
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.studies.folder import StudyFolder


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR", help="Folders of offramp run and offramp study run.", show_default=False
        ),
    ],
    mixed: Mixed = False,
    as_json: AsJson = False,
) -> None:
    """Write the page of a run or a study again, from what is done so far; of several folders, one for all."""
    if len(folders) > 1:
        compare(folders, DEFAULT_FOLDER, None, mixed=mixed, as_json=as_json)
        return
    from offramp.cli.study_folder import show_report, write_report
    from offramp.files import locked_folder
    from offramp.report.run_reading import RunReader
    from offramp.runs.outputs import write_outputs
    from offramp.studies.folder import StudyFolder

    out, folder = Output(as_json), StudyFolder(folders[0])
    if folder.read_plan().is_run:
        require_done(folder)
        with locked_folder(folder.path), stage("writing the page"):
            page = write_outputs(RunReader(folder.path)).report
    else:
        page = write_report(folder, mixed=mixed)
    show_report(out, page)
    out.finish({"folder": str(folder.path), "report": str(page)})


def require_done(folder: StudyFolder) -> None:
    """Refuse a run of which tasks are to do or damaged: its page would show less than its last one.

    Raises InputError with what is missing. What could not be decoded is no part of it.
    """
    from offramp.report.run_reading import command_of

    plan = folder.read_plan()
    undone = {task.kind: folder.condition(task) for task in plan.tasks.values() if not folder.is_done(task)}
    missing = [f"{kind} ({state})" for kind, state in undone.items() if state != "failed"]
    if missing:
        raise InputError(
            f"the run is not whole: {', '.join(missing)}",
            where=str(folder.path),
            fix="give its command again, which does what is missing or damaged, and writes the page: "
            + command_of(folder),
        )
