"""One name for one thing: texts, models and machines of several folders under the names of the first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comparison_traces import bare_row, floor, with_card

from combine_cases import combined_result
from comparison_examples import answer, decided
from offramp.policies.rules.fixed import StaticExit
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.equality import require_equal, with_shared_names, without_twins
from offramp.studies.comparison.results import (
    Comparison,
    ModelFacts,
    Place,
    Row,
    StrategyResult,
)
from offramp.studies.comparison.savings import validity_of

NOTHING = Estimate(None, undefined="not looked at")


def content(*rows: Row, title: str = "title", **fields: Any) -> Comparison:
    return Comparison(title, "", rows, **fields)


def strategy(model: str, workload: str, machine: str = "local") -> StrategyResult:
    place = Place(model, workload, "", machine)
    figures = dict.fromkeys(("agreement", "skip_ratio", "net_speedup"), NOTHING)
    where = {"place": place, "family": "f", "floor": None, "basis": "predicted"}
    return StrategyResult(policy=StaticExit(1), kv="propagate", **where, **figures)


def test_one_text_of_two_names_is_put_together() -> None:
    study = content(bare_row("a", "essays", workload_fingerprint="f"), title="study")
    run = content(
        bare_row("a", "prose", workload_fingerprint="f"),
        bare_row("a", "code", workload_fingerprint="g"),
        title="run",
        strategies=(strategy("a", "prose"), strategy("a", "code")),
        combined=(replace(combined_result({"plain": 60.0}), model="a", workload="prose"),),
        notes=("a note",),
    )
    first, second = with_shared_names([study, run])
    assert first == study
    assert [row.workload for row in second.rows] == ["essays", "code"]
    assert [one.place.workload for one in second.strategies] == ["essays", "code"]
    assert [one.workload for one in second.combined] == ["essays"]
    assert second.notes == (
        "a note",
        "The text prose of run is the same as essays of another folder, and is shown so.",
    )
    rows = without_twins([*first.rows, *second.rows])
    assert [row.workload for row in rows] == ["essays", "code"]
    assert require_equal(rows, mixed=False) == ()


def test_a_name_that_a_folder_has_for_another_text_is_not_given_again() -> None:
    first = content(bare_row("a", "essays", workload_fingerprint="f"))
    second = content(
        bare_row("a", "prose", workload_fingerprint="f"), bare_row("a", "essays", workload_fingerprint="g")
    )
    assert [row.workload for row in with_shared_names([first, second])[1].rows] == ["prose", "essays"]


def test_no_two_texts_of_a_folder_get_one_name() -> None:
    first = content(bare_row("a", "essays", workload_fingerprint="f"))
    second = content(*(bare_row("a", name, workload_fingerprint="f") for name in ("prose", "code")))
    assert [row.workload for row in with_shared_names([first, second])[1].rows] == ["essays", "code"]
    assert [row.workload for row in with_shared_names([second, second])[1].rows] == ["prose", "code"]


def test_the_same_weights_are_one_training_whatever_they_are_called() -> None:
    described = {"family": "A", "generation": 2.0, "parameters": 1e9}
    run = content(
        bare_row("a-it", "prose", model_fingerprint="1"),
        bare_row("a-it", "prose", transform="prune:drop=3", model_fingerprint="2"),
        strategies=(strategy("a-it + prune:drop=3", "prose"),),
        title="run",
    )
    study = content(
        bare_row("tuned", "code", base="a", facts=described, model_fingerprint="1"),
        bare_row("tuned", "code", base="a", transform="fewer", facts=described, model_fingerprint="2"),
    )
    found, same = with_shared_names([run, study])
    assert same == study
    assert [row.model for row in found.rows] == [row.model for row in study.rows]
    assert found.strategies[0].place.model == "tuned + fewer"
    assert found.notes[0] == "The model a-it of run is the same as tuned of another folder, and is shown so."


def test_a_runs_transformed_model_has_the_base_that_a_study_says() -> None:
    run = content(bare_row("a-it", "prose", transform="int8", model_fingerprint="3"))
    study = content(bare_row("a-it", "prose", base="a", facts={"stage": "tuned"}, model_fingerprint="1"))
    (row,) = with_shared_names([run, study])[0].rows
    assert row.model == ModelFacts("a-it", "a", transform="int8")


def test_no_two_models_of_a_folder_get_one_name() -> None:
    both = content(
        bare_row("a", "prose", model_fingerprint="1"), bare_row("b", "prose", model_fingerprint="1")
    )
    assert with_shared_names([both]) == [both]
    other = content(bare_row("a", "code", facts={"family": "A"}, model_fingerprint="1"))
    assert [row.model.name for row in with_shared_names([both, other])[0].rows] == ["a", "b"]


def test_local_is_one_machine() -> None:
    saved = answer(Estimate(1.0), "", floor=0.9)
    row = bare_row(
        "a",
        "prose",
        answers=(saved,),
        speedup={floor(0.9): 1.2, floor(0.9, "h100"): 2.0},
        measured={floor(0.9): 1.1},
    )
    row = replace(row, verdicts={floor(0.9): decided(saved)})
    other = bare_row("b", "prose", measured={floor(0.9): 1.3})
    one = content(row, strategies=(strategy("a", "prose"),), machines={"local": "fast, 2 threads"})
    found, second = with_shared_names([one, content(other, machines={"local": "slow, 2 threads"})])
    fast, slow = floor(0.9, "local (fast, 2 threads)"), floor(0.9, "local (slow, 2 threads)")
    assert found.rows[0].exit_speedup == {fast: 1.2, floor(0.9, "h100"): 2.0}
    assert found.rows[0].measured_speedup == {fast: 1.1}
    assert found.rows[0].verdicts == {fast: decided(saved)}
    assert found.rows[0].answers == (replace(saved, machine="local (fast, 2 threads)"),)
    assert found.strategies[0].place.machine == "local (fast, 2 threads)"
    assert second.rows[0].measured_speedup == {slow: 1.3}
    scored = [with_card(row, candidates={"composite": 0.1}) for row in (*found.rows, *second.rows)]
    assert validity_of(scored) == ()  # one machine's savings are not another's
    same = with_shared_names([one, content(other, machines={"local": "fast, 2 threads"}), content(other)])
    assert same[0] == one
    assert same[1].rows == same[2].rows == (other,)


def test_so_many_documents_in_all_leave_enough_to_certify_on() -> None:
    found = answer(Estimate(1.0), "as found", documents_needed=45, executed=False)
    assert found.documents_in_all > 45
    fitted = replace(found, documents={**found.documents, "heads": 3})
    assert fitted.documents_in_all == found.documents_in_all + 3
