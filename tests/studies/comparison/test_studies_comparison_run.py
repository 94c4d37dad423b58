"""A run's folder to rows and strategies: summaries as `offramp run` writes them, of synthetic traces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_traces import easy_documents, synthetic_trace
from jsonschema import Draft202012Validator
from study_cases import BROKEN, DOCUMENTS, LENGTH, bench_result

from combine_cases import combined_result
from offramp.costs.hardware import find_machine
from offramp.errors import DamagedFileError, InputError, OfframpError
from offramp.files import canonical_json, sha256_of_text, write_sealed_json
from offramp.records.typed import to_json
from offramp.report.run_result import Decoded, DecodedPolicy, RunResult, WorkloadResult, price_list
from offramp.report.summary import SCHEMA_VERSION, summarise, summary_schema
from offramp.scoring.scoring import score
from offramp.studies.comparison.run_rows import VERSION, is_run_folder, read_run_folder
from offramp.studies.comparison.shared_names import with_shared_names
from offramp.tuning.judging import judge
from offramp.tuning.pricing import BYTES
from offramp.tuning.ranking import ranking
from offramp.tuning.tune import tune

FLOORS = (0.9, 0.5)
HEADS = {
    "documents": 40,
    "exits": 5,
    "lens": True,
    "lens_explained": 0.8,
    "output": False,
    "imported": False,
    "classifiers": {"correctness": {"exits": 5, "better_than_chance": 5, "auroc": 0.8}},
}


@pytest.fixture(scope="module")
def run() -> RunResult:
    """One workload, searched on a machine, with two policies decoded."""
    machine = find_machine("h100")
    agrees = easy_documents(np.random.default_rng(0), 0.45, documents=DOCUMENTS, length=LENGTH)
    trace = synthetic_trace(agrees, length=LENGTH)
    policies = tuple(
        DecodedPolicy(name, f"static:exit={exit_}", "propagate", "because", floor)
        for name, exit_, floor in (("fast", 4, 0.9), ("slow", 5, None))
    )
    workload = WorkloadResult(
        name="prose",
        mode="text",
        trace=trace,
        card=score(trace, draws=100),
        frontiers=(),
        verdicts=judge(trace, FLOORS, machine=machine),
        passage=None,
        grid=None,
        notes=(),
        trace_folder="traces/tiny/prose",
        seconds=1.0,
        league=ranking(trace, machine, FLOORS),
        tuned=(tune(trace, {"agreement": 0.5}, machine),),
    )
    return RunResult(
        model_name="tiny + int8",
        layers=6,
        workloads=(workload,),
        provenance={
            "offramp": "0.1.0",
            "model_fingerprint": "f" * 64,
            "transforms": ["int8"],
            "traced": {"prose": {"fingerprint": "w" * 64}},
            "dtype": "float32",
        },
        measured={},
        command="offramp run tiny --transform int8",
        hardware=price_list(machine, machine.token_costs(trace.shape, 4.0)),
        heads=HEADS,
        decoding=(Decoded("prose", bench_result(), policies, "2026-01-31"),),
        not_decoded={"code": "no policy exits"},
        combined=combined_result({"plain": 60.0, "int8": 40.0}),
    )


def folder_of(tmp_path: Path, run: RunResult, **changes: Any) -> Path:
    summary = summarise(run)
    Draft202012Validator(summary_schema()).validate(summary)
    write_sealed_json(tmp_path / "summary.json", {**summary, **changes})
    return tmp_path


def test_a_run_gives_rows_of_its_score_cards(tmp_path: Path, run: RunResult) -> None:
    content = read_run_folder(folder_of(tmp_path, run))
    (row,) = content.rows
    (workload,) = run.workloads
    assert (row.model.name, row.model.base, row.model.transform) == ("tiny", "tiny", "int8")
    assert row.model.shown == run.model_name
    assert (row.workload, row.heads) == ("prose", "linear lens, correctness")
    assert row.scores["composite"] == workload.card.composite
    assert row.candidates == workload.card.candidates
    assert (row.tokens, row.documents) == (DOCUMENTS * LENGTH, DOCUMENTS)
    assert row.curves["agreement"] == tuple(workload.card.curves.values["agreement"])
    assert (row.workload_fingerprint, row.model_fingerprint) == ("w" * 64, "f" * 64)
    assert row.trace_folder == str(tmp_path / "traces/tiny/prose")
    assert row.bits_per_byte is None
    assert row.source == f"run {tmp_path.name}"
    assert "counts as an independent training" in content.notes[0]
    assert content.provenance == {"offramp": "0.1.0", "dtype": "float32"}


def test_league_tuner_and_decoding_are_those_of_the_run(tmp_path: Path, run: RunResult) -> None:
    content = read_run_folder(folder_of(tmp_path, run))
    (row,), (workload,) = content.rows, run.workloads
    predicted = [one for one in content.strategies if one.basis == "predicted"]
    assert [(one.family, one.policy, one.net_speedup) for one in predicted] == [
        (entry.family, entry.policy, entry.net_speedup) for entry in workload.league
    ]
    assert [one.seconds_per_token for one in predicted] == [
        entry.seconds_per_token for entry in workload.league
    ]
    assert row.exit_speedup == {
        f"agreement={entry.floor:g} | h100": entry.net_speedup.value
        for entry in workload.league
        if entry.chosen
    }
    (saving,), (tuned,) = row.savings, workload.tuned
    assert (saving.floor, saving.machine, saving.policy) == ("agreement=0.5", "h100", tuned.policy_text)
    assert (saving.net_speedup, saving.answer) == (tuned.net_speedup, tuned.answer)
    assert (saving.documents, saving.kv) == (tuned.certificate.documents, tuned.kv)
    fast, slow = (one for one in content.strategies if one.basis == "measured")
    assert (fast.family, fast.floor, fast.chosen) == ("static", "agreement=0.9", True)
    assert (slow.floor, slow.chosen) == ("", True)
    assert fast.net_speedup.value == pytest.approx(1.25)
    assert fast.skip_ratio.value == pytest.approx(1 - 4.5 / 6)
    assert fast.agreement.undefined == "not judged"
    assert (fast.seconds_per_token, fast.characters_per_second) == (0.04, None)
    assert {one.machine for one in (fast, slow)} == {"local"}  # wherever its time was predicted for
    assert row.measured_speedup == {"agreement=0.9 | local": pytest.approx(1.25)}
    assert content.failures == {"tiny + int8 · code · decode": "no policy exits"}
    assert content.combined == (to_json(run.combined),)


def test_a_measurement_with_a_defect_saves_nothing(tmp_path: Path, run: RunResult) -> None:
    decoded = replace(run.decoding[0], bench=bench_result(*BROKEN))
    content = read_run_folder(folder_of(tmp_path, replace(run, decoding=(decoded,))))
    assert content.rows[0].measured_speedup == {}
    assert {one.answer for one in content.strategies if one.basis == "measured"} == {f"defect: {BROKEN[0]}"}


def test_without_a_machine_bytes_are_no_seconds(tmp_path: Path, run: RunResult) -> None:
    bare = replace(run, hardware=None, heads=None, decoding=(), combined=None)
    content = read_run_folder(folder_of(tmp_path, bare))
    assert {one.machine for one in content.strategies} == {BYTES}
    assert {one.seconds_per_token for one in content.strategies} == {None}
    assert set(content.rows[0].exit_speedup) == {f"agreement={floor:g} | {BYTES}" for floor in FLOORS}
    assert content.rows[0].heads == ""
    assert content.combined == ()


def test_the_version_is_that_of_the_summary() -> None:
    assert VERSION == SCHEMA_VERSION


@pytest.mark.parametrize("version", [VERSION + 1, VERSION - 1])
def test_other_versions_are_refused(tmp_path: Path, run: RunResult, version: int) -> None:
    folder = folder_of(tmp_path, run, schema_version=version)
    with pytest.raises(InputError, match=f"the summary has schema version {version}"):
        read_run_folder(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "null"])
def test_damaged_summaries_are_said_to_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert is_run_folder(tmp_path)
    with pytest.raises(DamagedFileError, match="the summary of the run is not what offramp writes"):
        read_run_folder(tmp_path)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("provenance", {}),
        ("provenance", None),
        ("hardware", {"source": "its data sheet"}),
        ("scores", [{}]),
        ("scores", "text"),
        ("league", [{"workload": "prose"}]),
        ("tuned", [1]),
        ("decoding", {"not_decoded": [], "workloads": []}),
        ("decoding", None),
    ],
)
def test_incomplete_summaries_are_said_to_be(tmp_path: Path, run: RunResult, part: str, value: Any) -> None:
    folder = folder_of(tmp_path, run, **{part: value})
    with pytest.raises(DamagedFileError, match="the summary of the run is not what offramp writes") as error:
        read_run_folder(folder)
    assert error.value.where == str(folder / "summary.json")
    assert "offramp run" in error.value.fix


def test_no_flipped_bit_of_a_summary_is_believed(tmp_path: Path, run: RunResult) -> None:
    path = folder_of(tmp_path, run) / "summary.json"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(changed)
        with pytest.raises(OfframpError, match=r"not what offramp writes|schema version"):
            read_run_folder(tmp_path)
    path.write_bytes(whole.replace(b"0.", b"0.1", 1))
    with pytest.raises(DamagedFileError, match="SHA-256 differs"):
        read_run_folder(tmp_path)


def test_a_summary_of_only_a_version_lacks_a_named_part(tmp_path: Path) -> None:
    write_sealed_json(tmp_path / "summary.json", {"schema_version": VERSION})
    with pytest.raises(DamagedFileError, match=r"\(no 'provenance'\)"):
        read_run_folder(tmp_path)


def test_a_run_says_what_its_machines_are(tmp_path: Path, run: RunResult) -> None:
    built_in = sha256_of_text(canonical_json(find_machine("h100").to_json()))
    assert read_run_folder(folder_of(tmp_path, run)).machines == {"h100": f"profile {built_in[:12]}"}
    timed = {"processor": "fast", "threads": 2, "hardware_fingerprint": "a" * 64}
    own = replace(run, provenance={**run.provenance, **timed})
    assert read_run_folder(folder_of(tmp_path, own)).machines == {
        "h100": "profile aaaaaaaaaaaa",
        "local": "fast, 2 threads",
    }
    local = replace(own, hardware={**(run.hardware or {}), "name": "local"})
    assert read_run_folder(folder_of(tmp_path, local)).machines == {"local": "fast, 2 threads"}
    bare = replace(run, hardware=None)
    assert read_run_folder(folder_of(tmp_path, bare)).machines == {}


def test_a_profile_of_ones_own_is_not_the_built_in_one_of_its_name(tmp_path: Path, run: RunResult) -> None:
    """Also in a run that has no fingerprint of it."""
    own = replace(run, hardware={**(run.hardware or {}), "source": "my own data sheet"})
    folders = [tmp_path / "built in", tmp_path / "own"]
    for folder, one in zip(folders, (run, own), strict=True):
        folder.mkdir()
        folder_of(folder, one)
    first, second = with_shared_names([read_run_folder(folder) for folder in folders])
    machines = [{one.machine for one in content.strategies} - {"local"} for content in (first, second)]
    assert [len(names) for names in machines] == [1, 1]
    assert machines[0] != machines[1]
    assert not first.rows[0].exit_speedup.keys() & second.rows[0].exit_speedup.keys()
    assert "The machine h100 of" in first.notes[-1]
