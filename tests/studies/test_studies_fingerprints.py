"""What is kept of files between plans: used while they are the same, found out anew when they are not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from study_files import small_world, study_of, write_model

from offramp.models.checkpoint import read_headers
from offramp.models.gguf_file import CACHE_VARIABLE
from offramp.models.source import find_source
from offramp.studies import named_inputs
from offramp.studies.named_inputs import Fingerprints, evidence_of
from offramp.studies.plan import make_plan
from offramp.studies.task import FINGERPRINTS
from offramp.workloads.registry import load_workload
from tiny_models import GGUF_HIDDEN, GGUF_LAYERS, GGUF_VOCABULARY, write_gguf

TEXT = 'models = ["a", "b"]\nworkloads = ["txt:one.txt", "math:short"]\nmachines = ["h100"]\n'


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What planning reads whole: models and slow workloads, in order."""
    read: list[str] = []

    def find(name: str, **options: bool) -> Any:
        read.append(Path(name).name)
        return find_source(name, **options)

    def load(source: str) -> Any:
        if source == "math:short":
            read.append(source)
            source = "chat"  # as good, and quick
        return load_workload(source)

    monkeypatch.setattr(named_inputs, "find_source", find)
    monkeypatch.setattr(named_inputs, "load_workload", load)
    return read


def test_files_are_read_once_and_again_when_they_change(tmp_path: Path, counted: list[str]) -> None:
    study, folder = study_of(small_world(tmp_path), TEXT), tmp_path / "folder"
    first = make_plan(study, folder)
    assert sorted(counted) == ["a", "b", "math:short"]
    counted.clear()
    assert make_plan(study, folder) == first
    assert counted == []
    write_model(tmp_path / "a", seed=5)
    changed = make_plan(study, folder)
    assert counted == ["a"]
    assert not set(changed.tasks) & {key for key, task in first.tasks.items() if "a" in task.sources.values()}
    write_model(tmp_path / "a", seed=0)
    assert make_plan(study, folder).tasks.keys() == first.tasks.keys()


@pytest.mark.parametrize("change", ["content", "size", "time", "another file", "new file", "gone file"])
def test_every_change_is_noticed(tmp_path: Path, change: str) -> None:
    folder = write_model(tmp_path / "a")
    config = folder / "config.json"
    before = evidence_of([folder])
    assert evidence_of([folder]) == before
    text, times = config.read_text(), (config.stat().st_atime_ns, config.stat().st_mtime_ns)
    if change == "content":
        config.write_text(text.replace("4", "5"))
        os.utime(config, ns=(times[0], times[1] + 1))
    elif change == "size":
        config.write_text(text + " ")
        os.utime(config, ns=times)
    elif change == "time":
        os.utime(config, ns=(time.time_ns(), times[1] + 1))
    elif change == "another file":  # moved into its place, with the same size and time
        (folder / "other").write_text(text.replace("4", "5"))
        os.utime(folder / "other", ns=times)
        (folder / "other").rename(config)
    elif change == "new file":
        (folder / "generation_config.json").write_text("{}")
    else:
        config.unlink()
    assert evidence_of([folder]) != before


def test_what_cannot_be_read_is_found_out_again(tmp_path: Path, counted: list[str]) -> None:
    study, folder = study_of(small_world(tmp_path), TEXT), tmp_path / "folder"
    first = make_plan(study, folder)
    for damage in ("", "{", "[]", '{"workload math:short": 3}'):
        (folder / FINGERPRINTS).write_text(damage)
        counted.clear()
        assert make_plan(study, folder) == first
        assert sorted(counted) == ["a", "b", "math:short"]


def test_nothing_is_kept_without_a_folder_and_nothing_written_without_news(tmp_path: Path) -> None:
    path = tmp_path / "folder" / FINGERPRINTS
    kept = Fingerprints(path)
    assert kept.get("name", str, lambda value: [1], lambda: "found") == "found"
    assert not path.exists()
    kept.save()
    written = path.stat().st_mtime_ns
    again = Fingerprints(path)
    assert again.get("name", str, lambda value: [1], lambda: pytest.fail("it was kept")) == "found"
    again.save()
    assert path.stat().st_mtime_ns == written
    assert again.get("name", str, lambda value: [2], lambda: "anew") == "anew"
    assert again.get("name", int, lambda value: [2], lambda: 7) == 7  # a text is none
    alone = Fingerprints()
    alone.get("name", str, lambda value: [1], lambda: "found")
    alone.save()
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_plan_reads_a_gguf_file_and_unpacks_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    study = study_of(small_world(tmp_path), 'models = ["tiny.gguf"]\nworkloads = ["txt:one.txt"]\n')
    with monkeypatch.context() as patch:
        patch.setattr("offramp.models.source.convert_to_safetensors", lambda *_: pytest.fail("unpacked"))
        planned = make_plan(study)
        (model,) = named_inputs.find_everything(study, Fingerprints(), download=False).models.values()
    assert planned.tasks
    sizes = model.entry
    assert (sizes.layers, sizes.hidden, sizes.vocabulary) == (GGUF_LAYERS, GGUF_HIDDEN, GGUF_VOCABULARY)
    whole = find_source(str(tmp_path / "tiny.gguf")).whole()
    assert sizes.parameters == sum(tensor.elements for tensor in read_headers(whole.folder).values())
    assert model.fingerprint(()) == whole.identity.fingerprint
