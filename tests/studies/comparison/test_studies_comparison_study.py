"""From a study's folder to rows, strategies and failures: every figure as the API gives it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_traces import floor
from stored_traces import run
from study_cases import (
    BROKEN,
    FLOORS,
    MACHINE,
    POLICY,
    UNDECODED,
    WORKLOADS,
    StudyCase,
    bench_result,
    decoding,
    league_entry,
)

from offramp.costs.machine_registry import find_machine
from offramp.errors import DamagedFileError, InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit.typed import finite_json
from offramp.policies.grammar import parse_policy
from offramp.scoring.estimate import Estimate
from offramp.scoring.scoring import score
from offramp.studies.comparison.results import Comparison, Row, StrategyResult
from offramp.studies.comparison.study_reading import (
    TRACE,
    Finished,
    StudyReader,
    credit_of,
    decoded_strategies,
    floor_of,
    measured_speedups,
    model_fingerprint,
    read_study_folder,
)
from offramp.studies.task import StudyCell, Task
from offramp.studies.work.decode import DecodingResult
from offramp.studies.work.replay import ReplayWork
from offramp.studies.work.tune import TuneWork
from offramp.timing.results import LOOKUP, Cluster, Contender
from offramp.tracing.trace import Trace
from offramp.tuning.ranking import ranking
from offramp.tuning.tune import tune
from offramp.tuning.tuned import to_json


@pytest.fixture(scope="module")
def content(case: StudyCase) -> Comparison:
    return read_study_folder(case.folder.path)


def row_of(content: Comparison, model: str, workload: str) -> Row:
    (row,) = (one for one in content.rows if (one.model.name, one.workload) == (model, workload))
    return row


def trace_of(case: StudyCase, row: Row) -> Trace:
    return case.traces[Path(row.trace_folder or "").parent]


def strategies_of(content: Comparison, row: Row, basis: str = "predicted") -> list[StrategyResult]:
    return [
        one
        for one in content.strategies
        if (one.place.model, one.place.workload, one.basis) == (row.model.shown, row.workload, basis)
    ]


def test_there_is_a_row_for_each_finished_score(content: Comparison) -> None:
    names = [(row.model.name, row.workload) for row in content.rows]
    assert names == [(model, workload) for model in ("alpha", "alpha-it") for workload in WORKLOADS]
    assert content.title == "made-up"
    assert content.description == "Two models on two texts."


def test_rows_are_what_the_score_card_says(case: StudyCase, content: Comparison) -> None:
    for row in content.rows:
        card = score(trace_of(case, row), draws=200)
        assert finite_json(row.card) == finite_json(card)
        assert row.workload_fingerprint == WORKLOADS[row.workload]
        assert row.source == "study made-up"


def test_models_are_described_as_the_study_does(content: Comparison) -> None:
    facts = row_of(content, "alpha-it", "code").model
    assert (facts.base, facts.family, facts.generation, facts.released) == ("alpha", "A", 1.0, "2024-05")
    assert (facts.parameters, facts.kind, facts.stage, facts.shown) == (1e9, "dense", "tuned", "alpha-it")


def test_a_model_with_fewer_layers_has_not_the_parameters_of_its_file(case: StudyCase) -> None:
    reader = StudyReader(case.folder)
    cell = StudyCell("score", "", "alpha", "pruned", "prose")
    for layers, parameters in ((None, 1e9), (6, 1e9), (8, None)):
        reader.models["alpha"] = reader.models["alpha"].model_copy(update={"layers": layers})
        assert reader.traced_facts(cell, 6).parameters == parameters


def test_text_sizes_give_bits_per_byte(case: StudyCase, content: Comparison) -> None:
    for row in content.rows:
        length = 4.0 if row.model.name == "alpha" else 5.0
        assert row.bytes_per_token == length
        assert row.characters_per_token == 3.0
        nats = trace_of(case, row).nll[:, -1].mean(dtype=np.float64)
        assert row.bits_per_byte == pytest.approx(nats / np.log(2) / length)


def test_the_league_is_that_of_the_api(case: StudyCase, content: Comparison) -> None:
    row = content.rows[0]
    entries = ranking(trace_of(case, row), find_machine(MACHINE), tuple(FLOORS), 0)
    found = [one for one in strategies_of(content, row) if one.family not in ("tuned", "at 4")]
    assert len(found) == len(entries)
    for one, entry in zip(found, entries, strict=True):
        assert (one.family, one.policy, one.place.machine) == (entry.family, entry.policy, MACHINE)
        assert one.net_speedup == entry.net_speedup
        assert (one.floor, one.place.machine) == floor(entry.floor, MACHINE)
        assert one.characters_per_second == pytest.approx(3.0 / entry.seconds_per_token.value)
    assert row.exit_speedup == {
        floor(entry.floor, MACHINE): entry.net_speedup.value for entry in entries if entry.chosen
    }
    assert set(row.exit_speedup) == {floor(value, MACHINE) for value in FLOORS}
    assert max(row.exit_speedup.values()) > 1.0


def test_tuned_policies_are_answers_and_strategies(case: StudyCase, content: Comparison) -> None:
    row = content.rows[0]
    tuned = [
        tune(trace_of(case, row), {"agreement": value}, find_machine(MACHINE), seed=0) for value in FLOORS
    ]
    assert [to_json(answer) for answer in row.answers] == [to_json(one) for one in tuned]
    assert {answer.machine for answer in row.answers} == {MACHINE}
    (done,) = (cell for cell in case.cells if cell.kind == "tune")
    stored = TuneWork.result_in(case.folder.task_folder(case.tasks[done.task]))
    assert list(row.verdicts.values()) == list(stored.verdicts)
    found = [one for one in strategies_of(content, row) if one.family == "tuned"]
    assert [one.agreement for one in found] == [one.quality for one in tuned]


def test_policies_of_the_file_are_held_against_the_floors_of_the_study(content: Comparison) -> None:
    (one,) = (one for one in strategies_of(content, content.rows[0]) if one.family == "at 4")
    assert (str(one.policy), one.place.machine) == ("static:exit=4", MACHINE)
    kept = [value for value in FLOORS if one.agreement.value >= value]
    assert (one.floor, MACHINE) == floor(max(kept, default=min(FLOORS)), MACHINE)
    reached = [floor_of(Estimate(value), [0.9, 0.5]).value for value in (0.95, 0.6, 0.42)]
    assert reached == [0.9, 0.5, 0.5]
    assert one.skip_ratio.value == pytest.approx(1 - 4 / 6)
    assert one.agreement.low < one.agreement.value < one.agreement.high
    assert one.net_speedup.value > 1.0


def test_decoded_policies_stand_beside_as_measured(content: Comparison) -> None:
    row = row_of(content, "alpha", "prose")
    plain, fast, slow, none = strategies_of(content, row, "measured")
    # The head cut to the short list and prompt lookup took no turns there: what exits add is not known.
    assert {fast.credit.value, slow.credit.value, plain.credit.value} == {None}
    assert fast.credit.undefined == (
        "not timed beside it: the output head cut to the short list and prompt lookup"
    )
    assert row.measured_speedup == {floor(0.9): pytest.approx(1.25)}
    assert (plain.family, plain.plain, plain.net_speedup.value) == ("full model", True, 1.0)
    assert plain.characters_per_second == pytest.approx(3.0 / 0.05)
    assert (fast.chosen, slow.chosen) == (True, False)
    assert fast.net_speedup.value == pytest.approx(1.25)
    assert fast.skip_ratio.value == pytest.approx(1 - 4.5 / 6)
    assert fast.agreement.value == 0.97
    assert fast.agreement.no_interval == "too few prompts for an interval"
    assert slow.characters_per_second == pytest.approx(4.0 / 0.0625)
    assert (fast.answer, slow.answer) == ("faster", "slower")
    assert none.answer == "left out: there was no time"
    assert none.net_speedup.undefined == "there was no time"


def test_a_measurement_with_a_defect_is_shown_and_counts_for_nothing(content: Comparison) -> None:
    found = decoded(decoding(*BROKEN))
    for entries in ([], [league_entry(0.9, POLICY)]):
        assert measured_speedups(found, entries) == {}
    said = {one.answer for one in decoded_strategies(content.rows[0], found)}
    assert said == {f"defect: {BROKEN[0]}", "left out: there was no time"}


def test_results_of_an_older_offramp_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = StudyCase(tmp_path / "study", monkeypatch)
    trace = case.trace_task("alpha", "prose", 0.45, bytes_per_token=4)
    case.add_row("alpha", "prose", trace, ("score",))
    decode = case.task("decode", {"floor": 0.9}, needs={"trace": trace})
    case.finish(
        case.add(StudyCell("decode", "", "alpha", workload="prose"), decode), {"bench": {"validity": "VALID"}}
    )
    case.write()
    with pytest.raises(InputError, match="decode results are not what this offramp writes") as caught:
        read_study_folder(case.folder.path)
    assert "offramp study run" in caught.value.fix
    assert caught.value.where == str(case.folder.path)


def test_a_replay_of_another_policy_is_not_that_of_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = StudyCase(tmp_path / "study", monkeypatch)
    trace = case.trace_task("alpha", "prose", 0.45, bytes_per_token=4)
    case.add_row("alpha", "prose", trace, ("score", "replay"))
    case.write()
    (task,) = (task for task in case.folder.read_plan().tasks.values() if task.kind == "replay")
    assert case.folder.result(ReplayWork, task).replay.policy == parse_policy(POLICY)
    path = case.folder.task_folder(task) / "result.json"
    path.write_text(path.read_text().replace(POLICY, "static:exit=99"))
    case.folder.finish(task, 1.0)
    with pytest.raises(DamagedFileError, match=f"it is of static:exit=99 with propagate, not of {POLICY}"):
        case.folder.result(ReplayWork, task)


def decoded(result: DecodingResult) -> Finished:
    """A decode cell at a floor of 0.9."""
    cell = StudyCell("decode", "", "alpha", workload="prose", machine="local")
    return Finished(cell, Task("decode", {"floor": 0.9}), result)


def test_what_was_timed_beside_all_that_needs_no_exits_has_its_credit() -> None:
    def timed(contender: Contender, logs: tuple[float, ...], **changes: Any) -> Contender:
        clusters = tuple(Cluster(0, prompt, log, 4) for prompt, log in enumerate(logs))
        return replace(contender, clusters=clusters, **changes)

    bench = bench_result()
    fast = timed(bench.contender("fast"), (0.20, 0.22, 0.24) * 2)
    cut = timed(fast, (0.10, 0.12, 0.14) * 2, name="cut", role="short list", full_depth=True)
    lookup = Contender(LOOKUP, "peer", left_out="it cannot", full_depth=True)
    whole = replace(bench, contenders=(bench.contenders[0], fast, cut, lookup))
    credit, over = credit_of(whole, "fast", 0.9)
    assert (credit.value, over) == (pytest.approx(math.exp(0.1)), "cut")
    single = replace(whole, contenders=(bench.contenders[0], timed(fast, (0.2,)), cut, lookup))
    assert credit_of(single, "fast", 0.9)[0].undefined == "its times on the prompts say nothing"


@pytest.mark.parametrize("result", [decoding(), decoding(*BROKEN), UNDECODED])
def test_where_the_league_chose_never_to_exit_nothing_is_saved(result: DecodingResult) -> None:
    """Whatever slower policies that exit were decoded: as by prediction, its choice is what counts."""
    entries = [league_entry(0.9, "never"), league_entry(0.9, POLICY, chosen=False)]
    assert measured_speedups(decoded(result), entries) == {floor(0.9): 1.0}


def test_what_the_league_chose_at_another_floor_does_not_matter() -> None:
    entries = [league_entry(0.95, "never"), league_entry(0.9, "never", chosen=False)]
    entries += [league_entry(0.9, POLICY)]
    assert measured_speedups(decoded(decoding()), entries) == {floor(0.9): pytest.approx(1.25)}


def test_a_league_that_chose_nothing_gives_no_saving() -> None:
    """A trace too small for a league: nothing was predicted, and nothing decoded."""
    assert measured_speedups(decoded(UNDECODED), []) == {}


def test_a_damaged_league_is_not_read_for_what_was_decoded(case: StudyCase) -> None:
    reader = StudyReader(case.folder)
    (cell,) = (one for one in reader.done if (one.kind, one.workload) == ("decode", "code"))
    assert reader.league_of(cell) == (league_entry(0.95, "never"),)
    reader.conditions[reader.plan.tasks[cell.task].needs["league"]] = "damaged"
    assert reader.league_of(cell) == ()


def test_where_no_policy_exits_nothing_was_decoded_and_that_is_said(content: Comparison) -> None:
    row = row_of(content, "alpha", "code")
    assert row.measured_speedup == {floor(0.95): 1.0}
    assert strategies_of(content, row, "measured") == []
    (note,) = (note for note in content.notes if "decode" in note)
    assert note == ("alpha · code · decode · local: nothing was decoded, no policy of the ranking exits.")
    assert not any("decode" in name for name in content.failures)


def test_combined_accelerations_carry_the_names_of_the_study(content: Comparison) -> None:
    (found,) = content.combined
    assert (found.model, found.workload) == ("alpha", "code")
    assert [one.name for one in found.combinations] == ["plain", "int8"]


def test_every_cell_without_a_result_says_why(content: Comparison) -> None:
    assert content.failures == {
        "alpha + broken · prose · score": "the trace that it needs: the weights are gone",
        "alpha + failed · prose · score": "too few draws",
        "alpha + absent · prose · score": "it is not on this machine",
        "alpha + later · prose · score": "not run yet",
    }


def test_provenance_names_the_study_by_what_it_says(case: StudyCase, content: Comparison) -> None:
    assert content.provenance["study_fingerprint"] == case.study().fingerprint
    assert content.provenance["cells"] == "10 of 14 done"
    assert content.provenance["versions"] == f"numpy {np.__version__}"


def test_a_transformed_model_has_the_fingerprint_of_its_identity() -> None:
    trace = Task("trace", {"model": {"fingerprint": "f" * 64, "transforms": ["int8"]}})
    assert model_fingerprint(trace) == sha256_of_text(canonical_json(["f" * 64, ["int8"]]))


def test_a_damaged_result_is_no_row_and_is_said(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        case = StudyCase(tmp_path / "study", patch)
        for workload in WORKLOADS:
            trace = case.trace_task("alpha", workload, 0.4, bytes_per_token=4)
            cell = StudyCell("score", "", "alpha", workload=workload)
            case.finish(case.add(cell, case.task("score", {"draws": 40, "seed": 0}, needs={"trace": trace})))
        case.write()
    path = next((case.folder.path / "tasks" / "score").glob("*/result.json"))
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "bits_per_byte": 0.0}))
    content = read_study_folder(case.folder.path)
    assert len(content.rows) == 1
    assert list(content.failures.values()) == [
        "damaged: a file of it changed since it was done; the next run does it again"
    ]
    (case.folder.path / "plan.json").write_text("{}")
    with pytest.raises(DamagedFileError):
        read_study_folder(case.folder.path)


# --- how a row was traced

RECIPE = {"dtype": "bfloat16", "context": 128, "document_tokens": 32, "exits": "all", "tokens": 480}
UNSAID = {**RECIPE, "context": None, "document_tokens": None}


@pytest.mark.parametrize(
    ("recipe", "kept", "expected"),
    [
        (RECIPE, 64, {"dtype": "bfloat16", "context": 128, "document_tokens": 32}),
        # A default context is that of the trace, and is not known where none is kept.
        (UNSAID, None, {"dtype": "bfloat16", "document_tokens": None}),
        (UNSAID, 32, {"dtype": "bfloat16", "context": 32, "document_tokens": None}),
        ({"dtype": "float32"}, None, {"dtype": "float32"}),
    ],
)
def test_a_study_says_how_it_traced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: dict[str, Any],
    kept: int | None,
    expected: dict[str, Any],
) -> None:
    """kept: the context of the trace that the task left, None if it left none."""
    case = StudyCase(tmp_path / "made-up", monkeypatch)
    task = case.add(None, case.task("trace", recipe))
    folder = case.folder.start(task)
    if kept is not None:
        run(folder / TRACE, tokens=100, context=kept)
    case.folder.finish(task, 1.0)
    case.write()
    assert StudyReader(case.folder).traced_settings(task) == expected
