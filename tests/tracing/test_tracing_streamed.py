"""Traces layer by layer are those of a model in memory, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stored_traces
from random_heads import random_heads, random_output_heads
from stored_traces import assert_same_trace, files_of, run
from streamed_runs import streamed
from tracing_models import build_family, llama, tiny_llama, tiny_model, workload_of

from offramp.errors import ModelError
from offramp.files import PACKAGE
from offramp.kit import code
from offramp.models.calls import Recorder
from offramp.models.loading import load_source
from offramp.models.model import Model
from offramp.models.source import find_source
from offramp.models.streaming import load_streamed
from offramp.tracing.streamed_layers import BatchCalls
from offramp.tracing.tracer import trace
from tiny_models import write_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
finished = stored_traces.finished
one_thread = stored_traces.one_thread
small_parts = stored_traces.small_parts

# Beside FROM_SHARDS: attention and a state space in one layer, and one that cannot be read from shards.
FAMILIES = ("falcon_h1", "rwkv")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_trace_has_the_same_bytes(family: str, tmp_path: Path) -> None:
    model = tiny_model(build_family(family), head_scale=3.0)
    work = workload_of(lengths=(14, 9, 20, 14, 30), vocabulary=400)
    apart, layers = streamed(model)
    run(tmp_path / "memory", model=model, workload=work, context=12, document_tokens=20)
    run(tmp_path / "streamed", model=apart, workload=work, context=12, document_tokens=20)
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "memory")
    assert layers.read == list(range(len(model.stack)))
    assert len(list((tmp_path / "memory").glob("facts-*.parquet"))) > 1


def test_an_unusual_stream_has_the_same_bytes(tmp_path: Path) -> None:
    """Several hidden states per token: contexts run one at a time, exits are read by the model's own code."""

    def poison(hf: Any) -> None:
        hf.get_input_embeddings().weight[7] = 3e38

    model = tiny_model(build_family("gemma3n_text"), change=poison)
    work = workload_of("1 2 3 4 5 6", "1 7 3", "9 8 11 12")
    kept = run(tmp_path / "memory", model=model, workload=work, exits="2")
    assert [document.valid for document in kept.documents] == [True, False, True]
    run(tmp_path / "streamed", model=streamed(model)[0], workload=work, exits="2")
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "memory")


def test_in_bfloat16_too() -> None:
    model = tiny_model(build_family("llama"), dtype="bfloat16", head_scale=3.0)
    work = workload_of(lengths=(14, 9), vocabulary=400)
    assert_same_trace(
        run(None, model=streamed(model)[0], workload=work), run(None, model=model, workload=work)
    )


@pytest.mark.parametrize(
    ("exits", "memory", "kind"), [("all", None, random_heads), ("1", 1, random_output_heads)]
)
def test_with_signals_and_heads(exits: str, memory: int | None, kind: Any) -> None:
    model = tiny_llama()
    options = {"signals": "all", "exits": exits, "heads": kind(model, [1, 2])}
    found = run(None, model=streamed(model)[0], memory=memory, **options)
    assert_same_trace(found, run(None, model=model, **options))


def test_arguments_made_anew_for_every_layer_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BatchCalls.__init__, "__defaults__", (0,))
    model = tiny_model(build_family("gemma2"), head_scale=3.0)
    recorded: list[int] = []
    real = Recorder.__call__

    def counted(recorder: Recorder, **inputs: Any) -> Any:
        recorded.append(1)
        return real(recorder, **inputs)

    monkeypatch.setattr(Recorder, "__call__", counted)
    work = workload_of(lengths=(14, 9), vocabulary=400)
    found = run(None, model=streamed(model)[0], workload=work)
    assert len(recorded) > 2 * len(model.stack), "nothing was kept"
    assert_same_trace(found, run(None, model=model, workload=work))


def test_progress_says_what_is_done_with_which_layer(capsys: pytest.CaptureFixture[str]) -> None:
    run(None, model=streamed(tiny_llama())[0], progress=True)
    shown = capsys.readouterr().err
    assert "numbers: computing layer 3/3" in shown
    assert f"{3 * 127}/{3 * 127} layers x tokens" in " ".join(shown.split())


def test_prompts_without_answers_are_refused(tmp_path: Path) -> None:
    model, layers = streamed(tiny_model(llama(), head_scale=3.0))
    large = dataclasses.replace(model, streamed=SimpleNamespace(layer_bytes=(10**9, 2 * 10**9)))
    work = workload_of("1 2 3", mode="generation")
    for apart in (model, large):
        with pytest.raises(ModelError, match="for every new token") as caught:
            trace(apart, work, tokens=5, output=tmp_path / "trace")
        assert "jsonl:PATH#field" in caught.value.fix
    assert "3.0 GB" in caught.value.what
    assert not (tmp_path / "trace").exists()
    assert layers.read == []


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ("tracing/recorders.py", True),
        ("models/transforms/prune.py", True),
        ("tracing/fitting/ridge.py", False),
        ("report/pages.py", False),
    ],
)
def test_the_code_that_a_trace_depends_on_is_part_of_its_request(
    changed: str, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def code_of_a_trace() -> str:
        code.code_of.cache_clear()
        made = trace(tiny_llama(), workload_of("1 2 3"), tokens=3, progress=False)
        return str(made.provenance["request"]["code"])

    before = code_of_a_trace()
    plain = code._digest
    monkeypatch.setattr(code, "_digest", lambda path: "other" if path == PACKAGE / changed else plain(path))
    assert (code_of_a_trace() != before) == counts
    code.code_of.cache_clear()


FROM_SHARDS = ("gpt2", "llama", "qwen3_moe", "granitemoehybrid", "mamba2", "jamba", "gemma2", "mixtral")
"""Tied, plain and expert weights, state spaces and hybrids."""


@pytest.mark.parametrize("family", FROM_SHARDS)
def test_a_model_read_from_shards_gives_the_same_bytes(family: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build_family(family).save_pretrained(folder, max_shard_size="60KB")
    write_tokenizer(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    source = find_source(str(folder))
    apart = load_streamed(source, dtype="float32")
    work = workload_of(lengths=(14, 9, 20), vocabulary=400)
    kept = traced(load_source(source, dtype="float32"), tmp_path / "memory", work)
    assert traced(apart, tmp_path / "streamed", work) == kept
    assert apart.streamed is not None
    assert apart.streamed.read_seconds > 0
    assert all(weight.is_meta for layer in apart.stack.layers for weight in layer.parameters())


def traced(model: Model, folder: Path, work: object) -> dict[str, bytes]:
    run(folder, model=dataclasses.replace(model, name="tiny"), workload=work, context=12, document_tokens=20)
    return files_of(folder)
