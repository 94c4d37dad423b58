"""What every engine is: something that runs a study's jobs until nothing more can be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from offramp.kit.defaults import STALL_SECONDS
from offramp.studies.folder import StudyFolder
from offramp.studies.task import Job

POLL_SECONDS = 0.5
"""How often an engine looks for what other processes did in the study's folder."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine may use the machine or cluster.

    workers: most jobs at a time; None: as many as the cores at hand allow. memory_bytes: of this machine that
    jobs may use together; None: what there is. The nodes of a Ray cluster have what they were started with.
    retry: whether failed tasks are tried again, once. address: of a running Ray cluster; None: the one of
    this machine, or one started for this run. stall_seconds: without a sign of life before a process that
    works on a task is ended.
    """

    workers: int | None = None
    memory_bytes: int | None = None
    retry: bool = False
    address: str | None = None
    stall_seconds: float = STALL_SECONDS


class Engine(Protocol):
    """Runs jobs."""

    @property
    def name(self) -> str:
        """As given to `--engine`."""

    def run(
        self,
        jobs: Sequence[Job],
        folder: StudyFolder,
        options: EngineOptions,
        on_change: Callable[[], None],
    ) -> None:
        """Run the jobs until every task is done, has failed, or waits for one that has.

        on_change: called whenever something may have changed, and at least once a second.

        Raises OfframpError if the study cannot go on (DiskFullError: the disk is full); whatever was begun
        is resumed by a later run.
        """
