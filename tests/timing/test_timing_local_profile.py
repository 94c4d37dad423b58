"""The stopwatch on plain decoding, on tiny models."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_cases import Padding
from tracing_models import llama, tiny_model

import offramp
from offramp.costs.timings import TimingsProfile
from offramp.errors import ModelError
from offramp.models.model import Model
from offramp.timing import local_profile
from offramp.timing.decoder import generate_repeatedly
from offramp.timing.local_profile import MOST_TIMES, TOKENS, check_profile, measure_hardware
from tiny_models import write_t5, write_whisper


def test_every_call_writes_what_it_is_timed_for_within_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(llama(max_position_embeddings=10))
    lengths: list[tuple[int, int]] = []
    generate = model.hf.generate

    def counted(ids: Any, **options: Any) -> Any:
        out = generate(ids, **options)
        lengths.append((ids.shape[1], out.shape[1] - ids.shape[1]))
        return out

    monkeypatch.setattr(model.hf, "generate", counted)
    timed = generate_repeatedly(model, range(12), new_tokens=6, repeats=2)
    assert len(timed) == 2
    (prompt,) = {read for read, _ in lengths}
    new_tokens = len(timed[0].tokens[0])
    assert lengths == [(prompt, 2), (prompt, new_tokens), (prompt, new_tokens)]
    assert prompt + new_tokens <= 10
    assert all(decoded.seconds_per_token > 0 for decoded in timed)


def test_a_model_that_cannot_generate_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(llama())

    def fails(*arguments: Any, **options: Any) -> Any:
        raise ValueError("no cache of this kind")

    monkeypatch.setattr(model.hf, "generate", fails)
    with pytest.raises(ModelError, match="cannot generate with this model: ValueError: no cache"):
        generate_repeatedly(model, range(12), new_tokens=6, repeats=1)


STEP = 0.05


def model_of(**config: Any) -> Model:
    return tiny_model(llama(num_hidden_layers=2, **config), tokenizer=Padding())


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of()


@pytest.fixture(scope="module")
def profile(model: Model) -> TimingsProfile:
    """Of a machine on which a plain step takes 50 ms at any position, timed without noise."""
    measured = measure_hardware(model, budget_seconds=0.05, batches=(1, 2))
    spread = {"median": STEP, "low": STEP, "high": STEP, "count": 9}
    details = dict(measured.details)
    names = [local_profile.whole_at(position) for position in details["positions"]]
    details["samples"] = {"1": dict.fromkeys(names, spread)}
    zeros = [[0.0, 0.0]] * 2
    return dataclasses.replace(
        measured,
        details=details,
        layer_seconds=[[0.01, 0.01]] * 2,
        layer_seconds_per_position=zeros,
        head_seconds=[0.02] * 2,
        overhead_seconds=[0.01] * 2,
    )


def steps_take(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[int]:
    """Plain steps that take these seconds in turn; how often some were asked for."""
    asked: list[int] = []

    def steps(model: Any, batch: int, position: int, count: int) -> list[float]:
        asked.append(count)
        return [seconds[place % len(seconds)] for place in range(count)]

    monkeypatch.setattr(local_profile, "plain_steps", steps)
    return asked


@pytest.mark.parametrize(("slower", "holds"), [(1.02, True), (0.98, True), (1.05, False), (0.9, False)])
def test_timings_hold_within_three_percent(
    monkeypatch: pytest.MonkeyPatch, model: Model, profile: TimingsProfile, slower: float, holds: bool
) -> None:
    asked = steps_take(monkeypatch, STEP * slower)
    found = check_profile(model, profile)
    assert found.holds == holds
    assert found.ratio.value == pytest.approx(1.0 / slower)
    assert asked == [TOKENS]  # without noise the first answer is the last
    assert ("off by more than 3%" in found.sentence) != holds


def test_what_noise_explains_is_not_held_against_them(
    monkeypatch: pytest.MonkeyPatch, model: Model, profile: TimingsProfile
) -> None:
    asked = steps_take(monkeypatch, STEP * 0.9, STEP * 1.18)
    found = check_profile(model, profile)
    assert found.holds
    assert asked == [TOKENS] * MOST_TIMES  # it looked again as long as it could not tell
    assert found.ratio.low is not None
    assert found.ratio.low < 1.0 / 1.03
    details = {**profile.details, "samples": {"1": {}}}
    for name, one in profile.details["samples"]["1"].items():
        details["samples"]["1"][name] = {**one, "low": 0.7 * STEP, "high": 1.3 * STEP}
    steps_take(monkeypatch, 1.05 * STEP)
    assert check_profile(model, dataclasses.replace(profile, details=details)).holds


def test_a_model_that_became_slower_is_found_out(model: Model) -> None:
    """The real loop, with a layer that waits: a profile of the model as it was does not hold."""
    fresh = measure_hardware(model, budget_seconds=0.05, batches=(1,))
    wait = 5.0 * fresh.token_costs(model.shape, 5).plain
    layer: Any = model.stack.layers[0]
    handle = layer.register_forward_hook(lambda *arguments: time.sleep(wait))
    try:
        found = check_profile(model, fresh)
    finally:
        handle.remove()
    assert not found.holds
    assert found.seconds > wait


def test_steps_are_made_where_the_profile_was_timed(model: Model) -> None:
    lengths: list[int] = []
    layer: Any = model.stack.layers[-1]
    handle = layer.register_forward_pre_hook(
        lambda module, arguments, keywords: lengths.append(arguments[0].shape[1]), with_kwargs=True
    )
    seconds = local_profile.plain_steps(model, 1, 12, 5)
    several = local_profile.plain_steps(model, 2, 12, 5)
    handle.remove()
    assert len(seconds) == len(several) == 5
    assert all(one > 0 for one in (*seconds, *several))
    # A prompt of 12 tokens, a step that warms up, and five that are timed; each time.
    assert lengths[:7] == lengths[-7:] == [12, *[1] * 6]


def test_a_short_context_leaves_room_for_a_few_steps() -> None:
    model = model_of(max_position_embeddings=8)
    profile = measure_hardware(model, budget_seconds=0.05, batches=(1,))
    found = check_profile(model, profile)
    assert found.tokens % 4 == 0
    assert found.ratio.value > 0


@pytest.mark.parametrize("write", [write_t5, write_whisper])
def test_an_encoder_is_timed_beside_the_steps(write: Callable[[Path], Path], tmp_path: Path) -> None:
    model = offramp.load_model(write(tmp_path / "model"))
    timed = measure_hardware(model, budget_seconds=0.05, batches=(1,)).encoder_seconds
    assert timed is not None
    lengths, seconds = zip(*timed, strict=True)
    assert lengths == tuple(sorted(lengths))
    assert all(one > 0.0 for one in seconds)
