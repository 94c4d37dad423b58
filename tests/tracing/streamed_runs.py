"""Streamed runs that are stopped on the way, and what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stored_traces import run
from streamed_models import LayersApart, streamed
from tracing_models import tiny_llama

from offramp.tracing.streamed_states import STATES_FOLDER


class Stopped(Exception):
    """Ends a run at a chosen moment."""


def states_of(folder: Path) -> list[str]:
    """Names of the files among the states."""
    return sorted(path.name for path in (folder / STATES_FOLDER).glob("*"))


def stop_at(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run when it asks for a layer's weights."""
    real = LayersApart.layer

    def stopping(layers: LayersApart, index: int, following: int | None = None) -> Any:
        if index == layer:
            raise Stopped
        return real(layers, index, following)

    monkeypatch.setattr(LayersApart, "layer", stopping)


def stopped_run(folder: Path, monkeypatch: pytest.MonkeyPatch, layer: int, **options: Any) -> None:
    with monkeypatch.context() as patch:
        stop_at(layer, patch)
        with pytest.raises(Stopped):
            run(folder, model=streamed(tiny_llama())[0], **options)


def trace_tokens() -> Sequence[int]:
    """Tokens of each context of the trace that these tests make: a text's last token is only predicted."""
    from killed_runs import LENGTHS

    return [length - 1 for length in LENGTHS]
