"""Ctrl-C, kills, two processes at once and a full disk: nothing half-written, and the rerun completes."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from command_line import Outcome, finish, run_offramp, start_offramp, tree
from tiny_models import write_documents

pytestmark = pytest.mark.usefixtures("remembered_answers")

TOKENS = 6_000


@pytest.fixture(scope="module")
def many_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text for half a dozen parts."""
    return write_documents(tmp_path_factory.mktemp("texts") / "many.jsonl", documents=120, words=60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, many_documents: Path) -> Path:
    """The same run, never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_offramp(*arguments(tiny_model, many_documents, folder)).require(0)
    return folder


def arguments(model: Path, documents: Path, folder: Path) -> list[object]:
    """A machine that is not this one, which a process of its own would time for twelve seconds."""
    work = [
        "-w",
        f"jsonl:{documents}#text",
        "--tokens",
        TOKENS,
        "--exits",
        "2",
        "--no-decode",
        "--hardware",
        "h100",
    ]
    return ["run", model, *work, "-o", folder]


HELD = """
import os, signal
place = os.replace

def replace(source, target):
    place(source, target)
    while str(target).endswith("part-00001.json"):
        signal.pause()

os.replace = replace
"""


def start_held(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """A run that has written the second part of its trace into a folder, and waits there for a signal."""
    process = start_offramp(*arguments, before=HELD)
    # Only where traces are made: in the other folders files go while they are listed.
    while not list(folder.glob("tasks/trace/*/trace/part-00001.json")):
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    return process


def test_ctrl_c_says_how_to_go_on_and_the_rerun_equals_an_undisturbed_run(
    tiny_model: Path, many_documents: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start_held(folder, *arguments(tiny_model, many_documents, folder), "--json")
    process.send_signal(signal.SIGINT)
    stopped = finish(process).require(130)
    error = stopped.json["error"]
    assert error["exit_code"] == 130
    command = [str(word) for word in arguments(tiny_model, many_documents, folder)]
    assert f"offramp {' '.join(command[:2])} -w 'jsonl:{many_documents}#text'" in error["fix"]
    assert "offramp: interrupted; what is finished is kept" in stopped.err
    assert "Still running: tracing" in (folder / "report.html").read_text()
    assert not (folder / "summary.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("tokens-0000[01].parquet")}
    assert len(kept) == 2
    refused = run_offramp("score", folder).require(2)
    assert "no trace of the run is finished yet" in refused.err
    run_offramp(*arguments(tiny_model, many_documents, folder)).require(0)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert tree(folder / "traces") == tree(undisturbed / "traces")
    assert tree(folder / "policies") == tree(undisturbed / "policies")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_say_how_to_go_on_too(
    tiny_model: Path,
    many_documents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
) -> None:
    folder, place = tmp_path / "run", os.replace

    def replace(source: Path, target: Path) -> None:
        place(source, target)
        if target.name == "part-00001.json":
            signal.raise_signal(how)

    monkeypatch.setattr("offramp.files.os.replace", replace)
    before = signal.signal(how, signal.SIG_DFL)  # nohup has them ignored
    try:
        stopped = run_offramp(*arguments(tiny_model, many_documents, folder), "--json").require(128 + how)
    finally:
        signal.signal(how, before)
    assert f"stopped by {how.name}; what is finished is kept" in stopped.json["error"]["what"]
    assert "run the same command again to go on: offramp run" in stopped.json["error"]["fix"]
    assert not list(folder.rglob(".writing-*"))
    assert not list(folder.glob("tasks/trace/*/trace/manifest.json")), "it was over before it was stopped"


LOST = """
import gc, signal, sys
collect = gc.collect

def stopped(*given):
    if sys._getframe(1).f_code.co_name == "__del__":  # of transformers' continuous batching
        gc.collect = collect
        signal.raise_signal(signal.SIGTERM)
    return collect(*given)

gc.collect = stopped
"""


def test_a_signal_that_comes_in_a_destructor_ends_what_is_served(
    tiny_model: Path, many_documents: Path, tmp_path: Path
) -> None:
    """What is raised there goes nowhere. Nothing of a load is kept."""
    trace = tmp_path / "trace"
    text = f"jsonl:{many_documents}#text"
    run_offramp("trace", tiny_model, "-w", text, "--tokens", 600, "-o", trace).require(0)
    lengths = ("--lengths", "prompt=6,output=20,sigma=0.3", "--requests", 1_000)
    served = ("load", trace, "-p", "static:exit=2", "--execute", *lengths)
    stopped = finish(start_offramp(*served, "--json", before=LOST)).require(143)
    assert stopped.json["error"]["what"] == "stopped by SIGTERM"
    assert stopped.json["error"]["fix"].startswith("run the same command again: offramp load")


class Last:
    """Its end is a signal."""

    def __init__(self, how: signal.Signals) -> None:
        self.how = how

    def __del__(self) -> None:
        signal.raise_signal(self.how)
        gc.isenabled()  # where Python looks for signals that came


def scored_with_usual_handler(how: signal.Signals, folder: Path) -> Outcome:
    """A folder scored where a signal, which comes meanwhile, is handled as in a process of its own."""
    usual = signal.default_int_handler if how == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(how, usual)
    try:
        return run_offramp("score", folder, "--json").require(128 + how)
    finally:
        signal.signal(how, before)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_was_lost_is_sent_again(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(_: Path) -> list[Path]:
        last = Last(how)
        del last
        time.sleep(60)
        return []

    monkeypatch.setattr("offramp.runs.folder.find_traces", reads)
    stopped = scored_with_usual_handler(how, tmp_path)
    assert "kept" not in stopped.json["error"]["what"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_an_error_is_prepared_ends_it(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(_: list[str]) -> dict[str, object]:
        signal.raise_signal(how)
        return {}

    monkeypatch.setattr("offramp.cli.main._given", given)
    stopped = scored_with_usual_handler(how, tmp_path)
    assert stopped.json["error"]["fix"].startswith("run the same command again: offramp score")


def test_of_two_runs_the_second_is_refused_and_after_a_kill_the_rerun_equals_an_undisturbed_run(
    tiny_model: Path, many_documents: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    first = start_held(folder, *arguments(tiny_model, many_documents, folder))
    there = tree(folder)
    second = run_offramp(*arguments(tiny_model, many_documents, folder)).require(2)
    assert "another offramp process is writing into this folder" in second.err
    assert "wait for it to end, or choose another folder" in second.err
    assert tree(folder) == there
    first.send_signal(signal.SIGKILL)
    assert finish(first).code == -signal.SIGKILL
    run_offramp(*arguments(tiny_model, many_documents, folder)).require(0)
    assert tree(folder / "traces") == tree(undisturbed / "traces")
    assert not list(folder.rglob(".writing-*"))


def test_a_full_disk_is_said_with_sizes_and_the_rerun_goes_on(
    tiny_model: Path, many_documents: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    place = os.replace
    replaced: list[str] = []

    def replace(source: Path, target: Path) -> None:
        if target.suffix == ".parquet" and len(replaced) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        replaced.extend([target.name] * (target.suffix == ".parquet"))
        place(source, target)

    with monkeypatch.context() as full:
        full.setattr("offramp.files.os.replace", replace)
        failed = (
            run_offramp(*arguments(tiny_model, many_documents, folder), "--json").require(1).json["error"]
        )
    assert "the disk is full" in failed["what"]
    assert "bytes are free" in failed["what"]
    assert "run the same command again" in failed["fix"]
    assert not list(folder.rglob(".writing-*"))
    assert len(list(folder.rglob("*.parquet"))) == 4
    run_offramp(*arguments(tiny_model, many_documents, folder)).require(0)
    assert tree(folder / "traces") == tree(undisturbed / "traces")


def test_what_the_operating_system_refuses_is_no_traceback(
    tiny_model: Path, many_documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))

    monkeypatch.setattr("offramp.files.os.replace", replace)
    failed = run_offramp(*arguments(tiny_model, many_documents, tmp_path / "run"), "--json").require(1)
    assert os.strerror(errno.EIO) in failed.json["error"]["what"]
    assert failed.json["error"]["where"].startswith(str(tmp_path / "run"))


def test_what_nobody_reads_any_more_ends(tiny_model: Path, many_documents: Path, tmp_path: Path) -> None:
    """Not with its next line, which may be minutes away: training says one in fifteen seconds at most."""
    what = ["-w", f"jsonl:{many_documents}#text", "--at", "1", "--minutes", "5", "-o", tmp_path / "out"]
    process = start_offramp("exits", "train", tiny_model, *what)
    assert process.stderr is not None
    assert process.stdout is not None
    assert "loading the model" in process.stderr.readline()
    process.stderr.close()
    process.stdout.close()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
