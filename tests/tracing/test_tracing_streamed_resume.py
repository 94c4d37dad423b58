"""Traces layer by layer that are stopped, killed or damaged go on to the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stored_traces
from killed_streams import CODE
from stored_traces import files_of, flip, run
from streamed_runs import Stopped, states_of, stopped_run, streamed
from tracing_models import tiny_llama

from offramp.errors import InputError
from offramp.tracing.streamed_states import STATES_FOLDER

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
finished = stored_traces.finished
one_thread = stored_traces.one_thread
small_parts = stored_traces.small_parts


@pytest.mark.parametrize("exits", ["all", "3"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_run_goes_on_after_the_last_whole_layer(
    exits: str, layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, layer, exits=exits)
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart, exits=exits)
    assert layers.read == list(range(layer, 3))
    run(tmp_path / "memory", exits=exits)
    assert files_of(folder) == files_of(tmp_path / "memory")


def test_parts_that_are_whole_need_no_layers_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while parts are measured: the states are there, and the parts before are not touched."""
    import offramp.tracing.tracer as tracer

    folder = tmp_path / "trace"
    real = tracer.write_part

    def stopping(folder: Path, part: Any, *rest: Any) -> None:
        if part.index == 2:
            raise Stopped
        real(folder, part, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(tracer, "write_part", stopping)
        with pytest.raises(Stopped):
            run(folder, model=streamed(tiny_llama())[0])
    assert len(states_of(folder)) == 1 + 2 * 3
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == []
    assert files_of(folder) == files_of(finished)


def test_a_damaged_part_goes_through_the_layers_alone(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "trace"))
    flip(folder / "facts-00001.parquet", 300)
    apart, layers = streamed(tiny_llama())
    seen: list[int] = []
    for layer in layers._layers:
        layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[1]))
    run(folder, model=apart, repair=True)
    assert files_of(folder) == files_of(finished)
    assert layers.read == [0, 1, 2]
    assert 0 < sum(seen) / 3 < 60, "tokens of one part, not of all"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


DAMAGES = {
    "flipped": ("layer-0001.bin", flipped),
    "truncated": ("layer-0001.bin", truncated),
    "missing": ("layer-0001.bin", Path.unlink),
    "seal": ("layer-0001.json", flipped),
    "no-seal": ("layer-0001.json", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_layer_is_found_and_computed_again(
    damage: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, 2)
    name, change = DAMAGES[damage]
    change(folder / STATES_FOLDER / name)
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == [1, 2]
    assert files_of(folder) == files_of(finished)
    assert ("computed again" in capsys.readouterr().err) == (damage != "no-seal")


def test_a_damaged_description_starts_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, 2)
    flip(folder / STATES_FOLDER / "states.json", 40)
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == [0, 1, 2]
    assert files_of(folder) == files_of(finished)


def test_states_of_another_request_are_not_used(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trace"
    stopped_run(folder, monkeypatch, 2, tokens=100)
    before = files_of(folder)
    with pytest.raises(InputError, match=r"differs in: tokens\)"):
        run(folder, model=streamed(tiny_llama())[0])
    assert files_of(folder) == before
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart, overwrite=True)
    assert layers.read == [0, 1, 2]
    assert files_of(folder) == files_of(finished)


def test_a_finished_trace_loses_states_that_were_left(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "trace"))
    (folder / STATES_FOLDER).mkdir()
    (folder / STATES_FOLDER / "layer-0000.bin").write_bytes(b"left by a run that was killed at its end")
    apart, layers = streamed(tiny_llama())
    run(folder, model=apart)
    assert layers.read == []
    assert files_of(folder) == files_of(finished)


def test_a_trace_begun_in_memory_goes_on_streamed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import offramp.tracing.tracer as tracer

    real = tracer.write_part

    def stopping(folder: Path, part: Any, *rest: Any) -> None:
        real(folder, part, *rest)
        if part.index == 1:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(tracer, "write_part", stopping)
        with pytest.raises(Stopped):
            run(tmp_path / "trace")
    apart, layers = streamed(tiny_llama())
    run(tmp_path / "trace", model=apart)
    assert layers.read == [0, 1, 2]
    assert files_of(tmp_path / "trace") == files_of(finished)


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right before and after files are put in place, and at 10 random moments."""
    script = Path(__file__).with_name("killed_streams.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    killed = [name for name, number in ended.items() if number == signal.SIGKILL]
    assert len([name for name in ended if name.startswith("delay-")]) == 10
    assert len(killed) >= 12
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr("offramp.tracing.tracer.code_fingerprint", lambda: CODE)
    run(tmp_path / "memory")
    expected = files_of(tmp_path / "memory")
    went_on = 0
    for name in ended:
        before = (tmp_path / f"{name}.log").read_text().split()
        apart, layers = streamed(tiny_llama())
        run(tmp_path / name, model=apart)
        assert files_of(tmp_path / name) == expected, name
        if name in killed and before:
            # The layer in hand at the kill is read again; those before it are not.
            assert not layers.read or layers.read[0] >= int(before[-1]), name
            went_on += layers.read != [0, 1, 2]
    assert went_on >= 6
