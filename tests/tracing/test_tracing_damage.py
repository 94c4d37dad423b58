"""Kills, interrupts and damaged files: what is whole is kept, the rest is traced again to the same bytes."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stored_traces
from killed_runs import everything
from stored_traces import files_of, flip, killed_children, read_stored, run, write_stored

from offramp.errors import DamagedFileError, InputError, OfframpError
from offramp.files import TEMPORARY_PREFIX, sha256_of_file
from offramp.tracing import sealed_parts
from offramp.tracing.sealed_parts import _SEAL, DETAILS_KEY, FILE_KINDS, part_path, seal_path
from offramp.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
finished = stored_traces.finished
folder = stored_traces.folder
one_thread = stored_traces.one_thread
small_parts = stored_traces.small_parts


def test_a_killed_run_resumes_to_the_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder = tmp_path / "killed"
    ended = killed_children(folder, "in-memory")
    whole = files_of(finished)
    extended = tmp_path / "extended"
    run(extended, **everything())
    assert files_of(folder / "timed") == whole, "another process gives the same bytes"
    assert sum(signal == 9 for signal in ended.values()) >= 13
    unfinished = leftovers = 0
    for name in ended:
        place = folder / name
        unfinished += not (place / "manifest.json").exists()
        leftovers += any(place.glob(f"{TEMPORARY_PREFIX}*")) if place.exists() else 0
        more = everything() if name.startswith("everything") else {}
        run(place, **more)
        assert files_of(place) == (files_of(extended) if more else whole), name
    assert unfinished >= 13
    assert leftovers >= 7, "some kills must leave a temporary file, which the resumed run sweeps"


def test_a_resumed_run_measures_only_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files_of(folder)
    (folder / "manifest.json").unlink()
    for kind in ("tokens", "marginal"):
        part_path(folder, kind, 2).unlink()
    measured: list[int] = []
    real = sealed_parts.write_part

    def write(folder: Path, part: Any, *arguments: Any) -> None:
        measured.append(part.index)
        real(folder, part, *arguments)

    monkeypatch.setattr("offramp.tracing.tracer.write_part", write)
    run(folder)
    assert measured == [2]
    assert files_of(folder) == whole


def test_an_interrupt_leaves_a_folder_that_can_be_resumed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sealed_parts._write
    calls = 0

    def write(table: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        real(table, path)
        if calls == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(sealed_parts, "_write", write)
    place = tmp_path / "trace"
    with pytest.raises(KeyboardInterrupt):
        run(place)
    assert not list(place.glob(f"{TEMPORARY_PREFIX}*"))
    with pytest.raises(InputError, match="not finished") as caught:
        Trace.load(place)
    assert "run the same offramp trace command again" in caught.value.fix
    run(place)
    assert files_of(place) == files_of(finished)


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_damaged_file_of_a_part_is_named_and_repaired(kind: str, folder: Path) -> None:
    whole = files_of(folder)
    path = part_path(folder, kind, 1)
    size = path.stat().st_size
    damages: list[tuple[Callable[[], object], str]] = [
        *((functools.partial(flip, path, offset), "") for offset in (0, size // 2, size - 40, size - 1)),
        (lambda: os.truncate(path, size // 2), ""),
        (path.unlink, ": the file is missing"),
    ]
    for damage, why in damages:
        damage()
        for attempt in (lambda: Trace.load(folder), lambda: run(folder)):
            with pytest.raises(DamagedFileError, match=path.name + why) as caught:
                attempt()
            assert caught.value.exit_code == 1
            assert caught.value.where == str(path)
            assert "--repair" in caught.value.fix
        run(folder, repair=True)
        assert files_of(folder) == whole


@pytest.mark.parametrize("name", ["manifest.json", "request.json"])
def test_a_flipped_byte_in_a_json_file_is_named_and_repaired(name: str, folder: Path) -> None:
    whole = files_of(folder)
    path = folder / name
    content = path.read_bytes()
    timestamps = re.search(rb'"timestamps": \{[^}]*\}', content)
    own_seal_left_out = range(*timestamps.span()) if timestamps else range(0)
    for offset in range(0, len(content), 149 if name == "manifest.json" else 23):
        if offset in own_seal_left_out:
            continue
        flip(path, offset, bit=offset % 7)
        with pytest.raises(OfframpError, match=rf"{name}|schema version"):
            run(folder)
        path.write_bytes(content)
    path.write_bytes(content.replace(b"\n", b" ", 1))  # still the same JSON
    with pytest.raises(DamagedFileError, match=name) as caught:
        run(folder)
    assert "--repair" in caught.value.fix
    run(folder, repair=True)
    assert files_of(folder) == whole


@pytest.mark.parametrize("left", [0, 30])
@pytest.mark.parametrize("name", ["manifest.json", "request.json"])
def test_a_json_file_that_was_cut_is_named_and_repaired(name: str, left: int, folder: Path) -> None:
    """Nothing of it tells any more whose it is, but the seals of the parts beside it do."""
    whole, path = files_of(folder), folder / name
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DamagedFileError, match=name) as caught:
        run(folder)
    assert "--repair" in caught.value.fix
    run(folder, repair=True)
    for aside in folder.glob(f"{name}.changed"):
        assert len(aside.read_bytes()) == left
        aside.unlink()
    assert files_of(folder) == whole


def more_rows(manifest: dict[str, Any]) -> None:
    """Of the first document, everywhere in the manifest."""
    document, part = manifest["documents"][0], manifest["parts"][0]
    for rows, key in (
        (document, "tokens"),
        (part, "rows"),
        (part["marginal_rows"], "0"),
        (manifest, "tokens"),
    ):
        rows[key] += 10**9


def other_lengths(manifest: dict[str, Any]) -> None:
    """Of two documents of one part, as many tokens together."""
    blocks = manifest["parts"][0]["marginal_rows"]
    for document, more in zip(manifest["documents"], (-1, 1), strict=False):
        document["tokens"] += more
        blocks[str(document["block"])] += more


IMPOSSIBLE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "negative rows": (lambda manifest: manifest["parts"][0].update(rows=-1), r"parts\[1\].rows"),
    "a row more": (
        lambda manifest: manifest["parts"][0].update(rows=manifest["parts"][0]["rows"] + 1),
        "blocks",
    ),
    "endless rows": (lambda manifest: manifest["parts"][0].update(rows=10**12), "has 1000000000000 rows"),
    "rows of no file": (
        more_rows,
        r"facts-00000.parquet: it has 120 rows, and by the manifest.json 3000000120",
    ),
    "lengths of no file": (other_lengths, "tokens-00000.parquet: its documents are not those"),
    "no parts": (lambda manifest: manifest.update(parts=[]), "do not belong together"),
    "a part twice": (lambda manifest: manifest["parts"].append(manifest["parts"][0]), "another number"),
    "a file outside": (
        lambda manifest: manifest["parts"][0]["files"]["facts"].update(name="../facts-00000.parquet"),
        "files of other names",
    ),
    "no documents": (lambda manifest: manifest.update(documents=[]), "do not belong together"),
    "negative tokens": (lambda manifest: manifest["documents"][0].update(tokens=-5), "tokens"),
    "a block too many": (lambda manifest: manifest["documents"][0].update(block=16), "block"),
    "an id twice": (
        lambda manifest: manifest["documents"][0].update(manifest["documents"][1], index=0),
        "same id",
    ),
    "documents left out": (
        lambda manifest: [document.update(valid=False) for document in manifest["documents"]],
        "is left out, and has",
    ),
    "no sketch": (
        lambda manifest: manifest["documents"][0].update(text="zz"),
        "the sketch of a text, not 'zz'",
    ),
    "half a sketch": (
        lambda manifest: manifest["documents"][0].update(text="AAAAAA=="),
        "the sketch of a text",
    ),
    "other tokens": (lambda manifest: manifest.update(tokens=10**15), "do not belong together"),
    "an exit too deep": (lambda manifest: manifest["exits"].__setitem__(-1, 99), "do not ascend"),
    "layers": (
        lambda manifest: manifest["shape"].update(layers=manifest["shape"]["layers"] * 2),
        "do not ascend",
    ),
    "vocabulary": (lambda manifest: manifest["shape"].update(vocabulary_size=-320), "vocabulary_size"),
    "another vocabulary": (
        lambda manifest: manifest["shape"].update(vocabulary_size=10**14),
        "marginal-00000",
    ),
    "a request of nothing": (lambda manifest: manifest.update(request={}), "tokens: Field required"),
    "no model": (lambda manifest: manifest["request"].update(model=None), "model: "),
    "a model without a name": (lambda manifest: manifest["request"].update(model={}), "model.name"),
    "a model trained on a number": (
        lambda manifest: manifest["request"]["model"].update(trained_on=5),
        "model.trained_on",
    ),
    "a workload of numbers": (lambda manifest: manifest["request"].update(workload=[1, 2]), "workload"),
    "no workload": (lambda manifest: manifest["request"].update(workload=None), "workload"),
    "heads of a number": (lambda manifest: manifest["request"].update(heads=5), "heads"),
    "a size in letters": (
        lambda manifest: manifest["request"].update(heads={"fingerprint": "a", "lens_rank": "5"}),
        "heads.lens_rank",
    ),
    "other exits": (lambda manifest: manifest["request"].update(exits=[1]), "not those of its request"),
    "a fact twice": (
        lambda manifest: manifest["facts"].append(manifest["facts"][0]),
        "unknown, or there twice",
    ),
    "too much work": (
        lambda manifest: manifest["shape"]["layers"][0].update(active_parameters=10**15),
        "layer 1 uses more parameters",
    ),
    "too many experts": (
        lambda manifest: manifest["shape"]["layers"][0].update(experts=1, experts_per_token=99),
        "99 of 1 experts",
    ),
    "a short context": (
        lambda manifest: manifest["shape"].update(context_length=1),
        "context of 30 tokens is beyond the 1",
    ),
    "another request": (
        lambda manifest: manifest["request"].update(threads=99),
        "its request is not the one of its fingerprint",
    ),
    "a kind of layer": (lambda manifest: manifest["shape"]["layers"][0].update(kind="magic"), "kind"),
    "an exit that is true": (lambda manifest: manifest["exits"].__setitem__(0, True), r"exits\[1\]"),
    "a truth in letters": (lambda manifest: manifest["documents"][0].update(valid="yes"), "valid"),
    "a fact of texts": (lambda manifest: manifest["facts"][0].update(dtype="str"), "dtype"),
}
"""What is done to a manifest that is sealed anew, and what is said of it."""


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_manifest_is_refused_and_repaired(case: str, folder: Path) -> None:
    whole, path = files_of(folder), folder / "manifest.json"
    manifest, (change, words) = read_stored(path), IMPOSSIBLE[case]
    change(manifest)
    write_stored(path, manifest)
    with pytest.raises(DamagedFileError, match=words):
        Trace.load(folder)
    run(folder, repair=True)
    assert files_of(folder) == whole


def read_all(folder: Path) -> None:
    """Every fact and the marginal."""
    trace = Trace.load(folder)
    assert [trace.fact(name) for name in trace.fact_names]
    assert trace.marginal.sums.size


IMPOSSIBLE_COLUMNS = {
    "token": ("tokens", 320),
    "next_token": ("tokens", -1),
    "position": ("tokens", 2**30),
    "document": ("tokens", 2**30),
    "top1": ("facts", 320),
    "max_prob": ("facts", 1.5),
    "entropy": ("facts", -5.0),
    "logit_cosine": ("facts", float("nan")),
    "final_logprob": ("facts", 3.0),
    "block_00": ("marginal", -1.0),
    "block_02": ("marginal", float("inf")),
}
"""By column: its kind of file, and a number that it cannot hold."""


def reseal(folder: Path, kind: str, column: str, change: Callable[[Any], Any]) -> None:
    """Change a column of the first part, as somebody would who knows of the seals."""
    path, manifest = part_path(folder, kind, 0), read_stored(folder / "manifest.json")
    table = pq.read_table(path)
    values = change(table.column(column).to_numpy().copy())
    table = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
    pq.write_table(table, path)
    manifest["parts"][0]["files"][kind].update(sha256=sha256_of_file(path), bytes=path.stat().st_size)
    write_stored(folder / "manifest.json", manifest)


@pytest.mark.parametrize("column", IMPOSSIBLE_COLUMNS)
def test_an_impossible_number_in_a_sealed_part_is_refused(column: str, folder: Path) -> None:
    kind, number = IMPOSSIBLE_COLUMNS[column]

    def change(values: Any) -> Any:
        values[1] = number
        return values

    reseal(folder, kind, column, change)
    with pytest.raises(DamagedFileError, match=f"its column {column} holds"):
        read_all(folder)


CHANGED_COLUMNS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "exit": ("facts", lambda values: values[::-1], "its exits are not those of the manifest"),
    "max_prob": ("facts", lambda values: values.astype(str), "is of object, not float32"),
    "margin": ("facts", np.ones_like, "margin is above max_prob"),
    "token": ("tokens", lambda values: values.astype(np.float64), "is of float64, not int32"),
    "next_token": ("tokens", lambda values: np.roll(values, 1), "do not follow each other"),
    "position": ("tokens", np.zeros_like, "do not follow each other"),
    "document": ("tokens", lambda values: values[::-1], "do not follow each other"),
    "generated": ("tokens", lambda values: values.astype(np.int8), "is of int8, not bool"),
    "block_00": ("marginal", lambda values: values.astype(np.float32), "is of float32, not float64"),
    "block_02": ("marginal", np.zeros_like, r"block_02 adds up to 0, not to the \d+ rows of the block"),
}
"""By column: its kind of file, what is done to it, and what is said of it."""


@pytest.mark.parametrize("column", CHANGED_COLUMNS)
def test_a_column_of_a_sealed_part_that_no_trace_has_is_refused(column: str, folder: Path) -> None:
    kind, change, words = CHANGED_COLUMNS[column]
    reseal(folder, kind, column, change)
    with pytest.raises(DamagedFileError, match=words):
        read_all(folder)


def test_damage_met_while_resuming_is_traced_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = files_of(folder)
    # Pages, and the footer: what it says of documents and of the marginal's rows has no checksum of its own.
    for place in (part_path(folder, "facts", 3), part_path(folder, "tokens", 0), seal_path(folder, 2)):
        size = place.stat().st_size
        for offset in (size // 2, size - 3500 % size, size - 40, size - 1):
            (folder / "manifest.json").unlink()
            flip(place, offset % size)
            run(folder)
            assert f"traced again: a file of the trace is damaged: {place.name}" in capsys.readouterr().err
            assert files_of(folder) == whole


RESEALED: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "no metadata": ("tokens", lambda table: table.replace_schema_metadata(None)),
    "no JSON": ("tokens", lambda table: table.replace_schema_metadata({DETAILS_KEY: b"{"})),
    "documents of a letter": (
        "tokens",
        lambda table: table.replace_schema_metadata({DETAILS_KEY: b'{"marginal_rows":{},"documents":"x"}'}),
    ),
    "half its tokens": ("tokens", lambda table: table.slice(0, table.num_rows // 2)),
    "half its facts": ("facts", lambda table: table.slice(0, table.num_rows // 2)),
    "no tokens": ("tokens", lambda table: table.drop_columns(["token"])),
    "no probabilities": ("facts", lambda table: table.drop_columns(["max_prob"])),
    "no block": ("marginal", lambda table: table.drop_columns(table.column_names[:1])),
}
"""What is done to a file of a part whose seal is written anew."""


@pytest.mark.parametrize("case", RESEALED)
def test_a_resealed_part_that_is_not_whole_is_traced_again(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, (kind, change) = files_of(folder), RESEALED[case]
    path, seal = part_path(folder, kind, 0), seal_path(folder, 0)
    pq.write_table(change(pq.read_table(path)), path)
    written = _SEAL.read(seal)
    _SEAL.write(seal, dataclasses.replace(written, files={**written.files, kind: sha256_of_file(path)}))
    (folder / "manifest.json").unlink()
    run(folder)
    assert f"traced again: a file of the trace is damaged: {path.name}" in capsys.readouterr().err
    assert files_of(folder) == whole


@pytest.mark.parametrize("with_its_seal", [False, True])
def test_a_part_of_another_trace_is_not_taken_over(with_its_seal: bool, folder: Path, tmp_path: Path) -> None:
    whole = files_of(folder)
    other = tmp_path / "other"
    run(other, exits=[1])
    (folder / "manifest.json").unlink()
    if with_its_seal:
        for kind in FILE_KINDS:
            shutil.copy(part_path(other, kind, 1), part_path(folder, kind, 1))
        shutil.copy(seal_path(other, 1), seal_path(folder, 1))
    else:
        shutil.copy(part_path(other, "tokens", 1), part_path(folder, "tokens", 1))
    run(folder)
    assert files_of(folder) == whole
