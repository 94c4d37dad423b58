"""Faults: pipes in the place of our files, tiny numbers, folders that are gone, memory that runs out."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, run_arguments, run_offramp
from offramp.files import locked_folder, write_sealed_json
from offramp.heads.file import is_heads_file
from offramp.kit.output_file import clear_for
from offramp.models.gguf_file import CACHE_VARIABLE
from offramp.serving.request import Load

ENTRY = [sys.executable, "-c", "from offramp.cli.entry import main; main()"]


@pytest.fixture(scope="module")
def finished_trace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Path:
    folder = tmp_path_factory.mktemp("traces") / "trace"
    run_offramp(*trace_arguments(tiny_model, documents, folder)).require(0)
    return folder


@pytest.fixture
def trace(finished_trace: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(finished_trace, tmp_path / "trace"))


def trace_arguments(model: Path, documents: Path, folder: Path) -> list[object]:
    return ["trace", model, "-w", f"jsonl:{documents}#text", "--tokens", 256, "-o", folder]


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def entry(*arguments: object, **options: Any) -> Outcome:
    """The command in a process of its own, which a hang would end with an error."""
    ended = subprocess.run(
        [*ENTRY, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def test_a_sealed_file_of_another_kind_is_no_manifest(trace: Path) -> None:
    write_sealed_json(trace / "manifest.json", {"schema_version": 1, "kind": "tuned"})
    said = run_offramp("score", trace, "--json").require(2).json["error"]
    assert "it is not what offramp writes" in said["what"]


def test_a_manifest_nested_without_end_is_damaged(trace: Path) -> None:
    (trace / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)
    assert "it is nested more than 64 deep" in run_offramp("score", trace).require(1).err


def test_a_file_that_ends_too_early_is_no_interruption(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(*_: object) -> None:
        raise EOFError("compressed file ended before the end-of-stream marker was reached")

    monkeypatch.setattr("offramp.tracing.trace.Trace.load", ends)
    assert "a file ends too early" in run_offramp("score", trace).require(2).err


@pytest.fixture
def alarm() -> Iterator[None]:
    """Whatever waits for a minute is interrupted, and fails."""

    def ring(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", ["manifest.json", "request.json", ".lock"])
def test_a_pipe_in_a_trace_is_refused_at_once(
    name: str, trace: Path, tiny_model: Path, documents: Path
) -> None:
    pipe(trace / name)
    outcome = run_offramp(*trace_arguments(tiny_model, documents, trace))
    assert outcome.code == 2
    said = "a device or a pipe, not a file" if name == ".lock" else f"did not write stands where {name}"
    assert said in outcome.err
    if name != ".lock":
        (trace / name).unlink()
        run_offramp(*trace_arguments(tiny_model, documents, trace), "--repair").require(0)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_pipe_in_a_model_is_refused_at_once(name: str, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    pipe(model / name)
    outcome = run_offramp("generate", model, "--prompt", "w1", "--max-new-tokens", 1).require(2)
    assert f"{name} in the model's folder is a device, a pipe or a socket" in outcome.err


def test_a_broken_file_of_the_tokenizer_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "tokenizer_config.json").write_text('{"a": ')
    said = run_offramp("generate", model, "--prompt", "w1", "--json").require(2).json["error"]
    assert said["where"] == str(model / "tokenizer_config.json")


def test_a_machine_slower_than_a_byte_a_second_is_refused(trace: Path, tmp_path: Path) -> None:
    for changed in ("bytes_per_second = 1e-320", "launch_seconds = 1e300"):
        entries = {
            "kind": '"roofline"', "name": '"x"', "description": '"x"', "source": '"x"',
            "bytes_per_second": "1e12", "launch_seconds": "0", "decision_seconds": "0",
        }  # fmt: skip
        key, _, value = changed.partition(" = ")
        lines = [f"{name} = {text}" for name, text in (entries | {key: value}).items()]
        path = tmp_path / "machine.toml"
        path.write_text("\n".join([*lines, "[flops_per_second]", "float32 = 1e12", "bfloat16 = 1e12"]))
        said = run_offramp("replay", trace, "-p", "static:exit=2", "--hardware", path, "--json").require(2)
        assert key in said.json["error"]["what"]


def test_a_closed_standard_input_or_output_is_said(tiny_model: Path) -> None:
    shut = entry("generate", tiny_model, "--prompt", "-", preexec_fn=lambda: os.close(0)).require(2)
    assert "standard input" in shut.err
    gone = subprocess.run(
        [*ENTRY, "list", "policies"], stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(1)
    )
    assert gone.returncode == 1
    assert "standard output is closed" in gone.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["list", "policies"], 0), (["score", "nothing"], 2)])
def test_a_command_works_where_standard_error_is_closed(arguments: list[str], code: int) -> None:
    ended = subprocess.run(
        [*ENTRY, *arguments, "--json"], stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(2)
    )
    assert ended.returncode == code
    assert "{" in ended.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_json_that_cannot_be_written_is_no_traceback(trace: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*ENTRY, "score", str(trace), "--json"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "No space left" in ended.stderr
    assert "standard output" in ended.stderr


@pytest.mark.parametrize("command", ["tune", "bench"])
def test_the_file_of_something_else_is_not_replaced(
    command: str, trace: Path, tiny_model: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"my": "data"}')
    arguments: list[object] = ["tune", trace, "--floor", "agreement=0.5", "--model", "none"]
    if command == "bench":
        arguments = ["bench", tiny_model, "--policy", "static:exit=2"]
    said = run_offramp(*arguments, "-o", mine, "--json").require(2).json["error"]
    assert "is there already" in said["what"]
    assert json.loads(mine.read_text()) == {"my": "data"}


@pytest.mark.parametrize("theirs", ["a text", "folder", "link"])
def test_what_somebody_puts_in_the_place_of_a_result_meanwhile_is_kept(
    theirs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, text = tmp_path / "result.json", tmp_path / "text"
    asked = Load("a trace", policy="never", output=output)
    text.write_text("of somebody")
    if theirs == "folder":
        output.mkdir()
    elif theirs == "link":
        output.symlink_to(text)
    else:
        output.write_text("of somebody")
    clear_for(output, asked.require_own)
    assert not os.path.lexists(output)
    kept = tmp_path / "result.json.changed"
    assert kept.is_dir() if theirs == "folder" else kept.read_text() == "of somebody"
    assert str(output) in (said := capsys.readouterr().err)
    assert "kept as result.json.changed" in said


def test_heads_do_not_replace_what_came_while_they_were_fitted(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.tracing.fitting import fit as fitting

    output, fit = tmp_path / "h.safetensors", fitting.fit_heads

    def meanwhile(*given: Any, **named: Any) -> Any:
        output.write_text("of somebody")
        return fit(*given, **named)

    monkeypatch.setattr(fitting, "fit_heads", meanwhile)
    words = ("heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400, "-o", output)
    assert "kept as h.safetensors.changed" in run_offramp(*words).require(0).err
    assert (tmp_path / "h.safetensors.changed").read_text() == "of somebody"
    assert is_heads_file(output)


@pytest.mark.parametrize("name", ["s3:/x", "smollm2:prose", "~"])
def test_an_output_is_a_path_whatever_it_looks_like(
    name: str, tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run_offramp(*trace_arguments(tiny_model, documents, Path(name))).require(0)
    assert (tmp_path / name / "manifest.json").is_file()
    run_offramp("score", name).require(0)
    assert not (tmp_path / "home").exists()


def test_tables_of_an_odd_name_are_written(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_offramp("compare", finished_run, "-o", "cmp:today").require(0)
    assert list(tmp_path.glob("cmp:today/tables/*.parquet"))


def test_heads_replace_nothing_but_heads(tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("a text of mine")
    fitting = ["heads", "fit", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 400]
    said = run_offramp(*fitting, "-o", mine, "--overwrite", "--json").require(2).json["error"]
    assert "holds no exit heads" in said["what"]
    assert mine.read_text() == "a text of mine"
    pipe(tmp_path / "pipe")
    said = run_offramp(*fitting, "-o", tmp_path / "pipe", "--overwrite", "--json").require(2).json["error"]
    assert said["where"] == str(tmp_path / "pipe")
    said = run_offramp(*fitting, "--seed", 2**32, "-o", tmp_path / "h", "--json").require(2).json["error"]
    assert said["what"] == f"seed must be 4,294,967,295 at most, not {2**32}"


def test_what_torch_reads_of_the_environment_is_blamed(tiny_model: Path, tmp_path: Path) -> None:
    surroundings = {**os.environ, "TORCH_LOGS": "nonsense"}
    outcome = entry("trace", tiny_model, "-w", "prose", "-o", tmp_path / "t", env=surroundings).require(1)
    assert "torch cannot be imported" in outcome.err
    assert "TORCH_" in outcome.err


def test_a_cache_that_is_no_folder_is_not_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (cache,) = [one for one in run_offramp("doctor", "--json").json["findings"] if one["name"] == "cache"]
    assert not cache["fine"]
    assert "is no folder" in cache["found"]


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = "import os; os.rmdir(os.getcwd())\nfrom offramp.cli.entry import main; main()"
    ended = subprocess.run([sys.executable, "-c", script, "doctor"], cwd=gone, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "the current folder does not exist any more" in ended.stderr


def test_a_limit_on_the_size_of_files_is_named(tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trace"
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    try:
        outcome = run_offramp(*trace_arguments(tiny_model, documents, folder)).require(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert "ulimit -f" in outcome.err
    assert not list(folder.rglob(".writing-*"))


def test_a_disk_that_can_only_be_read_meanwhile_has_failed(
    finished_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwritten(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("offramp.tracing.trace.Trace.load", unwritten)
    assert "check the disk" in run_offramp("score", finished_trace).require(1).err


def test_a_limit_on_open_files_is_named(finished_trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("offramp.tracing.trace.Trace.load", full)
    assert "ulimit -n" in run_offramp("score", finished_trace).require(1).err


def test_who_writes_the_page_of_a_run_is_not_told_to_choose_another_folder(finished_run: Path) -> None:
    with locked_folder(finished_run):
        outcome = run_offramp("report", finished_run).require(2)
    assert "what to do: wait for it to end\n" in outcome.err


@pytest.mark.usefixtures("remembered_answers")
def test_heads_of_a_run_that_are_damaged_are_fitted_again(
    finished_run: Path, tmp_path: Path, tiny_model: Path, documents: Path
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    heads, *_ = sorted(run.glob("tasks/heads/*/heads.safetensors"))
    whole = heads.read_bytes()
    heads.write_bytes(b"")
    outcome = run_offramp(*run_arguments(tiny_model, documents), "--no-decode", "-o", run).require(0)
    assert "made again, since a file of the heads task was damaged" in outcome.err
    assert heads.read_bytes() == whole


def test_a_byte_order_mark_is_no_fault_and_foreign_json_no_policy(
    trace: Path, finished_run: Path, tmp_path: Path
) -> None:
    said = run_offramp("replay", trace, "-p", finished_run / "summary.json", "--json").require(2)
    assert said.json["error"]["what"] == "this is not a policy file"
    path = tmp_path / "policy.json"
    text = '{"schema_version": 1, "kind": "static", "parameters": {"exit": 2}}'
    path.write_text(text, encoding="utf-8-sig")
    run_offramp("replay", trace, "-p", path, "--hardware", "h100").require(0)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 EiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_it_is_said_with_what_takes_less(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: fail())
    monkeypatch.setattr("offramp.models.loading.load_tokenizer", fail)
    arguments = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "-o", tmp_path / "out", "--json"]
    said = run_offramp(*arguments).require(1).json["error"]
    assert said["what"].startswith("out of memory: ")
    assert "are free on this machine" in said["what"]
    assert "--dtype bfloat16" in said["fix"]
    assert not (tmp_path / "out").exists()


def test_another_runtime_error_is_still_a_traceback(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("offramp.models.loading.load_tokenizer", fail)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        run_offramp("trace", tiny_model, "-w", f"jsonl:{documents}#text", "-o", tmp_path / "out")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit holds on Linux only")
@pytest.mark.parametrize("megabytes", [45, 60, 200])
def test_too_little_to_begin_is_no_traceback(megabytes: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6, megabytes * 10**6))

    ended = entry("doctor", preexec_fn=limit).require(1)
    assert "Traceback" not in ended.err
    # What numpy computes with ends the process by itself.
    assert "offramp: out of memory" in ended.err or "OpenBLAS error: Memory allocation" in ended.err
