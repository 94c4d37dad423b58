"""How a run was started: by which command, with which software, on which machine."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offramp.commands import RunCall
from offramp.kit.typed import InvalidRecordError, from_json
from offramp.studies.journal import Event
from offramp.tracing.progress import say

STARTED = "run"
"""The event of a run's journal whose details are a `RunStart`."""


@dataclass(frozen=True)
class RunStart:
    """One start of a run.

    command: that repeats it. folder: where it was made, as it was named. call: what it was asked for. (An
    older offramp did not say the last two.) request: what makes the run another one, as its own file has it,
    nothing of an older offramp. software, machine: JSON values by name. wall: seconds since 1970.
    """

    NOT_KEPT = ("wall",)

    command: str = ""
    folder: str | None = None
    call: RunCall | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    wall: float = 0.0

    @classmethod
    def last(cls, events: Sequence[Event]) -> RunStart:
        """That of a run's last start by its journal; one that says nothing where the journal does not."""
        event = next((event for event in reversed(events) if event.event == STARTED), Event(0, STARTED))
        try:
            return replace(from_json(cls, event.details), wall=event.wall)
        except InvalidRecordError as error:
            say(f"the journal does not say how the run was called: {error}")
            return cls(wall=event.wall)

    def call_in(self, folder: Path) -> RunCall | None:
        """How the run is asked for into the folder where it lies now, maybe moved or copied there."""
        if self.call is None or (self.folder or self.call.options.get("output")) in (None, str(folder)):
            return self.call
        return replace(self.call, options={**self.call.options, "output": str(folder)})

    def command_in(self, folder: Path) -> str:
        """The command that does so; "" if it is not known."""
        call = self.call_in(folder)
        return self.command if call is None else call.again()


def date_of(wall: float) -> str:
    """Date and time (UTC) of seconds since 1970."""
    return datetime.datetime.fromtimestamp(wall, datetime.UTC).isoformat(timespec="seconds")
