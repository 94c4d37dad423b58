"""A progress bar over layers x tokens that says whether weights are being read or used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class LayerBar:
    """What is told about progress. Layers count from 0; layers: L."""

    def __init__(self, progress: Any, description: str, layers: int) -> None:
        self._progress = progress
        self._description = description
        self._layers = layers
        self._task = progress.add_task(description, total=0)

    def begin(self, layers: int, tokens: int) -> None:
        """So many layers are to be computed, for so many tokens each."""
        self._progress.update(self._task, total=layers * tokens)

    def reading(self, layer: int) -> None:
        """The weights of a layer are waited for."""
        self._say("reading", layer)

    def computing(self, layer: int) -> None:
        """The weights of a layer are there."""
        self._say("computing", layer)

    def advance(self, tokens: int) -> None:
        """Some tokens are through the layer."""
        self._progress.advance(self._task, tokens)

    def _say(self, what: str, layer: int) -> None:
        description = f"{self._description}: {what} layer {layer + 1}/{self._layers}"
        self._progress.update(self._task, description=description)


@contextmanager
def layer_bar(description: str, layers: int, *, shown: bool) -> Iterator[LayerBar]:
    """A bar on standard error, or one that nobody sees. layers: L."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<40}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} layers x tokens"),
        TimeRemainingColumn(),
    )
    console = Console(file=sys.stderr, emoji=False)
    with Progress(*columns, console=console, disable=not shown) as progress:
        yield LayerBar(progress, description, layers)
