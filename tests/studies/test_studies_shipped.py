"""The study files that offramp ships: valid, planned here without a network, and true to what they say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from offramp.scoring.card import PUBLISHED_EAS
from offramp.studies import named_inputs
from offramp.studies.named_inputs import SLOW_SOURCES
from offramp.studies.plan import make_plan
from offramp.studies.study import Study, StudyPlan
from offramp.studies.study_checks import read_study
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Document, Workload

pytestmark = pytest.mark.real_model

STUDIES = Path(__file__).parents[2] / "studies"
HERE = ("compose", "strategies", "trained", "validity")
MATCHED = Path(__file__).parents[2] / "experiments" / "claims" / "matched"
ELSEWHERE = ("eas", "generations", "scale", "tuning", "types")


def quickly_loaded(source: str) -> Workload:
    """A workload; in place of one that takes seconds to put together, a small one of its own."""
    if source not in SLOW_SOURCES:
        return load_workload(source)
    return Workload(source, "text", (Document(source, "a text"),), licence="none", source="this test")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Study, StudyPlan]]:
    """Every shipped study with its plan; nothing may ask a network."""
    folder = tmp_path_factory.mktemp("folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        # That this machine can quantise takes torch to find out, and is tested elsewhere.
        patch.setattr("offramp.models.transforms.quantise.Quantised.check", lambda self, dtype=None: None)
        patch.setattr(named_inputs, "load_workload", quickly_loaded)
        # What this machine has of the Hub makes no difference to a test.
        patch.setattr(named_inputs, "find_downloaded", lambda name: None)
        studies = {path.stem: read_study(path) for path in sorted(STUDIES.glob("*.toml"))}
        return {name: (study, make_plan(study, folder)) for name, study in studies.items()}


def test_all_studies_are_there(plans: dict[str, tuple[Study, StudyPlan]]) -> None:
    assert sorted(plans) == sorted((*HERE, *ELSEWHERE))
    for name, (study, _) in plans.items():
        assert study.name == name
        assert study.settings.title
        assert study.settings.description


@pytest.mark.parametrize("name", ELSEWHERE)
def test_studies_of_the_hub_are_planned_but_blocked(
    plans: dict[str, tuple[Study, StudyPlan]], name: str
) -> None:
    study, plan = plans[name]
    assert plan.unavailable.keys() == {model.name for model in study.models}
    for model in study.models:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.source)
        assert None not in (model.family, model.generation, model.released, model.parameters, model.kind)
        assert None not in (model.stage, model.layers, model.hidden, model.vocabulary)
        # Embedding and head at least, and not more than all layers could hold.
        assert model.parameters is not None
        assert model.vocabulary is not None
        assert model.hidden is not None
        assert model.parameters > model.vocabulary * model.hidden
    for task in plan.tasks.values():
        assert (task.blocked is not None) == (task.kind == "trace")
        assert task.estimate.seconds is not None
        assert task.estimate.memory_bytes is not None


def test_hub_ids_name_one_model_each(plans: dict[str, tuple[Study, StudyPlan]]) -> None:
    facts: dict[str, dict[str, object]] = {}
    for name in ELSEWHERE:
        for model in plans[name][0].models:
            said = model.model_dump()
            assert facts.setdefault(model.source, said) == said


def test_pairs_are_what_their_kind_says(plans: dict[str, tuple[Study, StudyPlan]]) -> None:
    def paired(name: str) -> list[tuple[str, dict[str, object], dict[str, object]]]:
        models = {model.name: model.model_dump() for model in plans[name][0].models}
        pairs = tomllib.loads((MATCHED / f"{name}.toml").read_text(encoding="utf-8"))["pairs"]
        return [(pair["kind"], models[pair["first"]], models[pair["second"]]) for pair in pairs]

    for _, base, tuned in paired("tuning"):
        assert (base["stage"], tuned["stage"]) == ("base", "tuned")
        assert base["base"] == tuned["base"]
        assert base["parameters"] == tuned["parameters"]
    assert len(paired("tuning")) == len(plans["tuning"][0].models) / 2
    names = {"MoE": "moe", "SSM": "ssm", "hybrid": "hybrid"}
    for kind, first, second in paired("types"):
        assert (first["kind"], second["kind"]) == ("dense", names[kind.split()[-1]])
    for _, older, newer in paired("generations"):
        assert str(older["released"]) < str(newer["released"])


def test_models_with_published_scores_are_streamed(plans: dict[str, tuple[Study, StudyPlan]]) -> None:
    study, plan = plans["eas"]
    assert len(study.models) == len(PUBLISHED_EAS)
    assert {cell.workload for cell in plan.cells} == {"prose", "code"}
    assert {cell.kind for cell in plan.cells} == {"score", "league"}
    assert "no replication" in study.settings.description
    assert study.streamed


def test_scale_spans_two_orders_of_magnitude_within_families(
    plans: dict[str, tuple[Study, StudyPlan]],
) -> None:
    study, _ = plans["scale"]
    assert study.streamed
    for family in ("Llama", "Qwen"):
        sizes = [model.parameters or 0 for model in study.models if model.family == family]
        assert min(sizes) < 2e9
        assert max(sizes) > 65e9


def test_studies_of_this_machine_can_run_here(plans: dict[str, tuple[Study, StudyPlan]]) -> None:
    for name in HERE:
        study, plan = plans[name]
        assert not plan.unavailable
        assert all(task.blocked is None for task in plan.tasks.values())
        assert study.settings.threads == 2
        seconds = sum(task.estimate.seconds or 0 for task in plan.tasks.values())
        assert seconds < (2880 if name == "trained" else 1800)  # three quarters of an hour, as its file says
    kinds = {name: {cell.kind for cell in plans[name][1].cells} for name in HERE}
    assert kinds["strategies"] == {"score", "league", "tune", "replay", "decode"}
    assert kinds["compose"] == {"score", "combine"}
    assert kinds["trained"] == {"score", "league", "certify", "decode"}
    assert kinds["validity"] == {"score", "league", "tune", "decode"}


def test_strategies_hold_every_kind_of_policy(plans: dict[str, tuple[Study, StudyPlan]]) -> None:
    from offramp.policies.grammar import BUILT_IN, parse_policy
    from offramp.policies.rules.fixed import ORACLES

    study, plan = plans["strategies"]
    policies = [parse_policy(entry.policy) for entry in study.policies if not entry.searched]
    assert {type(policy) for policy in policies} == set(BUILT_IN)
    assert sum(not policy.reachable for policy in policies) == len(ORACLES)
    assert len({cell.workload for cell in plan.cells}) == 4
    assert study.decode is not None
    assert study.decode.best == 5


def test_validity_has_a_dozen_cells_of_one_base(plans: dict[str, tuple[Study, StudyPlan]]) -> None:
    study, plan = plans["validity"]
    assert sum(cell.kind == "score" for cell in plan.cells) >= 12
    assert {model.base for model in study.models} == {"smollm2"}
    assert "nothing is claimed" in study.settings.description
