"""What a task's work is given: a folder to write into, the folders of what it needs, and loaded models."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from offramp.errors import OfframpError
from offramp.files import write_json_atomically
from offramp.studies.manifest import RESULT

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.studies.work.work import Work

Result = TypeVar("Result")


class ModelCache:
    """One loaded model at most: the last that was asked for."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._model: Model | None = None

    def get(self, key: Hashable, load: Callable[[], Model]) -> Model:
        """The model of a key, loaded if it is not the last one; that one is let go of first.

        Raises what `load` raises.
        """
        if self._model is None or self._key != key:
            self.clear()
            self._model = load()
            self._key = key
        return self._model

    def clear(self) -> None:
        """Let go of the model, if there is one, so that its memory is free."""
        if self._model is not None:
            self._key, self._model = None, None
            gc.collect()


@dataclass(frozen=True)
class Context:
    """Where a task's work reads and writes.

    folder: the task's own, which exists; what an earlier attempt left in it may be there. inputs: folders of
    the tasks it needs, by their keys. models: shared by the tasks that one process runs. executions: where
    documents that were decoded for certificates are kept for all tasks, by everything that changes them.
    recipe: the task's whole, code and libraries included. progress: whether somebody watches this process.
    """

    folder: Path
    inputs: Mapping[str, Path]
    models: ModelCache
    executions: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = False

    def folder_of(self, key: str) -> Path:
        """The folder of a needed task. Raises OfframpError if it is not there."""
        if key not in self.inputs:
            raise OfframpError(
                "the task was not given all that it needs",
                where=str(self.folder),
                fix="plan the study again: offramp study plan",
            )
        return self.inputs[key]

    def result(self, kind: type[Work[Result]], key: str) -> Result:
        """The result of a needed task of a kind.

        Raises DamagedFileError where it is not what that kind leaves.
        """
        return kind.result_in(self.folder_of(key))

    def write_result(self, value: Any) -> None:
        """Write the task's result in one step: sorted keys, no NaN, so that equal results are equal bytes."""
        write_json_atomically(self.folder / RESULT, value)
