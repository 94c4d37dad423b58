"""The benchmark of streaming on tiny models; its figures mean nothing there."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("streaming", "random_checkpoint", "tracing")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, found where a script finds them, and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in MODULES}
        for name in MODULES:
            sys.modules.pop(name)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors, each from the file that the index names."""
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for file in set(weight_map.values()):
        with safe_open(folder / file, framework="pt") as opened:
            assert set(opened.keys()) == {name for name, place in weight_map.items() if place == file}
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    return found


def test_a_random_checkpoint_is_one_of_transformers_own(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint, size = modules["random_checkpoint"], "tiny-moe"
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 60_000)
    folder = tmp_path / size
    checkpoint.write_checkpoint(folder, checkpoint.SIZES[size])
    assert len(checkpoint.shards_of(folder)) > 3
    hf, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    tensors = tensors_of(folder)
    assert sum(tensor.numel() for tensor in tensors.values()) == hf.num_parameters()
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        if "norm" in name:
            assert (tensor == 1).all()
        else:
            assert tensor.float().std().item() == pytest.approx(0.02, rel=0.2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("né")["input_ids"]) == 3
    assert tokenizer.decode(tokenizer("né\n")["input_ids"]) == "né\n"
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    checkpoint.write_checkpoint(folder, checkpoint.SIZES[size])
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    with pytest.raises(SystemExit, match="holds something else"):
        checkpoint.write_checkpoint(folder, checkpoint.SIZES[size], seed=1)


def test_a_tiny_model_is_measured_in_a_process_of_its_own(
    modules: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    modules["streaming"].main(
        ["--size", "tiny", "--folder", str(folder), "--tokens", "96", "--exits", "2,4", "--repeats", "2"]
    )
    shown = capsys.readouterr()
    found: dict[str, Any] = json.loads(shown.out.splitlines()[-1])
    assert 50_000_000 < found["peak_memory_bytes"] < 4_000_000_000
    trace, floor = found["trace"], found["floor"]
    assert (floor["layers"], floor["exits"], floor["rows"]) == (4, 2, 96)
    assert floor["arithmetic_seconds"] == pytest.approx(
        4 * sum(floor["layer_seconds"]) / 2 + 2 * sum(floor["head_seconds"]) / 2
    )
    assert found["floor_seconds"] == pytest.approx(
        floor["arithmetic_seconds"] + sum(floor["read_seconds"]) / 2
    )
    taken = trace["load_seconds"] + trace["trace_seconds"]
    assert found["over_floor_ratio"] == pytest.approx(taken / found["floor_seconds"])
    assert 0 <= trace["waited_seconds"] <= trace["trace_seconds"]
    assert trace["read_seconds"] > 0
    assert trace["resident_bytes"] == 2 * (2 * 320 * 64 + 64)
    assert found["disk_bytes"] > 4 * trace["largest_layer_bytes"]
    assert "x the floor" in shown.err
    assert folder.exists()
