"""Keys of tasks: they change with what changes a result, with nothing else, and stay when a study grows."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_files import plan_of, small_world, write_model

from offramp import files
from offramp.errors import OfframpError
from offramp.files import PACKAGE, source_fingerprint
from offramp.kit.code import code_of, forget_code, reached_from
from offramp.kit.given_file import Source
from offramp.policies import grammar as policies
from offramp.studies.plan import make_plan
from offramp.studies.study import Study, StudyPlan
from offramp.studies.work.replay import ReplayWork
from offramp.studies.work.work import require_planned, works


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small_world(tmp_path_factory.mktemp("world"))
    write_model(folder / "c", layers=4, seed=2)
    return folder


def keys_of(plan: StudyPlan, kind: str | None = None) -> set[str]:
    return {key for key, task in plan.tasks.items() if kind in (None, task.kind)}


SETTINGS = {"name": "s", "tokens": 64, "threads": 1}
SOURCES = {"workloads": "source", "policies": "policy", "machines": "source"}
"""What an entry of an axis is besides its name."""
AXES: dict[str, list[Any]] = {
    "models": ["a", "b", "c"],
    "workloads": ["txt:one.txt", "txt:two.txt", "chat"],
    "transforms": ["none", "prune:drop=1", {"name": "two fewer", "steps": ["prune:drop=2+3"]}],
    "machines": ["local", "h100", "a100"],
    "policies": ["league", "tuned", "never", "static:exit=1", {"name": "sure", "policy": "static:exit=2"}],
    "heads": ["none", {"name": "lens", "fit": ["txt:one.txt"]}, {"name": "judge", "fit": ["chat"]}],
    "trainings": [
        "none",
        {"name": "block", "kind": "block"},
        {"name": "trained", "kind": "lens", "steps": 9},
    ],
}


def plan_from(world: Path, values: dict[str, Any]) -> StudyPlan:
    """The plan of a study that is not read from a file; paths start from the world's folder."""
    study = Study.model_validate({"study": SETTINGS, **values})
    study._source = Source(world / "STUDY.toml", "study file", {})
    return make_plan(study)


def entries(axis: str) -> st.SearchStrategy[list[Any]]:
    """One or two entries of an axis, in any order."""
    places = st.lists(st.sampled_from(range(len(AXES[axis]))), min_size=1, max_size=2, unique=True)
    return places.map(lambda chosen: [AXES[axis][place] for place in chosen])


@st.composite
def studies(draw: st.DrawFn) -> dict[str, Any]:
    study: dict[str, Any] = {axis: draw(entries(axis)) for axis in AXES}
    if "none" not in study["trainings"]:
        study["heads"] = ["none"]  # nothing would be read through others
    if "local" in study["machines"] and "league" in study["policies"] and draw(st.booleans()):
        study["decode"] = {}
    if draw(st.booleans()):
        study["combine"] = {"accelerations": ["prune:drop=1", "prompt_lookup"]}
    return study


@st.composite
def grown(draw: st.DrawFn, study: dict[str, Any]) -> dict[str, Any]:
    """The study with one more entry on one axis."""
    heads_are_read = "none" in study["trainings"]
    axis = draw(st.sampled_from(sorted(axis for axis in AXES if axis != "heads" or heads_are_read)))
    more = draw(st.sampled_from([entry for entry in AXES[axis] if entry not in study[axis]]))
    place = draw(st.integers(0, len(study[axis])))
    return {**study, axis: [*study[axis][:place], more, *study[axis][place:]]}


def relabelled(study: dict[str, Any]) -> dict[str, Any]:
    """The study under other names, with other facts about its models."""
    facts = {"family": "F", "released": "2020-01", "stage": "base", "generation": 7}
    models = [{"name": f"my {name}", "source": name, **facts} for name in study["models"]]
    labels = {"title": "T", "description": "D", "name": "t"}
    others = {axis: [renamed(key, entry) for entry in study[axis]] for axis, key in SOURCES.items()}
    return {**study, **others, "models": models, "study": {**SETTINGS, **labels}}


def renamed(key: str, entry: Any) -> Any:
    return {"name": f"my {entry}", key: entry} if isinstance(entry, str) else {**entry, "name": "mine"}


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_any_study_has_distinct_cells_and_grows_without_redoing(world: Path, data: st.DataObject) -> None:
    study = data.draw(studies())
    plan = plan_from(world, study)
    shown = [cell.task for cell in plan.cells]
    assert len(set(shown)) == len(shown)
    assert all(plan.tasks[cell.task].kind == cell.kind for cell in plan.cells)
    done: set[str] = set()
    for key, task in plan.tasks.items():
        assert key == task.key
        assert done.issuperset(task.needs.values())
        done.add(key)
    assert sorted(task.key for job in plan.jobs for task in job.tasks) == sorted(plan.tasks)
    more = data.draw(grown(study))
    # The tuner's answers settle what was decoded, as soon as a study asks for them.
    settled = "tuned" in more["policies"] and "tuned" not in study["policies"]
    assert keys_of(plan) - (keys_of(plan, "decode") if settled else set()) <= keys_of(plan_from(world, more))
    assert keys_of(plan_from(world, relabelled(study))) == keys_of(plan)


LENS = {"name": "lens", "fit": ["txt:one.txt"], "tokens": 100}
ONE = {"name": "one", "policy": "static:exit=1"}
COMBINE = {"accelerations": ["prompt_lookup", "exits"], "policy": "static:exit=1"}
LOAD: dict[str, Any] = {"name": "steady", "policies": ["tuned"], "options": {"rates": "1,2"}}
BASE: dict[str, Any] = {
    "models": ["a"],
    "workloads": ["txt:one.txt"],
    "machines": ["h100", "local"],
    "policies": ["league", "tuned", ONE],
    "heads": [LENS],
    "transforms": ["none", "prune:drop=1"],
    "decode": {},
    "combine": COMBINE,
    "loads": [LOAD],
}
OF_MODEL = {"heads", "trace", "profile", "score", "replay", "league", "tune", "decode", "combine", "load"}
OF_TRACE = {"trace", "score", "replay", "league", "tune", "decode", "load"}
SEARCHED = {"league", "tune", "decode", "load"}


def in_order(value: object) -> str:
    """A parameter's text, sets sorted: processes that share tests must agree on their names."""
    return " ".join(sorted(value)) or "nothing" if isinstance(value, set) else str(value)


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"tokens": 128}, OF_TRACE),
        ({"dtype": "bfloat16"}, OF_MODEL),
        ({"threads": 2}, OF_MODEL),
        ({"exits": [1, 2]}, OF_TRACE | {"heads"}),
        ({"context": 64}, OF_TRACE),
        ({"document_tokens": 16}, OF_TRACE),
        ({"signals": ["logit_gap"]}, OF_TRACE),
        ({"floors": [0.95, 0.90]}, SEARCHED),
        ({"seed": 1}, OF_MODEL - {"profile"}),
        ({"draws": 500}, {"score"}),
        ({"title": "T", "description": "D"}, set()),
    ],
    ids=in_order,
)
def test_settings_change_the_keys_of_what_they_change(
    world: Path, base: StudyPlan, change: dict[str, Any], changed: set[str]
) -> None:
    require_changed(base, plan_from(world, {**BASE, "study": {**SETTINGS, **change}}), changed)


@pytest.mark.parametrize(
    ("axis", "entry", "changed"),
    [
        ("models", [{"name": "a", "source": "c"}], OF_MODEL),
        ("workloads", [{"name": "txt:one.txt", "source": "txt:two.txt"}], OF_MODEL - {"profile"}),
        ("heads", [{**LENS, "tokens": 200}], {"heads", *OF_TRACE}),
        ("heads", [{**LENS, "fit": ["txt:two.txt"]}], {"heads", *OF_TRACE}),
        ("heads", [{**LENS, "classifiers": ["adainfer"]}], {"heads", *OF_TRACE}),
        ("decode", {"best": 2}, {"decode"}),
        ("decode", {"floor": 0.9}, {"decode"}),
        ("decode", {"new_tokens": 16}, {"decode"}),
        ("decode", {"prompts": 2}, {"decode"}),
        ("decode", {"rounds": 2}, {"decode"}),
        ("decode", {"seconds": 60}, {"decode"}),
        ("combine", {**COMBINE, "policy": "static:exit=2"}, {"combine"}),
        ("combine", {**COMBINE, "seconds": 60}, {"combine"}),
        ("combine", {**COMBINE, "accelerations": ["exits"]}, {"combine"}),
        ("loads", [{**LOAD, "policies": ["tuned", "static:exit=2"]}], {"load"}),
        ("loads", [{**LOAD, "options": {"rates": "1,2", "rows": 8}}], {"load"}),
        ("policies", ["league", "tuned", {**ONE, "policy": "static:exit=2"}], {"replay"}),
        ("policies", ["league", "tuned", {**ONE, "kv": "recompute"}], {"replay"}),
        ("policies", ["league", "tuned", {**ONE, "batch": 8}], {"replay"}),
    ],
    ids=in_order,
)
def test_entries_change_the_keys_of_what_they_change(
    world: Path, base: StudyPlan, axis: str, entry: Any, changed: set[str]
) -> None:
    require_changed(base, plan_from(world, {**BASE, axis: entry}), changed)


BLOCK = {"name": "block", "kind": "block", "steps": 100}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "lens"},
        {"steps": 200},
        {"steps": None, "minutes": 2.0},
        {"text": ["txt:two.txt"]},
        {"tokens": 2000},
        {"units": 16},
        {"short_list": 16},
        {"loss_vocabulary": 0},
        {"precision": "float32"},
        {"name": "other", "at": [1, 2, 3]},
    ],
    ids=in_order,
)
def test_what_decides_trained_exits_changes_them_and_what_is_read_through_them(
    world: Path, change: dict[str, Any]
) -> None:
    """A name and exits that are the study's anyway do not."""
    study = {"models": ["a"], "workloads": ["txt:one.txt"], "machines": ["h100"], "policies": ["league"]}
    study["trainings"] = ["none", BLOCK]
    named = {key: value for key, value in {**BLOCK, **change}.items() if value is not None}
    before, after = plan_from(world, study), plan_from(world, {**study, "trainings": ["none", named]})
    if "at" in change:
        before = plan_from(world, {**study, "study": {**SETTINGS, "exits": "1,2,3"}})
        after = plan_from(
            world, {**study, "study": {**SETTINGS, "exits": [1, 2, 3]}, "trainings": ["none", named]}
        )
    gone = [before.tasks[key].kind for key in keys_of(before) - keys_of(after)]
    assert sorted(gone) == ([] if "at" in change else ["league", "score", "trace", "training"])


def test_a_seed_is_part_of_whatever_draws_with_it(world: Path) -> None:
    """Without heads, whose seed the traces through them would pass on."""
    plain = {**BASE, "heads": ["none"]}
    before = plan_from(world, plain)
    after = plan_from(world, {**plain, "study": {**SETTINGS, "seed": 1}})
    kept = {kind for kind in OF_MODEL - {"heads"} if keys_of(before, kind) == keys_of(after, kind)}
    assert kept == {"trace", "profile"}


@pytest.fixture(scope="module")
def base(world: Path) -> StudyPlan:
    return plan_from(world, BASE)


def require_changed(before: StudyPlan, after: StudyPlan, changed: set[str]) -> None:
    """No task of these kinds keeps its key, and every other does."""
    assert {kind for kind in OF_MODEL if not keys_of(before, kind) & keys_of(after, kind)} == changed
    assert {kind for kind in OF_MODEL if keys_of(before, kind) == keys_of(after, kind)} == OF_MODEL - changed


def test_streaming_and_its_budget_are_part_of_a_trace(world: Path) -> None:
    study = {"models": ["a"], "workloads": ["txt:one.txt"], "machines": ["h100"]}
    plans = [
        plan_from(world, {**study, **large})
        for large in ({}, {"large": {}}, {"large": {"memory": "1GB"}}, {"large": {"memory": "2GB"}})
    ]
    assert len(set().union(*(keys_of(plan, "trace") for plan in plans))) == 4


def test_a_changed_file_changes_the_keys(tmp_path: Path) -> None:
    text = 'models = ["a"]\nworkloads = ["txt:one.txt"]\nmachines = ["mine.toml"]\npolicies = ["league"]\n'
    text += "transforms = ['prune:by=angular,layers=1,workload=txt:measured.txt']\n"
    text = text.replace("txt:measured.txt", f"txt:{tmp_path / 'two.txt'}")
    small_world(tmp_path)
    machine = tmp_path / "mine.toml"
    shutil.copy(PACKAGE / "costs" / "machines" / "h100.toml", machine)
    plans = [plan_of(tmp_path, text)]
    machine.write_text(machine.read_text().replace('name = "h100"', 'name = "other"'))
    plans.append(plan_of(tmp_path, text))
    (tmp_path / "two.txt").write_text("layers are chosen on another text\n")
    plans.append(plan_of(tmp_path, text))
    (tmp_path / "one.txt").write_text("another text is traced\n")
    plans.append(plan_of(tmp_path, text))
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace("}", ', "rope_theta": 5.0}'))
    plans.append(plan_of(tmp_path, text))
    assert len(keys_of(plans[0], "trace") | keys_of(plans[1], "trace")) == 1
    assert len(set().union(*(keys_of(plan, "trace") for plan in plans))) == 4
    assert len(set().union(*(keys_of(plan, "league") for plan in plans))) == 5


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that keys are of."""
    copy = tmp_path / "offramp"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(files, "PACKAGE", copy)
    forget_code()
    yield copy
    monkeypatch.undo()
    forget_code()


def reached_by(kind: str) -> set[str]:
    """The modules that a kind's key covers, by the files that are there now."""
    forget_code()
    return set(reached_from(works()[kind].__module__))


def test_other_code_gives_other_keys(copied: Path) -> None:
    kinds = set(works())
    reached = {kind: set(reached_from(works()[kind].__module__)) for kind in kinds}
    for module, moved in (
        ("defaults", kinds),
        ("tracing.trace", kinds),
        ("tracing.tracer", {"trace", "score", "load"}),
        ("scoring.scoring", {"score"}),
        ("timing.local_profile", {"profile"}),
        ("training.loop", {"training"}),
        ("studies.work.score", {"score"}),
        ("studies.work.inputs", kinds),
        ("studies.named_inputs", set()),
        ("studies.fitness", set()),
        ("studies.plan", set()),
        ("report.page", set()),
    ):
        assert {kind for kind in kinds if f"offramp.{module}" in reached[kind]} == moved, module
    modules = {kind: works()[kind].__module__ for kind in ("score", "replay")}
    before = {kind: code_of(module) for kind, module in modules.items()}
    changed = copied / "scoring" / "scoring.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    forget_code()
    assert [code_of(module) == before[kind] for kind, module in modules.items()] == [False, True]


@pytest.mark.parametrize(
    ("added", "part"),
    [
        ("from offramp.report import page", True),
        ("def f():\n    import offramp.report.page", True),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import offramp.report.page", True),
        ("if not TYPE_CHECKING:\n    import offramp.report.page", True),
        ("try:\n    pass\nexcept OSError:\n    import offramp.report.page", True),
        ("match 1:\n    case 1:\n        import offramp.report.page", True),
        ("if TYPE_CHECKING:\n    import offramp.report.page", False),
    ],
)
def test_an_import_that_is_added_to_a_work_is_part_of_its_key_unless_it_is_for_types_alone(
    copied: Path, added: str, part: bool
) -> None:
    work = copied / "studies" / "work" / "replay.py"
    work.write_text(f"{work.read_text()}\n{added}\n")
    assert ("offramp.report.page" in reached_by("replay")) is part
    assert "offramp.report.page" not in reached_by("score")


PLUG_IN = """
from dataclasses import dataclass
from typing import ClassVar
from offramp.policies.rules.fixed import StaticExit

@dataclass(frozen=True)
class Mine(StaticExit):
    kind: ClassVar[str] = "mine"
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The source of an installed policy "mine"."""
    source = tmp_path / "plug_in_of_keys.py"
    source.write_text(PLUG_IN)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("mine", "plug_in_of_keys:Mine", policies.ENTRY_POINTS)
    monkeypatch.setattr(
        "offramp.plug_ins.entry_points", lambda group: [point] if group == point.group else []
    )
    policies.policy_kinds.cache_clear()
    yield source
    policies.policy_kinds.cache_clear()
    sys.modules.pop("plug_in_of_keys", None)


@pytest.mark.parametrize("policy", ["mine:exit=1", "minimum:exit=1,policy=[mine:exit=1]"])
def test_the_code_of_a_plug_in_is_part_of_what_uses_it(world: Path, plug_in: Path, policy: str) -> None:
    study = {**BASE, "policies": ["league", {"name": "one", "policy": policy}]}
    before = plan_from(world, study)
    assert not any("plug_ins" in task.recipe for task in before.tasks.values() if task.kind != "replay")
    plug_in.write_text(PLUG_IN + "# changed\n")
    after = plan_from(world, study)
    moved = {kind for kind in OF_MODEL if keys_of(before, kind) != keys_of(after, kind)}
    assert moved == {"replay"}
    (task, *_) = [task for task in after.tasks.values() if task.kind == "replay"]
    require_planned(ReplayWork, task)
    plug_in.write_text(PLUG_IN)
    with pytest.raises(OfframpError, match="the plug-in plug_in_of_keys is not what the study was planned"):
        require_planned(ReplayWork, task)


def test_the_libraries_that_compute_a_kind_are_part_of_it(base: StudyPlan) -> None:
    versions = {task.kind: set(task.recipe["versions"]) for task in base.tasks.values()}
    assert versions["trace"] == {"torch", "transformers", "tokenizers", "numpy", "scipy"}
    assert versions["score"] == {"numpy", "scipy"}
    assert versions["decode"] == versions["trace"]
    assert versions["heads"] == versions["trace"] | {"scikit-learn"}


def test_a_fingerprint_of_rooms_is_of_names_and_bytes() -> None:
    assert source_fingerprint("scoring") == source_fingerprint("scoring", "scoring/components.py")
    assert source_fingerprint("scoring") != source_fingerprint("scoring", "costs")


def test_words_that_could_not_be_counted_are_counted_once_they_can_be(
    whisper: Path, sounds: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = {"models": [str(whisper)], "workloads": [f"audio:{sounds}"], "certify": {}}
    texts = {"models": ["a"], "workloads": ["txt:one.txt"], "certify": {}}

    def certify_recipe(values: dict[str, Any]) -> dict[str, Any]:
        values = {**values, "policies": ["tuned"], "machines": ["h100"]}
        (task,) = [task for task in plan_from(world, values).tasks.values() if task.kind == "certify"]
        return dict(task.recipe)

    with_it = certify_recipe(spoken)
    assert with_it.pop("counted_by")
    assert "counted_by" not in certify_recipe(texts)
    monkeypatch.setattr("offramp.scoring.text_quality.COUNTER", "no-such-package-of-offramp")
    assert certify_recipe(spoken) == with_it
