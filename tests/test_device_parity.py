"""The same facts and heads on an accelerator as on the processor, but for what float32 sums round.

The reference is the processor's model in float64 (`tests/tracing/naive_facts.py`), whose bounds hold for any
order of sums. The processor takes the same tests, so that they are kept true where there is no accelerator.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "tracing"))

from naive_facts import assert_facts, assert_signals, following_of, readings_of
from random_heads import random_heads
from tracing_models import build_family, llama, tiny_model, workload_of

from offramp.models.devices import ACCELERATORS, device_count, device_name
from offramp.models.model import Model
from offramp.tracing.fitting.fit import fit_heads
from offramp.tracing.tracer import trace

LENGTHS = (14, 14, 9, 12)
VOCABULARY = 503
SHORTLIST = tuple(range(VOCABULARY))

HERE = [kind for kind in ACCELERATORS if device_count(kind)]
DEVICES = [
    "cpu",
    *(
        HERE
        or [pytest.param("accelerator", marks=pytest.mark.skip(reason="torch finds no accelerator here"))]
    ),
]


def on_device(hf: Any, device: str, head_scale: float, dtype: str = "float32") -> Model:
    return tiny_model(hf.to(device), head_scale=head_scale, dtype=dtype)


def sequences_of(work: Any) -> list[list[int]]:
    return [[int(word) for word in document.text.split()] for document in work.documents]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("family", "head_scale"),
    [("llama", 20.0), ("gemma2", 60.0), ("granite", 60.0), ("mamba", 20.0), ("gemma3n_text", 5.0)],
)
def test_facts_are_within_the_bounds_of_float32(family: str, head_scale: float, device: str) -> None:
    if device == "cpu" and family != "llama":
        pytest.skip("tests/tracing/test_tracing_facts.py holds the processor to it")
    work = workload_of(lengths=LENGTHS, vocabulary=VOCABULARY)
    sequences = sequences_of(work)
    readings = readings_of(on_device(build_family(family), "cpu", head_scale), sequences)
    model = on_device(build_family(family), device, head_scale)
    found = trace(model, work, tokens=1000, context=40, signals="all", progress=False)
    assert found.request.get("device", "cpu") == device
    assert found.provenance["device"] == device_name(torch.device(device))
    assert_facts(found, readings, following_of(sequences))
    assert_signals(found, readings.logits, readings.error, SHORTLIST)


@pytest.mark.parametrize("device", DEVICES)
def test_heads_are_fitted_and_read_through_alike(device: str) -> None:
    work = workload_of(lengths=[40] * 24)
    options: dict[str, Any] = {"tokens": 900, "kv_maps": [1], "kv_rank": "full", "progress": False}
    expected = fit_heads(on_device(llama(), "cpu", 3.0), work, **options)
    model = on_device(llama(), device, 3.0)
    found = fit_heads(model, work, **options)
    assert found.lens is not None
    assert expected.lens is not None
    assert found.documents == expected.documents
    # Sums in float64 of states in float32; the penalty may be the next one where two are as good.
    np.testing.assert_allclose(found.lens.weight, expected.lens.weight, atol=1e-2, rtol=1e-2)
    np.testing.assert_allclose(found.lens.explained, expected.lens.explained, atol=1e-3)
    heads = random_heads(model, (1, 2))
    there, here = (
        trace(one, work, tokens=400, heads=heads, progress=False)
        for one in (model, on_device(llama(), "cpu", 3.0))
    )
    assert (there.top1 == here.top1).mean() > 0.99
    for name in ("max_prob", "entropy", "correctness", "candidate_score", "adainfer"):
        np.testing.assert_allclose(there.fact(name), here.fact(name), atol=1e-3, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_heads_agree_nearly_everywhere(dtype: str, device: str) -> None:
    """States of 16 bits are rounded by other kernels: facts agree on average."""
    work = workload_of(lengths=[60] * 6, vocabulary=VOCABULARY)
    here, there = (
        trace(on_device(build_family("llama"), one, 20.0, dtype), work, tokens=400, progress=False)
        for one in ("cpu", device)
    )
    assert (there.top1 == here.top1).mean() > 0.95
    for name in ("max_prob", "entropy", "kl_to_final", "logit_cosine"):
        assert np.abs(there.fact(name) - here.fact(name)).mean() < 0.05 * max(
            1.0, float(np.abs(here.fact(name)).mean())
        ), name
