"""Tracing and fitting make every tensor on their model's device, whatever torch's default is.

With "meta" as the default device, a tensor that is made without a device holds no numbers: what meets it
fails, and what does not is equal to the last bit.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_heads import random_heads, random_output_heads
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tracing_models import NumberTokenizer, build_family, llama, tiny_model, workload_of

from offramp.errors import OfframpError
from offramp.heads import output_head, statistics
from offramp.heads.output_head import LinearHead
from offramp.heads.precision import REDUCED_SUMS, products_in
from offramp.models.source import find_source
from offramp.models.streaming import load_streamed
from offramp.scoring.scoring import score
from offramp.tracing import states
from offramp.tracing.fitting.fit import fit_heads
from offramp.tracing.layers_to_prune import measure_importance
from offramp.tracing.manifest import read_manifest, write_manifest
from offramp.tracing.request import TraceRequest
from offramp.tracing.row_facts import _KNOWN, BlockMeasurer, Gram
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from tiny_models import write_llama


@contextmanager
def nowhere() -> Iterator[None]:
    """A default device that computes nothing."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


WORK = workload_of(lengths=(14, 14, 9, 30), vocabulary=503)
OPTIONS: dict[str, Any] = {"tokens": 1000, "context": 20, "signals": "all", "progress": False}


def assert_equal(found: Trace, expected: Trace) -> None:
    """All columns, the marginal and what became of documents, bit for bit."""
    assert found.fact_names == expected.fact_names
    for name in expected.fact_names:
        assert np.array_equal(found.fact(name), expected.fact(name)), name
    for name, column in expected.token_columns.items():
        assert np.array_equal(found.token_columns[name], column), name
    assert np.array_equal(found.marginal.sums, expected.marginal.sums)
    assert found.documents == expected.documents
    assert found.provenance == expected.provenance


MODELS: dict[str, tuple[str, float, str, str]] = {
    # family, scale of the head, dtype, readout
    "one linear head": ("llama", 20.0, "float32", "fast"),
    "a rounded head": ("llama", 20.0, "bfloat16", "fast"),
    "a soft-cap": ("gemma2", 60.0, "float32", "fast"),
    "a soft-cap, rounded": ("gemma2", 60.0, "bfloat16", "fast"),
    "a scale": ("granite", 60.0, "float32", "fast"),
    "a recurrent state": ("mamba", 20.0, "float32", "fast"),
    "the core replaced": ("camembert", 20.0, "float32", "stub"),
    "several streams": ("gemma3n_text", 5.0, "float32", "swap"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_trace_with_all_signals(name: str) -> None:
    family, scale, dtype, readout = MODELS[name]
    model = tiny_model(build_family(family), head_scale=scale, dtype=dtype)
    assert model.stack.readout_kind == readout
    expected = trace(model, WORK, **OPTIONS)
    with nowhere():
        assert_equal(trace(model, WORK, **OPTIONS), expected)
    assert expected.provenance["device"] == "cpu"
    assert "device" not in expected.request, "traces of a processor keep the key that they have"


def test_a_masked_vocabulary_and_a_document_that_is_left_out() -> None:
    model = tiny_model(build_family("phi"), head_scale=20.0)
    model.hf.lm_head.bias[[7, 100]] = -torch.inf
    work = workload_of("1 2 7 3", "1 2 3 4", "9 8 6 5 4", vocabulary=503)
    expected = trace(model, work, **OPTIONS)
    assert [document.valid for document in expected.documents] == [False, True, True]
    with nowhere():
        assert_equal(trace(model, work, **OPTIONS), expected)


@pytest.mark.parametrize("make", [random_heads, random_output_heads])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exits_read_through_fitted_heads(make: Any, dtype: str) -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0, dtype=dtype)
    heads = make(model, range(1, model.layers))
    expected = trace(model, WORK, heads=heads, **OPTIONS)
    with nowhere():
        assert_equal(trace(model, WORK, heads=heads, **OPTIONS), expected)


def test_answers_and_the_entropy_of_their_prompts() -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0, tokenizer=NumberTokenizer(eos=4))
    work = workload_of(lengths=(14, 9, 12, 5), vocabulary=503, mode="generation")
    expected = trace(model, work, **{**OPTIONS, "tokens": 24, "context": 40})
    with nowhere():
        found = trace(model, work, **{**OPTIONS, "tokens": 24, "context": 40})
    assert_equal(found, expected)
    assert np.array_equal(found.document_fact("prompt_entropy"), expected.document_fact("prompt_entropy"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_are_fitted_and_scored(dtype: str) -> None:
    model = tiny_model(llama(), head_scale=3.0, dtype=dtype)
    work = workload_of(lengths=[40] * 24)
    options: dict[str, Any] = {"tokens": 400, "kv_maps": [1], "progress": False}
    expected = fit_heads(model, work, **options)
    card = score(trace(model, work, heads=expected, **OPTIONS), draws=40)
    with nowhere():
        found = fit_heads(model, work, **options)
        assert found.fingerprint == expected.fingerprint
        again = score(trace(model, work, heads=found, **OPTIONS), draws=40)
    assert json.dumps(again.to_json()) == json.dumps(card.to_json())


def test_states_beyond_the_budget_and_layer_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(llama(), head_scale=3.0)
    work = workload_of(lengths=(30, 20))
    importance = measure_importance(model, work, tokens=40, progress=False)
    expected = trace(model, work, **OPTIONS)
    monkeypatch.setattr("offramp.tracing.states.MEMORY_BUDGET", 1)
    with nowhere():
        found = measure_importance(model, work, tokens=40, progress=False)
        assert_equal(trace(model, work, **OPTIONS), expected)
    assert np.array_equal(found.influence, importance.influence)
    assert np.array_equal(found.angles, importance.angles)


def test_a_model_is_looked_at_on_its_own_device() -> None:
    # None whose cache slides or is recurrent: transformers counts its tokens on torch's default device.
    for family in ("llama", "granite", "camembert", "deepseek_v2"):
        hf = build_family(family)
        expected = tiny_model(hf)
        with nowhere():
            found = tiny_model(hf)
        assert found.shape == expected.shape
        assert found.stack.readout_kind == expected.stack.readout_kind
        assert found.stack.logit_scaling == expected.stack.logit_scaling


def test_layers_that_are_read_from_disk(tmp_path: Path) -> None:
    model = load_streamed(find_source(str(write_llama(tmp_path / "tiny"))), dtype="float32")
    work = workload_of("the cat sat on the mat", "a model reads one token after another")
    expected = trace(model, work, **OPTIONS)
    with nowhere():
        assert_equal(trace(model, work, **OPTIONS), expected)


def test_statistics_add_up_in_float32_whatever_the_process_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own products stay as they are, and so do the process's settings."""
    model = tiny_model(llama(), head_scale=3.0)
    seen: dict[str, set[object]] = {"layers": set(), "statistics": set()}
    measure = BlockMeasurer.measure

    def noted(self: BlockMeasurer, *arguments: Any) -> None:
        seen["statistics"].add(settings())
        measure(self, *arguments)

    def settings() -> tuple[object, ...]:
        of_16_bits = (getattr(torch.backends.cuda.matmul, name) for name in REDUCED_SUMS)
        return torch.get_float32_matmul_precision(), *of_16_bits

    monkeypatch.setattr(BlockMeasurer, "measure", noted)
    handle = model.stack.layers[0].register_forward_hook(lambda *_: seen["layers"].add(settings()))
    try:
        with products_in("medium"):
            before = settings()
            trace(model, workload_of(lengths=(30, 20)), **OPTIONS)
            assert settings() == before
    finally:
        handle.remove()
    assert before[0] == "medium"
    assert seen == {"layers": {before}, "statistics": {("highest", False, False, False)}}


@pytest.mark.parametrize("asked", [("bf16", "tf32"), ("bf16", "ieee")])
def test_a_process_that_sets_precision_by_backend_keeps_its_settings(
    asked: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers does where TF32 is asked for; torch then refuses to tell the one setting of old.

    The model's own products follow it where the processor can, so that facts differ from machine to machine.
    """
    model = tiny_model(llama(), head_scale=3.0)
    places = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)
    seen: dict[str, set[object]] = {"layers": set(), "statistics": set()}
    measure = BlockMeasurer.measure

    def settings() -> tuple[str, ...]:
        return tuple(place.fp32_precision for place in places)

    def noted(self: BlockMeasurer, *arguments: Any) -> None:
        seen["statistics"].add(settings())
        measure(self, *arguments)

    monkeypatch.setattr(BlockMeasurer, "measure", noted)
    handle = model.stack.layers[0].register_forward_hook(lambda *_: seen["layers"].add(settings()))
    kept = settings()
    try:
        for place, value in zip(places, asked, strict=True):
            place.fp32_precision = value
        trace(model, workload_of(lengths=(30, 20)), **OPTIONS)
        assert settings() == asked
    finally:
        handle.remove()
        for place, value in zip(places, kept, strict=True):
            place.fp32_precision = value
    assert seen == {"layers": {asked}, "statistics": {("ieee", "ieee")}}


# -- where the host would wait for a device


class Waits(TorchDispatchMode):
    """Counts what needs a number, or a number of rows, from the device before it can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in {"index", "index_put", "index_put_"} and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in (args[1] or ())
        )
        if masks or name in {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


HEADS: dict[str, Any] = {"lens": random_heads, "own": random_output_heads}
WATCHED = [  # a readout by the model's own forward may ask for anything
    *((name, None) for name, (*_, readout) in MODELS.items() if readout == "fast"),
    *((name, heads) for name in ("one linear head", "a rounded head") for heads in HEADS),
]


@pytest.mark.parametrize(("name", "heads"), WATCHED)
def test_the_host_waits_at_most_once_a_chunk(
    name: str, heads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at all for heads in float32; rounded ones ask whether a row has too many equal logits."""
    family, scale, dtype, _ = MODELS[name]
    model = tiny_model(build_family(family), head_scale=scale, dtype=dtype)
    fitted = None if heads is None else HEADS[heads](model, range(1, model.layers))
    measure = BlockMeasurer.measure
    plain = LinearHead.statistics
    waits, chunks = Waits(), [0]

    def watched(self: BlockMeasurer, *arguments: Any) -> None:
        with waits:
            measure(self, *arguments)

    def counted(self: LinearHead, *arguments: Any) -> Any:
        chunks[0] += int(arguments[1].dtype != torch.float32)
        return plain(self, *arguments)

    monkeypatch.setattr(BlockMeasurer, "measure", watched)
    monkeypatch.setattr(LinearHead, "statistics", counted)
    signals = ("logit_gap", "restricted")  # others read every exit in float32
    trace(model, WORK, **{**OPTIONS, "signals": signals if dtype != "float32" else "all"}, heads=fitted)
    assert len(waits.found) <= chunks[0], waits.found
    assert chunks[0] > 0 or dtype == "float32"


@pytest.mark.parametrize("change", ["in place", "through .data"])
def test_the_heads_matrix_is_computed_once_for_the_same_weights(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[object] = []
    compute = Gram.computed
    monkeypatch.setattr(Gram, "computed", lambda head: computed.append(head) or compute(head))
    model = tiny_model(llama(), head_scale=3.0)
    work = workload_of(lengths=(12, 9))
    assert_equal(trace(model, work, **OPTIONS), trace(model, work, **OPTIONS))
    assert len(computed) == 1
    weight = model.hf.lm_head.weight
    with torch.no_grad():
        if change == "in place":
            weight[3] += weight[4]
        else:
            weight.data[3] += weight[4]
    found = trace(model, work, **OPTIONS)
    assert len(computed) == 2
    _KNOWN.clear()
    assert_equal(found, trace(model, work, **OPTIONS))
    del model, found, weight, computed[:]
    gc.collect()
    assert not _KNOWN, "a matrix keeps no weights alive, and goes with them"


# -- sizes by what is free on a device, and its name in what is kept

ACCELERATOR = torch.device("cuda")  # the object needs no device

FREE = {
    # bytes free: rows of 131,072 logits in 16 bits, logits of one eager step, states of 1 GB in memory
    80_000_000_000: (512, 16_000_000, True),
    2_000_000_000: (256, 7_812_500, False),
    100_000_000: (128, 800_000, False),
}


@pytest.mark.parametrize("free", FREE)
def test_chunks_follow_the_free_memory_of_an_accelerator(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (output_head, statistics, states):
        monkeypatch.setattr(module, "free_bytes", lambda device: free)
    statistics._accelerator_elements.cache_clear()
    rows, elements, in_memory = FREE[free]
    assert output_head.buffer_rows(2 * 131_072, ACCELERATOR) == rows
    assert statistics.eager_elements(ACCELERATOR) == elements
    statistics._accelerator_elements.cache_clear()
    assert states.fit_in_memory(1_000_000_000, ACCELERATOR) is in_memory
    # A processor's are tuned to its cache.
    assert output_head.buffer_rows(2 * 131_072, torch.device("cpu")) == 128
    assert statistics.eager_elements(torch.device("cpu")) == 800_000


def test_an_accelerator_is_named_in_the_request_and_by_its_own_name(tmp_path: Path) -> None:
    work = workload_of(lengths=(9,))
    found = trace(tiny_model(llama()), work, tokens=8, progress=False, output=tmp_path / "trace")
    manifest = read_manifest(tmp_path / "trace")
    assert "device" not in (tmp_path / "trace" / "manifest.json").read_text()
    assert found.provenance["device"] == manifest.device == "cpu"
    asked = TraceRequest(**{**found.request, "exits": (1, 2, 3), "signals": ()})
    there = replace(asked, device="cuda")
    assert there.to_json() == {**asked.to_json(), "device": "cuda"}
    assert asked.fingerprint == manifest.request_fingerprint != there.fingerprint
    asks = {"request": there.to_json(), "request_fingerprint": there.fingerprint}
    named = replace(manifest, **asks, device="NVIDIA H100 80GB HBM3")
    write_manifest(tmp_path / "trace", named, 1.0)
    again = Trace.load(tmp_path / "trace")
    assert again.provenance["device"] == "NVIDIA H100 80GB HBM3"
    assert again.request["device"] == "cuda"


# -- a device whose memory runs out


@pytest.mark.parametrize(
    ("family", "scale", "dtype"),
    [
        ("llama", 20.0, "float32"),
        ("llama", 20.0, "bfloat16"),
        ("gemma2", 60.0, "float32"),
        ("gemma3n_text", 5.0, "float32"),
    ],
)
def test_half_as_many_rows_are_taken_once_memory_ran_out(
    family: str, scale: float, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(build_family(family), head_scale=scale, dtype=dtype)
    work = workload_of(lengths=(40, 40, 30), vocabulary=503)
    monkeypatch.setattr("offramp.heads.output_head.BUFFER_BYTES", 64 * 512 * 4)
    options = {**OPTIONS, "context": 96, "document_tokens": 96}
    expected = trace(model, work, **options)
    chunks = out_of_memory(monkeypatch, times=1)
    found = trace(model, work, **options)
    assert len(chunks) >= 2
    assert chunks[1] == max(chunks[0] // 2, 1)
    for name in expected.fact_names:
        np.testing.assert_allclose(found.fact(name), expected.fact(name), atol=2e-3, rtol=1e-3, err_msg=name)


def test_what_does_not_fit_in_halves_either_is_an_error_that_says_what_would() -> None:
    model = tiny_model(llama(), head_scale=3.0)
    with pytest.MonkeyPatch.context() as patch:
        chunks = out_of_memory(patch, times=2)
        with pytest.raises(OfframpError, match=r"too small, even for \d+ rows of logits") as caught:
            trace(model, workload_of(lengths=(30,)), **OPTIONS)
    assert len(chunks) == 2
    assert caught.value.exit_code == 1
    assert "context= (--context) 10 or less" in caught.value.fix


def test_heads_that_do_not_fit_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(head: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Gram, "of", full)
    with pytest.raises(
        OfframpError, match=r"of cpu does not hold what reads \d exits out, .* are free"
    ) as caught:
        trace(tiny_model(llama(), head_scale=3.0), workload_of(lengths=(30,)), **OPTIONS)
    assert caught.value.exit_code == 1
    assert "trace fewer exits, or a model on the processor" in caught.value.fix


def out_of_memory(patch: pytest.MonkeyPatch, times: int) -> list[int]:
    """The first blocks that are measured find no memory; the rows that each tried to take at a time."""
    chunks: list[int] = []
    measure = BlockMeasurer.measure

    def failing(self: BlockMeasurer, *arguments: Any) -> None:
        chunks.append(self.chunk)
        if len(chunks) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        measure(self, *arguments)

    patch.setattr(BlockMeasurer, "measure", failing)
    return chunks
