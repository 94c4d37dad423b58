"""A study of the lab whose models are given: planned, measured, and held against one model measured alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from command_line import Outcome, run_offramp
from offramp.errors import InputError
from offramp.report.lab.given import validity_of
from offramp.studies.study_file import read_study
from tiny_models import write_llama

STUDY = """
[study]
name = "given"

[lab]
endpoints = ["representation", "skipped", "required_depth"]

[lab.text]
sources = ["standard-library", "python-reference"]
vocabulary = 512
characters = 200_000

[[models]]
name = "one"
source = "one"

[[models]]
name = "other"
source = "other"
base = "one"
family = "tiny"

[[models]]
name = "nobody/has-this"
layers = 12
parameters = 1_000_000
"""


def written(folder: Path, old: str = "", new: str = "") -> Path:
    """The study's file, something in it replaced."""
    path = folder / "STUDY.toml"
    assert old in STUDY
    path.write_text(STUDY.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study's file and its models."""
    folder = tmp_path_factory.mktemp("given")
    write_llama(folder / "one")
    write_llama(folder / "other", num_hidden_layers=3)
    written(folder)
    return folder


@pytest.fixture(scope="module")
def ran(place: Path) -> Outcome:
    return run_offramp("study", "run", place / "STUDY.toml", "-o", place / "study", "--json").require(0)


@pytest.mark.slow
def test_models_are_measured_as_each_is_alone(place: Path, ran: Outcome, tmp_path: Path) -> None:
    assert ran.json["counts"] == {"done": 3, "not to be had here": 1}
    lines = {
        line["model"]: line
        for line in csv.DictReader((place / "study" / "tables" / "models.csv").open(encoding="utf-8"))
    }
    assert set(lines) == {"one", "other"}
    assert (lines["other"]["base"], lines["other"]["layers"], lines["one"]["layers"]) == ("one", "3", "4")
    (text,) = (place / "study" / "tasks" / "text").glob("*/text")
    for name, line in lines.items():
        asked = [word for one in ("representation", "skipped") for word in ("--only", one)]
        out = tmp_path / f"{name}.json"
        run_offramp("lab", "measure", place / name, text, "-o", out, *asked).require(0)
        alone = json.loads(out.read_text(encoding="utf-8"))["values"]
        assert 0 < alone["representation"] < 1
        assert {key: float(line[key]) for key in alone} == pytest.approx(alone, abs=0)
        assert line["required_depth"] == ""  # its tokens are not those that the text knows the depth of


@pytest.mark.slow
def test_the_page_shows_them_beside_each_other(place: Path, ran: Outcome) -> None:
    page = (place / "study" / "report.html").read_text(encoding="utf-8")
    assert Path(ran.json["report"]) == place / "study" / "report.html"
    for said in ("one", "other", "nobody/has-this", "1 independent training here, 12 are needed"):
        assert said in page


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[lab]\n", "[lab]\nblocks = [1]\n", "blocks means nothing where models are given"),
        ('name = "given"', 'name = "given"\ntokens = 12', "tokens means nothing where models are given"),
        ('name = "other"', 'name = "one"', "two models are called 'one'"),
        ('"skipped", ', '"skiped", ', "there is no endpoint 'skiped'"),
        ("[[models]]", '[[workloads]]\nname = "prose"\n\n[[models]]', "workloads means nothing"),
    ],
)
def test_what_means_nothing_is_refused_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        read_study(written(tmp_path, old, new))
    assert "line" in (refused.value.where or "")


def test_a_base_is_one_training_whatever_its_models() -> None:
    lines = [
        {"model": f"{base}-{place}", "base": base, "skipped_code": base / 20, "score_increment": base + place}
        for base in range(12)
        for place in (0.0, 0.25)
    ]
    found = validity_of(lines)
    assert found is not None
    assert sum(found.halves) == 12
    assert [one.value for one in found.table] == pytest.approx([1.0])
    assert validity_of(lines[:-2]) is None  # eleven bases
