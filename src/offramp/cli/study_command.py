"""`offramp study`: plan, run, watch and report a study of many cells."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson, Mixed
from offramp.cli.study_folder import folder_of, require_own
from offramp.errors import InputError
from offramp.kit.defaults import STALL_SECONDS
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.studies.engines.engine import EngineOptions
    from offramp.studies.folder import StudyFolder
    from offramp.studies.status import Status
    from offramp.studies.task import Plan

study = typer.Typer(help="Run the cells of a study file, survive anything, and compare them.")

LOCAL = "local"
FAILED = 1

StudyFile = Annotated[Path, typer.Argument(help="The study's .toml file.", show_default=False)]
FileOrFolder = Annotated[
    Path,
    typer.Argument(help="The study's .toml file, or its folder, or that of a run.", show_default=False),
]
StudyOutput = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="The study's folder. By default runs/study-<name>.", show_default=False
    ),
]


@dataclass(frozen=True)
class OpenStudy:
    """A study file as it is now: its plan, and the folder that it is run into."""

    plan: Plan
    folder: StudyFolder


@study.callback(invoke_without_command=True)
def study_command(context: typer.Context) -> None:
    """Run the cells of a study file, survive anything, and compare them."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(InputError.exit_code)


@study.command("plan")
def plan_command(study_file: FileOrFolder, output: StudyOutput = None, as_json: AsJson = False) -> None:
    """Show the cells: what is done, what cannot be had here, and what the rest takes. Runs nothing."""
    from offramp.cli.study_plan_table import plan_json, show_plan
    from offramp.studies.status import status_of

    out = Output(as_json)
    opened = open_study(study_file, output)
    status = status_of(opened.plan, opened.folder)
    show_plan(out.console, opened.plan, status, opened.folder.path)
    out.finish(plan_json(opened.plan, status, opened.folder.path))


@study.command("run")
def run_command(
    study_file: StudyFile,
    output: StudyOutput = None,
    engine: Annotated[
        str, typer.Option("--engine", help="What runs the cells: local (processes here) or ray.")
    ] = LOCAL,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            help="Processes at once. By default as many as the cores allow.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help="Memory for all that runs at once, as 8GB. By default what is free.",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Of a running Ray cluster, with --engine ray.", show_default=False),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed cells again.")] = False,
    stall_limit: Annotated[
        float,
        typer.Option(
            "--stall-limit",
            metavar="SECONDS",
            help="Without a sign of life, after which a cell's process is ended and the cell tried again.",
        ),
    ] = STALL_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Run what is not done yet and write the report. Stopped? Run it again: it goes on.

    Ends with 0 if all that can be had here is done, and with 1 if a cell failed or a model is damaged.
    """
    from offramp.cli.study_folder import report_of_run
    from offramp.cli.study_progress import study_progress
    from offramp.cli.study_table import show_head, show_outcome, study_json
    from offramp.studies.engines.registry import engine_named
    from offramp.studies.status import status_of

    out = Output(as_json)
    if study_file.is_dir():
        raise InputError(
            "this is a folder, and a study is run by its file",
            where=str(study_file),
            fix="give the study's .toml file; a run goes on with the offramp run command that made it",
        )
    options = engine_options(workers, memory, address, retry, stall_limit)
    chosen = engine_named(engine)
    require_understood(engine, memory, address)
    opened = open_study(study_file, output, download=True)
    plan, folder = opened.plan, opened.folder
    folder.write_plan(plan)
    show_head(out.console, plan, folder.path)
    started = time.monotonic()
    read = functools.partial(status_of, plan, folder, workers=options.workers)
    with study_progress(plan, read) as changed:
        chosen.run(plan.jobs, folder, options, changed)
    plan = folder.read_plan()
    seconds = time.monotonic() - started
    status = status_of(plan, folder)
    show_outcome(out.console, plan, status, folder.path, seconds)
    report = report_of_run(out, folder) if status.cells["done"] else None
    out.finish(
        {
            **study_json(plan, status, folder.path),
            "seconds": seconds,
            "report": None if report is None else str(report),
        }
    )
    if report is None or plan.damaged or not succeeded(status):
        raise typer.Exit(FAILED)


@study.command("status")
def status_command(
    study_file: FileOrFolder,
    output: StudyOutput = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read every finished file again; damaged ones are named and redone."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is done, running, failed and left. Ends with 1 if --verify finds damage."""
    from offramp.cli.study_table import show_status, study_json
    from offramp.studies.status import status_of

    out = Output(as_json)
    opened = open_study(study_file, output)
    with stage("reading every finished file" if verify else "looking at the study's folder"):
        status = status_of(opened.plan, opened.folder, verify=verify)
    show_status(out.console, opened.plan, status, opened.folder.path)
    damaged = [key for key, state in status.states.items() if state == "damaged"]
    out.finish({**study_json(opened.plan, status, opened.folder.path), "damaged": damaged})
    if verify and damaged:
        raise typer.Exit(FAILED)


@study.command("report")
def report_command(
    study_file: StudyFile, output: StudyOutput = None, mixed: Mixed = False, as_json: AsJson = False
) -> None:
    """Write the page, the tables and the citation of what is done so far, into the study's folder."""
    from offramp.cli.study_folder import show_report, write_report
    from offramp.studies.folder import StudyFolder
    from offramp.studies.status import study_file_problems
    from offramp.studies.study_file import read_study

    out = Output(as_json)
    name = read_study(study_file).name
    folder = StudyFolder(folder_of(name, output))
    require_own(folder.path, name)
    notes = study_file_problems(folder.read_plan())
    report = write_report(folder, mixed=mixed)
    for note in notes:
        out.console.print(f"note: {note}", markup=False, soft_wrap=True)
    show_report(out, report)
    out.finish({"folder": str(folder.path), "report": str(report), "problems": notes})


def open_study(study_file: Path, output: Path | None, *, download: bool = False) -> OpenStudy:
    """Read a study file and plan it, or the plan that a folder of a study or a run holds; nothing is run and
    no model is loaded.

    download: fetch models of the Hub that are not on this machine.

    Raises InputError for a file that is wrong, with its line, and for a folder that cannot be one.
    """
    from offramp.studies.folder import StudyFolder
    from offramp.studies.plan import make_plan
    from offramp.studies.study_file import read_study

    if study_file.is_dir() and not download:
        folder = StudyFolder(study_file)
        return OpenStudy(folder.read_plan(), folder)
    read = read_study(study_file)
    path = folder_of(read.name, output)
    require_own(path, read.name)
    with stage("looking at models, texts and machines"):
        plan = make_plan(read, path, download=download)
    return OpenStudy(plan, StudyFolder(path))


def engine_options(
    workers: int | None, memory: str | None, address: str | None, retry: bool, stall_limit: float
) -> EngineOptions:
    """The options of an engine. Raises InputError for a size below 1 and for what is no amount of memory."""
    from offramp.models.memory import parse_size
    from offramp.studies.engines.engine import EngineOptions

    if workers is not None and workers < 1:
        raise InputError(f"{workers} processes can run nothing", where="--workers", fix="choose 1 or more")
    if not stall_limit >= 30.0:
        raise InputError(
            f"{stall_limit:g} seconds are too few to take a process for stopped",
            where="--stall-limit",
            fix="choose 30 or more",
        )
    budget = None if memory is None else parse_size(memory, "--memory")
    return EngineOptions(
        workers=workers, memory_bytes=budget, retry=retry, address=address, stall_seconds=stall_limit
    )


def require_understood(engine: str, memory: str | None, address: str | None) -> None:
    """Refuse options that mean nothing to an engine. Raises InputError."""
    if address is not None and engine == LOCAL:
        raise InputError(
            "an address means nothing to the local engine",
            where="--address",
            fix="add --engine ray, or leave --address out",
        )
    if memory is not None and engine != LOCAL:
        raise InputError(
            f"the {engine} engine goes by the memory that each node was started with",
            where="--memory",
            fix="leave --memory out, or start the nodes with ray start --memory=BYTES",
        )


def succeeded(status: Status) -> bool:
    """Whether all that can be had here is done, and something is."""
    left = sum(count for state, count in status.cells.items() if state not in ("done", "blocked"))
    return status.cells["done"] > 0 and left == 0
