"""The kinds of work that a study's tasks ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from offramp.studies.task import Task
from offramp.studies.work.certify import CertifyWork
from offramp.studies.work.combine import CombineWork
from offramp.studies.work.context import Context
from offramp.studies.work.decode import DecodeWork
from offramp.studies.work.heads import HeadsWork
from offramp.studies.work.league import LeagueWork
from offramp.studies.work.profile import ProfileWork
from offramp.studies.work.replay import ReplayWork
from offramp.studies.work.score import ScoreWork
from offramp.studies.work.trace import TraceWork
from offramp.studies.work.training import TrainingWork
from offramp.studies.work.tune import TuneWork


class Work(Protocol):
    """One kind of work. kind: its name, as in `Task.kind`."""

    kind: str

    def run(self, task: Task, context: Context) -> None:
        """Do a task's work: write its files into `context.folder`.

        The same recipe and the same needed results give the same bytes, timings apart. It may be stopped at
        any moment and run again in the same folder.

        Raises OfframpError if what it loads is not what the recipe names, and whatever the work raises.
        """


WORKS: Mapping[str, Work] = {
    work.kind: work
    for work in (
        TraceWork(),
        HeadsWork(),
        TrainingWork(),
        ProfileWork(),
        ScoreWork(),
        ReplayWork(),
        LeagueWork(),
        TuneWork(),
        CertifyWork(),
        DecodeWork(),
        CombineWork(),
    )
}
"""The work of each kind of task, by its name."""
