"""The page of the lab's study and its tables: whole, half done, and with idle depth."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from command_line import run_offramp
from lab_worlds import study_rows, write_rows
from offramp.lab.effects.claims import CLAIMS, Judged
from offramp.lab.effects.effect import Effect
from offramp.lab.text.folder import Absent, Gathered, TextRecord
from offramp.report.lab.tables import write_lab_report
from offramp.report.lab.words import sentences
from page_reader import Page, require_self_contained

KNOWN = {("norm", "skipped"): -0.15, ("norm", "representation"): -0.08, ("tuned", "calibration"): 0.1}


def page_of(folder: Path) -> Page:
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.faults == []
    require_self_contained(html, page, links=("#",))
    return page


def test_the_page_of_a_whole_study_says_every_claim_with_its_word_and_scale(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "runs.csv", study_rows(1, effects=KNOWN, by_tokens=-0.02, telling=1.0))
    outcome = run_offramp("lab", "report", path, "-o", tmp_path / "page", "--json").require(0)
    page = page_of(tmp_path / "page")
    for claim in CLAIMS:
        assert claim.said in page.text
    assert "The gate is passed: depth is used" in page.text
    assert "RMSNorm for LayerNorm, layers skipped −0.1" in page.text
    assert page.text.count("Models of 12 layers, 96 wide, 8 million tokens.") == len(CLAIMS) - 2
    assert "6, 12 and 24 layers, 48, 96 and 192 wide" in page.text
    titles = {text for tag, values, _ in page.elements if tag == "svg" and (text := values.get("aria-label"))}
    assert titles >= {
        "Layers skipped",
        "Representation, KL lens",
        "Calibration error",
        "Representation over training",
        "Layers skipped over training",
        "Layers skipped against representation",
        "Layers skipped, KL lens against representation",
        "Layers that one more step takes",
        "Scores on prose against layers skipped on code",
        "Scores on prose against layers skipped on code, without recurrent models",
    }
    assert f"offramp lab report {path} --output {tmp_path / 'page'}" in page.text
    assert "The text was not named" in page.text
    tables = {
        one.stem: list(csv.DictReader(one.read_text().splitlines()))
        for one in (tmp_path / "page" / "tables").glob("*.csv")
    }
    scores = {"scores", "scores_without_recurrent"}
    assert set(tables) == {"effects", "claims", "matched", "left_out"} | scores
    (norm,) = [one for one in tables["effects"] if (one["name"], one["endpoint"]) == ("norm", "skipped")]
    assert float(norm["value"]) == pytest.approx(-0.15, abs=0.04)
    assert norm["word"] == "lower"
    assert {one["word"] for one in tables["claims"] if one["claim"].startswith("The confidence")} == {
        "holds here"
    }
    found = {(one["name"], one["endpoint"]): one for one in outcome.json["effects"]}
    assert found["norm", "skipped"]["value"] == float(norm["value"])
    assert outcome.json["gate"]["passed"] is True
    assert "holds here" in outcome.err


def test_a_page_of_the_first_blocks_alone_says_what_is_missing(tmp_path: Path) -> None:
    rows = study_rows(2, blocks=("gate", "1", "2"), effects=KNOWN)
    lost = [row | {"diverged": "true"} if row["run"] == "run-07" else row for row in rows]
    write_lab_report(lost, tmp_path, permutations=199)
    page = page_of(tmp_path)
    assert "run-07: it diverged" in page.text
    assert "15 of 16 cells are there: main effects and pairs are not at right angles" in page.text
    assert "Nothing to test it by: no run of the kind mixture is measured" in page.text
    assert "9 trainings in the second half, 12 are needed" in page.text or "10 trainings in" in page.text
    assert page.text.count("cannot be told") >= 5
    lines = list(csv.DictReader((tmp_path / "tables" / "claims.csv").read_text().splitlines()))
    assert {one["claim"] for one in lines} == {claim.said for claim in CLAIMS}
    untested = {one["claim"] for one in lines if one["word"] == "no test"}
    assert {one.partition(" ")[0] for one in untested} == {"Dense", "Base", "The", "Training", "Larger"}
    tests = len(lines) - len(untested)
    assert f"Of {tests} tests of the study's claims" in page.text
    assert f"{len(untested)} claims could not be tested" in page.text


@pytest.mark.parametrize(("gained", "blocks"), [(0.02, ("gate", "1", "2", "3")), (0.3, ("1", "2"))])
def test_nothing_but_the_gate_is_said_where_depth_is_idle(
    tmp_path: Path, gained: float, blocks: tuple[str, ...]
) -> None:
    write_lab_report(study_rows(1, blocks=blocks, gained=gained, effects=KNOWN), tmp_path, permutations=99)
    page = page_of(tmp_path)
    assert "Nothing is concluded" in page.text
    if "gate" not in blocks:
        assert "GPT-2-like: there is no last loss of its run of the gate." in page.text
    assert not any(claim.said in page.text for claim in CLAIMS)
    assert "svg" not in {tag for tag, values, _ in page.elements if "role" in values}
    assert [one.name for one in (tmp_path / "tables").glob("*.csv")] == ["left_out.csv"]


def test_the_page_names_the_text(tmp_path: Path) -> None:
    source = Gathered("own", "prose", "CC0-1.0", "1", "ab" * 32, {"train": 1}, {"train": 1234}, "one voice")
    files = {"tokens.safetensors": "cd" * 32}
    record = TextRecord(
        0, 2048, (source,), (Absent("perl-doc", "apt-get download perl-doc"),), {}, files, {}, {}
    )
    write_lab_report(study_rows(1, blocks=("gate", "1")), tmp_path, text=record, permutations=99)
    text = page_of(tmp_path).text
    assert f"Text {record.fingerprint[:12]}, a vocabulary of 2,048" in text
    assert "CC0-1.0" in text
    assert "Not to be had: perl-doc (apt-get download perl-doc)." in text
    assert "own: one voice." in text


def test_a_wrong_table_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "runs.csv", study_rows(1, blocks=("gate", "1")))
    path.write_text(path.read_text().replace("layernorm", "layernom", 1))
    outcome = run_offramp("lab", "report", path, "-o", tmp_path / "page").require(2)
    assert "did you mean 'layernorm'" in outcome.err
    assert "line 2" in outcome.err
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("name", "low", "p", "with_loss", "why"),
    [
        (
            "mixture - mamba2",
            0.03,
            0.01,
            (0.01, 0.01),
            "a fact about caches: recurrent layers run whatever exits say",
        ),
        ("norm", 0.03, 0.01, (0.01, 0.3), "but +0.010 (p 0.300) with the loss as covariate"),
        ("norm", 0.03, 0.01, (-0.02, 0.01), "but −0.020 (p 0.010) with the loss as covariate"),
        ("norm", 0.03, 0.2, (0.01, 0.01), "but p 0.200 among all tests of its family"),
        ("norm", 0.03, 0.2, (0.01, 0.3), "its family and +0.010 (p 0.300) with the loss as covariate"),
        ("norm", -0.03, 0.2, (0.01, 0.3), "detectable from 0.060"),
    ],
)
def test_an_interval_that_tells_nothing_says_why(
    name: str, low: float, p: float, with_loss: tuple[float, float], why: str
) -> None:
    effect = Effect("1", name, "skipped", 0.04, low, 0.05, p, 0.06, "cannot be told", *with_loss)
    (found,) = sentences([Judged(name, "skipped", "cannot be told", effect)])
    assert found.endswith(f"{why}.")
