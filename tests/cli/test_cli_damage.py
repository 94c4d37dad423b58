"""One damaged byte anywhere in a finished run or study: no figure changes without an error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_study import write_study

from command_line import Here, run_offramp
from offramp.errors import OfframpError
from offramp.files import JsonError, parse_json, pretty_json, sealed
from offramp.heads.file import read_heads
from offramp.kit.sealed_file import DECLARED, SealedFile
from offramp.studies.comparison.reading import read_comparison
from offramp.studies.comparison.results import Comparison
from offramp.studies.engines import registry
from offramp.tracing.trace import Trace
from offramp.tuning.tuned import read_tuned

NOT_READ = (".lock", ".log", ".html", ".bib", ".csv", ".parquet")
"""Endings of what only people read, or nobody; a trace's Parquet files are flipped by its own tests too."""
OF_STUDY = ("tasks", "executions", "locks", "plan.json", "journal.jsonl", "fingerprints.json")
FLIPS = 2
"""Of each file, whose kind is flipped at many more places by its own tests."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Path:
    """A folder of trained exits."""
    folder = tmp_path_factory.mktemp("trained") / "exits"
    options = ["-w", f"jsonl:{documents}#text", "--at", "1", "--steps", 4, "--tokens", 3000]
    run_offramp("exits", "train", tiny_model, *options, "-o", folder).require(0)
    return folder


def flipped(path: Path) -> Iterator[int]:
    """The file with one bit changed, at random places one after another; whole again at the end."""
    whole, rng = path.read_bytes(), np.random.default_rng(sum(path.name.encode()))
    try:
        for place in rng.integers(0, len(whole), FLIPS):
            changed = bytearray(whole)
            changed[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(changed)
            yield int(place)
    finally:
        path.write_bytes(whole)


def figures(comparison: Comparison) -> str:
    """Everything that a comparison says."""
    return repr(replace(comparison, provenance={}))


def files_below(folder: Path) -> list[Path]:
    """What could be damaged: every file with bytes."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size and not path.name.endswith(NOT_READ)
    ]


def read_all(run: Path) -> str:
    """Everything that commands read back from a run's folder, as text.

    What is damaged and can be made again is left out by those who read it, and so is missing here.
    """
    traces = [Trace.load(path) for path in sorted((run / "traces").glob("*/*"))]
    columns = [(one.fact("top1").tobytes(), one.documents) for one in traces]
    heads = sorted(run.glob("heads-*.safetensors"))
    return repr(
        [
            figures(read_comparison([run])),
            columns,
            [read_tuned(path) for path in sorted((run / "policies").glob("*tuned*.json"))],
            [read_heads(path).fingerprint for path in heads],
        ]
    )


def test_of_a_run(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    expected = read_all(run)
    believed = []
    for path in files_below(run):
        if path.parent.name == "policies" and "tuned" not in path.name:
            continue  # a policy's text: people write and edit these themselves
        if path.relative_to(run).parts[0] in OF_STUDY:
            continue  # what every study has: see below
        for place in flipped(path):
            try:
                same = read_all(run) == expected
            except OfframpError:
                continue
            if not same:
                believed.append((str(path.relative_to(run)), place))
    assert believed == []
    assert read_all(run) == expected


def test_of_a_study(
    tmp_path: Path, tiny_model: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.ENGINES, "local", Here())
    file = write_study(tmp_path, tiny_model, documents)
    run_offramp("study", "run", file, "-o", tmp_path / "out").require(0)
    study = tmp_path / "out"
    whole = read_comparison([study])
    expected, believed = figures(whole), []
    for path in files_below(study):
        for place in flipped(path):
            try:
                found = read_comparison([study])
            except OfframpError:
                continue
            # A damaged task is left out, and said to be; what is left says what it said.
            said = any("damaged" in why or "changed" in why for why in found.failures.values())
            rest = {*map(repr, found.strategies)} <= {*map(repr, whole.strategies)}
            if figures(found) != expected and not (said and rest):
                believed.append((str(path.relative_to(study)), place))
    assert believed == []
    assert figures(read_comparison([study])) == expected


def mutations(text: str) -> Iterator[str]:
    """A JSON text of a file whose lines were cut, or whose values have other types or are nested."""
    rng = np.random.default_rng(len(text))
    lines = text.split("\n")
    for place in rng.integers(0, len(lines), FLIPS):
        yield "\n".join(lines[:place])
        yield "\n".join(lines[:place] + lines[place + 1 :])
    for values in (
        ("1", '"1"'),
        ('"', ""),
        ("1", "[1]"),
        ("{", '{"a": {'),
        ("0", "NaN"),
        ("0", "1e999"),
        ("[", "{"),
    ):
        at = [place for place in range(len(text)) if text.startswith(values[0], place)]
        for place in rng.choice(at, min(len(at), 3), replace=False) if at else ():
            yield text[:place] + values[1] + text[place + len(values[0]) :]


def resealed(kind: SealedFile[object], text: str) -> str | None:
    """The text with the seal that belongs to it, None if it is no JSON object."""
    try:
        value = parse_json(text)
    except JsonError:
        return None
    return pretty_json(sealed(value, apart=kind.apart))


def read_or_refused(kind: SealedFile[object], path: Path) -> object:
    """What a file holds; None where that is refused, in the words of an error of ours."""
    try:
        return kind.read(path)
    except OfframpError:
        return None


def test_every_sealed_file_that_is_written_is_read_as_it_was_or_refused(
    finished_run: Path, trained: Path, tmp_path: Path
) -> None:
    """Found by the declared kinds of files: whatever one of them reads is one."""
    files = [path for folder in (finished_run, trained) for path in sorted(folder.rglob("*.json"))]
    by_name = {(file.name, file.parent.parent.name): file for file in files}  # of each kind of task one
    tried = set()
    for file in by_name.values():
        for kind in DECLARED:
            whole = read_or_refused(kind, file)
            if whole is None or kind.record is dict:
                continue
            tried.add((kind.what, file.name))
            path, text = tmp_path / file.name, file.read_text()
            for changed in mutations(text):
                path.write_text(changed)
                assert read_or_refused(kind, path) in (None, whole) or kind.apart, (file, changed)
                if (other := resealed(kind, changed)) is not None:
                    path.write_text(other)
                    read_or_refused(kind, path)  # another record, or refused
    names = {name for _, name in tried}
    assert {
        "run.json",
        "plan.json",
        "manifest.json",
        "request.json",
        "training.json",
        ".offramp.json",
    } <= names
    assert any(name.startswith("part-") for name in names)
