"""Usage: help, version, lists, doctor, and what a mistyped command line is answered with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import offramp
from command_line import MAIN, PROGRAM, run_offramp
from offramp.cli.main import _given, app
from offramp.commands import filled

COMMANDS = ("run", "trace", "score", "replay", "list", "doctor")


def test_version() -> None:
    assert run_offramp("--version").require(0).out == f"offramp {offramp.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_what_a_command_takes(command: str) -> None:
    shown = run_offramp(*command.split(), "--help").require(0).out
    assert "Usage: offramp" in shown
    assert all(name in shown for name in COMMANDS) or "--json" in shown


def test_every_command_shows_what_it_takes() -> None:
    """The help names constants, which are looked up when it is shown."""
    groups = [("", app), *((f"{one.name} ", one.typer_instance) for one in app.registered_groups)]
    names = [
        f"{group}{command.name}"
        for group, commands in groups
        if commands is not None
        for command in commands.registered_commands
        if command.name != "lab"
    ]
    assert {"run", "heads fit", "study plan"} <= set(names)
    for name in names:
        assert f"Usage: offramp {name}" in run_offramp(*name.split(), "--help").require(0).out


@pytest.mark.parametrize("command", ["", "run", "hardware measure", "heads", "study run"])
def test_help_has_a_short_name_everywhere(command: str) -> None:
    short = run_offramp(*command.split(), "-h").require(0).out
    assert short == run_offramp(*command.split(), "--help").require(0).out


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "recipe.toml", "-o", "model"]])
def test_the_lab_says_where_it_is_now(arguments: list[str]) -> None:
    err = run_offramp("lab", *arguments).require(2).err
    assert "lab is no command any more" in err
    assert "pip install ./experiments/lab, then offramp-lab text, train, measure" in err


def test_a_study_of_the_lab_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text('[study]\nname = "lab"\n\n[lab]\nblocks = [1]\n')
    err = run_offramp("study", "plan", tmp_path / "lab.toml").require(2).err
    assert "lab.toml, line 4" in err
    assert "offramp-lab" in err


def test_the_package_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "offramp", "frobnicate"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "where: offramp\n  what to do: offramp --help shows" in done.stderr


def test_no_command_shows_the_help_and_is_bad_usage() -> None:
    outcome = run_offramp().require(2)
    assert all(name in outcome.out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["rnu"], "Did you mean 'run'"),
        (["run", "--toknes", "3"], "--tokens"),
        (["run", "--tokens", "many"], "'many' is not a whole number"),
        (["run", "--worth", "much"], "'much' is not a number"),
        (["run", "--tokens"], "--tokens"),
        (["score"], "traces"),
        (["compare"], "DIR"),
        (["replay", "folder"], "--policy"),
        (["trace", "model", "--workload", "prose"], "--output"),
        (["trace", "model", "-o", "folder"], "--workload"),
        (["list"], "what"),
        (["list", "modles"], "did you mean 'models'?"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_usage_is_answered_in_three_parts(arguments: list[str], what: str, as_json: bool) -> None:
    outcome = run_offramp(*arguments, *["--json"] * as_json).require(2)
    assert outcome.err.startswith("offramp: ")
    assert "what to do: " in outcome.err
    if as_json and arguments[-1] != "--tokens":  # which then takes --json for its value
        error = outcome.json["error"]
        assert set(error) == {"what", "where", "fix", "exit_code"}
        assert error["exit_code"] == 2
        assert what in error["what"] + error["fix"]
    elif not as_json:
        assert outcome.out == ""
        assert what in outcome.err


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("models", ["smollm2"]),
        ("workloads", ["prose", "code", "chat", "math", "txt:PATH", "jsonl:PATH#field"]),
        ("transforms", ["int8", "int4:group=32", "prune:"]),
        ("policies", ["never", "static:", "threshold:"]),
        ("signals", ["max_prob", "margin", "entropy"]),
    ],
)
def test_lists_fit_80_columns(what: str, names: list[str]) -> None:
    outcome = run_offramp("list", what).require(0)
    assert all(name in outcome.out for name in names)
    assert max(map(len, outcome.out.splitlines())) <= 80
    if what == "workloads":
        assert "offramp[math]" in " ".join(outcome.out.split()), "an extra must not be taken for markup"
    rows = run_offramp("list", what, "--json").require(0).json[what]
    assert all(any(row["name"].startswith(name) for row in rows) for name in names)


def test_doctor_finds_what_is_needed() -> None:
    outcome = run_offramp("doctor").require(0)
    assert "torch" in outcome.out
    findings = {finding["name"]: finding for finding in run_offramp("doctor", "--json").json["findings"]}
    assert {"torch", "transformers", "default model", "C++ compiler", "cache", "machine"} <= set(findings)
    assert findings["torch"]["fine"]
    assert all(finding["fine"] or finding["fix"] for finding in findings.values())


def test_doctor_clears_the_cache_of_converted_models_and_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    converted = tmp_path / "dense" / f"{'0a' * 12}-{'1b' * 4}"
    for folder in (converted, tmp_path / "dense" / "mine"):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(bytes(2048))
    (tmp_path / "notes.txt").write_text("mine")
    assert "1 converted model, 2.0 kB; --clear-cache" in " ".join(
        run_offramp("doctor").require(0).out.split()
    )
    cleared = run_offramp("doctor", "--clear-cache").require(0).out
    assert "removed from the cache: 1 converted model, 2.0 kB" in cleared
    assert not converted.exists()
    assert (tmp_path / "dense" / "mine" / "manifest.json").is_file()
    assert (tmp_path / "notes.txt").is_file()


def test_doctor_says_that_others_keep_the_machine_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.costs.timings.TOLERABLE_LOAD", -1024.0)
    findings = {one["name"]: one for one in run_offramp("doctor", "--json").require(0).json["findings"]}
    assert not findings["machine"]["fine"]
    assert "nothing is timed then" in findings["machine"]["fix"]


def test_doctor_fails_without_a_needed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    known = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("torch", "datasets"):
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    outcome = run_offramp("doctor").require(1)
    assert "pip install torch" in outcome.out
    assert "pip install 'offramp[datasets]'" in outcome.out


WITHOUT_MODEL_LIBRARIES = (
    "run smollm2 --workload no-such-workload",
    "run smollm2 --workload prose --workload txt:no-such-file",
    "run smollm2 --tokens 0",
    "run smollm2 --minutes 0",
    "run smollm2 --minutes 9 --no-decode",
    "run smollm2 --exits ten",
    "run smollm2 --dtype int3",
    "trace smollm2 --workload no-such-workload -o folder",
    "trace smollm2 --workload prose --transform int9 -o folder",
    "score no-such-folder",
    "replay no-such-folder --policy static:exit=1",
    "list models",
    "list transforms",
)


def test_no_model_library_is_loaded_for_what_needs_none(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from offramp.cli.main import main\n"
        f"for line in {WITHOUT_MODEL_LIBRARIES!r}:\n"
        "    sys.argv = ['offramp', *line.split()]\n"
        "    code = 0\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        code = end.code\n"
        "    loaded = {'torch', 'transformers'} & sys.modules.keys()\n"
        "    assert (code, loaded) == (0 if line.startswith('list') else 2, set()), (line, code, loaded)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_traceback() -> None:
    command = " ".join(f"'{word}'" for word in [*PROGRAM, "list", "workloads"])
    result = subprocess.run(
        ["bash", "-c", f"{command} | true"], capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in result.stderr


def test_a_terminal_that_knows_only_ascii_is_no_traceback() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*PROGRAM, "list", "policies"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert r"\u2026" in result.stdout


def test_an_argument_that_is_no_text_is_refused() -> None:
    outcome = run_offramp("score", os.fsdecode(b"caf\xe9"), "--json").require(2)
    assert outcome.json["error"]["what"] == "an argument is not UTF-8"


@pytest.mark.parametrize(
    "arguments", [["score"], ["run", "smollm2", "-w"], ["replay", "-p", "never"], ["run"]]
)
def test_a_path_that_is_too_long_is_refused(arguments: list[str]) -> None:
    run_offramp(*arguments, "x" * 5000).require(2)


def test_the_json_of_an_error_is_the_only_line_on_standard_output(tmp_path: Path) -> None:
    outcome = run_offramp("score", tmp_path / "nothing", "--json").require(2)
    assert outcome.out.count("\n") == 1
    assert json.loads(outcome.out)["error"]["where"] == str(tmp_path / "nothing")
    assert "there is no trace here" in outcome.err


@pytest.mark.parametrize("command", ["run", "bench", "heads fit", "trace"])
def test_advice_names_what_the_command_was_given(command: str) -> None:
    given = _given([*command.split(), "mine", "--transform", "int8", "-w", "code"])
    advice = filled("offramp heads fit MODEL --workload W -o FILE", given)
    assert advice == "offramp heads fit mine --transform int8 --workload code -o heads.safetensors"


def test_other_libraries_draw_no_bars_where_standard_error_is_no_terminal() -> None:
    last = "import atexit; atexit.register(lambda: print(__import__('tqdm').tqdm(()).disable)); "
    command = [sys.executable, "-c", last + MAIN, "list", "signals"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    assert outcome.stdout.splitlines()[-1] == "True"
    assert outcome.stderr == ""
