from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import PolicyError
from offramp.policies import kinds
from offramp.policies.contract import check_policy
from offramp.policies.grammar import parse_policy, policy_from_json, policy_to_json, write_policy
from offramp.policies.kinds import Never, StaticExit, Threshold, policy_kinds
from offramp.policies.policy import ExitPolicy, Parameter
from offramp.policies.signals import SIGNALS, find_signal

SETS = st.lists(st.integers(1, 200), min_size=1, max_size=8, unique=True).map(sorted).map(tuple)
POLICIES = st.one_of(
    st.just(Never()),
    st.integers(1, 200).map(StaticExit),
    st.builds(
        Threshold,
        signal=st.sampled_from(sorted(SIGNALS)),
        value=st.floats(allow_nan=False, allow_infinity=False),
        exits=st.one_of(st.just("all"), SETS),
    ),
)


def test_the_three_kinds_are_read() -> None:
    assert parse_policy("never") == Never()
    assert parse_policy("static:exit=20") == StaticExit(20)
    text = "threshold:signal=margin,value=0.9,exits=10+15+20"
    assert parse_policy(text) == Threshold("margin", 0.9, (10, 15, 20))
    assert str(parse_policy(text)) == text
    assert parse_policy("threshold:exits=all,value=1e-3,signal=entropy") == Threshold("entropy", 0.001, "all")


@given(POLICIES)
def test_text_and_json_round_trip(policy: ExitPolicy) -> None:
    assert parse_policy(str(policy)) == policy
    assert policy_from_json(json.loads(json.dumps(policy_to_json(policy))), "here") == policy


@pytest.mark.parametrize(
    ("text", "what", "caret"),
    [
        ("", "unknown policy ''", 0),
        ("statik:exit=3", "unknown policy 'statik'", 0),
        ("static", "static needs exit=", 6),
        ("static:", "a parameter of static is missing here", 7),
        ("static:exit=", "exit has no value", 12),
        ("static:exit", "exit has no value", 11),
        ("static:exit=0", "'0' is no exit", 12),
        ("static:exit=-3", "'-3' is no exit", 12),
        ("static:exit=²", "'²' is no exit", 12),
        ("static:exit=3,exit=4", "exit is given twice", 14),
        ("static:exit=3,", "a parameter of static is missing here", 14),
        ("static:exits=3", "static has no parameter 'exits'", 7),
        ("never:exit=3", "never has no parameter 'exit'", 6),
        ("threshold:signal=marginn,value=0.9,exits=3", "unknown signal 'marginn'", 17),
        ("threshold:signal=margin,value=much,exits=3", "'much' is no number", 30),
        ("threshold:signal=margin,value=nan,exits=3", "a threshold of nan compares with nothing", 30),
        ("threshold:signal=margin,value=inf,exits=3", "a threshold of inf compares with nothing", 30),
        ("threshold:signal=margin,value=0.9,exits=3+x", "'x' is no exit", 42),
        ("threshold:signal=margin,value=0.9,exits=3++5", "'' is no exit", 42),
        ("threshold:signal=margin,value=0.9,exits=5+3", "exit 3 comes after exit 5", 42),
        ("threshold:signal=margin,value=0.9,exits=5+5", "exit 5 comes after exit 5", 42),
        ("threshold:signal=margin,value=0.9,exits=", "exits has no value", 40),
        ("threshold:signal=margin,value=0.9", "threshold needs exits=", 33),
    ],
)
def test_errors_point_at_the_character(text: str, what: str, caret: int) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(text)
    assert error.value.what == what
    assert error.value.fix
    assert error.value.where == f"\n  {text}\n  {' ' * caret}^"
    assert error.value.exit_code == 2


def test_near_matches_are_offered() -> None:
    with pytest.raises(PolicyError, match="did you mean 'margin'"):
        parse_policy("threshold:signal=marginn,value=0.9,exits=3")
    with pytest.raises(PolicyError, match="did you mean 'static'"):
        parse_policy("statik:exit=3")
    with pytest.raises(PolicyError, match="join exits with"):
        parse_policy("threshold:signal=margin,value=0.9,exits=10,20")
    with pytest.raises(PolicyError, match="did you mean 'entropy'"):
        find_signal("entropie")


@pytest.mark.parametrize(
    ("signal", "value", "exits"),
    [
        ("confidence", 0.5, (1,)),
        ("margin", float("nan"), (1,)),
        ("margin", 0.5, ()),
        ("margin", 0.5, (3, 2)),
        ("margin", 0.5, (2, 2)),
    ],
)
def test_a_threshold_built_in_python_is_held_to_the_same_rules(
    signal: str, value: float, exits: tuple[int, ...]
) -> None:
    with pytest.raises(PolicyError):
        Threshold(signal, value, exits)


def test_a_policy_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    policy = Threshold("margin", 0.1 + 0.2, (2, 5))
    write_policy(policy, path)
    assert parse_policy(str(path)) == policy
    assert json.loads(path.read_text())["parameters"]["exits"] == [2, 5]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "the policy file is no JSON"),
        ("[]", "no policy file"),
        ("{}", "no policy file"),
        ('{"schema_version": 2, "kind": "never", "parameters": {}}', "schema version 2, newer than 1"),
        ('{"schema_version": 1, "kind": "nevr", "parameters": {}}', "unknown policy 'nevr'"),
        ('{"schema_version": 1, "kind": "never"}', "parameters of never do not match"),
        ('{"schema_version": 1, "kind": "static", "parameters": {}}', "parameters of static do not match"),
        ('{"schema_version": 1, "kind": "static", "parameters": {"exit": 2.5}}', "'2.5' is no exit"),
        ('{"schema_version": 1, "kind": "static", "parameters": {"exit": true}}', "'True' is no exit"),
        ('{"schema_version": 1, "kind": "static", "parameters": {"exit": null}}', "'None' is no exit"),
    ],
)
def test_a_broken_policy_file_is_refused_by_name(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(PolicyError) as error:
        parse_policy(str(path))
    assert what in error.value.what
    assert str(path) in error.value.where


def test_a_missing_or_binary_policy_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such policy file"):
        parse_policy(str(tmp_path / "policy.json"))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="no JSON"):
        parse_policy(str(tmp_path / "binary.json"))


@dataclass(frozen=True)
class EveryOther(ExitPolicy):
    """A plug-in: leaves at an exit from `start` on once max_prob passes one half."""

    start: int

    kind: ClassVar[str] = "every-other"
    parameters: ClassVar[tuple[Parameter, ...]] = (Parameter("start", kinds.read_exit, "first exit"),)

    @property
    def facts_needed(self) -> tuple[str, ...]:
        return ("max_prob",)

    def checked_exits(self, layers: int) -> tuple[int, ...]:
        return tuple(range(self.start, layers, 2))

    def decide(self, exit: int, facts: Mapping[str, float]) -> bool:
        return "max_prob" in facts and facts["max_prob"] > 0.5

    def choose(self, trace: Any) -> Any:
        checked = self.checked_exits(trace.layers)
        passes = (trace.max_prob > 0.5) & np.isin(trace.exits, checked)
        passes[:, -1] = True
        return trace.exits[np.argmax(passes, axis=1)].astype(np.int64)


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    points: list[Any] = []

    def entry_points(group: str) -> list[Any]:
        assert group == "offramp.policies"
        return points

    monkeypatch.setattr(kinds, "entry_points", entry_points)
    policy_kinds.cache_clear()
    yield points
    policy_kinds.cache_clear()


def test_a_plug_in_joins_the_grammar_and_meets_the_contract(plug_ins: list[Any]) -> None:
    plug_ins.append(SimpleNamespace(name="every-other", value="here", load=lambda: EveryOther))
    assert check_policy(parse_policy("every-other:start=2")) == EveryOther(2)


def test_a_plug_in_that_is_no_policy_is_refused_by_name(plug_ins: list[Any]) -> None:
    plug_ins.append(SimpleNamespace(name="odd", value="odd:thing", load=lambda: 3))
    with pytest.raises(PolicyError, match="'odd' is no exit policy"):
        parse_policy("never")


def test_a_plug_in_may_not_take_a_name(plug_ins: list[Any]) -> None:
    plug_ins.append(SimpleNamespace(name="never", value="odd:Never", load=lambda: Never))
    with pytest.raises(PolicyError, match="two policies are called 'never'"):
        parse_policy("never")
