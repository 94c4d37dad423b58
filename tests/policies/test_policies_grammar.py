"""Policies as texts, files and plug-ins, errors that point at the character, and the page on policies."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import PolicyError
from offramp.files import seal_of
from offramp.policies.grammar import (
    BUILT_IN,
    parse_policy,
    parse_policy_for,
    policy_from_json,
    policy_kinds,
    policy_to_json,
    write_policy,
)
from offramp.policies.parameter_types import DEEPEST
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows
from offramp.policies.rules.around import Filtered, Minimum, NoDeeper
from offramp.policies.rules.combined import Tasks, Votes
from offramp.policies.rules.fixed import Never, Oracle, Schedule, StaticExit
from offramp.policies.rules.learning import Adaptive, Bandit
from offramp.policies.rules.patience import Patience, Sustained
from offramp.policies.rules.short_list import AT_ALL, AT_EXITS, ShortList
from offramp.policies.rules.threshold import Decaying, Dynamic, Threshold, Thresholds
from offramp.policies.signals import SIGNALS
from offramp.testing import check_policy
from policy_traces import make_trace

EXIT_LISTS = st.lists(st.integers(1, 200), min_size=1, max_size=5, unique=True).map(sorted).map(tuple)
EXITS = st.one_of(st.just("all"), EXIT_LISTS)
COUNTS = st.integers(1, 999)
NUMBERS = st.floats(-1e30, 1e30)
COSTS = st.floats(0.0, 1e30)
CONFIDENCES = st.sampled_from(("max_prob", "margin", "restricted_margin", "correctness"))


def of_signal(drawn: Callable[[Any], Any]) -> Any:
    """A signal, and what is drawn from the thresholds within its range."""

    def thresholds(name: str) -> Any:
        signal = SIGNALS[name]
        high = min(signal.high, 1e30)
        return st.tuples(st.just(name), drawn(st.floats(signal.low, high, allow_infinity=False)))

    return st.sampled_from(sorted(SIGNALS)).flatmap(thresholds)


ONE = of_signal(lambda value: value)
PER_EXIT = EXIT_LISTS.flatmap(
    lambda exits: of_signal(lambda value: st.lists(value, min_size=len(exits), max_size=len(exits))).map(
        lambda drawn: Thresholds(drawn[0], tuple(drawn[1]), exits)
    )
)
COMPLEXITIES = st.sampled_from(("position", "running_entropy", "prompt_entropy"))
SIMPLE = st.one_of(
    st.just(Never()),
    COUNTS.map(StaticExit),
    st.tuples(COUNTS, COUNTS, st.integers(2, 99)).map(lambda s: Schedule(max(s[:2]), min(s[:2]), s[2])),
    st.builds(lambda one, exits: Threshold(*one, exits), ONE, EXITS),
    PER_EXIT,
    st.builds(lambda one, *rest: Decaying(*one, *rest), ONE, EXITS, COSTS, COUNTS),
    st.builds(lambda one, *rest: Dynamic(*one, *rest), ONE, EXITS, COMPLEXITIES, NUMBERS, NUMBERS),
    st.builds(Adaptive, CONFIDENCES, st.floats(0.01, 0.99), COUNTS, EXITS),
    st.builds(Bandit, CONFIDENCES, st.floats(0, 1), EXITS, COSTS, COSTS),
    st.builds(Patience, COUNTS, EXITS, st.sampled_from(("top1", "restricted_top1"))),
    st.builds(lambda one, *rest: Sustained(*one, *rest), ONE, COUNTS, EXITS),
)


def around(inner: Any) -> Any:
    """Policies made of others."""
    lists = st.lists(inner, min_size=1, max_size=3).map(tuple)
    tasks = lists.flatmap(
        lambda of: inner.map(lambda fallback: Tasks(("code", "chat", "txt")[: len(of)], of, fallback))
    )
    listed = st.builds(ShortList, inner, st.sampled_from((AT_EXITS, AT_ALL)))
    voters = lists.map(without_lists).flatmap(
        lambda of: st.one_of(st.sampled_from(("all", "any")), st.integers(1, len(of))).map(
            lambda need: Votes(need, of)
        )
    )
    filtered = st.builds(Filtered, CONFIDENCES, st.floats(0, 1), COUNTS, inner)
    others = st.one_of(st.builds(Minimum, COUNTS, inner), st.builds(NoDeeper, inner), filtered)
    return st.one_of(others, listed, voters, tasks)


def without_lists(policies: tuple[ExitPolicy, ...]) -> tuple[ExitPolicy, ...]:
    """Those that may vote: what an exit is read off is no voter's to choose."""
    return tuple(policy for policy in policies if not policy.short_list) or (Never(),)


POLICIES = st.one_of(
    st.sampled_from([Oracle("first_match"), Oracle("saturation")]),
    st.recursive(SIMPLE, around, max_leaves=4),
)

VOTES = "votes:need=2,of=[threshold:signal=margin,value=0.9,exits=10+15]+[patience:times=2,exits=10+15+20]"


def test_every_kind_is_read_from_its_text() -> None:
    texts = {
        "never": Never(),
        "static:exit=20": StaticExit(20),
        "threshold:signal=margin,value=0.9,exits=10+15+20": Threshold("margin", 0.9, (10, 15, 20)),
        "threshold:exits=all,value=1e-3,signal=entropy": Threshold("entropy", 0.001, "all"),
        "schedule:first=9,last=3,length=5": Schedule(9, 3, 5),
        "thresholds:signal=entropy,values=1.5+2.0,exits=3+4": Thresholds("entropy", (1.5, 2.0), (3, 4)),
        "decaying:signal=margin,value=0.9,exits=all": Decaying("margin", 0.9, "all", 4.0, 128),
        "dynamic:signal=margin,value=0.9,exits=3,complexity=position,slope=-1e-3": Dynamic(
            "margin", 0.9, (3,), "position", -0.001, 0.0
        ),
        "adaptive:signal=margin,target=0.9,warmup=4,exits=3": Adaptive("margin", 0.9, 4, (3,)),
        "bandit:signal=max_prob,value=0.9,exits=3+5": Bandit("max_prob", 0.9, (3, 5), 0.5, 1.0),
        "patience:times=2,exits=all": Patience(2, "all", "top1"),
        "sustained:signal=margin,value=0.9,times=2,exits=all": Sustained("margin", 0.9, 2, "all"),
        "minimum:exit=12,policy=[never]": Minimum(12, Never()),
        "filtered:signal=correctness,value=0.3,exit=9,policy=[static:exit=12]": Filtered(
            "correctness", 0.3, 9, StaticExit(12)
        ),
        "monotone:policy=[static:exit=3]": NoDeeper(StaticExit(3)),
        "shortlist:policy=[static:exit=3]": ShortList(StaticExit(3)),
        "shortlist:policy=[never],at=all": ShortList(Never(), "all"),
        VOTES: Votes(2, (Threshold("margin", 0.9, (10, 15)), Patience(2, (10, 15, 20)))),
        "tasks:names=code+chat,policies=[static:exit=3]+[never],fallback=[static:exit=9]": Tasks(
            ("code", "chat"), (StaticExit(3), Never()), StaticExit(9)
        ),
        "tasks:names=[continued:8+4:txt:a,b]+code,policies=[static:exit=3]+[never],fallback=[never]": Tasks(
            ("continued:8+4:txt:a,b", "code"), (StaticExit(3), Never()), Never()
        ),
        "oracle:which=saturation": Oracle("saturation"),
    }
    assert {type(policy) for policy in texts.values()} == set(BUILT_IN)
    for text, policy in texts.items():
        assert parse_policy(text) == policy
        assert parse_policy(str(policy)) == policy
        assert policy_from_json(policy_to_json(policy), "here") == policy
    # What is left out is written in the text.
    assert str(parse_policy("patience:times=2,exits=3+4+5")) == "patience:times=2,exits=3+4+5,fact=top1"


def test_a_short_lists_text_is_what_it_was_where_it_is_read_at_exits() -> None:
    """Texts of earlier versions name the same policies, and are written as they were."""
    text = "shortlist:policy=[static:exit=3]"
    assert parse_policy(f"{text},at=exits") == parse_policy(text) == ShortList(StaticExit(3), "exits")
    assert str(parse_policy(f"{text},at=exits")) == text
    assert policy_from_json(
        {"schema_version": 1, "kind": "shortlist", "parameters": {"policy": "[static:exit=3]"}}, "a file"
    ) == parse_policy(text)
    with pytest.raises(PolicyError, match="must be 'exits' or 'all'"):
        parse_policy(f"{text},at=last")


@settings(max_examples=100, deadline=None)
@given(POLICIES)
def test_text_and_json_round_trip(policy: ExitPolicy) -> None:
    assert parse_policy(str(policy)) == policy
    assert policy_from_json(json.loads(json.dumps(policy_to_json(policy))), "here") == policy


@pytest.mark.parametrize(
    ("text", "what", "caret"),
    [
        ("statik:exit=3", "unknown policy 'statik'", 0),
        ("static", "static needs exit=", 6),
        ("threshold:signal=margn,value=0.9", "unknown signal 'margn'", 17),
        ("threshold:signal=margin,value=0.9", "threshold needs exits=", 33),
        ("bandit:signal=margin,exits=5+3", "exits must be ascending, each given once, not (5, 3)", 27),
        ("static:exit=", "exit has no value", 12),
        ("static:exit", "exit has no value", 11),
        ("static:exit=0", "exit must be at least 1, not 0", 12),
        ("static:exit=²", "'²' is not an exit", 12),
        ("static:exit=3,exit=4", "exit is given twice", 14),
        ("static:exit=3,", "a parameter of static is missing here", 14),
        ("static:exits=3", "static has no parameter 'exits'", 7),
        ("static:20", "static has no parameter '20'", 7),
        ("never:exit=3", "never has no parameter 'exit'", 6),
        ("threshold:signal=marginn,value=0.9,exits=3", "unknown signal 'marginn'", 17),
        ("threshold:signal=margin,value=much,exits=3", "'much' is not a number", 30),
        ("threshold:signal=margin,value=nan,exits=3", "value must be a finite number, not nan", 30),
        ("threshold:signal=margin,value=0.9,exits=3+x", "'x' is not an exit", 42),
        (
            "threshold:signal=margin,value=0.9,exits=5+3",
            "exits must be ascending, each given once, not (5, 3)",
            40,
        ),
        (
            "threshold:signal=margin,value=0.9,exits=5+5",
            "exits must be ascending, each given once, not (5, 5)",
            40,
        ),
        (
            "static:exit=1" + 15 * "0" + "1",
            "exit must be 1,000,000,000,000,000 at most, not 10000000000000001",
            12,
        ),
        ("static:exit=" + 40 * "9", f"'{40 * '9'}' is not an exit", 12),
        (
            "threshold:signal=margin,value=2,exits=3",
            "value must be one that margin has, 0 to 1 in probability, not 2.0",
            30,
        ),
        (
            "threshold:signal=entropy,value=-1,exits=3",
            "value must be one that entropy has, 0 or more in nats, not -1.0",
            31,
        ),
        ("thresholds:signal=margin,values=0.9+x,exits=3+4", "'x' is not a number", 36),
        ("thresholds:signal=margin,values=0.9+1e+5,exits=3+4", "'1e' is not a number", 36),
        (
            "thresholds:signal=margin,values=0.9,exits=3+4",
            "values must be one for each of 2 exits, not (0.9,)",
            32,
        ),
        ("thresholds:signal=margin,values=0.9+2.0,exits=3+4", None, 32),
        ("decaying:signal=margin,value=0.9,exits=3,decay=-1", "decay must be at least 0, not -1.0", 47),
        ("decaying:signal=margin,value=0.9,exits=3,length=0", "length must be at least 1, not 0", 48),
        (
            "dynamic:signal=margin,value=0.9,exits=3,complexity=mood,slope=1",
            "complexity must be 'position', 'running_entropy' or 'prompt_entropy', not 'mood'",
            51,
        ),
        (
            "adaptive:signal=entropy,target=0.9,warmup=2,exits=3",
            "signal must be a confidence from 0 to 1, not 'entropy'",
            16,
        ),
        ("adaptive:signal=margin,target=1,warmup=2,exits=3", "target must be 0.999 at most, not 1.0", 30),
        ("bandit:signal=kl_to_previous,value=0.9,exits=3", None, 14),
        ("patience:times=0,exits=3", "times must be at least 1, not 0", 15),
        ("schedule:first=3,last=5,length=9", "last must be no deeper than exit 3, not 5", 22),
        ("schedule:first=5,last=3,length=1", "length must be at least 2, not 1", 31),
        ("oracle:which=first", "which must be 'first_match' or 'saturation', not 'first'", 13),
        ("minimum:exit=3,policy=never", "a policy within another stands in brackets", 22),
        ("minimum:exit=3,policy=[static:exit=x]", "'x' is not an exit", 35),
        ("minimum:exit=3,policy=[]", "unknown policy ''", 23),
        (
            "minimum:exit=3,policy=(threshold:signal=margin,value=0.9,exits=3)",
            "a policy within another stands in square brackets [ ]",
            22,
        ),
        ("minimum:exit=3,policy=[never", "this bracket is not closed", 22),
        ("minimum:exit=3,policy=[never]]", "this bracket closes nothing", 29),
        ("minimum:exit=3,policy=[never]+[never]", "unknown policy 'never]+[never'", 23),
        ("minimum:exit=3,policy=[policy.json]", "unknown policy 'policy.json'", 23),
        (VOTES.replace("value=0.9", "value=9"), None, VOTES.index("0.9")),
        (
            VOTES.replace("times=2", "times=x"),
            "'x' is not a whole number",
            VOTES.index("2,exits=10+15+20"),
        ),
        (VOTES.replace("need=2", "need=3"), "need must be at most 2, the policies that vote, not 3", 11),
        (VOTES.replace("need=2", "need=most"), "'most' is not a whole number", 11),
        (VOTES.replace("+[", "+", 1), "this bracket closes nothing", len(VOTES) - 2),
        ("votes:need=1,of=[never]+[oracle:which=saturation]", None, 16),
        (
            "tasks:names=code+code,policies=[never]+[never]",
            "names must be given once each, not ('code', 'code')",
            12,
        ),
        ("tasks:names=[a=b],policies=[never]", "names must be workload classes, not 'a=b'", 12),
        ("tasks:names=code+,policies=[never]+[never]", "names must be workload classes, not ''", 12),
        (
            "tasks:names=code,policies=[never]+[never]",
            "policies must be one for each of 1 names, not (Never(), Never())",
            26,
        ),
        (
            "monotone:policy=[" * (DEEPEST + 1) + "never" + "]" * (DEEPEST + 1),
            f"policies are nested more than {DEEPEST} deep",
            17 * (DEEPEST + 1) - 1,
        ),
    ],
)
def test_errors_point_at_the_character(text: str, what: str | None, caret: int) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(text)
    assert what is None or error.value.what == what
    assert error.value.fix
    assert error.value.where == f"\n  {text}\n  {' ' * caret}^"
    assert error.value.exit_code == 2


def test_exits_are_joined_by_commas_too() -> None:
    read = parse_policy("threshold:exits=10,20,25,signal=margin,value=0.9")
    assert read == parse_policy("threshold:signal=margin,value=0.9,exits=10+20+25")
    within = "votes:need=1,of=[patience:times=1,exits=2,3]+[static:exit=4]"
    assert parse_policy(within) == parse_policy(within.replace("2,3", "2+3"))


def test_near_matches_are_offered() -> None:
    with pytest.raises(PolicyError, match="did you mean 'margin'"):
        parse_policy("threshold:signal=marginn,value=0.9,exits=3")
    with pytest.raises(PolicyError, match="did you mean 'static'"):
        parse_policy("statik:exit=3")
    with pytest.raises(PolicyError, match="join exits with"):
        parse_policy("threshold:exits=10,signal=margin,20,value=0.9")
    for text, meant in (("static:20", "static:exit=20"), ("patience:3,exits=2", "patience:times=3")):
        with pytest.raises(PolicyError, match=f"write {meant}$"):
            parse_policy(text)


@pytest.mark.parametrize(
    ("signal", "value", "exits"),
    [
        ("confidence", 0.5, (1,)),
        ("margin", float("nan"), (1,)),
        ("margin", 0.5, ()),
        ("margin", 0.5, (2, 2)),
        ("hidden_cosine", -1.01, (2,)),
        ("js_to_previous", 0.7, (2, 3)),
    ],
)
def test_a_threshold_built_in_python_is_held_to_the_same_rules(
    signal: str, value: float, exits: tuple[int, ...]
) -> None:
    with pytest.raises(PolicyError):
        Threshold(signal, value, exits)


def test_a_threshold_may_lie_a_rounding_error_outside() -> None:
    rounded = float(np.float32(math.log(2.0)))
    assert rounded > math.log(2.0)
    assert Threshold("js_to_previous", rounded, (2, 3)).value == rounded


def test_a_policy_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    policy = Threshold("margin", 0.1 + 0.2, (2, 5))
    write_policy(policy, path)
    assert parse_policy(str(path)) == parse_policy(path) == policy
    assert json.loads(path.read_text())["parameters"]["exits"] == [2, 5]


TUNED = {"schema_version": 2, "kind": "tuned", "certificate": {"holds": True}}


def tuned(policy: Any, /, **edited: Any) -> str:
    """What the tuner writes, as far as the grammar reads it, edited afterwards."""
    value = {**TUNED, "policy": policy}
    return json.dumps({**value, "sha256": seal_of(value), **edited})


def plain(kind: str, parameters: Any, version: Any = 1, **more: Any) -> str:
    return json.dumps({"schema_version": version, "kind": kind, "parameters": parameters, **more})


@pytest.mark.parametrize("policy", [VOTES, policy_to_json(parse_policy(VOTES))])
def test_a_tuned_policy_is_read_from_its_file(tmp_path: Path, policy: Any) -> None:
    path = tmp_path / "policy.json"
    path.write_text(tuned(policy))
    assert parse_policy(str(path)) == parse_policy(VOTES)


def test_a_file_may_leave_defaults_out() -> None:
    value = json.loads(plain("patience", {"times": 2, "exits": [1, 2, 3]}))
    assert policy_from_json(value, "here") == Patience(2, (1, 2, 3), "top1")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "the policy file cannot be read: No such file"),
        (b"\xff\xfe\x00", "the policy file is not UTF-8"),
        ("{", "the policy file cannot be read: it is not JSON"),
        ("[]", "it holds a list, not an object"),
        ("{}", "not a policy file"),
        (plain("never", {}, 4), "schema version 4, newer than 3"),
        (plain("never", {}, 2), "not a policy file"),
        (plain("never", {}, True), "not a policy file"),
        (plain("never", {}, 1.5), "not a policy file"),
        (plain("never", {}, note=1), "no entry 'note'"),
        (plain("never", {"exit": 1}), "never has no parameter 'exit'"),
        (plain("threshold", {"signal": "margin", "value": math.nan, "exits": [2]}), "it holds NaN"),
        (
            plain("threshold", {"signal": "margin", "value": 7, "exits": [2]}),
            "one that margin has",
        ),
        (plain("monotone", {"policy": "[never"}), "not closed"),
        (plain("monotone", {"policy": {"a": 1}}), "in brackets"),
        (plain("nevr", {}), "unknown policy 'nevr'"),
        (plain("never", None), "not a policy file"),
        (plain("static", {}), "static needs exit="),
        (plain("static", {"exit": 2.5}), "'2.5' is not an exit"),
        (plain("static", {"exit": True}), "'True' is not an exit"),
        (plain("static", {"exit": None}), "'None' is not an exit"),
        (tuned(None), "not a policy file"),
        (tuned("other.json"), "not a policy file"),
        (tuned(TUNED), "not a policy file"),
        (tuned("static:exit=x"), "'x' is not an exit"),
        (tuned(json.loads(plain("static", {"exit": "x"}))), "'x' is not an exit"),
        (tuned("static:exit=3", policy="never"), "was edited since it was written"),
        (tuned("static:exit=3", certificate={"holds": False}), "was edited since it was written"),
        (tuned("static:exit=3", sha256=None), "was edited since it was written"),
    ],
)
def test_a_broken_policy_file_is_refused_by_name(
    tmp_path: Path, content: str | bytes | None, what: str
) -> None:
    path = tmp_path / "policy.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PolicyError) as error:
        parse_policy(str(path))
    assert what in error.value.what
    assert str(path) in error.value.where


@dataclass(frozen=True)
class EveryOther(ExitPolicy):
    """A plug-in: leaves at an exit from `start` on once max_prob passes one half."""

    start: int

    kind: ClassVar[str] = "every-other"

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
    plug_ins.append(point(name="every-other", value="here", load=lambda: EveryOther))
    assert check_policy(parse_policy("every-other:start=2")) == EveryOther(2)


@pytest.mark.parametrize(
    ("loaded", "what"),
    [
        (3, "a policy plug-in is of type int, not a frozen dataclass derived from ExitPolicy"),
        (Never, "the policy of the entry point 'odd' calls itself 'never'"),
        (type("Odd", (Never,), {"kind": None}), "calls itself None"),
    ],
)
def test_a_plug_in_that_is_no_policy_of_its_name_is_refused_where_it_is_asked_for(
    plug_ins: list[Any], loaded: Any, what: str
) -> None:
    plug_ins.append(point(name="odd", value="odd:thing", load=lambda: loaded))
    with pytest.raises(PolicyError, match=what):
        parse_policy("odd")
    assert parse_policy("never") == Never()
    assert what in str(policy_kinds().broken()["odd"])
    assert "odd" not in policy_kinds().usable()


def test_the_name_of_a_built_in_policy_stays_its_own(plug_ins: list[Any]) -> None:
    plug_ins.append(point(name="never", value="odd:thing", load=lambda: EveryOther))
    assert parse_policy("never") == Never()
    assert "'never' is the name of one of offramp's own" in str(policy_kinds().broken()["never"])


PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def test_every_kind_has_a_section() -> None:
    assert set(SECTIONS) == {kind.kind for kind in BUILT_IN}


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.kind)
def test_every_parameter_is_named_with_its_default_and_every_example_is_a_policy(
    kind: type[ExitPolicy],
) -> None:
    section = SECTIONS[kind.kind]
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S*?) ?\|$", section, flags=re.MULTILINE)
    defaults = {parameter.name: parameter.default for parameter in kind.parameters}
    assert [name for name, _ in rows] == list(defaults)
    assert {name: shown.strip("`") or None for name, shown in rows} == defaults
    papers = set(re.findall(r"arXiv (\d{4}\.\d{5})", (kind.__doc__ or "").replace("\n    ", " ")))
    assert papers <= set(re.findall(r"arXiv (\d{4}\.\d{5})", section))
    (examples,) = re.findall(r"^```\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    for example in examples.splitlines():
        assert isinstance(parse_policy(example), kind)


def test_every_signal_is_listed_with_its_direction_unit_and_range() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` (\| at (?:least|most) \|.*)$", PAGE, flags=re.MULTILINE))
    for name, signal in SIGNALS.items():
        high = f" to {signal.high:.4g}" if math.isfinite(signal.high) else " or more"
        assert rows[name] == f"| {signal.exit_when} | {signal.unit} | {signal.low:g}{high} |"
    assert set(rows) == set(SIGNALS)


def test_a_file_without_the_ending_of_a_policys_is_told(tmp_path: Path) -> None:
    write_policy(Never(), tmp_path / "policy.txt")
    with pytest.raises(PolicyError, match=r"name of a policy's file ends in \.json") as refused:
        parse_policy(str(tmp_path / "policy.txt"))
    assert refused.value.fix == f"rename it: {tmp_path / 'policy.txt'}.json"
    (tmp_path / "facts.parquet").write_bytes(b"PAR1")
    with pytest.raises(PolicyError, match="this is not a policy file"):
        parse_policy(str(tmp_path / "facts.parquet"))


@pytest.mark.parametrize("text", ["static:exit=99", "threshold:signal=max_prob,value=0.9,exits=2+99"])
def test_an_exit_beyond_the_trace_is_pointed_at(text: str) -> None:
    with pytest.raises(PolicyError, match="exit 99 is beyond the model, which has 6 layers") as refused:
        parse_policy_for(text, make_trace(exits=[2, 5, 6]))
    assert refused.value.where == f"\n  {text}\n  {' ' * text.index('99')}^"
