"""A whole study: the gate, its families, what is missing, and the words of the claims."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lab_worlds import models_of, study_rows

from offramp_lab.claims import CLAIMS, READING, REPEATED, claims_table, judge
from offramp_lab.families import analyse
from offramp_lab.page import choice_sentences, effect_name, effect_text, headline, tables_of, write_report
from offramp_lab.runs import PLANNED, REPLICATED, SKIPPED_THIRD, read_models
from offramp_lab.scores import score_validity

RESULTS = Path(__file__).parents[3] / "docs" / "results"
PUBLISHED = RESULTS / "studies" / "lab" / "tables"
CACHED = ("skipped_code", "score_")
KNOWN = {
    ("norm", "skipped"): -0.15,
    ("norm", "representation"): -0.08,
    ("heads", "representation"): -0.08,
    ("heads", "representation_lens"): -0.2,
    ("residual", "skipped"): 0.15,
    ("mixture", "skipped"): -0.2,
    ("mamba2", "skipped"): -0.4,
    ("early_exit_loss", "skipped"): 0.15,
    ("tuned", "calibration"): 0.1,
    ("width", "skipped"): 0.2,
}


@pytest.fixture(scope="module")
def findings():
    rows = study_rows(1, effects=KNOWN, by_tokens=-0.02, by_step=0.6, telling=1.0)
    return analyse(models_of(rows), permutations=999)


def words(findings, start: str) -> dict[tuple[str, str], str]:
    (claim,) = [one for one in (*CLAIMS, REPEATED) if one.said.startswith(start)]
    judged = judge(claim, findings)
    return {(one.test, one.endpoint): one.claim_word for one in judged.itertuples()}


def test_every_family_has_the_tests_that_were_written_down(findings) -> None:
    planned = {"1": 20, "corners": 4, "2": 40, "3": 8, "4": 4, "5": 3, "6": 1, "7": 1, "8": 1, "sizes": 4}
    assert {key: family.tests for key, family in findings.families.items()} == planned
    assert {key: len(one.effects) for key, one in findings.families.items()} == planned | {"6": 0}
    assert findings.validity.halves == (16, 16)
    assert findings.study.runs["block"].value_counts().to_dict() == PLANNED
    assert findings.study.left_out == {}


def test_what_a_world_holds_is_said_of_each_claim(findings) -> None:
    newer = words(findings, "Newer architectures")
    assert len(newer) == 10
    assert newer["norm", "skipped"] == newer["norm", "representation"] == "holds here"
    assert newer["Llama-like - GPT-2-like", "representation"] == "holds here"
    assert newer["positions", "skipped"] in ("does not", "cannot be told")
    reading = words(findings, READING)
    assert (reading["norm", "representation"], reading["heads", "representation"]) == (
        "readout",
        "representation",
    )
    assert words(findings, "Depth that is not used")["residual", "skipped"] == "opposite here"
    kinds = words(findings, "Dense models")
    assert kinds["dense - mixture", "skipped"] == "holds here"
    # A fact about caches, and no finding, however large it is.
    assert kinds["mixture - mamba2", "skipped"] == "cannot be told"
    assert kinds["dense - mixture", "representation"] != "holds here"
    assert words(findings, "The confidence of shallow") == {("tuned - plain", "calibration"): "holds here"}
    assert "holds here" not in words(findings, "Base models").values()
    assert words(findings, "Training with exits")["early_exit_loss - continued", "skipped"] == "holds here"
    assert words(findings, "Larger models")["doubling of the width", "skipped"] == "holds here"
    assert set(words(findings, "Longer training").values()) == {"holds here"}
    assert set(words(findings, "A token that needs").values()) == {"holds here"}
    assert set(words(findings, "A score tells").values()) == {"holds here"}


def test_trends_and_differences_are_those_of_a_plain_calculation(findings) -> None:
    last = findings.study.runs.set_index(["base", "arm"])["skipped"]
    slopes: dict[tuple[str, ...], list[float]] = {}
    for _, run in findings.study.of("1", "2").iterrows():
        models = findings.study.models_of(run)
        slope = np.polyfit(np.log2(models["tokens"]), models["representation"], 1)[0]
        slopes.setdefault(tuple(run[["norm", "mlp", "positions", "heads", "residual"]]), []).append(slope)
    (trend,) = findings.families["7"].effects.itertuples()
    assert len(slopes) == 16
    assert trend.value == pytest.approx(np.mean([np.mean(cell) for cell in slopes.values()]))
    bases = [f"run-{base:02}" for base in (1, 16, 17, 18, 19, 20)]
    pairs = [last[base, "tuned"] - last[base, "plain"] for base in bases]
    assert any(note.startswith("calibration of tuned: 0.") for note in findings.families["5"].notes)
    tuned = findings.families["5"].effects.query("endpoint == 'skipped'").iloc[0]
    half = 2.5706 * np.std(pairs, ddof=1) / np.sqrt(6)
    assert tuned["value"] == pytest.approx(np.mean(pairs))
    assert (tuned["low"], tuned["high"]) == pytest.approx(
        (np.mean(pairs) - half, np.mean(pairs) + half), rel=1e-3
    )


def test_a_trend_over_sizes_has_the_error_of_the_corner(findings) -> None:
    wide = findings.families["sizes"].effects.iloc[0]
    # The endpoint moves with none of the losses in this world: at the matched one it is as at the last.
    runs = findings.study.runs
    at = runs[runs["run"].isin(SIZES) & (runs["arm"] == "")].set_index("run")["skipped"]
    assert wide["value"] == pytest.approx((at["run-32"] - at["run-31"]) / 2)
    spread = np.std(at[["run-16", "run-19", "run-20"]], ddof=1)
    assert wide["high"] - wide["value"] == pytest.approx(4.3027 * spread / np.sqrt(2), rel=1e-3)  # t of 2


def test_a_trend_over_widths_at_one_loss_alone_is_one_of_training() -> None:
    """Wider models are as good after half of the tokens, and representation falls with tokens in all."""

    def told(added: float) -> tuple[pd.Series, str]:
        rows = study_rows(5, by_tokens=-0.05, effects={("width", "representation"): added}, error=0.3)
        for row in rows:
            row["loss"] = str(float(row["loss"]) - 0.4 * np.log2(int(row["hidden"]) / 96))
        found = analyse(models_of(rows), permutations=99)
        effects = found.families["sizes"].effects.set_index(["name", "endpoint"])
        word = words(found, "Larger models")["doubling of the width", "representation"]
        return effects.loc["doubling of the width", "representation"], word

    at_one_loss, word = told(0.0)
    assert at_one_loss["adjusted"] < 0.05
    assert at_one_loss["low"] > 0
    assert at_one_loss["p_at_tokens"] > 0.05
    assert word == "cannot be told"
    both, word = told(0.1)
    assert (both["at_tokens"], both["value"]) == pytest.approx((0.1, 0.15), abs=0.03)
    assert word == "holds here"


def replication(effects: dict[tuple[str, str], float], error: float = 1.0, **more: object):
    rows = study_rows(7, blocks=("replication",), effects=effects, error=error)
    return [row | more for row in rows]


def test_a_replication_is_judged_by_its_seeds_after_the_same_tokens(tmp_path: Path) -> None:
    eighty, ninety = SKIPPED_THIRD
    rows = replication({("positions", eighty): -0.08, ("positions", ninety): 0.001})
    found = analyse(models_of(rows), permutations=99)
    assert found.study.runs["block"].value_counts().to_dict() == REPLICATED
    assert (found.passed, [*found.families]) == (None, ["replication"])
    assert words(found, REPEATED.said) == {
        ("rotary - learned", eighty): "holds here",
        ("rotary - learned", ninety): "does not",
    }
    last = found.study.runs.groupby("positions")[eighty]
    (effect, _) = found.families["replication"].effects.itertuples()
    assert effect.value == pytest.approx(last.mean()["rotary"] - last.mean()["learned"])
    spread = np.sqrt(last.var().mean() * 2 / 12)
    assert effect.high - effect.value == pytest.approx(2.0739 * spread, rel=1e-3)  # t of 22
    assert claims_table(found)["word"].tolist() == ["holds here", "does not"]
    write_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    said = "Of 2 tests registered for a replication with small models 1 holds here and 1 finds nothing"
    assert said in headline(found)
    assert said in page
    assert "The gate" not in page
    both = [*study_rows(1, blocks=("gate", "1"), gained=0.03), *rows]
    assert analyse(models_of(both), permutations=99).families == {}, "depth is idle"


def test_a_replication_in_which_there_is_nothing_to_lose_tells_nothing() -> None:
    little = {("dense", name): -0.28 for name in SKIPPED_THIRD}
    found = analyse(models_of(replication(little, 0.2)), permutations=99)
    assert {*words(found, REPEATED.said).values()} == {"cannot be told"}
    assert not found.families["replication"].effects["could_fail"].any()
    rows = replication({})
    rows[-1] |= {"tokens": "1"}
    (note,) = analyse(models_of(rows), permutations=99).families["replication"].notes
    assert note == "trainings ended after different numbers of tokens"


SIZES = {f"run-{number}" for number in (16, 19, 20, 29, 30, 31, 32)}


def test_what_is_missing_is_said_and_the_rest_is_analysed() -> None:
    rows = study_rows(2, blocks=("gate", "1", "2"), effects=KNOWN)
    found = analyse(models_of(rows), permutations=199)
    assert [len(found.families[key].effects) for key in ("1", "2", "3", "4", "5", "sizes")] == [
        20,
        40,
        0,
        0,
        0,
        0,
    ]
    assert found.families["3"].notes == (
        "no run of the kind mixture is measured",
        "no run of the kind mamba2 is measured",
    )
    assert found.validity is not None
    assert found.validity.untold == "10 trainings in the second half, 12 are needed"
    assert words(found, "Dense models") == {}
    few = [row for row in rows if row["run"] not in ("run-05", "run-17")]
    lacking = {"skipped_lens": "", "score_composite": ""}
    less = [row | lacking if row["run"] == "run-03" else row for row in few]
    families = analyse(models_of(less), permutations=199).families
    assert "run-03 is left out: score_composite was not measured" in families["6"].notes
    family = families["1"]
    assert "run-03 is left out: skipped_lens was not measured" in family.notes
    assert any(note.startswith("14 of 16 cells are there") for note in family.notes)
    assert len(family.effects) == 20
    hardly = analyse(
        models_of([row for row in rows if row["run"] in KEPT or "gate" in row["run"]]), permutations=99
    )
    assert hardly.families["1"].effects.empty
    assert hardly.families["1"].notes == (
        "4 of the 16 cells are measured, which do not tell the factors apart",
    )
    without = [row | dict.fromkeys(("skipped_lens", "representation_lens"), "") for row in rows]
    family = analyse(models_of(without), permutations=199).families["1"]
    assert len(family.effects) == 10
    assert "skipped_lens was not measured" in family.notes


KEPT = ("run-01", "run-16", "run-02", "run-03")


def test_a_base_without_one_of_its_runs_is_left_out_and_five_reach_nothing() -> None:
    rows = [
        row
        for row in study_rows(3, effects={("tuned", "skipped"): 0.3})
        if (row["base"], row["arm"]) != ("run-17", "plain")
    ]
    family = analyse(models_of(rows), permutations=99).families["5"]
    assert "run-17 is left out: some of it is missing" in family.notes
    assert any(note.startswith("5 of 6 bases") for note in family.notes)
    assert (family.effects["adjusted"] > 0.05).all()
    arms = [row for row in study_rows(3) if row["arm"] != "frozen_exits"]
    family = analyse(models_of(arms), permutations=99).families["4"]
    assert {*family.effects["name"]} == {"early_exit_loss - continued"}
    assert "frozen_exits less continued on skipped: no base has both measured" in family.notes


def test_nothing_is_concluded_from_idle_depth_or_without_a_gate() -> None:
    idle = analyse(models_of(study_rows(1, gained=0.03, effects=KNOWN)), permutations=99)
    assert (idle.passed, idle.families, idle.validity) == (False, {}, None)
    none = analyse(models_of(study_rows(1, blocks=("1", "2"), effects=KNOWN)), permutations=99)
    assert (none.passed, none.families) == (None, {})
    assert "not known yet" in headline(none)
    rows = study_rows(1, blocks=("gate", "1"))
    found = analyse(models_of(rows), permutations=99)
    assert found.passed
    assert found.gate["gained"].between(0.1, 0.5).all()
    assert found.gate[["deep_layers", "shallow_layers"]].to_numpy().tolist() == [[12, 4]] * 2
    wide = [row for row in rows if not row["run"].startswith("gate-wide")]
    assert analyse(models_of(wide), permutations=99).passed, "the wide one decides nothing"
    out = [row | {"diverged": "true"} if row["run"] == "gate-run-16" else row for row in rows]
    assert analyse(models_of(out), permutations=99).passed is None


def test_what_is_not_read_need_not_be_measured() -> None:
    """Of the first models only the representation, as a study measures them: the same is told."""
    rows = study_rows(4, effects=KNOWN, telling=1.0)
    dear = [
        key for key in rows[0] if key.startswith(("skipped", "score_", "oracle", "calibration", "required"))
    ]
    early = {row["step"] for row in rows if int(row["step"]) < 976}
    assert len(early) == 6
    blank = dict.fromkeys((*dear, "representation_lens"), "")
    whole, sparse = (
        analyse(models_of(given), permutations=99)
        for given in (rows, [row | blank if row["step"] in early else row for row in rows])
    )
    pd.testing.assert_frame_equal(sparse.effects, whole.effects)
    assert sparse.validity.choice == whole.validity.choice
    assert {key: len(one.effects) for key, one in sparse.families.items()} == {
        key: len(one.effects) for key, one in whole.families.items()
    }


def test_a_score_that_only_recurrent_models_confirm_tells_nothing() -> None:
    """They skip nothing whatever they hold, and every score is low for them; of others it tells nothing."""
    rows = [
        row | {key: "0.0" if key == "skipped_code" else "-1.0" for key in row if key.startswith(CACHED)}
        if row["kind"] == "mamba2"
        else row
        for row in study_rows(24)
    ]
    found = analyse(models_of(rows), permutations=999).validity
    assert found is not None
    assert found.without_recurrent is not None
    assert (found.halves, found.without_recurrent.halves) == ((16, 16), (14, 14))
    assert (found.passed, found.without_recurrent.passed, found.holds) == (True, False, False)
    assert "rests on them, and is no finding" in choice_sentences(found)[-1]
    alone = analyse(models_of([row for row in rows if row["kind"] != "mamba2"]), permutations=999).validity
    assert alone.choice == found.without_recurrent.choice
    pd.testing.assert_frame_equal(alone.table, found.without_recurrent.table)
    few = score_validity(
        list("abcdefghijklmnopqrstuvwx"), {"x": np.arange(24.0)}, np.arange(24.0), permutations=99
    )
    none = score_validity(
        list("abcdefghijklmnopqrst"), {"x": np.arange(20.0)}, np.arange(20.0), permutations=99
    )
    said = choice_sentences(replace(few, without_recurrent=none))[-1]
    assert "Cannot be told: 10 trainings in the second half" in said
    assert said.endswith("So what was found may rest on them.")


def test_sizes_are_shown_at_their_ends_too_and_their_p_alone(findings) -> None:
    notes = findings.families["sizes"].notes
    runs = findings.study.runs
    at = runs[runs["run"].isin(SIZES) & (runs["arm"] == "")].set_index("run")["representation"]
    corner = at[["run-16", "run-19", "run-20"]].mean()
    shown = f"48: {at['run-31']:.3f}, 96: {corner:.3f}, 192: {at['run-32']:.3f}"
    said = "doubling of the width: representation of the last models, at losses of their own"
    assert f"{said}, {shown}" in notes
    assert notes[-1].startswith("p of each test alone")


def test_the_published_tables_follow_from_the_published_runs(tmp_path: Path) -> None:
    findings = analyse(read_models(PUBLISHED / "runs.csv"))
    write_report(findings, tmp_path, command="again")
    for name in ("claims", "matched"):
        ours = (tmp_path / "tables" / f"{name}.csv").read_text()
        assert ours == (PUBLISHED / f"{name}.csv").read_text(), name
    for name in (
        "effects",
        "equal_tokens",
        "scores",
        "scores_without_recurrent",
    ):  # last bits of fits depend on libraries
        found, published = (pd.read_csv(place / f"{name}.csv") for place in (tmp_path / "tables", PUBLISHED))
        pd.testing.assert_frame_equal(found, published, rtol=1e-9, atol=1e-12)
    page = html.unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    for said in (headline(findings), "opposite here", "layers skipped, KL lens", "p 0.018", "<svg"):
        assert said in page
    # Why what was called "does not" cannot be told, and a trend over widths neither.
    assert "these runs could have shown no more than 0.033: the test could not have failed" in page
    assert "+0.001 (p 0.857) after the same tokens" in page


def test_the_written_table_at_equal_tokens_is_that_of_the_runs() -> None:
    """Whole lines of docs/results/lab.md, made again from the published runs."""
    table = tables_of(analyse(read_models(PUBLISHED / "runs.csv"), permutations=1))["equal_tokens"]
    written = (RESULTS / "lab.md").read_text(encoding="utf-8").splitlines()
    groups = table.groupby("name", sort=False)
    assert len(groups) == 6
    for name, some in groups:
        figures = " | ".join(effect_text(one) for one in some.to_dict("records"))
        assert f"| {effect_name(str(name))} | {some['cells'].iloc[0]} | {figures} |" in written
    assert {*table["tokens"]} == {5_000_192}


def test_a_page_says_what_a_world_holds(findings, tmp_path: Path) -> None:
    write_report(findings, tmp_path, notes=["decided so"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for said in (
        "The gate is passed",
        "decided so",
        "holds here",
        "Layers that one more step takes",
        "Numbers",
    ):
        assert said in page
    assert {*tables_of(findings)} == {
        *("left_out", "effects", "claims", "scores", "scores_without_recurrent", "matched", "equal_tokens")
    }
    idle = analyse(models_of(study_rows(1, gained=0.03)), permutations=99)
    write_report(idle, tmp_path / "idle")
    assert "do not use their depth" in (tmp_path / "idle" / "report.html").read_text(encoding="utf-8")
