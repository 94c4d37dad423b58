"""Hidden states between layers: where they are kept, how many, and what happens on a full disk."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stored_traces
import torch
from stored_traces import files_of, run
from streamed_runs import states_of, stopped_run, streamed, trace_tokens
from tracing_models import llama, tiny_llama, tiny_model, workload_of

from offramp.errors import InputError, OfframpError
from offramp.tracing import states as states_module
from offramp.tracing import streamed_layers as layers_module
from offramp.tracing.states import FolderStates, MemoryStates, TemporaryStates, places_of
from offramp.tracing.streamed_layers import kept_layers, missing_layers, output_bytes, peak_bytes

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
finished = stored_traces.finished
one_thread = stored_traces.one_thread
small_parts = stored_traces.small_parts


@pytest.mark.parametrize("kind", [MemoryStates, TemporaryStates, FolderStates])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_come_back_as_they_were(kind: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    outputs = [torch.randn(2, 3, 8).to(dtype), torch.randn(1, 5, 16).to(dtype)[..., ::2]]
    places = [tuple(places_of((output.shape, dtype) for output in outputs))] * 5
    states = FolderStates(tmp_path, "of a test", places) if kind is FolderStates else kind()
    states.write(3, iter(outputs))
    states.write(4, [output + 1 for output in outputs])
    assert [states.holds(layer) for layer in (2, 3, 4)] == [False, True, True]
    for batch in (1, 0):
        found = states.read(3, batch)
        assert found.dtype == dtype
        assert torch.equal(found, outputs[batch])
        found.zero_()  # its own memory
        assert torch.equal(states.read(3, batch), outputs[batch])
    states.keep_only([4])
    assert not states.holds(3)
    assert torch.equal(states.read(4, 0), outputs[0] + 1)
    if kind is FolderStates:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["layer-0004.bin", "layer-0004.json"]
        assert FolderStates(tmp_path, "of a test", places).holds(4)
        assert not FolderStates(tmp_path, "of another", places).holds(4)
        states.write(4, iter(outputs))
        assert not FolderStates(tmp_path, "of a test", [places[0][:1]] * 5).holds(4)
    states.close()


class CountedStates(MemoryStates):
    """Notes how many bytes it held at most."""

    most = 0

    def write(self, layer: int, outputs: Any) -> None:
        super().write(layer, outputs)
        held = [output for kept in self._outputs.values() for output in kept]
        CountedStates.most = max(CountedStates.most, sum(output.nbytes for output in held))


@pytest.mark.parametrize("exits", [(4,), (1, 4), (2, 6), tuple(range(1, 9))])
def test_only_what_is_needed_is_held(exits: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(llama(num_hidden_layers=8), head_scale=3.0)
    monkeypatch.setattr(layers_module, "MemoryStates", CountedStates)
    CountedStates.most = 0
    run(None, model=streamed(model)[0], workload=workload_of(lengths=(14, 9)), exits=list(exits))
    tokens = 13 + 8
    expected = peak_bytes(output_bytes(model.stack, tokens), kept_layers((*exits, 8)))
    assert CountedStates.most == expected
    held_layers = {(4,): 4, (1, 4): 5, (2, 6): 6, tuple(range(1, 9)): 8}[exits]
    assert expected == held_layers * tokens * 32 * 4


def test_temporary_files_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = states_module.tempfile.TemporaryFile

    def counted(**options: Any) -> Any:
        opened.append(real(**options))
        return opened[-1]

    monkeypatch.setattr(states_module, "tempfile", SimpleNamespace(TemporaryFile=counted))
    apart, _ = streamed(tiny_llama())
    run(None, model=apart, memory=1, exits="1")
    assert len(opened) == 3
    assert all(file.closed for file in opened)


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ((), [0, 1, 2, 3, 4, 5, 6, 7]),
        ((0, 1, 4), [5, 6, 7]),  # stopped after layer 4
        ((1, 6, 7), [0]),  # layer 0 was damaged
        ((0, 4, 6, 7), [1]),
        ((0, 1, 6), [7]),
        ((0, 1, 7), [2, 3, 4, 5, 6]),
        ((0, 1, 6, 7), []),
    ],
)
def test_missing_layers(held: tuple[int, ...], expected: list[int]) -> None:
    kept = kept_layers((2, 8))
    assert sorted(kept) == [0, 1, 6, 7]
    assert missing_layers(SimpleNamespace(holds=held.__contains__), kept, 8) == expected  # type: ignore[arg-type]


def test_a_disk_too_full_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart, layers = streamed(tiny_llama())
    tokens = sum(trace_tokens())
    needed = 3 * tokens * 32 * 4
    usage = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr("offramp.tracing.streamed_layers.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=f"{needed:,} bytes are needed for a while, {needed - 1:,} bytes"):
        run(tmp_path / "new" / "trace", model=apart)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="too full"):
        run(None, model=apart, memory=1)
    assert layers.read == []
    usage.free += 1
    run(tmp_path / "new" / "trace", model=apart)


def test_what_is_on_disk_already_is_not_needed_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, 2)
    layer = sum(trace_tokens()) * 32 * 4
    usage = SimpleNamespace(free=layer - 1)
    monkeypatch.setattr("offramp.tracing.streamed_layers.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=f"{layer:,} bytes are needed"):
        run(folder, model=streamed(tiny_llama())[0])
    usage.free = layer
    run(folder, model=streamed(tiny_llama())[0])
    assert files_of(folder) == files_of(finished)


def fill_disk(module: Any, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk run full after some batches were written."""
    real, seen = module.write_batches, 0

    def write_batches(write: Any, outputs: Any) -> Any:
        def full(data: memoryview) -> None:
            nonlocal seen
            seen += 1
            if seen > batches:
                write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            write(data)

        return real(full, outputs)

    monkeypatch.setattr(module, "write_batches", write_batches)


def test_a_disk_that_runs_full_leaves_whole_layers_only(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    folder = tmp_path / "trace"
    with monkeypatch.context() as patch:
        fill_disk(states_module, 8, patch)
        with pytest.raises(OfframpError, match="the disk is full"):
            run(folder, model=streamed(tiny_llama())[0])
    assert states_of(folder) == ["layer-0000.bin", "layer-0000.json", "states.json"]
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == [1, 2]
    assert files_of(folder) == files_of(finished)


def test_temporary_states_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(states_module, 3, monkeypatch)
    with pytest.raises(OfframpError, match="the hidden states after layer 1 do not fit") as caught:
        run(None, model=streamed(tiny_llama())[0], memory=1)
    assert "TMPDIR" in caught.value.fix


@pytest.mark.parametrize(("memory", "kind"), [(None, MemoryStates), (1, TemporaryStates)])
def test_the_budget_decides_where_states_are_kept(
    memory: int | None, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    real = layers_module.missing_layers
    monkeypatch.setattr(
        layers_module, "missing_layers", lambda states, *rest: seen.append(states) or real(states, *rest)
    )
    apart, layers = streamed(tiny_llama())
    run(None, model=apart, memory=memory)
    assert [type(states) for states in seen] == [kind]
    enough = 2 * max(layers.layer_bytes) + 3 * sum(trace_tokens()) * 32 * 4
    for budget, expected in ((enough, MemoryStates), (enough - 1, TemporaryStates)):
        seen.clear()
        run(None, model=apart, memory=budget)
        assert [type(states) for states in seen] == [expected]
