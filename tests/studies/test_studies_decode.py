"""What is kept of the texts that a study's policies decoded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from offramp.kit.given import Given
from offramp.studies.work.decode import PROMPT, _answers

WORDS = {0: "", 1: "cats", 2: "sleep", 3: "dogs"}
"""By token id; 0 is a special token."""


def measurement(given: list[Given | None], plain: list[int], policy: list[int]) -> Any:
    """Two contenders' answers of one token to prompts of one."""
    ids, mask = torch.tensor([[0]]), torch.tensor([[1]])
    batches = [SimpleNamespace(ids=ids, mask=mask, given=None if one is None else [one]) for one in given]
    return SimpleNamespace(
        setting=SimpleNamespace(prompts=batches, batch=1, distinct=len(batches)),
        result=SimpleNamespace(plain="plain"),
        decoded={
            name: {place: SimpleNamespace(tokens=((token,),)) for place, token in enumerate(tokens)}
            for name, tokens in (("plain", plain), ("policy", policy))
        },
    )


def texts_of(measured: Any) -> dict[str, str]:
    """What is kept by a model of WORDS."""
    model: Any = SimpleNamespace(decode=lambda ids, special: " ".join(WORDS[int(i)] for i in ids))
    return _answers(model, measured)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (Given("a source"), "a source"),
        (Given(tokens=(1, 2)), "cats sleep"),
        (Given("folder/a.wav", kind="audio", samples="ab", seconds=1.0), "a.wav"),
        (Given("folder/a.png", kind="image", samples="ab", prompt="What is it?"), "a.png What is it?"),
    ],
    ids=["text", "tokens", "sound", "picture"],
)
def test_the_prompt_that_is_shown_is_what_the_encoder_read(given: Given, shown: str) -> None:
    assert texts_of(measurement([given], [3], [1])) == {PROMPT: shown, "plain": "dogs", "policy": "cats"}


def test_a_prompt_is_shown_that_the_full_model_answered_with_words() -> None:
    sources: list[Given | None] = [Given("the first"), Given("the second")]
    assert texts_of(measurement(sources, [0, 2], [3, 0])) == {
        PROMPT: "the second",
        "plain": "sleep",
        "policy": "",
    }
    assert texts_of(measurement(sources, [0, 0], [3, 0])) == {}
