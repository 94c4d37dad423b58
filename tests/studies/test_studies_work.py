"""Every kind of work on a tiny model: what the public API gives, the same bytes twice, and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from work_cases import (
    DOCUMENT_TOKENS,
    FLOORS,
    SEED,
    TOKENS,
    Bench,
    files_of,
    planned,
    result_of,
    with_recipe,
)

import offramp
from offramp.costs.machine import machine_fingerprint
from offramp.costs.machine_registry import (
    RECIPE,
    find_machine,
    list_local_profiles,
    machine_facts,
)
from offramp.costs.timings import TimingsProfile, busy_machine
from offramp.errors import DamagedFileError, DiskFullError, InputError, ModelError, OfframpError
from offramp.files import locked_folder, write_sealed_json
from offramp.heads.file import read_heads, write_heads
from offramp.kit.typed import finite_json, from_json
from offramp.models.transforms.transform import parse_transform
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import replay_intervals
from offramp.scoring.estimate import Estimate
from offramp.studies.task import Task
from offramp.studies.work.certify import CertifyWork
from offramp.studies.work.decode import NO_EXITS, best_of_ranking
from offramp.studies.work.inputs import PROFILE_FILE
from offramp.studies.work.league import LeagueWork, Ranking
from offramp.studies.work.profile import NOTE
from offramp.studies.work.trace import TextSize, read_text_sizes
from offramp.studies.work.tune import TuneWork
from offramp.timing.contenders import GENERATE, NEVER
from offramp.timing.local_profile import StepCheck, measure_hardware
from offramp.timing.results import BenchResult, CombineResult
from offramp.tracing.fitting.fit import fit_heads
from offramp.tracing.loading import load_model
from offramp.tuning.ranking import RankedPolicy, ranking
from offramp.tuning.replayed_verdicts import judge
from offramp.tuning.tuned import read_tuned
from offramp.tuning.verdict import settle_all
from offramp.workloads.registry import load_workload
from tiny_models import LAYERS, write_documents, write_llama

POLICY = "threshold:signal=max_prob,value=0.3,exits=1+2+3"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Threads are part of a recipe, and work sets them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("work"), tiny_model, f"jsonl:{documents}#text")


@pytest.fixture(scope="module")
def traced(bench: Bench) -> Path:
    """The folder of a finished trace task."""
    return bench.run(bench.trace_task())


@pytest.fixture(scope="module")
def trace(traced: Path) -> offramp.Trace:
    return offramp.Trace.load(traced / "trace")


@pytest.fixture(scope="module")
def profiled(bench: Bench) -> Path:
    """A folder with timings of this machine, as a profile task leaves them."""
    folder = bench.root / "profiled"
    folder.mkdir()
    profile = measure_hardware(load_model(bench.model), budget_seconds=0.1)
    PROFILE_FILE.write(folder / "profile.json", profile)
    return folder


@pytest.fixture(scope="module")
def local_league(bench: Bench, traced: Path, profiled: Path) -> Path:
    """The folder of a league on this machine."""
    inputs = {"trace": traced, "profile": profiled}
    return bench.run(on_this_machine("league", floors=FLOORS), inputs, name="local league")


@pytest.fixture(scope="module")
def h100_league(bench: Bench, traced: Path) -> Path:
    """The folder of a league on a built-in machine."""
    return bench.run(on_machine("league", floors=FLOORS), {"trace": traced}, name="h100 league")


def on_this_machine(kind: str, **recipe: Any) -> Task:
    needs = {"trace": "t", "profile": "p", **NEEDS_OF_KIND.get(kind, {})}
    return planned(kind, {"seed": SEED, **OF_KIND.get(kind, {}), **recipe}, needs=needs)


NEEDS_OF_KIND = {"tune": {"league": "l"}}


OF_KIND: dict[str, dict[str, Any]] = {
    "league": {"worth": 0.05, "details": False},
    "tune": {"delta": 0.1},
}
"""What recipes of a kind say whatever else they say."""


def on_machine(kind: str, name: str = "h100", **recipe: Any) -> Task:
    """A task without a model, priced on a built-in machine."""
    fingerprint = machine_fingerprint(find_machine(name))
    return planned(
        kind,
        {"seed": SEED, "machine": fingerprint, **OF_KIND.get(kind, {}), **recipe},
        needs={"trace": "t", **NEEDS_OF_KIND.get(kind, {})},
        sources={"machine": name},
    )


def test_a_trace_is_the_public_apis(bench: Bench, trace: offramp.Trace) -> None:
    expected = offramp.trace(
        load_model(bench.model), bench.workload, TOKENS, document_tokens=DOCUMENT_TOKENS, progress=False
    )
    assert trace.fact_names == expected.fact_names
    for name in trace.fact_names:
        assert np.array_equal(trace.fact(name), expected.fact(name)), name
    assert without_places(trace.request) == without_places(expected.request)
    assert trace.documents == expected.documents


def without_places(request: Any) -> Any:
    """A trace's request without what a study's traces leave out, since it depends on where inputs lie."""
    apart = {"name", "source", "licence", "revision"}
    named = {side: {k: v for k, v in request[side].items() if k not in apart} for side in SIDES_NAMED}
    return {**request, **named}


SIDES_NAMED = ("model", "workload")


def test_the_text_of_a_trace_is_counted(bench: Bench, traced: Path, trace: offramp.Trace) -> None:
    """In ASCII bytes are characters. A document's first token is given, and what follows was observed."""
    texts = {document.id: document.text for document in load_workload(bench.workload).documents}
    model = load_model(bench.model)
    sizes = read_text_sizes(traced)
    assert sum(size.tokens for size in sizes.values()) == trace.token_count == TOKENS
    for name, size in sizes.items():
        given, *observed = model.encode(texts[name])[1 : 2 + DOCUMENT_TOKENS]
        text = model.decode(observed)
        assert texts[name].startswith(model.decode([given]) + text)
        assert size == TextSize(len(text), len(text), DOCUMENT_TOKENS)
    whole = json.loads((traced / "text.json").read_text())
    assert whole["sum"]["bytes"] == sum(size.bytes for size in sizes.values())


def test_the_same_recipe_gives_the_same_bytes(
    bench: Bench, traced: Path, profiled: Path, local_league: Path
) -> None:
    """All kinds that take no timings, run twice; the trace also from where a killed one stopped."""
    assert files_of(bench.run(bench.trace_task(), name="again")) == files_of(traced)
    killed = Path(shutil.copytree(traced, bench.root / "killed"))
    (killed / "trace" / "manifest.json").unlink()
    (killed / "text.json").unlink()
    assert files_of(bench.run(bench.trace_task(), name="killed")) == files_of(traced)
    inputs = {"trace": traced, "profile": profiled, "league": local_league}
    tasks = (
        planned("score", {"draws": 50, "seed": SEED}),
        on_machine("replay", policy=POLICY, kv="propagate", batch=1),
        on_machine("league", floors=[0.9]),
        on_this_machine("tune", floors=[0.5]),
    )
    for task in tasks:
        first, second = (bench.run(task, inputs, name=f"{task.kind} {place}") for place in "ab")
        assert files_of(first) == files_of(second), task.kind
        assert files_of(first)


def test_a_damaged_trace_is_mended(bench: Bench, traced: Path) -> None:
    folder = Path(shutil.copytree(traced, bench.root / "mended"))
    part = next((folder / "trace").glob("facts-*.parquet"))
    part.write_bytes(part.read_bytes()[:-9] + b"somewhere")
    assert files_of(bench.run(bench.trace_task(), name="mended")) == files_of(traced)


def test_a_score_is_the_public_apis(bench: Bench, traced: Path, trace: offramp.Trace) -> None:
    result = result_of(bench.run(planned("score", {"draws": 50, "seed": 7}), {"trace": traced}))
    assert result["card"] == finite_json(offramp.score(trace, draws=50, seed=7).to_json())
    assert result["documents"] == [document.id for document in trace.documents]
    assert (result["tokens"], result["layers"]) == (TOKENS, LAYERS)
    assert result["workload_fingerprint"] == load_workload(bench.workload).fingerprint
    sizes = read_text_sizes(traced)
    nats = trace.nll[:, -1].astype(np.float64).sum()
    expected = nats / math.log(2) / sum(size.bytes for size in sizes.values())
    assert result["bits_per_byte"] == pytest.approx(expected)


@pytest.mark.parametrize("kv", ["propagate", "speculate"])
def test_a_replay_is_the_public_apis(bench: Bench, traced: Path, trace: offramp.Trace, kv: str) -> None:
    task = on_machine("replay", policy=POLICY, kv=kv, batch=1)
    result = result_of(bench.run(task, {"trace": traced}))
    expected = offramp.replay(trace, POLICY, machine="h100", kv=kv, seed=SEED)
    for name, value in result["replay"].items():
        assert value == finite_json(getattr(expected, name)), name
    intervals = replay_intervals(trace, POLICY, machine="h100", kv=kv, seed=SEED)
    for name in ("agreement", "skip_ratio", "net_speedup"):
        assert result[name] == vars(getattr(intervals, name))
    assert result["net_speedup"]["value"] == pytest.approx(expected.predicted_speedup)


def test_a_league_is_the_public_apis(bench: Bench, traced: Path, trace: offramp.Trace) -> None:
    result = result_of(bench.run(on_machine("league", floors=FLOORS), {"trace": traced}))
    machine = find_machine("h100")
    entries = ranking(trace, machine, tuple(FLOORS), SEED)
    assert result["entries"] == finite_json(entries)
    verdicts = judge(trace, tuple(FLOORS), seed=SEED, machine=machine)
    assert result["verdicts"] == finite_json(verdicts)
    assert (result["machine"], result["why_empty"]) == (machine.name, None)


def test_tuning_is_the_public_apis_and_decides_what_replay_proposed(
    bench: Bench, traced: Path, trace: offramp.Trace, h100_league: Path
) -> None:
    folder = bench.run(on_machine("tune", floors=FLOORS), {"trace": traced, "league": h100_league})
    answers = TuneWork.result_in(folder)
    expected = [offramp.tune(trace, {"agreement": floor}, "h100", seed=SEED) for floor in FLOORS]
    assert list(answers.tuned) == expected
    for floor, tuned in zip(FLOORS, expected, strict=True):
        assert read_tuned(folder / f"tuned-{floor:g}.json") == tuned
    replayed = LeagueWork.result_in(h100_league).verdicts
    assert answers.verdicts == settle_all(replayed, expected)


def test_timings_of_a_needed_task_are_used(
    bench: Bench, traced: Path, profiled: Path, trace: offramp.Trace
) -> None:
    task = on_this_machine("replay", policy=POLICY, kv="propagate", batch=1)
    result = result_of(bench.run(task, {"trace": traced, "profile": profiled}))
    expected = offramp.replay(trace, POLICY, machine=_profile(profiled))
    assert result["replay"]["basis"] == "local"
    assert result["replay"]["seconds_per_token"] == expected.seconds_per_token


def _profile(folder: Path) -> TimingsProfile:
    return PROFILE_FILE.read(folder / "profile.json")


def test_a_trace_too_small_for_halves_gives_an_answer_with_the_reason(bench: Bench, tmp_path: Path) -> None:
    one = write_documents(tmp_path / "one.jsonl", documents=1)
    small = Bench(tmp_path, Path(bench.model), f"jsonl:{one}#text")
    traced = small.run(small.trace_task(tokens=DOCUMENT_TOKENS))
    found = result_of(small.run(on_machine("league", floors=FLOORS), {"trace": traced}))
    assert found["entries"] == []
    assert "trace at least 40" in found["why_empty"]
    assert [verdict["decision"] for verdict in found["verdicts"]] == ["inconclusive"] * 2
    league = small.run(on_machine("league", floors=FLOORS), {"trace": traced}, name="its league")
    inputs = {"trace": traced, "league": league}
    tuned = result_of(small.run(on_machine("tune", floors=FLOORS), inputs))["tuned"]
    assert [answer["policy"] for answer in tuned] == ["never", "never"]
    assert "not certifiable" in tuned[0]["answer"]


def test_a_trace_of_the_last_exit_alone_gives_an_answer_with_the_reason(bench: Bench) -> None:
    traced = bench.run(bench.trace_task(exits=[LAYERS], tokens=100), name="last exit")
    found = result_of(bench.run(on_machine("league", floors=FLOORS), {"trace": traced}, name="no league"))
    assert (found["entries"], len(found["verdicts"])) == ([], 2)
    assert "no exit before the last" in found["why_empty"]
    inputs = {"trace": traced, "league": bench.root / "no league"}
    found = result_of(bench.run(on_machine("tune", floors=FLOORS), inputs, name="no tuning"))
    assert found["tuned"] == []
    assert "no exit before the last" in found["why_empty"]


def heads_task(bench: Bench, **changes: Any) -> Task:
    recipe = {
        **bench.common(),
        "workloads": [bench.workload_recipe()],
        "tokens": 400,
        "exits": "all",
        "lens": True,
        "classifiers": ["correctness"],
        "seed": SEED,
    }
    sources = {"model": bench.model, "workload 0": bench.workload}
    return planned("heads", {**recipe, **changes}, sources=sources)


@pytest.fixture(scope="module")
def headed(bench: Bench) -> Path:
    """The folder of fitted heads."""
    return bench.run(heads_task(bench))


def test_the_same_inputs_elsewhere_give_the_same_figures(
    bench: Bench, traced: Path, headed: Path, documents: Path, tmp_path: Path
) -> None:
    """Under other names in another folder, and with a licence beside the weights."""
    model = Path(shutil.copytree(bench.model, tmp_path / "renamed-model"))
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    text = shutil.copy(documents, tmp_path / "renamed-text.jsonl")
    there = Bench(tmp_path / "there", model, f"jsonl:{text}#text")
    for task, other in ((bench.trace_task(), there.trace_task()), (heads_task(bench), heads_task(there))):
        assert task.key == other.key
        assert task.sources != other.sources
    elsewhere = there.run(there.trace_task())
    one, moved = (offramp.Trace.load(folder / "trace") for folder in (traced, elsewhere))
    assert all(one.fact(name).tobytes() == moved.fact(name).tobytes() for name in one.fact_names)
    assert (elsewhere / "text.json").read_bytes() == (traced / "text.json").read_bytes()
    found, wanted = (
        read_heads(folder / "heads.safetensors").arrays() for folder in (there.run(heads_task(there)), headed)
    )
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_heads_are_fitted_used_and_copied(bench: Bench, headed: Path, tmp_path: Path) -> None:
    model = load_model(bench.model)
    expected = fit_heads(
        model, bench.workload, tokens=400, lens=True, classifiers=["correctness"], seed=SEED, progress=False
    )
    write_heads(expected, tmp_path / "expected.safetensors")
    fitted = read_heads(headed / "heads.safetensors")
    assert fitted.documents == expected.documents
    arrays, wanted = fitted.arrays(), expected.arrays()
    assert arrays.keys() == wanted.keys()
    assert all(np.array_equal(arrays[name], wanted[name], equal_nan=True) for name in wanted)
    task = bench.trace_task(tokens=120)
    task = dataclasses.replace(task, needs={"heads": "h"})
    traced = offramp.Trace.load(bench.run(task, {"heads": headed}, name="through heads") / "trace")
    assert traced.request["heads"]["fingerprint"] == fitted.fingerprint
    assert "correctness" in traced.fact_names
    given = planned(
        "heads",
        {**bench.common(), "file": expected.fingerprint, "tokens": 0},
        sources={"heads": str(tmp_path / "expected.safetensors")},
    )
    copied = bench.run(given, name="copied") / "heads.safetensors"
    assert read_heads(copied).fingerprint == expected.fingerprint
    with pytest.raises(OfframpError, match="the file of exit heads is not what the study was planned with"):
        bench.run(with_recipe(given, file="0" * 64), name="other heads")


@pytest.fixture
def measured(profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Measuring that takes no time, with no profile kept yet; tasks may state other code than runs here."""
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    monkeypatch.setattr("offramp.studies.work.work.require_planned", lambda kind, task: None)
    measuring = mock.Mock(return_value=_profile(profiled))
    monkeypatch.setattr("offramp.timing.local_profile.measure_hardware", measuring)
    found = StepCheck(Estimate(1.0, 0.99, 1.01), 0.1, 12)
    monkeypatch.setattr("offramp.timing.local_profile.check_profile", lambda model, profile: found)
    return measuring


def noteless(folder: Path) -> Any:
    """The profile of a folder without the sentence that says how it was come by."""
    profile = _profile(folder)
    assert profile.details[NOTE]
    details = {name: one for name, one in profile.details.items() if name != NOTE}
    return dataclasses.replace(profile, details=details).to_json()


def profile_task(bench: Bench) -> Task:
    recipe = {**bench.common(), "machine": machine_facts(1), "seconds": 0.1}
    return planned("profile", recipe, sources={"model": bench.model})


def test_a_profile_is_measured_once_for_a_recipe(bench: Bench, measured: mock.Mock) -> None:
    """Or timings of older code would be filed under a recipe that states the code of now."""
    task = profile_task(bench)
    for number, one in enumerate((task, with_recipe(task, code="0" * 64)), start=1):
        folder = bench.run(one, name=f"measured {number}")
        assert noteless(bench.run(one, name=f"kept {number}")) == noteless(folder)
        assert measured.call_count == number
        assert _profile(folder).details[RECIPE] == one.recipe
        (kept,) = list_local_profiles()
        assert noteless(folder) == kept.to_json()


def test_a_kept_profile_that_is_off_is_measured_again(
    bench: Bench, measured: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(profile_task(bench), name="before")
    found = StepCheck(Estimate(0.8, 0.79, 0.81), 0.1, 12)
    monkeypatch.setattr("offramp.timing.local_profile.check_profile", lambda model, profile: found)
    bench.run(profile_task(bench), name="after")
    assert measured.call_count == 2


def test_on_a_busy_machine_a_study_has_no_profile(bench: Bench, measured: mock.Mock) -> None:
    measured.side_effect = busy_machine("other work kept 1.7 of 2 processors busy")
    with pytest.raises(ModelError, match=r"the machine is busy: other work kept 1\.7 of 2"):
        bench.run(profile_task(bench), name="busy")
    assert list_local_profiles() == []


def test_the_best_policies_are_distinct_reachable_and_exit() -> None:
    one = Estimate(1.0)

    def entry(
        family: str, policy: str, speedup: float | None, *, floor: float = 0.9, reachable: bool = True
    ) -> RankedPolicy:
        return RankedPolicy(
            family=family, policy=parse_policy(policy), kv="propagate", reachable=reachable, floor=floor,
            quality=one, agreement=one, skip_ratio=one, net_speedup=Estimate(speedup), seconds_per_token=one,
            plain_seconds_per_token=1.0, probe_share=0.0, probe_seconds=0.0,
        )  # fmt: skip

    entries = (
        entry("full model", "never", 1.0),
        entry("oracle", "oracle:which=saturation", 3.0, reachable=False),
        entry("slow", "static:exit=3", 0.9),
        entry("fast", "static:exit=1", 1.5),
        entry("twin", "static:exit=1", 1.5),
        entry("middle", "static:exit=2", 1.2),
        entry("undefined", "static:exit=4", None),
        entry("bold", "static:exit=5", 9.0, floor=0.5),
    )
    league = Ranking("local", "", (0.9, 0.5), entries, (), None)
    found = best_of_ranking(league, floor=0.9, count=2)
    assert [(one.family, str(one.policy)) for one in found] == [
        ("fast", "static:exit=1"),
        ("middle", "static:exit=2"),
    ]
    assert len(best_of_ranking(league, floor=0.9, count=9)) == 3
    assert best_of_ranking(league, floor=0.95, count=2) == []


def decode_task(bench: Bench, **changes: Any) -> Task:
    recipe = {
        **bench.common(),
        "workload": bench.workload_recipe(),
        "best": 2,
        "floor": 0.5,
        "new_tokens": 8,
        "prompts": 2,
        "rounds": 2,
        "seconds": 60,
        "seed": SEED,
        "machine": machine_facts(1),
    }
    needs = {"trace": "t", "league": "l", "profile": "p"}
    return planned("decode", {**recipe, **changes}, needs=needs, exclusive=True, sources=bench.sources())


@pytest.mark.usefixtures("uncollected")
def test_the_best_of_the_league_are_decoded(
    bench: Bench, traced: Path, profiled: Path, local_league: Path, documents: Path
) -> None:
    inputs = {"trace": traced, "profile": profiled, "league": local_league}
    result = result_of(bench.run(decode_task(bench), inputs))
    measured = from_json(BenchResult, result["bench"])
    assert "date" not in measured.circumstances
    best = best_of_ranking(from_json(Ranking, result_of(local_league)), floor=0.5, count=2)
    assert [one["policy"] for one in result["chosen"]] == [str(one.policy) for one in best]
    for one in result["chosen"]:
        timed = measured.contender(one["contender"])
        assert len(timed.samples) == 2 * 2  # rounds x prompts
        assert len(timed.clusters) == 2  # prompts
        assert one["free_running"]["prompts"] == 2
        assert one["characters_per_token"] > 0
    assert {NEVER, GENERATE} <= {one.name for one in measured.contenders}
    assert result["characters_per_token"] > 0
    forecasts = {one.policy: one for one in measured.forecasts}
    assert forecasts
    assert all(one.predicted is not None and one.predicted > 0 for one in forecasts.values())
    assert all(one.measured_agreement is not None for one in forecasts.values())


def test_where_no_policy_exits_that_is_the_result(
    bench: Bench, traced: Path, profiled: Path, local_league: Path
) -> None:
    inputs = {"trace": traced, "profile": profiled, "league": local_league}
    ranking = from_json(Ranking, result_of(local_league))
    assert best_of_ranking(ranking, floor=0.97, count=2) == []
    found = result_of(bench.run(decode_task(bench, floor=0.97), inputs, name="nothing"))
    assert found["why_nothing"] == NO_EXITS


@pytest.mark.usefixtures("uncollected")
def test_accelerations_are_combined(bench: Bench) -> None:
    task = planned(
        "combine",
        {
            **bench.common(),
            "machine": machine_facts(1),
            "workload": bench.workload_recipe(),
            "accelerations": ["prune:drop=2", "exits"],
            "policy": "static:exit=3",
            "new_tokens": 6,
            "prompts": 1,
            "rounds": 2,
            "seconds": 60,
            "seed": SEED,
        },
        exclusive=True,
        sources=bench.sources(),
    )
    combined = from_json(CombineResult, result_of(bench.run(task))["combined"])
    assert [one.name for one in combined.combinations] == [
        *("plain", "prune", "exits"),
        "prune + exits",
    ]


def test_what_was_not_planned_with_is_refused(bench: Bench, traced: Path, tmp_path: Path) -> None:
    refused = "is not what the study was planned with"
    task = bench.trace_task()
    with pytest.raises(OfframpError, match=f"the workload .* {refused}"):
        bench.run(with_recipe(task, workload={"fingerprint": "0" * 64}), name="refused")
    other = write_llama(tmp_path / "other", initializer_range=0.1)
    elsewhere = Bench(bench.root, other, bench.workload)
    with pytest.raises(OfframpError, match=f"the model {refused}"):
        elsewhere.run(dataclasses.replace(task, sources=elsewhere.sources()), name="refused")
    slow = dataclasses.replace(on_machine("league", floors=FLOORS), sources={"machine": "l4"})
    with pytest.raises(OfframpError, match=f"the machine .* {refused}"):
        bench.run(slow, {"trace": traced}, name="refused")
    for change, what in (
        ({"code": "0" * 64}, "the code"),
        ({"versions": {"numpy": "0.1"}}, "the library numpy"),
    ):
        with pytest.raises(OfframpError, match=f"{what}.* {refused}"):
            bench.run(with_recipe(task, **change), name="refused")
    assert not files_of(bench.root / "refused")


def test_other_machines_time_nothing(bench: Bench, traced: Path, profiled: Path, local_league: Path) -> None:
    """Neither a profile nor decoding of a study that was planned or timed on another processor."""
    facts = {**machine_facts(1), "processor": "Z80"}
    task = planned("profile", {**bench.common(), "machine": facts, "seconds": 0.1}, sources=bench.sources())
    with pytest.raises(OfframpError, match=r"this machine \(processor\) is not what .* not Z80"):
        bench.run(task, name="refused")
    other = Path(shutil.copytree(profiled, bench.root / "other machine"))
    value = _profile(profiled).to_json()
    value["details"]["machine"] = facts
    write_sealed_json(other / "profile.json", value)
    inputs = {"trace": traced, "profile": other, "league": local_league}
    with pytest.raises(OfframpError, match="not Z80"):
        bench.run(decode_task(bench), inputs, name="refused")


def test_a_task_without_what_it_needs_says_so(bench: Bench) -> None:
    with pytest.raises(OfframpError, match="was not given the trace it needs"):
        bench.run(planned("score", {"draws": 50, "seed": 0}), name="without")


def test_the_model_is_loaded_once_for_tasks_that_share_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from offramp.tracing import loading

    loads: list[object] = []
    load = loading.load_transformed
    task = bench.trace_task(tokens=40)
    pruned = with_recipe(task, model={**task.recipe["model"], "transforms": ["prune:drop=1"]})

    def counted(source: Any, **options: Any) -> Any:
        loads.append(options["transforms"])
        return load(source, **options)

    monkeypatch.setattr(loading, "load_transformed", counted)
    bench.models.clear()
    for name in ("one", "two"):
        bench.run(task, name=name)
    assert len(loads) == 1
    bench.run(pruned, name="three")
    assert loads[1:] == [(parse_transform("prune:drop=1"),)]
    bench.models.clear()


def test_layers_may_stay_on_disk(bench: Bench, traced: Path) -> None:
    streamed = bench.run(bench.trace_task(stream=True, memory=200_000), name="streamed")
    one, other = (offramp.Trace.load(folder / "trace") for folder in (streamed, traced))
    assert np.array_equal(one.top1, other.top1)
    assert read_text_sizes(streamed) == read_text_sizes(traced)


def test_prompts_cannot_be_answered_from_disk(bench: Bench) -> None:
    chat = Bench(bench.root, Path(bench.model), "chat")
    with pytest.raises(ModelError, match="need answers"):
        chat.run(chat.trace_task(stream=True), name="chat")


# --- certificates


def certify_task(bench: Bench, **changes: Any) -> Task:
    limits = {"candidates": 1, "new_tokens": 4, "seconds": 1.0, "worth": 0.05, "delta": 0.1, "floors": FLOORS}
    recipe = {**bench.common(), "workload": bench.workload_recipe(), **limits, **changes}
    task = on_machine("certify", **recipe)
    return dataclasses.replace(
        task, needs={**task.needs, "league": "l"}, sources={**task.sources, **bench.sources()}
    )


@pytest.fixture
def certified(
    bench: Bench, traced: Path, h100_league: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Certifies where decoding ends with an error; the folder."""

    def certify(error: OfframpError, **changes: Any) -> Path:
        monkeypatch.setattr("offramp.decoding.execution.tune.tune_executed", mock.Mock(side_effect=error))
        inputs = {"trace": traced, "league": h100_league}
        return bench.run(certify_task(bench, **changes), inputs, name=tmp_path.name)

    return certify


def test_what_a_model_cannot_decode_is_tuned_by_replay_and_says_why(certified: Any) -> None:
    result = result_of(certified(OfframpError("this family is only traced")))
    assert result["why_not_executed"] == "this family is only traced"
    assert [tuned["certificate"]["executed"] for tuned in result["tuned"]] == [False, False]


@pytest.mark.parametrize(
    "error", [DiskFullError("the disk is full"), DamagedFileError("the file of heads is damaged")]
)
def test_what_is_wrong_with_the_disk_fails_a_certificate_and_is_no_answer(
    certified: Any, error: OfframpError
) -> None:
    with pytest.raises(type(error), match=error.what):
        certified(error)


def test_a_certificate_of_other_inputs_or_in_another_processs_hands_fails(
    bench: Bench, certified: Any
) -> None:
    unexpected = OfframpError("nothing is decoded")
    with pytest.raises(OfframpError, match="is not what the study was planned with"):
        certified(unexpected, model={"fingerprint": "0" * 64, "transforms": []})
    folder = bench.root / "executions" / CertifyWork.of(certify_task(bench)).same_text
    with (
        locked_folder(folder),
        pytest.raises(InputError, match="another offramp process is writing into this folder"),
    ):
        certified(unexpected)
