"""Whatever stands in a file that is read: it is read, or refused by name, and never ends in a traceback."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import pkgutil
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from folder_cases import Written, do, plan_of, task_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from random_heads import random_heads
from safetensors.numpy import save_file
from stored_traces import run
from tracing_models import tiny_llama

import offramp
from offramp.errors import DamagedFileError, OfframpError
from offramp.files import read_sealed_json, sealed, write_sealed_json
from offramp.heads import exit_heads
from offramp.heads import file as heads_file
from offramp.heads.importing.imports import read_layout
from offramp.heads.importing.key_map import Tensors
from offramp.heads.trained_model import trained_in
from offramp.kit.given_file import TomlTable, checked, read_toml
from offramp.kit.numbers import Proportion
from offramp.kit.sealed_file import DECLARED, SealedFile
from offramp.kit.sealed_tensors import DECLARED as TENSORS
from offramp.kit.sealed_tensors import STREAMED, Arrays, SealedTensors
from offramp.models.checkpoint import INDEX_FILE, find_weight_files, read_config
from offramp.models.source import find_source
from offramp.models.training_record import TRAINING_FILE
from offramp.policies.grammar import parse_policy
from offramp.scoring.card import ScoreCard
from offramp.studies.folder import StudyFolder
from offramp.studies.journal import read_lines
from offramp.studies.work.work import works
from offramp.tracing import manifest, sealed_parts
from offramp.tracing.request import TraceRequest
from offramp.tracing.trace import Trace
from offramp.training import loop, states
from offramp.training.record import Evaluated, Evaluation, Settings
from offramp.tuning.tuned import Tuned, read_tuned
from offramp.workloads.registry import load_workload
from tiny_models import write_llama

DEEP = '{"a": ' * 100_000 + "1" + "}" * 100_000
TUNED = {"kind": "tuned", "schema_version": 3, "policy": "static:exit=2", "model": {"fingerprint": "a"}}
HEADS = {
    "model": {"name": "m", "fingerprint": "a", "layers": 4, "hidden_size": 2, "vocabulary_size": 9},
    "exits": [2],
    "classifiers": {},
    "candidate_exit": None,
    "documents": {},
    "provenance": {},
    "lens": False,
}
ARRAYS = {"a": np.zeros(2, dtype=np.float32)}
SHORT_LIST = {"shortlist": np.arange(2, dtype=np.int32)}


def in_file(read: Callable[[Path], object], name: str = "file.json") -> Callable[[Path, str], object]:
    """A reader of a text that lies in a file of this name."""

    def of_text(folder: Path, text: str) -> object:
        path = folder / name
        path.write_text(text, encoding="utf-8", newline="")
        return read(path)

    return of_text


def in_metadata(
    read: Callable[[Path], object], key: str, arrays: Arrays = ARRAYS
) -> Callable[[Path, str], object]:
    """A reader of a text in the metadata of a safetensors file."""

    def of_text(folder: Path, text: str) -> object:
        save_file(arrays, folder / "a.safetensors", metadata={key: text})
        return read(folder / "a.safetensors")

    return of_text


def resealed(
    kind: SealedTensors[Any], header: dict[str, Any], read: Callable[[Path], object], arrays: Arrays
) -> Callable[[Path, str], object]:
    """A reader of a header of which some entry was changed by who knows how to seal it."""

    def of_text(folder: Path, text: str) -> object:
        path = folder / "a.safetensors"
        try:
            changed = dict(json.loads(text))
            kind.write(path, {**header, **changed}, arrays)
        except (ValueError, TypeError, RecursionError):
            return in_metadata(read, kind.entry)(folder, text)
        return read(path)

    return of_text


def tuned_resealed(folder: Path, text: str) -> object:
    """A tuned policy of which some entry was changed so."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        text = json.dumps(sealed({**TUNED, **dict(json.loads(text))}))
    in_file(lambda path: parse_policy(str(path)))(folder, text)
    return in_file(read_tuned)(folder, text)


def read_checkpoint(path: Path) -> object:
    return loop.read_checkpoint(path, "key", torch.device("cpu"))


def read_states(path: Path) -> object:
    for name in (states.FIT, states.HELD_OUT):
        shutil.copy(path, path.with_name(name))
    return states.tokens_read(path.parent), states.read_states(path.parent, "key")


CHECKPOINT = {
    "key": "key",
    "settings": {"steps": 9, "every": 3, "precision": "float32", "threads": 1, "device": "cpu"},
    "best_loss": [(1.5).hex()],
    "step": 3,
    "stale": 0,
    "stopped": "",
    "seconds": 1.0,
    "history": [{"step": 0, "seconds": 0.5, "exits": [{"loss": 0.5, "agreement": 0.9, "leaving": [0.5]}]}],
}
STATES = {"key": "key", "layers": [1, 2], "dtype": "float32", "seconds": 1.5, "tokens": 40}
ROWS = {STREAMED: np.arange(5 * 2 * 12, dtype=np.uint8).reshape(5, 2, 12)}

heads_resealed = resealed(heads_file.FILE, HEADS, heads_file.read_heads, SHORT_LIST)
checkpoint_resealed = resealed(loop.CHECKPOINT_FILE, CHECKPOINT, read_checkpoint, ARRAYS)
states_resealed = resealed(states.FILE, STATES, read_states, ROWS)


READERS: dict[str, Callable[[Path, str], object]] = {
    "a sealed record": in_file(lambda path: read_sealed_json(path, sealed_parts.damaged)),
    "a trace's manifest": in_file(lambda path: manifest.read_manifest(path.parent), manifest.MANIFEST),
    "a header of heads": in_metadata(heads_file.read_heads, heads_file.HEADER, SHORT_LIST),
    "a header of heads, sealed": heads_resealed,
    "a checkpoint": in_metadata(read_checkpoint, loop.CHECKPOINT_FILE.entry),
    "a checkpoint, sealed": checkpoint_resealed,
    "hidden states": in_metadata(read_states, states.FILE.entry),
    "hidden states, sealed": states_resealed,
    "a tuned policy": in_file(read_tuned),
    "a policy": in_file(lambda path: parse_policy(str(path))),
    "a tuned policy, sealed": tuned_resealed,
    "what a model was trained on": in_file(lambda path: trained_in(path.parent), TRAINING_FILE),
    "a model's config": in_file(lambda path: read_config(path.parent), "config.json"),
    "an index of weights": in_file(lambda path: find_weight_files(path.parent), INDEX_FILE),
    "the config of others' heads": in_file(
        lambda path: read_layout("tuned-lens", Tensors(path.parent, {})), "config.json"
    ),
    "documents": in_file(lambda path: load_workload(f"jsonl:{path}#text")),
    "a plan": in_file(lambda path: StudyFolder(path.parent).read_plan(), "plan.json"),
    "a study": in_file(lambda path: checked(TomlTable, *read_toml(path, "study")), "study.toml"),
    "a journal": lambda folder, text: read_lines(text.encode()),
}


@functools.cache
def import_all() -> None:
    """Import every module: each kind of file is declared in one."""
    for module in pkgutil.walk_packages(offramp.__path__, "offramp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


ENTRIES = st.sampled_from(
    [
        *("model", "exits", "documents", "lens", "provenance", "document_texts", "schema_version", "kind"),
        *("text", *CHECKPOINT, *STATES),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists, max_leaves=3
)
TEXTS = (
    st.text(max_size=20)
    | st.dictionaries(ENTRIES, VALUES | st.dictionaries(ENTRIES, VALUES)).map(json.dumps)
    | VALUES.map(json.dumps)
)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=60)
@given(text=TEXTS)
@example(text=DEEP)
@example(text='{"a": ' * 900 + "1" + "}" * 900)
@example(text='{"text": "\\ud800"}')
@example(text='{"kind": NaN}')
@example(text='{"schema_version": 1e999}')
@example(text='{"schema_version": ' + "9" * 5000 + "}")
@example(text="[]")
@example(text="")
def test_a_text_in_a_file_is_read_or_refused(kind: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OfframpError):
        READERS[kind](Path(folder), text)


def entries_of(kind: SealedFile[Any] | SealedTensors[Any]) -> list[str]:
    """The entries of a record, and one that no record has."""
    fields = getattr(kind.record, "__dataclass_fields__", None) or getattr(kind.record, "model_fields", {})
    return [*fields, "another"]


@settings(max_examples=400)
@given(data=st.data())
def test_a_record_that_another_program_sealed_is_read_or_refused(data: st.DataObject) -> None:
    """Of every kind of file there is: its entries have other types, are missing, or have neighbours."""
    import_all()
    kind = data.draw(st.sampled_from(DECLARED))
    entries = st.dictionaries(st.sampled_from(entries_of(kind)), VALUES)
    header = {"schema_version": kind.version, "kind": kind.kind}
    value = {**{name: one for name, one in header.items() if one is not None}, **data.draw(entries)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        try:
            write_sealed_json(path, value, apart=kind.apart)
        except ValueError:  # JSON cannot hold it
            return
        with contextlib.suppress(OfframpError):
            kind.write(path, kind.read(path))  # what is read can be written
            kind.read(path)


def unlimited(schema: Any, place: str = "", *, ruled: bool = False) -> Iterator[str]:
    """The places of a schema's numbers that have no lower or no upper limit, and no rule of ours."""
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from unlimited(part, place, ruled=ruled)
    if not isinstance(schema, dict):
        return
    kind = str(schema.get("type"))
    if kind in ("int", "float") and not ruled and not all(end & {*schema} for end in ENDS):
        yield place
    if kind == "dataclass":
        place, ruled = schema["cls"].__name__, False
    if kind == "dataclass-field":
        place = f"{place}.{schema['name']}"
    for name, part in schema.items():
        if name not in ("cls", "default", "metadata", "serialization"):
            yield from unlimited(part, place, ruled=ruled or kind.startswith("function"))


ENDS = ({"ge", "gt"}, {"le", "lt"})


def test_every_number_of_a_record_has_its_limits() -> None:
    """A count below 0, or a time of 10**300 seconds, is refused where it is read."""
    import_all()
    records = {kind.record for kind in (*DECLARED, *TENSORS)}
    records |= {Tuned, ScoreCard, TraceRequest, exit_heads._HeadsHeader}
    for work in works().values():
        records |= {work, work.result_type()}
    places = {place for record in records for place in unlimited(TypeAdapter(record).core_schema)}
    assert not places
    assert set(unlimited(TypeAdapter(Unlimited).core_schema)) == {"Unlimited.count"}


@dataclass
class Unlimited:
    count: int
    share: Proportion


@settings(max_examples=100)
@given(data=st.data())
def test_tensors_that_another_program_sealed_are_read_or_refused(data: st.DataObject) -> None:
    import_all()
    kind = data.draw(st.sampled_from(TENSORS))
    header = data.draw(st.dictionaries(st.sampled_from(entries_of(kind)), VALUES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        try:
            kind.write(path, header, data.draw(st.sampled_from([ARRAYS, ROWS, {}])))
        except ValueError:  # JSON cannot hold it
            return
        for mapped in (False, True):
            with contextlib.suppress(OfframpError):
                kind.write(path, *kind.read(path, "", mapped=mapped))
                kind.read(path, "")


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        ({"step": -5}, 0.0, "step: "),
        ({"step": 10**12}, 0.0, "its step 1000000000000 is beyond the 9 of its training"),
        ({"step": 9}, 0.0, "its step 9 is beyond"),
        ({"history": []}, 0.0, "it holds no evaluation"),
        ({}, math.nan, "0.now.a holds a number that is not finite"),
    ],
)
def test_an_impossible_checkpoint_is_refused(
    change: dict[str, Any], value: float, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {"0.now.a": np.full(2, value, dtype=np.float32)}
    loop.CHECKPOINT_FILE.write(path, {**CHECKPOINT, **change}, arrays)
    with pytest.raises(DamagedFileError, match=words) as caught:
        read_checkpoint(path)
    assert "remove it" in caught.value.fix


def trace_in(folder: Path) -> object:
    trace = Trace.load(folder)
    facts = {name: trace.fact(name).tobytes() for name in trace.fact_names}
    return facts, trace.token.tobytes(), trace.documents, trace.provenance


def study_in(folder: Path) -> object:
    """What is done in a study by its plan."""
    study = StudyFolder(folder)
    return [study.result(Written, task) for task in study.read_plan().tasks.values()]


def heads_in(folder: Path) -> object:
    heads = heads_file.read_heads(folder / "heads.safetensors")
    return heads.header(), {name: array.tobytes() for name, array in heads.arrays().items()}


def states_in(folder: Path) -> object:
    kept = states.read_states(folder, "key")
    assert kept is not None
    return kept.layers, kept.seconds, kept.fit.tolist(), kept.held_out.tolist()


def write_study(folder: Path) -> None:
    tasks = [task_of("score", number) for number in range(3)]
    study = StudyFolder(folder)
    study.write_plan(plan_of(tasks))
    for task in tasks:
        do(study, task)


def write_states(folder: Path) -> None:
    for name in (states.FIT, states.HELD_OUT):
        with states.FILE.streamed(folder / name) as file:
            file.add(ROWS[STREAMED])
            file.finish(states.States("key", (1, 2), "float32", 1.5, 40))


def write_checkpoint(folder: Path) -> None:
    """Of a training that has done a step, of two parts."""
    weights = [loop.Weights.of({"bias": torch.arange(3.0) + place}) for place in range(2)]
    settings = Settings(steps=9, every=3, precision="float32", threads=1, device="cpu")
    history = [Evaluated(0, 0.5, (Evaluation(0.5, 0.9, (0.5,)),))]
    progress = loop.Progress(settings, weights, torch.arange(4), step=1, seconds=1.5, history=history)
    loop.write_checkpoint(folder / "checkpoint.safetensors", progress, "key")


def checkpoint_in(folder: Path) -> object:
    progress: Any = read_checkpoint(folder / "checkpoint.safetensors")
    parts = [{name: part.tolist() for name, part in one.now.items()} for one in progress.weights]
    return parts, progress.vocabulary.tolist(), (progress.settings, progress.step, progress.seconds)


def write_trained_model(folder: Path) -> None:
    """A model, and the record of its training beside it."""
    left = find_source(str(write_llama(folder))).identity.fingerprint
    record = {"kind": "training", "heads": left, "request": {"recipe": {"kind": "regularised"}}}
    write_sealed_json(folder / TRAINING_FILE, {**record, "documents": {"w": ["a"]}, "texts": []})


def trained_model_in(folder: Path) -> object:
    return find_source(str(folder)).identity.fingerprint, trained_in(folder)


WRITTEN: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "trace": (run, trace_in),
    "study": (write_study, study_in),
    "heads": (
        lambda folder: heads_file.write_heads(
            random_heads(tiny_llama(), [1, 2]), folder / "heads.safetensors"
        ),
        heads_in,
    ),
    "states": (write_states, states_in),
    "checkpoint": (write_checkpoint, checkpoint_in),
    "trained model": (write_trained_model, trained_model_in),
}
"""What is written into a folder, and everything that is read of it."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in WRITTEN}
    for name, folder in folders.items():
        WRITTEN[name][0](folder)
    return folders


@pytest.mark.parametrize("kind", WRITTEN)
@settings(max_examples=60)
@given(data=st.data())
def test_whatever_is_changed_in_a_file_it_is_refused_or_read_as_it_was(
    kind: str, written: dict[str, Path], data: st.DataObject
) -> None:
    """A byte is flipped in any file of any folder, or its end is cut off, or something stands behind it."""
    files = [path.relative_to(written[kind]) for path in sorted(written[kind].rglob("*")) if path.is_file()]
    name = data.draw(st.sampled_from(files))
    content = bytearray((written[kind] / name).read_bytes())
    place = data.draw(st.integers(0, max(0, len(content) - 1)))
    match data.draw(st.sampled_from(["flip", "cut", "more"])):
        case "flip" if content:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case _:
            content += b"{}"
    read = WRITTEN[kind][1]
    with tempfile.TemporaryDirectory() as below:
        copy = Path(below) / "copy"
        shutil.copytree(written[kind], copy)
        (copy / name).write_bytes(content)
        with contextlib.suppress(OfframpError):
            assert read(copy) == read(written[kind])


def test_what_the_readers_are_tried_with_is_else_right(tmp_path: Path) -> None:
    heads: Any = heads_resealed(tmp_path, "{}")
    assert heads.exits == (2,)
    policy = in_file(lambda path: parse_policy(str(path)))
    assert str(policy(tmp_path, json.dumps(sealed(TUNED)))) == "static:exit=2"
    progress: Any = checkpoint_resealed(tmp_path, "{}")
    assert progress.weights[0].best_loss == 1.5
    tokens, kept = cast(tuple[int, states.CachedStates], states_resealed(tmp_path, "{}"))
    assert tokens == 40
    assert kept.fit.shape == (5, 2, 3)
