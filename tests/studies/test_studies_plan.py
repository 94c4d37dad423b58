"""The plan of a study: cells, shared tasks, jobs, what cannot be had here, and estimates."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from study_files import SETTINGS, kinds_of, plan_of, small_world, study_of, write_model, write_study

from offramp.costs.counting import REDUCTION_FLOPS
from offramp.costs.machine_registry import PROFILES, find_machine
from offramp.defaults import FLOORS
from offramp.errors import InputError
from offramp.files import canonical_json, sha256_of_file, sha256_of_text
from offramp.kit.typed import from_json, to_json
from offramp.models.source import find_source
from offramp.studies.plan import make_plan
from offramp.studies.study import StudyFile, StudyPlan
from offramp.studies.study_checks import read_study
from offramp.studies.task import Task
from offramp.studies.work.inputs import ModelUsed
from offramp.workloads.registry import load_workload

WIDE = """
models = ["a", "b"]
transforms = ["none", "prune:drop=1"]
workloads = [{ name = "one", source = "txt:one.txt" }, { name = "two", source = "txt:two.txt" }]
machines = ["local", "h100"]
policies = ["league", "tuned", { name = "half", policy = "static:exit=2" }]
[[heads]]
name = "none"
[[heads]]
name = "lens"
fit = ["one"]
[decode]
[combine]
accelerations = ["prune:drop=2", "prompt_lookup"]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and texts. Tests that change it make their own."""
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def wide(world: Path) -> StudyPlan:
    return plan_of(world, WIDE)


def tasks_of(plan: StudyPlan, kind: str) -> list[Task]:
    return [task for task in plan.tasks.values() if task.kind == kind]


def test_a_card_of_a_study_is_of_its_own_trace_alone(wide: StudyPlan) -> None:
    """One that took up the raw row would be made again when a study grows by that row."""
    assert any(cell.heads for cell in wide.cells)
    assert all(task.needs.keys() == {"trace"} for task in tasks_of(wide, "score"))


def test_cells_are_the_product_of_the_axes(wide: StudyPlan) -> None:
    plan = wide
    rows = 2 * 2 * 2 * 2  # models, transforms, workloads, heads
    assert Counter(kinds_of(plan.cells)) == {
        "score": rows,
        "league": rows * 2,
        "tune": rows * 2,
        "replay": rows * 2,
        "decode": rows,
        "combine": 2 * 2,
    }
    assert Counter(task.kind for task in plan.tasks.values()) == {
        **Counter(kinds_of(plan.cells)),
        "trace": rows,
        "heads": 2 * 2,
        "profile": 2 * 2,
    }
    assert len({(cell.kind, cell.name) for cell in plan.cells}) == len(plan.cells)
    assert {cell.transform for cell in plan.cells} == {"", "prune:drop=1"}
    assert {cell.heads for cell in plan.cells} == {"", "lens"}
    assert {cell.machine for cell in plan.cells if cell.kind == "decode"} == {"local"}


def test_recipes_hold_fingerprints_that_others_compute_too(world: Path, wide: StudyPlan) -> None:
    model = find_source(str(world / "a")).identity.base_fingerprint
    text = load_workload(f"txt:{world / 'one.txt'}").fingerprint
    trace = tasks_of(wide, "trace")[0]
    assert from_json(ModelUsed, trace.recipe["model"]) == ModelUsed(model)
    assert trace.recipe["workload"] == {"kind": "txt", "fingerprint": text, "answered": False}
    assert trace.sources == {"model": str(world / "a"), "workload": f"txt:{world / 'one.txt'}"}
    rented = [task for task in tasks_of(wide, "league") if "machine" in task.recipe]
    figures = sha256_of_text(canonical_json(find_machine("h100").to_json()))
    assert {task.recipe["machine"] for task in rented} == {figures}
    assert len(rented) == len(tasks_of(wide, "league")) / 2


def test_a_text_that_is_continued_is_found_beside_the_study(world: Path) -> None:
    study = 'models = ["a"]\nworkloads = ["continued:8+4:txt:one.txt"]\n'
    plan = plan_of(world, study)
    trace = tasks_of(plan, "trace")[0]
    source = f"continued:8+4:txt:{world / 'one.txt'}"
    fingerprint = load_workload(source).fingerprint
    text = {"kind": "continued:8+4:txt", "fingerprint": fingerprint, "answered": True}
    assert trace.recipe["workload"] == text
    assert trace.sources["workload"] == source
    with pytest.raises(InputError, match="2 does not say how many tokens"):
        plan_of(world, study.replace("8+4", "2"))


def test_what_tasks_need(wide: StudyPlan) -> None:
    kinds = ("trace", "decode")
    roles = {(kind, tuple(sorted(task.needs))) for kind in kinds for task in tasks_of(wide, kind)}
    assert roles == {
        ("trace", ()),
        ("trace", ("heads",)),
        ("decode", ("league", "profile", "trace", "tune")),
        ("decode", ("heads", "league", "profile", "trace", "tune")),
    }
    for decode in tasks_of(wide, "decode"):
        league, tune = (wide.tasks[decode.needs[role]] for role in ("league", "tune"))
        assert league.needs == {role: decode.needs[role] for role in ("trace", "profile")}
        assert tune.needs == {role: decode.needs[role] for role in ("trace", "profile", "league")}


def test_jobs_come_after_what_they_need(wide: StudyPlan) -> None:
    done: set[str] = set()
    for job in wide.jobs:
        own = {task.key for task in job.tasks}
        assert done.issuperset(job.needs)
        assert all((done | own).issuperset(task.needs.values()) for task in job.tasks)
        assert {task.exclusive for task in job.tasks} == {job.exclusive}
        assert job.memory_bytes == max(task.estimate.memory_bytes or 0 for task in job.tasks) > 0
        done |= own
    order = [job.tasks[0].kind for job in wide.jobs]
    stages = ["profile", "heads", "trace", "decode", "combine"]
    assert order == sorted(order, key=stages.index)
    assert {job.tasks[0].kind for job in wide.jobs if job.exclusive} == {"profile", "decode", "combine"}
    traces = [job.name for job in wide.jobs if job.tasks[0].kind == "trace"]
    assert traces[:3] == ["trace a · one", "trace a · one · lens", "trace a · two"]
    assert order.count("decode") == 4  # one per model that is loaded


def test_a_job_has_the_threads_of_the_study_if_any_of_its_tasks_loads_a_model(world: Path) -> None:
    text = 'models = ["a"]\nworkloads = ["txt:one.txt"]\nmachines = ["h100"]\n'
    (job,) = plan_of(world, text, SETTINGS.replace("threads = 1", "threads = 3")).jobs
    assert ["model" in task.recipe for task in job.tasks] == [True, False, False, False]
    assert job.threads == 3


def test_a_plan_survives_json_and_carries_the_study(tmp_path: Path) -> None:
    plan = plan_of(small_world(tmp_path), WIDE)
    assert from_json(StudyPlan, json.loads(canonical_json(to_json(plan)))) == plan
    assert plan.study.name == "small"
    second = plan.study.models[1]
    assert (second.name, second.layers, second.vocabulary, second.parameters) == ("b", 6, 32, 64)
    path = tmp_path / "STUDY.toml"
    assert plan.file == StudyFile(str(path), sha256_of_file(path))
    path.write_text(path.read_text() + "# edited\n")
    assert make_plan(read_study(path)).file == StudyFile(str(path), sha256_of_file(path)) != plan.file


def test_excludes_leave_out_cells_and_what_only_they_need(world: Path, wide: StudyPlan) -> None:
    excludes = """
[[exclude]]
model = "b"
transform = "prune:drop=1"
[[exclude]]
heads = "lens"
workload = "two"
[[exclude]]
kind = "decode"
[[exclude]]
policy = "half"
machine = "h100"
[[exclude]]
machine = "local"
transform = "none"
"""
    plan = plan_of(world, WIDE + excludes)
    kept = {(cell.kind, cell.name): cell.task for cell in plan.cells}
    expected = {
        (cell.kind, cell.name): cell.task
        for cell in wide.cells
        if not (cell.model == "b" and cell.transform)
        and not (cell.heads == "lens" and cell.workload == "two")
        and cell.kind != "decode"
        and not (cell.policy == "half" and cell.machine == "h100")
        and not (cell.machine == "local" and cell.transform == "" and cell.kind != "combine")
    }
    assert kept == expected
    assert len(tasks_of(plan, "profile")) == 1  # of the pruned model; no other is priced on this machine
    used = {key for task in plan.tasks.values() for key in task.needs.values()} | set(expected.values())
    assert plan.tasks.keys() == used


def test_a_league_that_others_need_is_planned_but_is_no_cell(world: Path) -> None:
    """Verdicts are its replay's, settled by the tuner and by decoding."""
    plan = plan_of(world, WIDE + '[[exclude]]\nkind = "league"\n')
    assert "league" not in kinds_of(plan.cells)
    assert len(tasks_of(plan, "league")) == len(tasks_of(plan, "tune"))


CERTIFIED = """
models = ["a"]
workloads = [{ name = "one", source = "txt:one.txt" }, { name = "two", source = "txt:two.txt" }]
machines = ["bytes moved"]
[[heads]]
name = "own classifier"
fit = ["own"]
lens = false
classifiers = ["correctness"]
[certify]
[decode]
new_tokens = "auto"
"""


def test_certificates_share_the_chance_to_be_wrong_and_say_what_is_decoded(world: Path) -> None:
    plan = plan_of(world, CERTIFIED)
    certify, decode = tasks_of(plan, "certify"), tasks_of(plan, "decode")
    assert len(FLOORS) == 3  # of which each is one more claim
    assert [task.recipe["delta"] for task in certify] == pytest.approx([0.1 / 6, 0.1 / 6])
    assert tasks_of(plan, "tune") == []
    assert [task.needs["certify"] for task in decode] == [task.key for task in certify]
    assert all(sorted(task.needs) == ["certify", "heads", "league", "trace"] for task in decode)
    assert all(task.exclusive for task in (*certify, *decode))
    assert {task.recipe["machine"] for task in certify} == {"bytes moved"}
    order = [task.kind for job in plan.jobs for task in job.tasks]
    assert order.index("decode") > max(place for place, kind in enumerate(order) if kind == "certify")


def test_heads_of_ones_own_are_fitted_on_each_text(world: Path) -> None:
    """So that a further text changes nothing of the others."""
    both = tasks_of(plan_of(world, CERTIFIED), "heads")
    assert [len(task.recipe["workloads"]) for task in both] == [1, 1]
    alone = CERTIFIED.replace(', { name = "two", source = "txt:two.txt" }', "")
    (one,) = tasks_of(plan_of(world, alone), "heads")
    assert one.key in {task.key for task in both}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (CERTIFIED.replace("machines", 'policies = ["league"]\nmachines'), "not among the policies"),
        (
            CERTIFIED.replace("[certify]\n", "").replace("bytes moved", "local"),
            "no answers are certified whose length they could have",
        ),
    ],
)
def test_certificates_that_make_no_sense_are_refused(world: Path, text: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        plan_of(world, text)


def test_models_that_are_not_here_are_blocked_and_estimated_from_the_study(world: Path) -> None:
    facts = "parameters = 1e9\nlayers = 10\nhidden = 2048\nvocabulary = 50_000\n"
    text = f"""workloads = ["txt:one.txt"]
machines = ["h100"]
policies = ["static:exit=5"]
[[models]]
name = "here"
source = "b/"
[[models]]
name = "far"
source = "nobody/far-away"
{facts}"""
    plan = plan_of(world, text)
    assert list(plan.unavailable) == ["far"]
    assert "offramp study run fetches nobody/far-away from the Hub" in plan.unavailable["far"]
    blocked = {task.kind: task for task in plan.tasks.values() if task.blocked is not None}
    assert list(blocked) == ["trace"]  # what needs it cannot go on, which its own state says
    assert blocked["trace"].blocked == f"far: {plan.unavailable['far']}"
    estimate = blocked["trace"].estimate
    assert estimate.seconds is not None
    assert estimate.memory_bytes is not None
    assert estimate.memory_bytes > 1.1 * 4e9  # float32
    assert estimate.seconds > 64 * 2e9 / 4e10
    too_deep = text.replace('name = "here"\nsource = "b/"', 'name = "b"').replace("exit=5", "exit=11")
    with pytest.raises(InputError, match="does not fit b: exit 11 is beyond the model, which has 6 layers"):
        plan_of(world, too_deep)
    with pytest.raises(InputError, match="does not fit far: exit 11 is beyond the model, which has 10"):
        plan_of(world, too_deep + '[[exclude]]\nmodel = "b"\npolicy = "static:exit=11"\n')


def test_a_model_that_does_not_fit_is_blocked_unless_it_is_streamed(world: Path) -> None:
    text = 'models = [{ name = "huge", source = "nobody/huge", parameters = 1e15 }]\n'
    text += 'workloads = ["txt:one.txt"]\nmachines = ["h100"]\n'
    for download in (False, True):  # what does not fit is not fetched either
        plan = make_plan(study_of(world, text), download=download)
        assert "its weights take 4,000.0 TB in float32" in plan.unavailable["huge"]
    streamed = plan_of(world, text + '[large]\nmemory = "8GB"\n')
    assert "fetches nobody/huge" in streamed.unavailable["huge"]
    trace = tasks_of(streamed, "trace")[0]
    assert (trace.recipe["stream"], trace.recipe["memory"]) == (True, 8_000_000_000)
    assert 8e9 < (trace.estimate.memory_bytes or 0) < 1e10


def test_models_of_other_contexts_are_refused_before_anything_runs(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    for name, length in (("a", 4096), ("b", 48)):
        write_model(world / name, max_position_embeddings=length)
    study = 'models = ["a", "b"]\nworkloads = [{ name = "one", source = "txt:one.txt" }]\n'
    with pytest.raises(InputError, match="b takes 48 at most") as refused:
        plan_of(world, study)
    assert refused.value.fix == "write context = 48 in the table [study]"
    assert plan_of(world, study, f"{SETTINGS}context = 48\n").cells


def test_without_a_network_downloads_are_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked: list[str] = []

    def unreachable(name: str, **_: object) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        asked.append(name)
        raise LocalEntryNotFoundError("no answer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    small_world(tmp_path)
    text = 'models = ["nobody/one", "nobody/two"]\nworkloads = ["txt:one.txt"]\nmachines = ["h100"]\n'
    plan = make_plan(study_of(tmp_path, text), download=True)
    assert set(plan.unavailable) == {"nobody/one", "nobody/two"}
    assert all("the Hub cannot be reached" in why for why in plan.unavailable.values())
    assert asked == [
        "nobody/one",
        "nobody/one",
        "nobody/two",
    ]  # the first also on the net, the second here only


def test_a_model_in_the_cache_of_the_hub_is_found_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_model(tmp_path / "snapshots" / "0123abcd", layers=3)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(snapshot))
    small_world(tmp_path)
    text = 'models = ["nobody/here"]\nworkloads = ["txt:one.txt"]\nmachines = ["h100"]\n'
    plan = plan_of(tmp_path, text)
    assert not plan.unavailable
    assert plan.study.models[0].layers == 3
    (snapshot / "model.safetensors").unlink()  # a download that was stopped
    assert "fetches nobody/here" in plan_of(tmp_path, text).unavailable["nobody/here"]


def test_a_workload_that_cannot_be_had_blocks_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    small_world(tmp_path)
    text = 'models = ["a"]\nmachines = ["h100"]\nworkloads = ["txt:one.txt",'
    plan = plan_of(tmp_path, text + '{ name = "far", source = "hf:nobody/texts#test#text" }]\n')
    assert "pip install 'offramp[datasets]'" in plan.unavailable["far"]
    assert [task.blocked is None for task in tasks_of(plan, "trace")] == [True, False]


def test_paths_are_relative_to_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "inside"
    small_world(inside)
    (inside / "mine.toml").write_bytes((PROFILES / "h100.toml").read_bytes())
    path = write_study(inside, 'models = ["a"]\nworkloads = ["txt:one.txt"]\nmachines = ["mine.toml"]\n')
    plans = []
    for here in (tmp_path, inside):
        monkeypatch.chdir(here)
        plans.append(make_plan(read_study(path.relative_to(here))))
    assert list(plans[0].tasks) == list(plans[1].tasks)
    sources = {source for task in plans[0].tasks.values() for source in task.sources.values()}
    assert sources == {str(inside / "a"), f"txt:{inside / 'one.txt'}", str(inside / "mine.toml")}


def test_estimates_grow_with_what_there_is_to_do(world: Path) -> None:
    facts = "parameters = 1e9\nlayers = 10\nhidden = 2048\nvocabulary = 50_000\n"
    text = 'workloads = ["txt:one.txt"]\nmachines = ["h100"]\n[[models]]\nname = "nobody/x"\n' + facts

    def trace(settings: str, text: str = text) -> tuple[float, int, int]:
        estimate = tasks_of(plan_of(world, text, 'name = "s"\n' + settings), "trace")[0].estimate
        assert None not in (estimate.seconds, estimate.memory_bytes, estimate.disk_bytes)
        return estimate.seconds, estimate.memory_bytes, estimate.disk_bytes  # type: ignore[return-value]

    plain = trace("threads = 1\ntokens = 2000\n")
    more_tokens = trace("threads = 1\ntokens = 4000\n")
    more_threads = trace("threads = 4\ntokens = 2000\n")
    fewer_exits = trace("threads = 1\ntokens = 2000\nexits = [5]\n")
    small = trace('threads = 1\ntokens = 2000\ndtype = "bfloat16"\n')
    assert more_threads[0] < plain[0] < more_tokens[0]
    assert fewer_exits[0] < plain[0]
    assert small[1] < plain[1] == more_tokens[1]
    assert 2 * plain[2] == more_tokens[2]
    assert plain[2] == 5 * fewer_exits[2]
    answers = trace("threads = 1\ntokens = 2000\n", text.replace("txt:one.txt", "chat"))
    assert answers[0] > plain[0]


def test_decoding_is_estimated_from_its_turns(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # That this machine can quantise takes torch to find out, and is tested elsewhere.
    monkeypatch.setattr("offramp.models.transforms.quantise.Quantised.check", lambda self, dtype=None: None)
    axes = """workloads = ["txt:one.txt"]
machines = ["local"]
[[models]]
name = "nobody/x"
parameters = 1e9
layers = 10
hidden = 2048
vocabulary = 50_000
[decode]
best = 2
prompts = 3
new_tokens = 10
rounds = {rounds}
seconds = {seconds}
[combine]
accelerations = ["int8", "prune:drop=2", "prompt_lookup"]
prompts = 3
new_tokens = 10
rounds = 2
"""

    def seconds(kind: str, rounds: int, budget: float) -> float:
        text = axes.format(rounds=rounds, seconds=budget)
        found = tasks_of(plan_of(world, text, 'name = "s"\nthreads = 1'), kind)[0].estimate.seconds
        assert found is not None
        return found

    # Four billion bytes at ten a second, ten layers at 0.3 ms; six seconds and four billion bytes to load.
    step, loading = 0.403, 10.0
    # Two operations a weight, and at the last exit some more for each of its elements; 40 billion a second.
    head = 2048 * 50_000
    prompt = 64 * (2 * 1e9 + head * (2 + REDUCTION_FLOPS / 2048)) / 4e10
    once = prompt + 10 * step
    turn = (2 + 3) * once
    assert seconds("decode", 5, 1.0) == pytest.approx(loading + turn * (1 + 2))
    assert seconds("decode", 5, 1000.0) == pytest.approx(loading + turn * (1 + 3 * 5))
    assert seconds("decode", 5, turn * 7) == pytest.approx(loading + turn * 7)
    assert seconds("decode", 1, 1000.0) == pytest.approx(loading + turn * (1 + 3))
    # Four models, each decoded plainly and by lookup, less the plain one that is among the plain ones.
    together = (4 * 2 - 1 + 3) * once
    assert seconds("combine", 1, 1.0) == pytest.approx(loading + max(together * 3, 120.0))


def test_planning_imports_no_torch(tmp_path: Path) -> None:
    path = write_study(small_world(tmp_path), WIDE, SETTINGS)
    program = (
        "import sys\n"
        "from offramp.studies.plan import make_plan\n"
        "from offramp.studies.study_checks import read_study\n"
        f"make_plan(read_study({str(path)!r}))\n"
        "assert not {'torch', 'transformers', 'scipy', 'sklearn'} & sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
