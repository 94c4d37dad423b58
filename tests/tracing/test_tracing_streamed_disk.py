"""Models on disk traced layer by layer by the real reader: the same bytes as loaded whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import trace_fixtures
from stored_traces import files_of, run
from tracing_models import build_family, workload_of

from offramp.models.loading import load_source
from offramp.models.model import Model
from offramp.models.source import find_source
from offramp.models.streamed_loading import load_streamed
from tiny_models import write_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
one_thread = trace_fixtures.one_thread
small_parts = trace_fixtures.small_parts

FAMILIES = {
    "gpt2": "tied",
    "llama": "plain",
    "qwen3_moe": "experts",
    "granitemoehybrid": "hybrid",
    "mamba2": "state space",
    "jamba": "hybrid",
    "gemma2": "tied",
    "mixtral": "experts",
}


@pytest.mark.parametrize("family", FAMILIES)
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
