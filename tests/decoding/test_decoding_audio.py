"""A speech model's answers: decoded and timed, each row given its sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from given_cases import LEAVING

import offramp
from offramp.errors import InputError
from offramp.kit.given import GivenIds, given_of
from offramp.models.model import Model
from offramp.timing.decoder import PlainRunning, batches_of
from offramp.workloads.workload import Workload
from tiny_models import NOT_FIRST, write_sounds, write_wav


@pytest.fixture(scope="module")
def workload(sounds: Path) -> Workload:
    return offramp.load_workload(f"audio:{sounds}")


@pytest.fixture(scope="module")
def model(whisper: Path) -> Model:
    return offramp.load_model(whisper)


def test_two_sounds_are_decoded_side_by_side_as_alone(model: Model, workload: Workload) -> None:
    files = [document.given.text for document in workload.documents[:3] if document.given is not None]
    together: Any = offramp.generate(model, audio=files, policy=LEAVING[0], kv="speculate", max_new_tokens=8)
    for file, row in zip(files, together, strict=True):
        alone: Any = offramp.generate(model, audio=file, policy=LEAVING[0], kv="speculate", max_new_tokens=8)
        assert row.tokens == alone.tokens


def test_plain_decoding_suppresses_what_cannot_come_first(model: Model, workload: Workload) -> None:
    sound = given_of(workload.documents[0])
    prompts = [GivenIds.of(model.bos_policy.front, sound)]
    running = PlainRunning(model, batches_of(prompts, 1)[0], 6)
    while running.count < 6:
        running.step()
    (plain,) = running.finish(0.0, 0.0).tokens
    assert sound is not None
    answer: Any = offramp.generate(model, audio=sound.text, max_new_tokens=6)
    assert plain[: len(answer.tokens)] == tuple(answer.tokens)
    assert plain[0] not in NOT_FIRST


def test_a_trace_whose_sound_changed_is_refused(model: Model, tmp_path: Path) -> None:
    sounds = write_sounds(tmp_path / "sounds", documents=3)
    trace = offramp.trace(model, f"audio:{sounds}", tokens=20)
    offramp.rerun(model, trace, LEAVING[0])
    write_wav(sounds / "s01.wav", 0.5 * np.sin(np.arange(5_000) / 7.0))
    with pytest.raises(InputError, match=r"audio:.*sounds are not those that were traced"):
        offramp.rerun(model, trace, LEAVING[0])
