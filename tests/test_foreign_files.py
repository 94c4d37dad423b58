"""Whatever stands in a file that is read: it is read, or refused by name, and never ends in a traceback."""

from __future__ import annotations

import contextlib
import importlib
import json
import pkgutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import offramp
from offramp.errors import OfframpError
from offramp.files import read_sealed_json, sealed, write_sealed_json
from offramp.kit.given_file import Table, checked, read_toml
from offramp.kit.sealed_file import DECLARED, SealedFile
from offramp.kit.sealed_tensors import seal_of
from offramp.lab.exits import checkpoint
from offramp.models.checkpoint import INDEX_FILE, find_weight_files, read_config
from offramp.policies.grammar import parse_policy
from offramp.studies.folder import StudyFolder
from offramp.studies.journal import read_lines
from offramp.tracing import heads_file, manifest
from offramp.tracing.exits_folder import TRAINING_FILE
from offramp.tracing.importing.imports import read_layout
from offramp.tracing.importing.tensors import Tensors
from offramp.tracing.trained_model import trained_in
from offramp.tuning.tuned import read_tuned
from offramp.workloads.registry import load_workload

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


def in_file(read: Callable[[Path], object], name: str = "file.json") -> Callable[[Path, str], object]:
    """A reader of a text that lies in a file of this name."""

    def of_text(folder: Path, text: str) -> object:
        path = folder / name
        path.write_text(text, encoding="utf-8", newline="")
        return read(path)

    return of_text


def in_metadata(read: Callable[[Path], object], key: str) -> Callable[[Path, str], object]:
    """A reader of a text in the metadata of a safetensors file."""

    def of_text(folder: Path, text: str) -> object:
        save_file(ARRAYS, folder / "a.safetensors", metadata={key: text})
        return read(folder / "a.safetensors")

    return of_text


def heads_resealed(folder: Path, text: str) -> object:
    """A header of heads of which some entry was changed by who knows how to seal it."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        changed = {**HEADS, **dict(json.loads(text))}
        text = json.dumps({**changed, "schema_version": 5, "sha256": seal_of(changed, ARRAYS)})
    return in_metadata(heads_file.read_heads, heads_file.HEADER)(folder, text)


def tuned_resealed(folder: Path, text: str) -> object:
    """A tuned policy of which some entry was changed so."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        text = json.dumps(sealed({**TUNED, **dict(json.loads(text))}))
    in_file(lambda path: parse_policy(str(path)))(folder, text)
    return in_file(read_tuned)(folder, text)


def read_checkpoint(path: Path) -> object:
    return checkpoint.read_checkpoint(path, "key", torch.device("cpu"))


READERS: dict[str, Callable[[Path, str], object]] = {
    "a sealed record": in_file(lambda path: read_sealed_json(path, manifest.damaged)),
    "a trace's manifest": in_file(lambda path: manifest.read_manifest(path.parent), manifest.MANIFEST),
    "a header of heads": in_metadata(heads_file.read_heads, heads_file.HEADER),
    "a header of heads, sealed": heads_resealed,
    "a checkpoint": in_metadata(read_checkpoint, checkpoint.FILE.entry),
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
    "a study": in_file(lambda path: checked(Table, *read_toml(path, "study")), "study.toml"),
    "a journal": lambda folder, text: read_lines(text.encode()),
}


def every_kind() -> list[SealedFile[Any]]:
    """All kinds of sealed files, of whatever module."""
    for module in pkgutil.walk_packages(offramp.__path__, "offramp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return DECLARED


ENTRIES = st.sampled_from(
    ["model", "exits", "documents", "lens", "provenance", "document_texts", "schema_version", "kind", "text"]
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
@settings(max_examples=60, deadline=None)
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


def entries_of(kind: SealedFile[Any]) -> list[str]:
    """The entries of a record, and one that no record has."""
    fields = getattr(kind.record, "__dataclass_fields__", None) or getattr(kind.record, "model_fields", {})
    return [*fields, "another"]


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_record_that_another_program_sealed_is_read_or_refused(data: st.DataObject) -> None:
    """Of every kind of file there is: its entries have other types, are missing, or have neighbours."""
    kind = data.draw(st.sampled_from(every_kind()))
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


def test_what_the_readers_are_tried_with_is_else_right(tmp_path: Path) -> None:
    heads: Any = heads_resealed(tmp_path, "{}")
    assert heads.exits == (2,)
    policy = in_file(lambda path: parse_policy(str(path)))
    assert str(policy(tmp_path, json.dumps(sealed(TUNED)))) == "static:exit=2"
    checkpoint.FILE.write(tmp_path / "a", {"steps": 1}, ARRAYS)
    assert checkpoint.FILE.read(tmp_path / "a", "")[0] == {"steps": 1}
