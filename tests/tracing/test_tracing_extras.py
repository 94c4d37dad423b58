"""Facts on request on disk: they come back, damage is found, other requests differ, old traces are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored_traces
from killed_runs import everything
from random_heads import random_heads
from stored_traces import assert_same_trace, files_of, flip, must_not_run, read_stored, run, write_stored
from tracing_models import NumberTokenizer, llama, tiny_llama, tiny_model, workload_of

from offramp.errors import DamagedFileError, InputError
from offramp.tracing import tracer
from offramp.tracing.facts import FACTS, HEAD_FACTS, SIGNAL_FACTS
from offramp.tracing.part import part_path
from offramp.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
one_thread = stored_traces.one_thread
small_parts = stored_traces.small_parts
finished = stored_traces.finished

ALL_NAMES = (
    *(fact.name for fact in FACTS),
    *(fact.name for name in sorted(SIGNAL_FACTS) for fact in SIGNAL_FACTS[name]),
    *(fact.name for fact in HEAD_FACTS),
)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A trace with every fact that a text has. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("traces") / "extended"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.tracing.plan.SMALLEST_PART", stored_traces.PART_ROWS)
        run(folder, **everything())
    return folder


@pytest.fixture
def folder(extended: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extended, tmp_path / "trace"))


def test_every_fact_comes_back_from_disk(extended: Path) -> None:
    loaded = Trace.load(extended)
    assert loaded.fact_names == ALL_NAMES
    assert_same_trace(loaded, run(None, **everything()))
    manifest = read_stored(extended / "manifest.json")
    assert [fact["name"] for fact in manifest["facts"]] == list(ALL_NAMES)
    assert manifest["schema_version"] == 4


def test_a_finished_trace_is_read_and_another_request_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.tracing.tracer.make_measurer", must_not_run)
    run(folder, **everything())
    for options, differs in [
        ({"signals": "restricted"}, "signals, heads"),
        ({**everything(), "heads": None}, "heads"),
        ({**everything(), "heads": random_heads(tiny_llama(), [1, 2], seed=1)}, "heads"),
    ]:
        with pytest.raises(InputError, match=f"differs in: {differs}"):
            run(folder, **options)


def test_damage_is_named_and_repaired(folder: Path) -> None:
    whole = files_of(folder)
    path = part_path(folder, "facts", 1)
    size = path.stat().st_size
    for offset in (size // 2, size - size // 8):
        flip(path, offset)
        with pytest.raises(DamagedFileError, match=path.name):
            Trace.load(folder)
        run(folder, repair=True, **everything())
        assert files_of(folder) == whole


def test_a_resumed_run_measures_only_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files_of(folder)
    (folder / "manifest.json").unlink()
    part_path(folder, "tokens", 2).unlink()
    measured: list[int] = []
    measure = tracer.measure_part

    def counted(measurer: Any, index: int, *arguments: Any) -> Any:
        measured.append(index)
        return measure(measurer, index, *arguments)

    monkeypatch.setattr(tracer, "measure_part", counted)
    run(folder, **everything())
    assert measured == [2]
    assert files_of(folder) == whole


def test_facts_of_documents_come_back_from_disk(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": tiny_model(llama(), head_scale=3.0, tokenizer=NumberTokenizer()),
        "workload": workload_of("5 6 7", "8 9", "10 11 12 13", mode="generation"),
        "tokens": 20,
        "signals": "all",
    }
    run(tmp_path / "trace", **options)
    loaded, held = Trace.load(tmp_path / "trace"), run(None, **options)
    assert_same_trace(loaded, held)
    stored = loaded.document_fact("prompt_entropy")
    assert stored.dtype == np.float64
    assert np.array_equal(stored, held.document_fact("prompt_entropy"))
    assert len(np.unique(stored)) == len(loaded.documents)
    assert read_stored(tmp_path / "trace" / "manifest.json")["document_facts"] == ["prompt_entropy"]


def test_a_trace_of_schema_version_1_is_read(finished: Path, tmp_path: Path) -> None:
    """As an older offramp wrote it: no signals or heads in the request, no list of document facts."""
    old = Path(shutil.copytree(finished, tmp_path / "old"))
    manifest = read_stored(old / "manifest.json")
    manifest["schema_version"] = 1
    del manifest["document_facts"], manifest["request"]["signals"], manifest["request"]["heads"]
    write_stored(old / "manifest.json", manifest)
    write_stored(old / "request.json", manifest["request"])
    assert json.loads((old / "manifest.json").read_text())["schema_version"] == 1
    loaded, new = Trace.load(old), Trace.load(finished)
    assert loaded.fact_names == tuple(fact.name for fact in FACTS)
    for name in loaded.fact_names:
        assert np.array_equal(loaded.fact(name), new.fact(name)), name
    with pytest.raises(InputError, match="does not hold 'logit_gap'") as caught:
        loaded.fact("logit_gap")
    assert caught.value.fix == "trace again with --signals logit_gap"
    assert caught.value.where == str(old)
    with pytest.raises(InputError, match="differs in: signals"):
        run(old)


def test_a_trace_in_memory_holds_the_facts_it_was_given(extended: Path) -> None:
    shape = Trace.load(extended).shape
    found = Trace.from_facts(
        {"logit_gap": np.ones((2, 3), dtype=np.float32)}, document=np.zeros(2, dtype=np.int32), shape=shape
    )
    assert found.fact_names == ("logit_gap",)
    assert found.logit_gap.shape == (2, 3)
    assert found.subset(np.array([0])).fact_names == ("logit_gap",)
    for name, fix in [("max_prob", "trace the model again"), ("adainfer", "trace again with --heads FILE")]:
        with pytest.raises(InputError, match=f"does not hold '{name}'") as caught:
            found.fact(name)
        assert caught.value.fix == fix
