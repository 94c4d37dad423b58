"""The sandbox: what ends well, and what must not."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from offramp.decoding.quality import sandbox, sandboxed
from offramp.decoding.quality.sandbox import SandboxLimits, isolation, run_program
from offramp.errors import InputError, OfframpError

BRIEF = SandboxLimits(seconds=2)
FOUR_FORKS = "import os\nfor _ in range(4): os.fork()"


@pytest.fixture(params=["as the system allows", "limits only"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the namespaces that this machine allows, and without any."""
    if request.param == "limits only":
        monkeypatch.setattr(sandbox, "_namespaces", lambda: ())


@pytest.mark.usefixtures("either_way")
def test_a_program_that_reaches_its_end_finishes() -> None:
    result = run_program("import math, re, typing, hashlib, collections\nprint(math.gcd(12, 18))")
    assert (result.finished, result.reason, result.output) == (True, "", "6")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "it left before its end"),
        ("raise SystemExit", "SystemExit"),
        ("assert 1 == 2", "AssertionError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("import os\nos.abort()", "it was ended by signal"),
        ("print('0' * 32)\nimport os\nos._exit(0)", "it left before its end"),
    ],
)
def test_leaving_early_is_not_finishing(program: str, reason: str) -> None:
    result = run_program(program)
    assert not result.finished
    assert reason in result.reason


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\ntime.sleep(60)"], ids=["busy", "asleep"]
)
def test_an_endless_program_is_stopped_and_no_process_left_behind(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    start = time.monotonic()
    result = run_program(program, SandboxLimits(seconds=1))
    assert not result.finished
    assert result.reason == "it did not end within 1 s"
    assert time.monotonic() - start < 10
    (process,) = started
    for _ in range(50):  # a killed child of a killed parent is reaped by another process, soon
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the process group is still there")


@pytest.mark.parametrize("program", ["bytearray(10**10)", "x = []\nwhile True: x.append(bytearray(10**6))"])
def test_memory_is_limited(program: str) -> None:
    result = run_program(program, SandboxLimits(memory_bytes=128 * 1024**2))
    assert not result.finished
    assert "MemoryError" in result.reason


def test_the_output_is_limited() -> None:
    result = run_program("while True: print('x' * 1000)", SandboxLimits(seconds=5, file_bytes=50_000))
    assert not result.finished
    assert result.reason == "it printed more than 50,000 bytes"
    assert len(result.output) <= sandbox.SHOWN_BYTES
    files = run_program("open('big', 'w').write('x' * 60_000)", SandboxLimits(file_bytes=50_000))
    assert not files.finished


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import os\nos.system('true')",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.kill(os.getppid(), 9)",
        "import subprocess\nsubprocess.run(['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import socket\nsocket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
        "import ctypes\nctypes.CDLL(None).system(b'true')",
        "import sys\nsys.modules['ctypes'].CDLL(None)",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ],
)
def test_processes_network_and_foreign_code_are_refused(program: str) -> None:
    result = run_program(program, BRIEF)
    assert not result.finished
    assert "is not allowed here" in result.reason


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.remove({path!r})",
        "import os\nos.rename({path!r}, 'mine')",
        "import os\nos.rename('/dev/null', {path!r})",
        "open('mine', 'w')\nimport os\nos.rename('mine', {path!r})",
        "import os\nos.chmod({path!r}, 0)",
        "import os\nos.truncate({path!r}, 0)",
        "import os\nos.symlink({path!r}, 'link')\nopen('link', 'w')",
        "import shutil\nshutil.rmtree({folder!r})",
        "open({path!r}, 'w')",
        "open({path!r}, 'a')",
        "import os\nos.open({path!r}, os.O_RDWR)",
        "import os\nos.open('../../../../../../../..' + {path!r}, os.O_WRONLY | os.O_TRUNC)",
        "import pathlib\npathlib.Path({folder!r}, 'new').mkdir()",
    ],
)
def test_files_outside_are_not_changed(tmp_path: Path, program: str) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    path.chmod(0o640)
    result = run_program(program.format(path=str(path), folder=str(tmp_path)), BRIEF)
    assert not result.finished
    # By the guard, which every system has; what goes by a folder's descriptor is the system's to stop.
    assert "is not allowed here" in result.reason or "rmtree" in program
    assert path.read_text() == "kept"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [item.name for item in tmp_path.iterdir()] == ["precious"]


def test_files_of_its_own_are_allowed_and_gone_afterwards() -> None:
    program = (
        "import os\nopen('own', 'w').write('x')\nos.mkdir('sub')\nos.rename('own', 'sub/own')\n"
        "print(open('sub/own').read(), os.listdir('.'), os.getcwd())"
    )
    result = run_program(program)
    assert result.finished, result.reason
    said, folder = result.output.rsplit(" ", 1)
    assert said == "x ['sub']"
    assert not Path(folder).exists()


def test_nothing_of_ours_is_inherited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "1")
    with (tmp_path / "open").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        program = (
            "import os, sys\nassert 'SECRET_OF_OURS' not in os.environ, os.environ\n"
            "assert 'torch' not in sys.modules\nassert sys.stdin.read() == ''\n"
            "for number in range(3, 300):\n"
            "    try:\n        os.fstat(number)\n    except OSError:\n        continue\n"
            "    raise AssertionError(number)\n"
        )
        result = run_program(program)
    assert result.finished, result.reason


def test_what_the_system_adds_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_namespaces", lambda: ())
    assert isolation().startswith("no namespaces")
    monkeypatch.setattr(sandbox, "_namespaces", lambda: ("unshare",))
    assert isolation() == "namespaces"


def test_a_sandbox_that_runs_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.require_sandbox()
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(OfframpError, match="cannot run a program"):
        sandbox.require_sandbox()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.os, "name", "nt")
    with pytest.raises(InputError, match="POSIX"):
        run_program("print()")


def test_a_folder_elsewhere_gives_no_descriptor(tmp_path: Path) -> None:
    """Without Landlock the guard alone must see what a call relative to a folder's descriptor would do."""
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir()
    elsewhere.mkdir()
    (own / "link").symlink_to(elsewhere)
    guard = sandboxed._guard(str(own))
    for path in (elsewhere, own / "link"):
        with pytest.raises(PermissionError, match="elsewhere"):
            guard("open", (str(path), None, os.O_RDONLY))
    guard("open", (str(own), None, os.O_RDONLY))
    (elsewhere / "file").write_text("read me")
    guard("open", (str(elsewhere / "file"), "r", os.O_RDONLY))
