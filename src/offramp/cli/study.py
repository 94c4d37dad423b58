"""`offramp study`: plan, run, watch and report a study of many cells."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from annotated_types import Ge

from offramp.cli.command import Output, command, group
from offramp.cli.pages import Mixed
from offramp.commands import command_line
from offramp.defaults import LOCAL, STALL_SECONDS
from offramp.errors import InputError
from offramp.kit.numbers import Count, Seconds
from offramp.kit.request import Options, Request, Writes, argument, flags
from offramp.kit.rules import only_if
from offramp.models.process import parse_size
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.studies.folder import StudyFolder
    from offramp.studies.status import Status
    from offramp.studies.study import StudyPlan


study = group("Run the cells of a study file, survive anything, and compare them.")

FAILED = 1
FEWEST_STALL_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class InFolder(Options):
    """Where a study lies."""

    output: Annotated[Path | None, Writes(InFolder.require_own)] = None
    """The study's folder. By default runs/study-<name>."""

    def require_own(self, output: Path) -> None:
        """Refuse a folder of something else."""
        from offramp.report.pages import STUDY_FOLDER

        STUDY_FOLDER.require(output)


@dataclass(frozen=True, kw_only=True)
class StudyPlanCommand(InFolder, Request):
    """Show the cells: what is done, what cannot be had here, and what the rest takes. Runs nothing."""

    study_file: Annotated[Path, argument]
    """The study's .toml file, or its folder, or that of a run."""


@dataclass(frozen=True, kw_only=True)
class StudyRunCommand(InFolder, Request):
    """Run what is not done yet and write the report. Stopped? Run it again: it goes on.

    Ends with 0 if all that can be had here is done, and with 1 if a cell failed or a model is damaged.
    """

    study_file: Annotated[Path, argument]
    """The study's .toml file."""
    engine: str = LOCAL
    """What runs the cells: local (processes here) or ray."""
    workers: Count | None = None
    """Processes at once. By default as many as the cores allow."""
    memory: Annotated[
        str | None,
        only_if(
            lambda asked: asked.engine == LOCAL,
            "with --engine {engine}: start its nodes with ray start --memory=BYTES",
        ),
    ] = None
    """Memory for all that runs at once, as 8GB. By default what is free."""
    address: Annotated[
        str | None,
        only_if(lambda asked: asked.engine != LOCAL, "with the local engine", "--engine ray"),
    ] = None
    """Of a running Ray cluster, with --engine ray."""
    retry: bool = False
    """Try failed cells again."""
    stall_limit: Annotated[Seconds, Ge(FEWEST_STALL_SECONDS), flags(metavar="SECONDS")] = STALL_SECONDS
    """Without a sign of life, after which a cell's process is ended and the cell tried again."""

    @property
    def resumes(self) -> bool:
        """With every cell."""
        return True

    @property
    def memory_bytes(self) -> int | None:
        """The memory as a number. Raises InputError for what is none."""
        return None if self.memory is None else parse_size(self.memory, "--memory")

    def check(self) -> None:
        """Refuse a folder in the place of a file, and sizes that an engine cannot work with."""
        super().check()
        if self.study_file.is_dir():
            raise InputError(
                "this is a folder, and a study is run by its file",
                where=str(self.study_file),
                fix="give the study's .toml file; a run goes on with the offramp run command that made it",
            )
        _ = self.memory_bytes


@dataclass(frozen=True, kw_only=True)
class StudyStatusCommand(InFolder, Request):
    """Show what is done, running, failed and left. Ends with 1 if --verify finds damage."""

    study_file: Annotated[Path, argument]
    """The study's .toml file, or its folder, or that of a run."""
    verify: bool = False
    """Read every finished file again; damaged ones are named and redone."""


@dataclass(frozen=True, kw_only=True)
class StudyReportCommand(InFolder, Mixed, Request):
    """Write the page, the tables and the citation of what is done so far, into the study's folder."""

    study_file: Annotated[Path, argument]
    """The study's .toml file."""

    def check(self) -> None:
        """Refuse a folder in the place of a file."""
        super().check()
        if self.study_file.is_dir():
            raise InputError(
                "this is a folder, and a study is told by its file",
                where=str(self.study_file),
                fix=f"give the study's .toml file, or: {command_line('report', self.study_file)}",
            )


def plan(asked: StudyPlanCommand, out: Output) -> None:
    """Plan, and show the cells."""
    from offramp.cli.study_shown import plan_json, show_plan
    from offramp.studies.status import status_of

    plan, folder = open_study(asked.study_file, asked.output)
    status = status_of(plan, folder)
    show_plan(out.console, plan, status, folder.path)
    out.finish(plan_json(plan, status, folder.path))


def run(asked: StudyRunCommand, out: Output) -> None:
    """Run, and show how the cells ended."""
    from offramp.cli.study_shown import show_head, show_outcome, study_json, study_progress
    from offramp.report.pages import study_page
    from offramp.studies.engines.engine import EngineOptions
    from offramp.studies.engines.registry import engine_named
    from offramp.studies.status import status_of

    options = EngineOptions(
        workers=asked.workers,
        memory_bytes=asked.memory_bytes,
        retry=asked.retry,
        address=asked.address,
        stall_seconds=asked.stall_limit,
    )
    engine = engine_named(asked.engine)
    plan, folder = open_study(asked.study_file, asked.output, download=True)
    folder.write_plan(plan)
    show_head(out.console, plan, folder.path)
    started = time.monotonic()
    read = functools.partial(status_of, plan, folder, workers=options.workers)
    with study_progress(plan, read) as changed:
        engine.run(plan.jobs, folder, options, changed)
    plan = folder.read_plan()
    seconds = time.monotonic() - started
    status = status_of(plan, folder)
    show_outcome(out.console, plan, status, folder.path, seconds)
    report = None
    if status.cells["done"]:
        try:
            report = study_page(folder)
            out.say(f"Report: {report}")
        except InputError as error:
            out.say(f"no report: {error}")
    out.finish(
        {
            **study_json(plan, status, folder.path),
            "seconds": seconds,
            "report": None if report is None else str(report),
        }
    )
    if report is None or plan.damaged or not succeeded(status):
        raise typer.Exit(FAILED)


def status(asked: StudyStatusCommand, out: Output) -> None:
    """Show how far it is."""
    from offramp.cli.study_shown import show_status, study_json
    from offramp.studies.status import status_of

    plan, folder = open_study(asked.study_file, asked.output)
    with stage("reading every finished file" if asked.verify else "looking at the study's folder"):
        status = status_of(plan, folder, verify=asked.verify)
    show_status(out.console, plan, status, folder.path)
    damaged = [key for key, state in status.states.items() if state == "damaged"]
    out.finish({**study_json(plan, status, folder.path), "damaged": damaged})
    if asked.verify and (damaged or status.damage):
        raise typer.Exit(FAILED)


def report(asked: StudyReportCommand, out: Output) -> None:
    """Write the page, and say where it lies."""
    from offramp.report.pages import STUDY_FOLDER, folder_of, write_study_page
    from offramp.studies.folder import StudyFolder
    from offramp.studies.status import study_file_problems
    from offramp.studies.study_checks import read_study

    name = read_study(asked.study_file).name
    folder = StudyFolder(folder_of(name, asked.output))
    STUDY_FOLDER.require(folder.path, {"name": name})
    notes = study_file_problems(folder.read_plan())
    page = write_study_page(folder, mixed=asked.mixed)
    for note in notes:
        out.say(f"note: {note}")
    out.say(f"Report: {page}")
    out.finish({"folder": str(folder.path), "report": str(page), "problems": notes})


def open_study(
    study_file: Path, output: Path | None, *, download: bool = False
) -> tuple[StudyPlan, StudyFolder]:
    """The plan of a study file as it is now, or the one that a folder of a study or a run holds, and the
    folder that it is run into; nothing is run and no model is loaded.

    download: fetch models of the Hub that are not on this machine.

    Raises InputError for a file that is wrong, with its line, and for a folder that cannot be one.
    """
    from offramp.report.pages import STUDY_FOLDER, folder_of
    from offramp.studies.folder import StudyFolder
    from offramp.studies.plan import make_plan
    from offramp.studies.study_checks import read_study

    if study_file.is_dir() and not download:
        folder = StudyFolder(study_file)
        return folder.read_plan(), folder
    read = read_study(study_file)
    path = folder_of(read.name, output)
    STUDY_FOLDER.require(path, {"name": read.name})
    with stage("looking at models, texts and machines"):
        plan = make_plan(read, path, download=download)
    return plan, StudyFolder(path)


def succeeded(status: Status) -> bool:
    """Whether all that can be had here is done, and something is."""
    left = sum(count for state, count in status.cells.items() if state not in ("done", "blocked"))
    return status.cells["done"] > 0 and left == 0


command(study, "plan", StudyPlanCommand, plan)
command(study, "run", StudyRunCommand, run)
command(study, "status", StudyStatusCommand, status)
command(study, "report", StudyReportCommand, report)
