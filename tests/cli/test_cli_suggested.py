"""Commands that commands suggest run as they are printed, and what lies in a run's folder is found there."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

import offramp
from command_line import Outcome, run_arguments, run_offramp
from offramp.cli.main import app
from offramp.policies.grammar import parse_policy, write_policy
from offramp.runs.folder import contents_at, text_of
from offramp.runs.request import Run
from offramp.studies.folder import StudyFolder
from offramp.tuning.tuned import read_tuned

COMMAND = re.compile(r"\bofframp (?=(?:%s) )[^;)\n]*" % "|".join(typer.main.get_command(app).commands))  # type: ignore[attr-defined]  # noqa: UP031
"""A command within a text ends with the line, or where the sentence goes on."""
PLACEHOLDER = re.compile(r"[A-Z]{4,}|[A-Z]|\.\.\.")


def texts_of(value: Any) -> Iterator[str]:
    """Every text within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)


def commands_in(*texts: str) -> list[str]:
    """The commands that texts suggest, each once; a sentence's stop or comma is no part of one."""
    found = (match.rstrip(" .,") for text in texts for match in COMMAND.findall(text))
    return list(dict.fromkeys(one for one in found if " or choose from" not in one))


def require_runnable(line: str) -> list[str]:
    """The words of a command, refused if a shell or the command would not take them as they stand."""
    words = shlex.split(line)
    placeholders = [word for word in words if PLACEHOLDER.fullmatch(word) and word != "TEXT"]
    assert not placeholders, line
    command: Any = typer.main.get_command(app)
    rest, context = words[1:], None
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context or command.make_context("offramp", []), rest)
        context = command.make_context(name, list(rest), resilient_parsing=hasattr(command, "commands"))
    return words


@pytest.fixture
def run(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run, in a folder whose name a shell splits."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished_run, tmp_path / "my runs" / "run"))


UNUSUAL: dict[str, Any] = {
    "tokens": 99, "exits": "2,3", "context": 64, "document_tokens": 8, "hardware": "h100", "worth": 0.0,
    "floors": (0.9, 0.8), "decode": False, "heads": Path("my heads"),
}  # fmt: skip
OF_MODEL: dict[str, Any] = {
    "device": "cpu", "dtype": "bfloat16", "transforms": ("int8",), "trust_remote_code": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [*UNUSUAL, *OF_MODEL])
def test_a_run_is_called_again_as_it_was_in_a_shell_and_in_python(name: str) -> None:
    given = {name: ({**UNUSUAL, **OF_MODEL})[name]}
    if name == "heads":  # which exits they have would be read from them
        given["exits"] = "2,3"
    folder = Path("my runs") / "a"
    asked = Run(output=folder, **given)
    words = require_runnable(asked.call(named=True).again())
    option = {"transforms": "transform", "floors": "floor", "decode": "no-decode"}.get(name, name)
    assert f"--{option.replace('_', '-')}" in words
    assert words[words.index("--output") + 1] == str(folder)
    # In Python the object has the model's options in it; all others are keywords.
    call = asked.call(named=False).again()
    arguments = eval(call.replace("offramp.run(model", "dict(model=0", 1))
    inspect.signature(offramp.run).bind(**arguments)
    expected = {"model": 0, "output": str(folder), **({} if name in OF_MODEL else given)}
    found = {key: tuple(one) if isinstance(one, list) else one for key, one in arguments.items()}
    assert {key: str(one) for key, one in found.items()} == {key: str(one) for key, one in expected.items()}


def test_any_command_on_the_model_of_a_run_loads_it_as_the_run_did() -> None:
    call = Run(**{**UNUSUAL, **OF_MODEL}).call(named=True)
    for command, given in (
        ("generate", {"policy": "p.json", "prompt": "TEXT"}),
        ("exits train", {"workload": "prose", "at": "2", "output": "exits"}),
    ):
        words = require_runnable(call.on_model(command, **given))
        loaded = ["smollm2", "--transform", "int8", "--device", "cpu", "--dtype", "bfloat16"]
        assert words[len(command.split()) + 1 :][:8] == [*loaded, "--trust-remote-code"]


@pytest.mark.usefixtures("remembered_answers", "forgotten_load")
def test_what_a_run_suggests_can_be_pasted(run: Path, tiny_model: Path, documents: Path) -> None:
    said = run_offramp(*run_arguments(tiny_model, documents), "-o", run).require(0)
    summary = json.loads((run / "summary.json").read_text())
    for line in commands_in(*texts_of(summary["verdict"]), said.out, said.err):
        words = require_runnable(line)
        assert all(Path(word).exists() for word in words if str(run) in word), line


def quick(line: str) -> str:
    """The same command with less to do, since a test waits for it."""
    if line.startswith("offramp bench"):
        return f"{line} --seconds 1 --prompts 2 --new-tokens 4 --prompt-tokens 4 --no-peers"
    return f"{line} --max-new-tokens 4" if line.startswith("offramp generate") else line


def execute(line: str) -> Outcome:
    """Run a suggested command as it stands."""
    return run_offramp(*require_runnable(quick(line))[1:]).require(0)


def test_tuning_a_run_takes_what_lies_in_it_and_suggests_what_runs(run: Path, documents: Path) -> None:
    text = f"jsonl:{documents}#text"
    kept = {path: path.stat().st_mtime_ns for path in (run / "executions").rglob("*.json")}
    found = run_offramp("tune", run, "--floor", "agreement=0.5", "--hardware", "cpu-2core").require(0)
    policies = sorted(Path.cwd().glob("policy-*.json"))
    assert len(policies) == 2
    for path in policies:
        tuned = read_tuned(path)
        assert tuned.certificate.executed
        assert tuned.heads_file is not None
        assert tuned.heads_file.parent == run
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not (Path.cwd() / "executions").exists()
    lines = commands_in(found.out)
    assert lines, found.out
    for line in lines:
        execute(line)

    # Of one trace of the run, with the machine that the run timed.
    (place,) = (path for path in (run / "traces").glob("*/*") if contents_at(path).workload == text)  # type: ignore[union-attr]
    one = run_offramp("tune", place, "--floor", "agreement=0.5", "--json").require(0)
    assert one.json["machine"] == "local"
    for line in filter(None, (one.json["generate"], one.json["next"])):
        execute(line)
    predicted = run_offramp("predict", "policy.json", "--trace", place, "--unseen", "--json")
    assert predicted.require(0).json["workload"] == text


def test_a_policy_of_a_run_finds_the_trace_the_timings_and_the_heads(run: Path, tiny_model: Path) -> None:
    path = run / "policies" / "chat-agreement-0.95.json"
    write_policy(parse_policy("threshold:signal=correctness,value=0.5,exits=2"), path)
    replayed = run_offramp("replay", run, "--policy", path, "--hardware", "local", "--json").require(0)
    assert replayed.json["basis"] == "local"
    run_offramp("generate", tiny_model, "--policy", path, "--prompt", "the cat").require(0)
    other = run_offramp("replay", run, "--policy", "static:exit=2", "--json").require(2)
    assert "give one of them" in other.json["error"]["fix"]
    timed = ["bench", tiny_model, "--policy", path, *shlex.split(quick("offramp bench"))[2:]]
    assert "by the kept timings" in " ".join(run_offramp(*timed).require(0).out.split())
    assert text_of(str(path)) == "chat"


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "TRACE", "--policy", "static:exit=2", "--hardware", "local"],
        ["bench", "MODEL", "--policy", "static:exit=2", "--hardware", "local", "--seconds", "1"],
        ["generate", "MODEL", "--policy", "threshold:signal=correctness,value=0.5,exits=2", "--prompt", "a"],
    ],
)
def test_what_an_error_suggests_can_be_pasted(
    arguments: list[str], tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "cache"))
    given = {"TRACE": str(tmp_path / "trace"), "MODEL": str(tiny_model)}
    trace = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 64, "-o", given["TRACE"]]
    run_offramp(*trace).require(0)
    outcome = run_offramp(*(given.get(word, word) for word in arguments), "--json").require(2)
    for line in commands_in(outcome.json["error"]["fix"]):
        require_runnable(line)


def test_a_run_that_is_not_whole_is_told_its_command(run: Path) -> None:
    folder = StudyFolder(run)
    (first, *_) = (task for task in folder.read_plan().tasks.values() if task.kind == "score")
    shutil.rmtree(folder.task_folder(first))
    error = run_offramp("report", run, "--json").require(2).json["error"]
    (line,) = commands_in(error["fix"])
    assert line == folder.command()
    copy = Path(shutil.copytree(run, run.with_name("a copy")))
    (moved,) = commands_in(run_offramp("report", copy, "--json").require(2).json["error"]["fix"])
    assert shlex.split(moved) == [str(copy) if word == str(run) else word for word in shlex.split(line)]
    assert str(copy) in moved
    shutil.rmtree(run / "traces")
    error = run_offramp("score", run, "--json").require(2).json["error"]
    assert commands_in(error["fix"]) == [line]
    assert require_runnable(line)[1] == "run"


@pytest.mark.parametrize(
    ("documents", "said"), [(76, "=0.95"), (75, "=0.9"), (17, "=0.8"), (16, "no floor can")]
)
def test_a_trained_model_is_tuned_at_a_floor_that_its_text_can_certify(documents: int, said: str) -> None:
    from offramp.cli.heads_shown import next_lines

    request = SimpleNamespace(workloads=[{"name": "prose"}])
    trained: Any = SimpleNamespace(record=SimpleNamespace(request=request))
    line = next_lines(trained, Path("exits"), "smollm2", documents)[-1]
    assert said in line
    if "offramp" in line:
        assert require_runnable(*commands_in(line))[1] == "tune"
