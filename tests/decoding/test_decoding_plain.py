"""The stopwatch on plain decoding, on tiny models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from offramp.decoding.measurement.plain_timing import time_plain_decoding
from offramp.errors import ModelError

sys.path.insert(0, str(Path(__file__).parents[1] / "tracing"))

from tracing_models import llama, tiny_model


def test_the_figure_lies_within_its_samples_and_its_interval() -> None:
    timing = time_plain_decoding(tiny_model(llama()), range(12), new_tokens=6, repeats=6)
    assert len(timing.samples) == 6
    assert timing.low is not None
    assert timing.high is not None
    assert min(timing.samples) <= timing.low <= timing.value <= timing.high <= max(timing.samples)
    assert timing.new_tokens == 6


def test_every_call_writes_what_it_is_timed_for_within_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(llama(max_position_embeddings=10))
    lengths: list[tuple[int, int]] = []
    generate = model.hf.generate

    def counted(ids: Any, **options: Any) -> Any:
        out = generate(ids, **options)
        lengths.append((ids.shape[1], out.shape[1] - ids.shape[1]))
        return out

    monkeypatch.setattr(model.hf, "generate", counted)
    timing = time_plain_decoding(model, range(12), new_tokens=6, repeats=1)
    assert (timing.low, timing.high) == (None, None)
    prompt = lengths[0][0]
    assert lengths[1:] == [(prompt, timing.new_tokens + 1), (prompt, 1)]
    assert all(read + written <= 10 for read, written in lengths)


def test_a_model_that_cannot_generate_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(llama())

    def fails(*arguments: Any, **options: Any) -> Any:
        raise ValueError("no cache of this kind")

    monkeypatch.setattr(model.hf, "generate", fails)
    with pytest.raises(ModelError, match="cannot generate with this model: ValueError: no cache"):
        time_plain_decoding(model, range(12))
