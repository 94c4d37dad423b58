"""A study of the lab whose models are given: planned, measured, and held against one model measured alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, run_offramp
from offramp.errors import InputError
from offramp.report.lab.given import FACTS, headline, render_given, validity_of, write_given_report
from offramp.studies.folder import StudyFolder
from offramp.studies.lab_rows import given_models
from offramp.studies.plan import make_plan
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
    for said in ("one", "other", "nobody/has-this", "Whether a score tells savings was not measured"):
        assert said in page


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[lab]\n", "[lab]\nblocks = [1]\n", "blocks means nothing where models are given"),
        ('name = "given"', 'name = "given"\ntokens = 12', "tokens means nothing where models are given"),
        ('name = "given"', 'name = "given"\ndtype = "flaot32"', "flaot32"),
        ('name = "given"', 'name = "given"\ndevice = "cuda:77"', "there is no device"),
        ('family = "tiny"', 'family = "tiny"\npublished_eas = 0.5', "published_eas is no longer read"),
        ('name = "other"', 'name = "one"', "two models are called 'one'"),
        ('"skipped", ', '"skiped", ', "there is no endpoint 'skiped'"),
        ("[[models]]", '[[workloads]]\nname = "prose"\n\n[[models]]', "workloads means nothing"),
    ],
)
def test_what_means_nothing_is_refused_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        read_study(written(tmp_path, old, new))
    assert "line" in (refused.value.where or "")


def model(name: str, base: str = "", above: float = 0.1, **values: float | None) -> dict[str, Any]:
    """A model as a study leaves it; it skips `skipped` of its layers."""
    share = values.get("skipped")
    executed = (
        {} if share is None else {"skipped": {"share": share, "above": max(above, share), "bound": False}}
    )
    facts = dict.fromkeys(FACTS) | {"model": name, "base": base or name}
    return {**facts, "values": values, "untold": {}, "executed": executed}


def test_a_base_is_one_training_whatever_its_models() -> None:
    models = [
        model(f"{base}-{place}", str(base), 0.0, skipped_code=base / 20, score_increment=base + place)
        for base in range(12)
        for place in (0.0, 0.25)
    ]
    found, notes = validity_of(models)
    assert found is not None
    assert sum(found.halves) == 12
    assert [one.value for one in found.table] == pytest.approx([1.0])
    assert notes == []
    few, notes = validity_of(models[:-2])
    assert few is None
    assert "11 independent trainings here, a table needs 12" in notes[0]


def test_what_does_not_count_for_scores_is_named() -> None:
    models = [model(f"m{place}", skipped_code=place / 20, score_increment=place) for place in range(12)]
    found, notes = validity_of(
        [*models, model("mamba", above=0.5, skipped=0.0, skipped_code=0.0), model("bare")]
    )
    assert found is not None
    assert sum(found.halves) == 12
    assert notes == [
        "mamba does not count: its recurrent layers all run",
        "bare does not count: layers skipped on code were not measured",
    ]
    models[3]["values"]["score_increment"] = None
    models[3]["values"]["score_calibration"] = 1.0
    assert validity_of(models) == (None, ["Whether a score tells savings was not measured."])


def test_the_page_says_what_it_knows_and_no_more(tmp_path: Path) -> None:
    hostile = model("<b>one</b>", above=0.0, skipped=0.25, representation=0.5, calibration=None)
    hostile["untold"] = {"calibration": "too few tokens"}
    hostile["executed"]["skipped"]["bound"] = True
    models = [hostile, model("mamba", above=0.5, skipped=0.0), model("other", above=0.0, skipped=0.125)]
    assert headline(models) == (
        "At 95 % agreement 2 models skip from 0.125 of their layers (other) to 0.250 (<b>one</b>)."
    )
    assert headline(models[:1]) == "<b>one</b> skips 0.250 of its layers at 95 % agreement."
    assert headline(models[1:2]) == "What these models skip was not measured."
    page = render_given(models, None, {"far": "no network"}, "offramp study run S.toml")
    for said in (
        "&lt;b&gt;one&lt;/b&gt;",
        "too few tokens",
        "at least",
        "far: no network",
        "fact about caches",
    ):
        assert said in page
    assert "<b>one" not in page
    assert "not measured" in render_given([model("bare")], None, {}, "x")
    write_given_report(models[:1], tmp_path, text=None, absent={}, command="x")
    (line,) = csv.DictReader((tmp_path / "tables" / "models.csv").open(encoding="utf-8"))
    assert (line["skipped"], line["calibration"], line["family"]) == ("0.25", "", "")


def test_what_was_not_measured_says_why(place: Path, tmp_path: Path) -> None:
    study = read_study(place / "STUDY.toml")
    folder = StudyFolder(tmp_path / "study")
    plan = make_plan(study, folder.path)
    found, absent = given_models(plan, folder)
    assert found == []
    assert {name: absent[name] for name in ("one", "other")} == dict.fromkeys(
        ("one", "other"), "not measured yet"
    )
    assert "not on this machine" in absent["nobody/has-this"]
