"""`offramp bench --combine`: one real measurement of a tiny model, its files and page, and bad input."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import Outcome, run_offramp
from offramp.errors import DamagedFileError
from offramp.kit.typed import from_json
from offramp.report import COMBINED_FILE
from offramp.report.combined import advice
from offramp.report.run_reading import RunReader
from offramp.runs.folder import RUN_FILE
from offramp.timing.results import COMBINED, CombineResult
from offramp.workloads.registry import load_workload
from tiny_models import write_llama

POLICY = "static:exit=2"


pytestmark = pytest.mark.usefixtures("uncollected")


@pytest.fixture(scope="module")
def workload(documents: Path) -> str:
    return f"jsonl:{documents}#text"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "tiny")


def command(model: Path, workload: str, *further: object) -> list[object]:
    sizes = ["--rounds", 1, "--new-tokens", 4, "--prompt-tokens", 8, "--prompts", 1]
    return ["bench", model, "-w", workload, *sizes, *further]


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, model: Path, workload: str, uncollected: None
) -> tuple[Outcome, Path]:
    """Pruning and exits, written to a file."""
    output = tmp_path_factory.mktemp("combined") / "combined.json"
    asked = ["--combine", "prune:by=influence,layers=1,tokens=64", "--combine", "exits", "--policy", POLICY]
    return run_offramp(*command(model, workload, *asked, "-o", output, "--json")).require(0), output


def test_the_file_the_page_and_the_last_line_hold_the_same(measured: tuple[Outcome, Path]) -> None:
    outcome, output = measured
    result = COMBINED.read(output)
    assert from_json(CombineResult, outcome.json["result"]) == result
    assert outcome.json["advice"] == advice(result)
    assert outcome.json["defects"] == []
    assert outcome.json["file"] == str(output)
    page = output.with_suffix(".html")
    assert outcome.json["page"] == str(page)
    assert "Beside other accelerations" in page.read_text(encoding="utf-8")
    assert list(output.parent.glob(".writing-*")) == []
    assert result.accelerations["prune"] == "prune:by=influence,layers=1,tokens=64"
    alone, together = result.combination("prune"), result.combination("prune", "exits")
    assert alone is not None
    assert together is not None
    assert alone.transforms == together.transforms
    assert alone.transforms[0].startswith("prune:drop=")  # the chosen layers


def test_what_is_shown(measured: tuple[Outcome, Path]) -> None:
    shown = measured[0].err  # with --json people read standard error
    for part in (
        "prune:by=influence,layers=1,tokens=64, exits of tiny on ",
        "1 prompt, 4 new tokens, 1 round",
        "of the product",
        "prune + exits",
        "unresolved: one prompt has no interval",
        "note: prune: decoded plainly by ",
        "Inconclusive: 1 prompt timed, and advice needs 6. Next: ",
        "written: ",
    ):
        assert part in " ".join(shown.split()), part
    assert all(len(line) <= 80 for line in shown.splitlines()[1:] if not line.startswith("written"))


def test_a_runs_folder_takes_the_file(model: Path, workload: str, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("{}")
    run_offramp(*command(model, workload, "--combine", "prompt_lookup", "-o", tmp_path)).require(0)
    assert COMBINED.read(tmp_path / COMBINED_FILE).combination("prompt_lookup") is not None
    assert (tmp_path / "combined.html").is_file()


def test_files_of_a_run_are_not_replaced(model: Path, workload: str, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text("{}")
    asked = ["--combine", "prompt_lookup", "-o", tmp_path / "report.json"]  # its page would be report.html
    outcome = run_offramp(*command(model, workload, *asked)).require(2)
    assert "among the files of a run" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


@pytest.mark.parametrize(
    ("name", "what"),
    [("mine.json", "there already, and holds no combination"), ("mine.html", "stands where")],
)
def test_files_of_others_are_not_replaced(
    model: Path, workload: str, tmp_path: Path, name: str, what: str
) -> None:
    (tmp_path / name).write_text("{}")
    asked = ["--combine", "prompt_lookup", "-o", tmp_path / "mine.json"]
    assert what in run_offramp(*command(model, workload, *asked)).require(2).err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["{}"]


def test_prompts_avoid_what_any_heads_were_fitted_on(model: Path, workload: str, tmp_path: Path) -> None:
    """Those of a transformed model were fitted on documents of their own."""
    from offramp.heads.exit_heads import ExitHeads
    from offramp.heads.file import write_heads

    base = {"name": "tiny", "fingerprint": "0" * 64, "layers": 4, "hidden_size": 32, "vocabulary_size": 9}
    documents = load_workload(workload)
    seen = {documents.fingerprint: tuple(one.id for one in documents.documents)}
    path = tmp_path / "heads.safetensors"
    write_heads(ExitHeads(base, None, {}, None, exits=(2,), candidate_exit=None, documents=seen), path)
    asked = ["--combine", "exits", "--policy", POLICY, "--heads", path]
    outcome = run_offramp(*command(model, workload, *asked)).require(2)
    assert "the workload has 0 prompts" in outcome.err


def test_a_run_shows_what_was_combined_on_its_model(
    measured: tuple[Outcome, Path], finished_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    assert RunReader(run).result().combined is None
    own = RunReader(run).result().provenance["model_fingerprint"]
    result = COMBINED.read(measured[1])
    for fingerprint, shown in ((own, True), ("another", False)):
        kept = replace(result, circumstances={**result.circumstances, "model_fingerprint": fingerprint})
        COMBINED.write(run / COMBINED_FILE, kept)
        assert (RunReader(run).result().combined == kept) is shown
    (run / COMBINED_FILE).write_text("{}")
    with pytest.raises(DamagedFileError):
        RunReader(run).result()
