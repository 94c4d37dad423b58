"""Which prompts are timed, and that peak memory sees what is held."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from generation_cases import tiny_llama

from offramp.decoding.measurement.trial import start_peak
from offramp.decoding.openings import prompts_of
from offramp.errors import InputError
from offramp.workloads.shared_text import sketches_of
from offramp.workloads.workload import Document, Workload


def test_peak_memory_sees_what_is_held_and_no_more() -> None:
    def peak(size: int) -> int | None:
        found = start_peak(torch.device("cpu"))
        torch.ones(size // 4).sum()
        return found()

    small, large = peak(2**20), peak(2**27)
    if small is None or large is None:
        pytest.skip("this system does not reset a high-water mark")
    assert 0.9 * 2**27 < large < 1.5 * 2**27
    assert small < 2**25


def text_workload(*texts: str, mode: Any = "text") -> Workload:
    documents = tuple(Document(f"d{place}", text) for place, text in enumerate(texts))
    return Workload("texts", mode, documents, licence="none", source="a test")


def test_prompts_are_the_starts_of_the_last_documents() -> None:
    model = tiny_llama()
    workload = text_workload("the cat sat", "a model reads one token after another", "deep layers change")
    found = prompts_of(model, workload, 2, new_tokens=8, prompt_tokens=4)
    assert found == [
        model.encode("deep layers change")[:4],
        model.encode("a model reads one token after")[:4],
    ]
    whole = prompts_of(
        model, dataclasses.replace(workload, mode="generation"), 1, new_tokens=8, prompt_tokens=2
    )
    assert whole == [model.encode("deep layers change")]


def fitted_on(documents: dict[str, tuple[str, ...]], texts: Any = None) -> Any:
    """Exit heads of which only this is asked."""
    return type("Heads", (), {"seen_documents": documents, "seen_texts": texts})()


def test_prompts_share_no_text_with_what_heads_were_fitted_on() -> None:
    words = np.random.default_rng(0).integers(0, 10_000, (2, 200)).astype(str)
    ours, theirs = (" ".join(row) for row in words)
    workload = text_workload(ours, f"{theirs} and then some", mode="generation")
    fitted = dataclasses.replace(text_workload(f"as somebody wrote: {theirs}"), name="other texts")
    heads = fitted_on({fitted.fingerprint: ("d0",)}, sketches_of(fitted, ["d0"]))
    model = tiny_llama()
    model = dataclasses.replace(model, context_length=None)
    assert prompts_of(model, workload, 1, new_tokens=8) == [model.encode(f"{theirs} and then some")]
    assert prompts_of(model, workload, 1, new_tokens=8, heads=[heads]) == [model.encode(ours)]
    with pytest.raises(InputError, match="2 were asked for"):
        prompts_of(model, workload, 2, new_tokens=8, heads=[heads])


def test_prompts_leave_room_and_avoid_what_heads_were_fitted_on() -> None:
    model = tiny_llama()
    workload = text_workload("the cat sat", "deep layers change", "numbers such as 12", mode="generation")
    heads = fitted_on({workload.fingerprint: ("d2",)})
    assert prompts_of(model, workload, 1, new_tokens=8, heads=[heads]) == [model.encode("deep layers change")]
    others = fitted_on({workload.fingerprint: ("d1",), "another": ("d0",)})
    assert prompts_of(model, workload, 1, new_tokens=8, heads=[heads, others]) == [
        model.encode("the cat sat")
    ]
    with pytest.raises(InputError, match=r"has 2 prompts .* 3 were asked for"):
        prompts_of(model, workload, 3, new_tokens=8, heads=[heads])
    with pytest.raises(InputError, match="has 0 prompts that leave room for 127 new tokens"):
        prompts_of(model, workload, 1, new_tokens=127)


def test_prompts_longer_than_the_context_leaves_room_for_are_refused() -> None:
    model, workload = tiny_llama(), text_workload("the cat sat on the mat " * 20)
    (found,) = prompts_of(model, workload, 1, new_tokens=28, prompt_tokens=100)
    assert len(found) == 100
    with pytest.raises(
        InputError, match="prompts of 101 tokens do not leave room for 28 new tokens"
    ) as caught:
        prompts_of(model, workload, 1, new_tokens=28, prompt_tokens=101)
    assert "128 positions" in caught.value.what
    assert "lower --prompt-tokens to 100" in caught.value.fix
