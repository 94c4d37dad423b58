"""The model that a process has loaded, kept for the tasks that follow."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offramp.models.model import Model


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
