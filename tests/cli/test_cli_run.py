"""`offramp run`: what it writes, that a second run reuses it, and whose folders it leaves alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from command_line import run_arguments, run_offramp, summary_of, tree
from offramp.errors import DamagedFileError, ModelError
from offramp.models.gguf_file import CACHE_VARIABLE
from offramp.report.run_reading import RunReader
from offramp.report.summary import summary_schema
from offramp.runs import stages
from offramp.studies.folder import StudyFolder
from offramp.studies.journal import Journal, line_of
from tiny_models import LAYERS, write_tokenizer

SUMMARY_KEYS = {"verdict", "scores", "frontier", "predicted", "measured", "provenance"}

PROVENANCE = (
    *("offramp", "code_fingerprint", "model", "model_source", "model_fingerprint", "tokenizer_fingerprint"),
    *("dtype", "bos", "readout", "layers", "python", "torch", "transformers", "numpy", "pyarrow"),
    *(
        "hardware_fingerprint",
        "processor",
        "cores",
        "threads",
        "memory_gib",
        "load_average",
        "date",
        "command",
        "workloads",
        "traced",
    ),
)


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def arguments(tiny_model: Path, documents: Path) -> list[object]:
    return run_arguments(tiny_model, documents)


def test_the_summary_satisfies_its_schema_and_the_page_says_its_headline(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    jsonschema.validate(summary, summary_schema())
    assert set(summary) >= SUMMARY_KEYS
    assert [verdict["floor"] for verdict in summary["verdict"]["by_workload"]] == [0.99, 0.95, 0.9] * 2
    assert summary["measured"]["plain_seconds_per_token"]["value"] > 0
    assert all(entry["plain_seconds_per_token"] > 0 for entry in summary["predicted"])
    page = (finished_run / "report.html").read_text()
    answer, *_ = re.split(r":| \(", summary["verdict"]["headline"])
    assert answer in page.replace("\u00a0", " ")
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)  # it loads nothing from the network


def test_provenance_is_complete(finished_run: Path, tiny_model: Path, documents: Path) -> None:
    provenance = json.loads((finished_run / "summary.json").read_text())["provenance"]
    for name in PROVENANCE:
        assert provenance[name] is not None, name
    assert provenance["model_source"] == str(tiny_model)
    assert provenance["command"].startswith("offramp run ")
    traced = provenance["traced"]
    assert set(traced) == {f"jsonl:{documents}#text", "chat"}
    assert traced["chat"]["licence"] == "Apache-2.0"
    for entry in traced.values():
        assert entry["source"]
        assert re.fullmatch(r"[0-9a-f]{64}", entry["fingerprint"])
        assert (entry["tokens"], entry["exits"]) == (960, list(range(1, LAYERS + 1)))
    for workload in provenance["workloads"]:
        manifest = json.loads((finished_run / workload["trace_folder"] / "manifest.json").read_text())
        assert manifest["request_fingerprint"] == traced[workload["name"]]["request_fingerprint"]


def test_policies_are_written_and_can_be_replayed(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    policies = sorted((finished_run / "policies").glob("*-agreement-*.json"))
    assert len(policies) == len(summary["verdict"]["by_workload"]) == 6
    tuned = sorted((finished_run / "policies").glob("*-tuned-*.json"))
    assert len(tuned) == len(summary["tuned"]) == 6
    chat = summary["provenance"]["workloads"][1]
    by_floor = {verdict["floor"]: verdict for verdict in summary["verdict"]["by_workload"][3:]}
    for floor, verdict in by_floor.items():
        path = finished_run / "policies" / f"chat-agreement-{floor:g}.json"
        folder = finished_run / chat["trace_folder"]
        replayed = run_offramp("replay", folder, "--policy", path, "--json").require(0).json
        assert replayed["policy"] == verdict["policy"]


@pytest.mark.usefixtures("remembered_answers", "forgotten_load")
def test_a_second_run_reuses_every_byte_of_the_traces_and_says_all_again(
    arguments: list[object], run_folder: Path
) -> None:
    before = tree(run_folder / "traces")
    times = {path: path.stat().st_mtime_ns for path in (run_folder / "traces").rglob("*.parquet")}
    assert times
    shown = run_offramp(*arguments, "-o", run_folder, "--json").require(0)
    assert tree(run_folder / "traces") == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(shown.out.splitlines()) == 1, "JSON is the last line and people read standard error"
    assert len(shown.out) < 20_000
    assert shown.json["report"] == str(run_folder / "report.html")
    assert shown.json["summary"] == str(run_folder / "summary.json")
    verdict = summary_of(shown)["verdict"]
    assert (shown.json["headline"], shown.json["decision"]) == (verdict["headline"], verdict["decision"])
    policies = [one["policy"] for one in verdict["by_workload"]]
    assert [one["policy"] for one in shown.json["verdicts"]] == policies
    text = " ".join(shown.err.split())
    assert "early exit" in text.lower()
    assert text.index("Before the timing:") < text.index("Report:")
    assert f"Report: {run_folder / 'report.html'}" in text
    stages, others = [], []
    for line in shown.err.splitlines():
        (stages if line.startswith("- ") else others).append(line)
    assert stages, "plain lines where there is no terminal"
    commands = [line for line in others if line.startswith("  offramp ")]
    assert commands, "the next step"
    paths = (*commands, *(line for line in others if str(run_folder) in line or " = " in line))
    tables = [line for line in others if line not in paths]
    assert max(map(len, tables)) <= 80
    assert "\x1b" not in shown.err


def test_the_same_request_elsewhere_gives_the_same_traces(
    arguments: list[object], finished_run: Path, tmp_path: Path
) -> None:
    run_offramp(*arguments, "--no-decode", "-o", tmp_path / "again").require(0)
    assert tree(tmp_path / "again" / "traces") == tree(finished_run / "traces")
    summaries = [
        json.loads((folder / "summary.json").read_text()) for folder in (finished_run, tmp_path / "again")
    ]
    # The rest is priced by this machine's times, which may have been taken again in between.
    for key in ("scores", "frontier"):
        assert summaries[0][key] == summaries[1][key]


def test_without_a_folder_the_same_request_finds_its_own(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", f"{tiny_model}/", "-w", f"jsonl:{documents}#text", "--no-decode", "--tokens", 64]
    begun = run_offramp(*command, "--json").require(0)
    first = Path(begun.json["report"])
    assert first.parent.parent == Path("runs")
    (first.parent / ".writing-123-run.json").write_text("{")  # by a writer that was killed: no foreign file
    twice = run_offramp(*command, "-w", f"jsonl:{documents}#text", "--json").require(0)
    assert twice.json["report"] == str(first), "a workload given twice counts once"
    assert len(summary_of(twice)["scores"]) == 1
    assert not list(first.parent.rglob(".writing-*"))
    other = run_offramp(*command[:-1], 65, "--json").require(0).json["report"]
    assert other != str(first)


def test_another_request_is_refused_and_overwrite_replaces_all_of_it(
    tiny_model: Path, documents: Path, run_folder: Path
) -> None:
    other = ["run", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 64, "-o", run_folder]
    other.append("--no-decode")
    before = tree(run_folder)
    refused = run_offramp(*other, "--json").require(2)
    assert refused.json["error"]["what"].startswith(
        "the output folder holds another run (it differs in: tokens ("
    )
    assert refused.json["error"]["where"] == str(run_folder)
    assert "--overwrite" in refused.json["error"]["fix"]
    assert tree(run_folder) == before
    run_offramp(*other, "--overwrite").require(0)
    assert len(list((run_folder / "traces").glob("*/*"))) == 1
    # One of the verdict and one of the tuner at each floor.
    assert len(list((run_folder / "policies").iterdir())) == 6
    assert "chat" not in (run_folder / "summary.json").read_text()
    run_offramp(*other).require(0)


@pytest.mark.usefixtures("remembered_answers", "forgotten_load")
def test_a_request_that_is_changed_or_gone_is_written_again_as_the_journal_has_it(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_folder / "run.json"
    whole = path.read_bytes()
    monkeypatch.setattr(stages, "run_task", None)  # nothing is done again
    path.unlink()
    assert "has 2 traces" in run_offramp("replay", run_folder, "-p", "never").require(2).err
    other = [961 if word == 960 else word for word in arguments]
    assert "holds another run" in run_offramp(*other, "-o", run_folder).require(2).err
    assert not path.exists()
    run_offramp(*arguments, "-o", run_folder).require(0)
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"tokens": ', b'"tokens": 1'))
    run_offramp(*arguments, "-o", run_folder).require(0)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(("left", "said"), [(None, "is missing"), ("{", "is damaged")])
def test_a_request_that_nobody_remembers_is_damage(
    arguments: list[object], run_folder: Path, left: str | None, said: str
) -> None:
    (run_folder / "journal.jsonl").unlink()
    (run_folder / "run.json").unlink()
    if left is not None:
        (run_folder / "run.json").write_text(left)
    refused = run_offramp(*arguments, "-o", run_folder).require(1).err
    assert said in refused
    assert "give --overwrite" in refused


HARMED = {
    "tasks/trace/*/passage.json": "report",
    "tasks/score/*/result.json": "report",
    "tasks/trace/*/trace/facts-*.parquet": "report",
    "tasks/heads/*/heads.safetensors": "report",
    "plan.json": "report",
    "traces/*/*/facts-*.parquet": "score",
    "traces/*/*/manifest.json": "score",
}
"""Files of a run, and the command that reads them."""


@pytest.mark.parametrize("gone", [False, True], ids=["a flipped byte", "gone"])
@pytest.mark.parametrize("harmed", HARMED)
def test_what_is_damaged_in_a_run_is_mended_by_its_command(
    arguments: list[object], run_folder: Path, harmed: str, gone: bool
) -> None:
    (path, *_) = sorted(run_folder.glob(harmed))
    if gone:
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    read = run_folder if HARMED[harmed] == "report" else path.parent
    refused = run_offramp(HARMED[harmed], read, "--json").require(1).json["error"]
    assert refused["fix"].startswith("give ")
    _, _, command = refused["fix"].partition(": offramp ")
    asked = shlex.split(command)
    assert asked[:2] == ["run", str(arguments[1])]
    assert asked[asked.index("--output") + 1] == str(run_folder)
    assert "--repair" not in refused["fix"]


def test_a_run_is_read_whose_journal_does_not_say_what_its_tasks_took(run_folder: Path) -> None:
    path = run_folder / "journal.jsonl"
    events = Journal(path).read().events
    details = [{name: value for name, value in one.details.items() if name != "seconds"} for one in events]
    lines = [line_of(replace(one, details=rest)) for one, rest in zip(events, details, strict=True)]
    path.write_bytes(b"".join(lines))
    assert RunReader(run_folder).result().workloads[0].seconds == 0.0


def test_a_plan_with_two_rankings_of_one_text_is_refused(run_folder: Path) -> None:
    folder = StudyFolder(run_folder)
    plan = folder.read_plan()
    first, second = (cell for cell in plan.cells if cell.kind == "league")
    cells = [
        replace(cell, workload=first.workload, policy="p") if cell is second else cell for cell in plan.cells
    ]
    folder.write_plan(replace(plan, cells=tuple(cells)))
    with pytest.raises(DamagedFileError, match="2 cells of the kind league for"):
        RunReader(run_folder)


def test_a_file_beside_a_runs_own_is_not_said_to_be_mended_by_it(run_folder: Path) -> None:
    (trace, *_) = sorted(run_folder.glob("traces/*/*"))
    mine = Path(shutil.copytree(trace, run_folder / "traces" / "mine"))
    (part, *_) = sorted(mine.glob("facts-*.parquet"))
    part.write_bytes(b"edited")
    assert "with --repair" in run_offramp("score", mine).require(1).err
    assert "there is no trace here" in run_offramp("score", part).require(2).err
    missing = run_offramp("replay", trace, "-p", run_folder / "policies" / "mine.json").require(2).err
    assert "check the path" in missing


@pytest.mark.usefixtures("remembered_answers", "forgotten_load")
def test_another_text_in_the_same_folder_does_not_hide_the_first(
    arguments: list[object], run_folder: Path
) -> None:
    """Its page, its terminal and its JSON say which other answers lie there, and what shows all."""
    text = arguments[arguments.index("-w") + 1]
    alone = ["run", arguments[1], "-w", text, "--tokens", 960, "-o", run_folder, "--no-decode"]
    said = run_offramp(*alone, "--json").require(0)
    assert said.json["other_texts"] == ["chat"]
    (command,) = re.findall(r"on chat, not shown here; all texts together: offramp (.*)", said.err)
    assert said.json["all_texts"] == f"offramp {command}"
    assert "all texts together" in summary_of_folder(run_folder)["verdict"]["caveats"][-1]
    both = run_offramp(*shlex.split(command), "--json").require(0)
    assert (both.json["other_texts"], both.json["all_texts"]) == ([], None)
    assert "all texts together" not in both.err
    assert {verdict["workload"] for verdict in both.json["verdicts"]} == {text, "chat"}


@pytest.mark.usefixtures("remembered_answers", "forgotten_load")
def test_what_is_damaged_is_said_by_readers_and_made_again_by_the_run(
    arguments: list[object], run_folder: Path, tmp_path: Path
) -> None:
    page, summary = (run_folder / "report.html").read_bytes(), summary_of_folder(run_folder)
    (score, *_) = sorted(run_folder.glob("tasks/score/*/result.json"))
    score.write_bytes(score.read_bytes().replace(b"0", b"1", 1))
    refused = run_offramp("report", run_folder).require(1)
    assert "score (damaged)" in refused.err
    assert (run_folder / "report.html").read_bytes() == page
    compared = run_offramp("compare", run_folder, "-o", tmp_path / "compared").require(0)
    assert "a file of it changed since it was done" in " ".join(compared.out.split())
    assert "is a folder" in run_offramp("study", "run", run_folder).require(2).err
    traces = tree(run_folder / "traces")
    facts, *_ = sorted(run_folder.glob("tasks/trace/*/trace/facts-*.parquet"))
    facts.write_bytes(facts.read_bytes()[:-1] + b"?")
    shutil.rmtree(run_folder / "traces")
    (run_folder / "traces").write_text("a file")
    refused = run_offramp(*arguments, "--no-decode", "-o", run_folder).require(2).err
    assert "something that offramp did not write stands where traces/" in refused
    assert (run_folder / "traces").read_text() == "a file"
    (run_folder / "traces").unlink()
    mended = run_offramp(*arguments, "--no-decode", "-o", run_folder).require(0)
    assert "made again, since a file of the trace task was damaged" in mended.err
    assert facts.name in mended.err
    assert tree(run_folder / "traces") == traces
    assert "made again, since a file of the score task was damaged" in mended.err
    assert summary_of_folder(run_folder)["scores"] == summary["scores"]
    assert len(list(run_folder.glob("traces/*/*/manifest.json"))) == 2
    run_offramp("report", run_folder).require(0)
    status = run_offramp("study", "status", run_folder).require(0).out
    assert "nothing left to do" in status


def summary_of_folder(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "summary.json").read_text())
    return found


def test_a_folder_with_other_files_is_left_alone(tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("years of work")
    for command in ("run", "trace"):
        arguments = [command, tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 64, "-o", folder]
        for more in ([], ["--overwrite"]):
            refused = run_offramp(*arguments, *more).require(2)
            assert "holds files that are not a" in refused.err
            assert "another folder" in refused.err or "a new folder" in refused.err
            assert tree(folder) == {"chapter.tex": b"years of work"}


def test_a_second_process_in_the_same_folder_is_refused(arguments: list[object], run_folder: Path) -> None:
    import fcntl

    before = tree(run_folder)
    with (run_folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = run_offramp(*arguments, "-o", run_folder).require(2)
    assert "another offramp process is writing into this folder" in second.err
    assert str(run_folder) in second.err
    assert tree(run_folder) == before


def test_a_model_without_a_chat_template_is_noted(
    tiny_model: Path, tmp_path: Path, finished_run: Path
) -> None:
    plain = Path(shutil.copytree(tiny_model, tmp_path / "plain"))
    for path in plain.glob("chat_template*"):
        path.unlink()
    write_tokenizer(plain)
    note = "the model has no chat template; a plain User/Assistant turn is used"
    arguments = ["run", plain, "-w", "chat", "--tokens", 64, "--no-decode", "-o", tmp_path / "out", "--json"]
    shown = run_offramp(*arguments).require(0)
    assert f"chat: {note}" in summary_of(shown)["verdict"]["caveats"]
    assert note in (tmp_path / "out" / "report.html").read_text()
    assert note not in (finished_run / "report.html").read_text()


def test_a_subset_of_exits_and_the_last_alone(tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    for exits in ("3+1", str(LAYERS)):
        arguments = ["-w", f"jsonl:{documents}#text", "--tokens", 480, "--exits", exits, "--no-decode"]
        summary = summary_of(run_offramp("run", tiny_model, *arguments, "-o", tmp_path / exits, "--json"))
        jsonschema.validate(summary, summary_schema())
        wanted = sorted({*map(int, exits.split("+")), LAYERS})
        assert summary["scores"][0]["curves"]["exits"] == wanted
    assert summary["verdict"]["decision"] == "inconclusive"
    assert "no exit before the last was traced" in summary["verdict"]["headline"]


def test_a_model_that_cannot_generate_still_gets_its_report(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise ModelError("transformers cannot generate with this model")

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))  # without timings kept of the same model
    monkeypatch.setattr("offramp.timing.local_profile.measure_hardware", fails)
    monkeypatch.setattr("offramp.decoding.engine.build.engine_of", fails)
    work = f"jsonl:{documents}#text"
    shown = run_offramp("run", tiny_model, "-w", work, "--tokens", 60, "-o", tmp_path / "run").require(0)
    said = "speeds are in bytes moved from here on, since this machine cannot be timed: transformers cannot"
    assert said in shown.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    jsonschema.validate(summary, summary_schema())
    assert summary["measured"]["plain_seconds_per_token"] is None
    assert "cannot generate" in summary["provenance"]["plain_decoding_not_timed"]
    assert "cannot generate" in summary["decoding"]["not_decoded"][work]
