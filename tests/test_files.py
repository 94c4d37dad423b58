"""Files are written whole, and never in place of a folder."""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from offramp.errors import DiskFullError, InputError, OfframpError
from offramp.files import (
    DEEPEST_JSON,
    PACKAGE,
    JsonError,
    PathBelow,
    canonical_json,
    locked_folder,
    open_regular,
    parse_json,
    read_given,
    read_given_text,
    read_json,
    require_writable,
    sha256_of_file,
    sync_folder,
    write_atomically,
    write_text_atomically,
)
from offramp.heads.file import read_heads
from offramp.kit.output_file import require_json_file
from offramp.kit.picture import read_picture
from offramp.kit.request import Request, Writes
from offramp.kit.sealed_tensors import read_arrays
from offramp.kit.sound import read_wav
from offramp.kit.typed import InvalidRecordError, from_json
from offramp.models.gguf_header import check_magic
from offramp.workloads.text_files import read_text


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    place = tmp_path / "plan.json"
    (place / "of the user").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a folder stands where the file plan\.json is written") as refused:
        write_text_atomically(place, "{}")
    assert refused.value.where == str(place)
    assert [path.name for path in tmp_path.rglob("*")] == ["plan.json", "of the user"]


def test_a_disk_that_fails_while_a_file_is_flushed_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error") as failed:
        write_text_atomically(tmp_path / "plan.json", "{}")
    assert failed.value.filename == str(tmp_path / "plan.json")
    with pytest.raises(OSError, match="Input/output error") as failed:
        sync_folder(tmp_path)
    assert failed.value.filename == str(tmp_path)


def test_what_a_library_makes_for_one_user_is_as_readable_as_other_files(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("secret")
        path.chmod(0o600)

    write_atomically(tmp_path / "file", write)
    (tmp_path / "other").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "the disk is full: 4 bytes"),
        (errno.EFBIG, "a limit on the size of files is reached: 4 bytes"),
    ],
)
@pytest.mark.parametrize("by", ["Python", "safetensors", "pyarrow"])
def test_what_finds_no_room_is_said_and_leaves_nothing(
    tmp_path: Path, number: int, what: str, by: str
) -> None:
    """safetensors raises no OSError: it is written as its release 0.8 says it on a full tmpfs. pyarrow
    removes what it could not write whole.
    """
    said = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        if by == "pyarrow":
            path.unlink()
        raise SafetensorError(said) if by == "safetensors" else OSError(number, os.strerror(number))

    with pytest.raises(DiskFullError, match=what):
        write_atomically(tmp_path / "checkpoint", write)
    assert not list(tmp_path.iterdir())


NO_JSON: dict[str, str | bytes] = {
    "nested more than 64 deep": '{"a": ' * 100_000 + "1" + "}" * 100_000,
    "more than 64": '{"a": ' * (DEEPEST_JSON + 1) + "1" + "}" * (DEEPEST_JSON + 1),
    "holds NaN": '{"a": NaN}',
    "holds -Infinity": '{"a": [-Infinity]}',
    "too large: 1e999": '{"a": 1e999}',
    "too large: 9223372036854775808": '{"a": 9223372036854775808}',
    "too large: 99": '{"a": ' + "9" * 5000 + "}",
    "lone surrogate": '{"a": "\\uDC80"}',
    "half a character": '{"\\ud83d": 1}',
    "key 'a' twice": '{"b": {"a": 1, "a": 1}}',
    "not UTF-8 at byte 7": b'{"a": "\xff"}',
    "begins with a byte order mark: save it as UTF-8 without one": b'\xef\xbb\xbf{"a": 1}',
    "holds a list, not an object": "[]",
    "holds null, not an object": "null",
    "holds true or false, not an object": "true",
    "not JSON": '{"a": ',
    "is not JSON": "",
}


@pytest.mark.parametrize(("why", "text"), NO_JSON.items(), ids=NO_JSON)
def test_json_that_nothing_here_writes_is_refused_with_its_reason(why: str, text: str | bytes) -> None:
    with pytest.raises(JsonError, match=re.escape(why)):
        parse_json(text)


def test_files_of_models_may_hold_what_other_programs_write() -> None:
    text = (
        '{"time_step_limit": [0.0, Infinity], "model_max_length": 1000000000000000019884624838656, "a": 1, '
    )
    assert parse_json(text + '"a": 2}', lenient=True)["a"] == 2
    with pytest.raises(JsonError, match="deep"):
        parse_json(NO_JSON["more than 64"], lenient=True)


PLAIN = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(
    PLAIN.filter(lambda value: value not in (float("inf"), float("-inf"))) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_what_is_written_here_is_read_back(value: dict[str, object], escaped: bool) -> None:
    assert parse_json(json.dumps(value) if escaped else canonical_json(value).encode()) == value


@given(st.binary() | st.text() | st.text('[]{}",:0123456789.eE+-\\\\udDnaN \\n'))
def test_any_bytes_are_an_object_or_refused(content: bytes | str) -> None:
    with contextlib.suppress(JsonError):
        assert isinstance(parse_json(content), dict)


def test_a_path_with_a_nul_is_refused() -> None:
    """Python's own error for one is no error of the operating system."""
    path = Path("out\0put")
    for writing in (require_writable, lambda folder: locked_folder(folder).__enter__()):
        with pytest.raises(InputError, match="cannot hold the character NUL") as refused:
            writing(path)
        assert refused.value.where == r"out\x00put"
    with pytest.raises(InputError, match="the study cannot be read: a path cannot hold the character NUL"):
        read_given_text(path, "study")
    for reading in (read_json, sha256_of_file):
        with pytest.raises(OSError, match="cannot hold the character NUL"):
            reading(path)


def test_a_folder_in_the_place_of_the_lock_is_to_be_moved(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match="not a file") as refused:
        locked_folder(tmp_path).__enter__()
    assert refused.value.fix == "move it away, or choose another folder with -o"


@dataclass(frozen=True, kw_only=True)
class Writing(Request):
    """A request that writes."""

    output: Annotated[Path | str, Writes(lambda asked, path: None)]


@pytest.mark.parametrize(
    ("path", "what", "where"),
    [
        ("", "has no name", ""),
        (Path("a", "\udcff.json"), "is not UTF-8", r"a/\udcff.json"),
        ("no/" + "x" * 250 + ".json", "is too long", "no/xxx"),
    ],
)
def test_what_cannot_be_the_path_of_an_output_is_refused(path: str | Path, what: str, where: str) -> None:
    with pytest.raises(InputError, match=what) as refused:
        Writing(output=path)
    assert refused.value.where.startswith(where)
    for writing in (
        lambda: locked_folder(Path(path)).__enter__(),
        lambda: require_json_file(Path(path), "a load", lambda value: True),
        lambda: write_text_atomically(Path(path), "text"),
    ):
        if path:
            with pytest.raises(InputError, match=what):
                writing()


OWN_JSON = {
    "files.py",  # the reader
    "models/templates.py",  # between two processes of its own
    "testing/policies.py",  # a policy's own JSON, written a moment before
    "workloads/prompts.py",  # data of the package
}


def test_json_of_others_is_read_in_one_place() -> None:
    reading = re.compile(r"\bjson\.loads?\(|JSONDecoder\(|\.raw_decode\(")
    found = {path for path in PACKAGE.rglob("*.py") if reading.search(path.read_text(encoding="utf-8"))}
    assert {path.relative_to(PACKAGE).as_posix() for path in found} == OWN_JSON


@dataclass(frozen=True)
class _Named:
    files: Mapping[PathBelow, str]


@given(st.text(st.sampled_from("./a\0\\ ~"), max_size=12))
def test_a_path_of_a_record_stays_below_its_folder(name: str) -> None:
    """Whatever is taken is found by walking down, a real folder each time."""
    try:
        taken = from_json(_Named, {"files": {name: ""}}).files
    except InvalidRecordError:
        return
    path = Path("/folder") / next(iter(taken))
    assert os.path.normpath(path) == str(path) == f"/folder/{name}"
    assert Path("/folder") in path.parents


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a//b", "./a", "", ".", "a/", "a\0b"])
def test_a_path_that_could_lead_out_is_no_path_of_a_record(name: str) -> None:
    with pytest.raises(InvalidRecordError, match="leads outside of the folder"):
        from_json(_Named, {"files": {name: ""}})


READERS: dict[str, Callable[[Path], object]] = {
    "arrays": read_arrays,
    "GGUF": check_magic,
    "heads": read_heads,
    "JSON": read_json,
    "picture": read_picture,
    "SHA-256": sha256_of_file,
    "sound": read_wav,
    "study": lambda path: read_given_text(path, "study"),
    "text": read_text,
}


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "device"])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_what_is_no_file_is_refused_without_waiting(
    reader: Callable[[Path], object], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have about a hundred characters
    path = Path("/dev/zero" if kind == "device" else "named")
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as opened:
        if kind == "socket":
            opened.bind(str(path))
        with pytest.raises((OSError, OfframpError)) as refused:
            reader(path)
    if isinstance(refused.value, OfframpError):
        assert refused.value.where
        assert refused.value.fix


def test_what_takes_a_files_place_before_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.files.require_regular", lambda path: None)  # it was one then
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a file"):
            open_regular(path)


def test_a_given_file_of_any_size_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    assert read_given(tmp_path / "a", "sound", largest=10) == bytes(10)
    with pytest.raises(InputError, match="the sound cannot be read: it is larger than") as refused:
        read_given(tmp_path / "a", "sound", largest=9)
    assert refused.value.fix == "give a smaller file, or a part of it"


OPENING = {"open", "fdopen", "read_bytes", "read_text", "memmap", "safe_open", "ParquetFile", "GGUFReader"}
NO_OPENING = {"Trace.open", "cls.open", "source.open", "ExecutionStore.open", "read_text"}
"""Calls of such a name that open no file: offramp's own."""
OWN, SYSTEM, CODE = "a file of offramp's own", "the operating system's", "part of an installed package"
OPENED_BEFORE = "a library takes paths alone; `open_regular` opened it before"
OPENERS = {
    "cli/main.py: os.fdopen": SYSTEM,
    "cli/main.py: os.open": SYSTEM,
    "costs/aiconfigurator.py: parquet.ParquetFile": CODE,
    "costs/aiconfigurator.py: path.read_text": CODE,
    "costs/machine_registry.py: info.read_text": SYSTEM,
    "decoding/harness/tasks/questions.py: "
    "(importlib.resources.files('tzdata') / 'zoneinfo' / name).read_text": CODE,
    "decoding/harness/tasks/questions.py: path.read_text": SYSTEM,
    "decoding/harness/tasks/questions.py: story.read_text": CODE,
    "files.py: (folder / '.lock').open": OWN,
    "files.py: os.fdopen": "`open_regular`",
    "files.py: os.open": "`open_regular`, and files of offramp's own that are written",
    "files.py: temporary.open": OWN,
    "heads/importing/key_map.py: safe_open": OPENED_BEFORE,
    "kit/code.py: path.read_bytes": CODE,
    "kit/picture.py: Image.open": "bytes in memory",
    "kit/request.py: Path(file).read_text": CODE,
    "kit/sealed_tensors.py: np.memmap": OPENED_BEFORE,
    "kit/sealed_tensors.py: path.open": "it is written",
    "kit/sealed_tensors.py: safe_open": OPENED_BEFORE,
    "kit/sound.py: wave.open": "bytes in memory",
    "models/gguf_file.py: path.open": OWN,
    "models/identity.py: card.read_text": "a model's folder has regular files alone by then",
    "models/loading.py: path.read_text": "a model's folder has regular files alone by then",
    "models/process.py: (group / 'memory.stat').read_text": SYSTEM,
    "models/process.py: (group / used).read_text": SYSTEM,
    "models/process.py: file.read_text": SYSTEM,
    "models/process.py: own.read_text": SYSTEM,
    "models/streaming.py: safe_open": OPENED_BEFORE,
    "report/html.py: resources.files('offramp.report').joinpath('assets', name).read_text": CODE,
    "studies/engines/local.py: log.open": OWN,
    "studies/engines/local.py: self.log.open": OWN,
    "studies/journal.py: os.fdopen": OWN,
    "studies/journal.py: os.open": OWN,
    "studies/locks.py: SYSTEM_LOCKS.read_text": SYSTEM,
    "studies/locks.py: path.open": OWN,
    "studies/runner.py: os.fdopen": OWN,
    "studies/task.py: path.open": OWN,
    "testing/contracts.py: path.read_bytes": OWN,
    "timing/defects.py: path.read_text": SYSTEM,
    "timing/session.py: STATUS.read_text": SYSTEM,
    "tracing/sealed_parts.py: pq.ParquetFile": OWN,
    "tracing/states.py: np.memmap": OWN,
    "tracing/states.py: path.open": OWN,
    "tracing/states.py: self._data(layer).open": OWN,
    "training/folder.py: path.open": OWN,
    "workloads/prompts.py: (files('offramp.workloads') / 'data' / 'chat.jsonl').read_text": CODE,
    "workloads/standard_library.py: listed.read_text": CODE,
}
"""Calls that open a file otherwise than by `open_regular`, each with the reason why it may."""


def test_files_that_people_name_are_opened_in_one_place() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)) if any(f"{name}(" in source for name in OPENING) else ():
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called.rpartition(".")[2] in OPENING and called not in NO_OPENING:
                    found.add(f"{path.relative_to(PACKAGE).as_posix()}: {called}")
    assert found == set(OPENERS), "open what people name with `offramp.files.open_given` or `read_given`"
