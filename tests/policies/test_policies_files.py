from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from offramp.errors import PolicyError
from offramp.files import seal_of
from offramp.policies.grammar import (
    parse_policy,
    policy_from_json,
    policy_kinds,
    policy_to_json,
    write_policy,
)
from offramp.policies.parameters import read_exit
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Parameter, Rows
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.patience import Patience
from offramp.policies.rules.threshold import Threshold
from offramp.testing import check_policy

VOTES = "votes:need=2,of=[threshold:signal=margin,value=0.9,exits=10+15]+[patience:times=2,exits=10+15+20]"


def test_a_policy_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    policy = Threshold("margin", 0.1 + 0.2, (2, 5))
    write_policy(policy, path)
    assert parse_policy(str(path)) == policy
    assert json.loads(path.read_text())["parameters"]["exits"] == [2, 5]


TUNED = {"schema_version": 2, "kind": "tuned", "certificate": {"holds": True}}


def tuned(policy: Any) -> dict[str, Any]:
    """What the tuner writes, as far as this room reads it."""
    value = {**TUNED, "policy": policy}
    return {**value, "sha256": seal_of(value)}


@pytest.mark.parametrize("policy", [VOTES, policy_to_json(parse_policy(VOTES))])
def test_a_tuned_policy_is_read_from_its_file(tmp_path: Path, policy: Any) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(tuned(policy)))
    assert parse_policy(str(path)) == parse_policy(VOTES)


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        (None, "not a policy file"),
        ("other.json", "not a policy file"),
        (TUNED, "not a policy file"),
        ("static:exit=x", "'x' is not an exit"),
        ({"schema_version": 1, "kind": "static", "parameters": {"exit": "x"}}, "'x' is not an exit"),
    ],
)
def test_a_tuned_policy_without_one_is_refused(tmp_path: Path, policy: Any, what: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(tuned(policy)))
    with pytest.raises(PolicyError) as error:
        parse_policy(str(path))
    assert what in error.value.what
    assert str(path) in error.value.where


@pytest.mark.parametrize("change", [{"policy": "never"}, {"certificate": {"holds": False}}, {"sha256": None}])
def test_a_tuned_policy_edited_by_hand_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**tuned("static:exit=3"), **change}))
    with pytest.raises(PolicyError, match="was edited since it was written"):
        parse_policy(str(path))


def test_a_file_may_leave_defaults_out() -> None:
    parameters = {"times": 2, "exits": [1, 2, 3]}
    value = {"schema_version": 1, "kind": "patience", "parameters": parameters}
    assert policy_from_json(value, "here") == Patience(2, (1, 2, 3), "top1")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "the policy file is not JSON"),
        ("[]", "not a policy file"),
        ("{}", "not a policy file"),
        ('{"schema_version": 4, "kind": "never", "parameters": {}}', "schema version 4, newer than 3"),
        ('{"schema_version": 2, "kind": "never", "parameters": {}}', "not a policy file"),
        ('{"schema_version": true, "kind": "never", "parameters": {}}', "not a policy file"),
        ('{"schema_version": 1.5, "kind": "never", "parameters": {}}', "not a policy file"),
        ('{"schema_version": 1, "kind": "never", "parameters": {}, "note": 1}', "no entry 'note'"),
        ('{"schema_version": 1, "kind": "never", "parameters": {"exit": 1}}', "do not match"),
        (
            '{"schema_version": 1, "kind": "threshold", "parameters": '
            '{"signal": "margin", "value": NaN, "exits": [2]}}',
            "nan is not finite",
        ),
        (
            '{"schema_version": 1, "kind": "threshold", "parameters": '
            '{"signal": "margin", "value": 7, "exits": [2]}}',
            "margin is never 7",
        ),
        ('{"schema_version": 1, "kind": "monotone", "parameters": {"policy": "[never"}}', "not closed"),
        ('{"schema_version": 1, "kind": "monotone", "parameters": {"policy": {"a": 1}}}', "in brackets"),
        ('{"schema_version": 1, "kind": "nevr", "parameters": {}}', "unknown policy 'nevr'"),
        ('{"schema_version": 1, "kind": "never"}', "parameters of never do not match"),
        ('{"schema_version": 1, "kind": "static", "parameters": {}}', "parameters of static do not match"),
        ('{"schema_version": 1, "kind": "static", "parameters": {"exit": 2.5}}', "'2.5' is not an exit"),
        ('{"schema_version": 1, "kind": "static", "parameters": {"exit": true}}', "'True' is not an exit"),
        ('{"schema_version": 1, "kind": "static", "parameters": {"exit": null}}', "'None' is not an exit"),
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
    with pytest.raises(PolicyError, match="not JSON"):
        parse_policy(str(tmp_path / "binary.json"))


@dataclass(frozen=True)
class EveryOther(ExitPolicy):
    """A plug-in: leaves at an exit from `start` on once max_prob passes one half."""

    start: int

    kind: ClassVar[str] = "every-other"
    parameters: ClassVar[tuple[Parameter, ...]] = (Parameter("start", read_exit, "first exit"),)

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        return dict.fromkeys(range(self.start, layers, 2), ("max_prob",))

    def decider(self, layers: int, streams: int) -> Decider:
        return AboveHalf()


class AboveHalf(Decider):
    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return np.asarray(facts["max_prob"] > 0.5)


def point(**facts: Any) -> Any:
    """An entry point as one that is installed."""
    return SimpleNamespace(group="offramp.policies", **facts)


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    points: list[Any] = []

    def entry_points(group: str) -> list[Any]:
        assert group == "offramp.policies"
        return points

    monkeypatch.setattr("offramp.plug_ins.entry_points", entry_points)
    policy_kinds.cache_clear()
    yield points
    policy_kinds.cache_clear()


def test_a_plug_in_joins_the_grammar_and_meets_the_contract(plug_ins: list[Any]) -> None:
    plug_ins.append(
        SimpleNamespace(group="offramp.policies", name="every-other", value="here", load=lambda: EveryOther)
    )
    assert check_policy(parse_policy("every-other:start=2")) == EveryOther(2)


def test_a_plug_in_that_is_no_policy_is_refused_by_name(plug_ins: list[Any]) -> None:
    plug_ins.append(point(name="odd", value="odd:thing", load=lambda: 3))
    with pytest.raises(PolicyError, match="a policy plug-in is of type int, not a subclass of ExitPolicy"):
        parse_policy("never")


def test_a_plug_in_may_not_take_a_name(plug_ins: list[Any]) -> None:
    plug_ins.append(
        SimpleNamespace(group="offramp.policies", name="never", value="odd:Never", load=lambda: Never)
    )
    with pytest.raises(PolicyError, match="two policies are called 'never'"):
        parse_policy("never")
