"""What the documents claim is held against the figures that they show and the rule of the verdict."""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
from pathlib import Path
from typing import get_args

import pytest

import offramp
from offramp.tracing.fitting.fitting_documents import left_for_tuning
from offramp.tuning.bounds import documents_for
from offramp.tuning.verdict import Decision

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "studies").glob("*.toml")])
# Pages that say what the answers mean, where a figure beside it is a threshold; and of measured credits.
DEFINITIONS = (
    "docs/metrics.md",
    "docs/comparison.md",
    "docs/results/run.md",
    "docs/results/README.md",
    "docs/results/load.md",
    "docs/results/speech.md",
)
CLAIM = re.compile(r"\bpays?\b", re.IGNORECASE)
# "Does not pay", "nothing pays" and "whether it pays" claim nothing.
NO_CLAIM = re.compile(
    r"\b(not|nothing|none|never|whether|would|will|could|to) (\w+ ){0,2}pays?\b", re.IGNORECASE
)
SPEED = re.compile(r"\d\.\d+ ×|\d\.\d+ times|\d %|\bfaster\b")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def sentences(text: str) -> list[str]:
    """The sentences of a page, line breaks taken out; a row of a table is one."""
    paragraphs = re.split(r"\n\s*\n|\n(?=[|#-])", text)
    return [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.!?])\**\s+(?=\S)", " ".join(paragraph.split()))
    ]


def claims(text: str) -> list[str]:
    """Sentences that say that exits pay, beside the figure of a speed."""
    return [
        sentence
        for sentence in sentences(text)
        if CLAIM.search(NO_CLAIM.sub("", sentence)) and SPEED.search(sentence)
    ]


def test_no_page_says_that_exits_pay_because_of_a_speed() -> None:
    """What pays is decided by credit, which two pages of results have timed."""
    found = {str(page.relative_to(ROOT)): claims(page.read_text(encoding="utf-8")) for page in PAGES}
    assert {page: said for page, said in found.items() if said and page not in DEFINITIONS} == {}


@pytest.mark.parametrize(
    "said",
    [
        "**Early exit pays at 95 % on both texts, by more than 5 % for sure, and most of it is layers.**",
        "On two cores exits pay: code is 1.08 to 1.12 × as fast.",
        "At 95 % a certified policy is 1.071 × as fast for sure, by the rule it\npays (more than 5 %).",
    ],
)
def test_what_pages_said_once_would_be_found(said: str) -> None:
    assert claims(said)
    assert not claims("At 95 % agreement it does not pay. Nothing pays for less than 5 %.")


def test_every_answer_of_the_rule_is_defined() -> None:
    assert {row[0].strip("*") for row in rows("docs/metrics.md", "| answer | when |")} >= set(
        get_args(Decision)
    )


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", cell.replace("−", "-"))]


def rows(page: str, start: str) -> list[list[str]]:
    """The cells of the table whose head begins so, head and rule left out."""
    table = text_of(page).split(start, 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_priced_parts_add_up_to_what_is_priced() -> None:
    priced = [row[-1] for row in rows("docs/results/training.md", "| text, floor | policy | rerun")]
    assert len(priced) == 4
    for total, *parts in map(numbers, priced):
        assert total == pytest.approx(1 / (1 - sum(parts) / 100), abs=2e-3)


def test_estimated_credit_is_the_measured_speed_over_the_cut_heads() -> None:
    shown = rows("docs/results/training.md", "| text, floor | speed over plain decoding")
    assert len(shown) == 4
    for _, speed, credit in shown:
        assert numbers(credit) == pytest.approx([number / 1.080 for number in numbers(speed)], abs=1e-3)
    measured = [row[5] for row in rows("docs/results/training.md", "| text, floor | policy | rerun")]
    assert [numbers(cell)[:3] for cell in measured] == [numbers(row[1]) for row in shown]


def test_errors_of_predictions_are_those_of_the_policies_listed() -> None:
    page = "docs/results/decoding.md"
    timed = [
        row for dtype in ("float32", "bfloat16") for row in rows(page, f"| policy, {dtype} | strategy |")
    ]
    static = [row for row in timed if row[0].startswith("static")]
    asking = [row for row in timed if not row[0].startswith("static")]
    shown = rows(page, "| median error over the median change")
    assert [len(static), len(asking)] == [24, 8]
    for policies, (_, *printed) in zip((static, asking), shown, strict=True):
        change = statistics.median(abs(numbers(row[-1])[0]) for row in policies)
        for column, error in zip((2, 3), printed, strict=True):
            off = statistics.median(abs(numbers(row[column])[0] - numbers(row[4])[0]) for row in policies)
            assert off / change == pytest.approx(numbers(error)[0], abs=0.006)


def test_what_predictions_were_worth_follows_from_the_pairs_listed() -> None:
    page = "docs/results/decoding.md"
    pairs = [[float(cell) for cell in row[1:]] for row in rows(page, "| where | predicted | measured |")]
    predicted, measured = (sum(1 - 1 / speed for speed in speeds) for speeds in zip(*pairs, strict=True))
    assert [len(pairs), sum(real < said for said, real in pairs)] == [12, 11]
    assert f"is {measured / predicted:.2f} of what was predicted" in text_of(page)
    elsewhere = text_of("docs/results/training.md") + text_of("docs/results/studies.md")
    assert [real for _, real in pairs if f"{real:.3f}" not in elsewhere] == []


def trainings() -> list[tuple[str, str]]:
    """Each text that exits are trained on in an example, with its page; the results keep what was run."""
    pages = [page for page in PAGES if page.suffix == ".md" and "results" not in page.parts]
    lines = [
        (str(page.relative_to(ROOT)), line)
        for page in pages
        for line in re.findall(r"offramp exits train [^`\n]*", page.read_text(encoding="utf-8"))
    ]
    return [
        (page, words[words.index("--workload") + 1])
        for page, line in lines
        if "--workload" in (words := shlex.split(line))
    ]


def test_examples_train_on_texts_that_leave_enough_documents_for_95_percent() -> None:
    shown = trainings()
    assert {"README.md", "docs/training.md"} <= {page for page, _ in shown}
    for workload in {workload for _, workload in shown} - {"W"}:
        left = len(left_for_tuning(offramp.load_workload(workload)))
        assert left > 2 * documents_for(0.95, 0.1), workload  # as many would do only if none lost anything


def test_pictures_are_shown_somewhere() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [
        path.name for path in (ROOT / "docs/images").iterdir() if f"images/{path.name}" not in pages
    ] == []


@pytest.mark.parametrize(("target", "tests"), [("run", False), ("test", True)])
def test_a_run_installs_nothing_that_only_tests_need(target: str, tests: bool, tmp_path: Path) -> None:
    command = ["make", "-n", target, f"VENV={tmp_path / 'venv'}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--editable .\n" in told
    assert ("'.[dev]'" in told) == tests
