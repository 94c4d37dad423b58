"""What a task's work is given: a folder to write into, the folders of what it needs, and loaded models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import OfframpError
from offramp.files import write_json_atomically
from offramp.records.typed import finite_json
from offramp.studies.manifest import RESULT
from offramp.studies.work.model_cache import ModelCache


@dataclass(frozen=True)
class Context:
    """Where a task's work reads and writes.

    folder: the task's own, which exists; what an earlier attempt left in it may be there. inputs: folders of
    the tasks it needs, by role. models: shared by the tasks that one process runs. executions: where
    documents that were decoded for certificates are kept for all tasks, by everything that changes them.
    progress: whether somebody watches this process.
    """

    folder: Path
    inputs: Mapping[str, Path]
    models: ModelCache
    executions: Path
    progress: bool = False

    def input(self, role: str) -> Path:
        """The folder of the needed task with this role.

        Raises OfframpError if the task was given none.
        """
        if role not in self.inputs:
            raise OfframpError(
                f"the task was not given the {role} it needs",
                where=str(self.folder),
                fix="plan the study again: offramp study plan",
            )
        return self.inputs[role]

    def write_record(self, value: Any) -> None:
        """Write a record as the task's result."""
        self.write_result(finite_json(value))

    def write_result(self, value: Mapping[str, Any]) -> None:
        """Write the task's result in one step: sorted keys, no NaN, so that equal results are equal bytes."""
        write_json_atomically(self.folder / RESULT, value)
