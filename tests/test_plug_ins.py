"""Plug-ins that do wrong: whatever it is, their name stands in the error, and nobody else is stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from command_line import run_offramp
from offramp.costs.machine import machine_prices, profile_of
from offramp.costs.machine_registry import find_machine
from offramp.errors import InputError, PolicyError, WorkloadError
from offramp.models.transforms.transform import TRANSFORMS, apply_transform, parse_transform
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy, policy_kinds
from offramp.testing.contracts import example_shape
from offramp.testing.transforms import example_model
from offramp.tracing.loading import read_transforms
from offramp.workloads.registry import load_workload
from policy_traces import make_trace

Install = Callable[[str, str], str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes a plug-in "mine" of a group known, of a module's source; gives the words of its entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    module = f"module_of_{tmp_path.name}"

    def forget() -> None:
        policy_kinds.cache_clear()
        vars(TRANSFORMS).pop("_points", None)
        sys.modules.pop(module, None)

    def known(group: str, source: str) -> str:
        (tmp_path / f"{module}.py").write_text(source)
        point = EntryPoint("mine", f"{module}:Mine", f"offramp.{group}")
        monkeypatch.setattr(
            "offramp.plug_ins.entry_points", lambda group: [point] if group == point.group else []
        )
        forget()
        return f"entry point mine = {module}:Mine in the group offramp.{group}"

    yield known
    forget()


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("raise ValueError('boom')", "ValueError: boom"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import asyncio; raise asyncio.CancelledError('gone')", "CancelledError: gone"),
        ("class Mine(", "SyntaxError: '\\(' was never closed"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("Other = 1", "no attribute 'Mine'"),
        ("Mine = 1", "of type int"),
    ],
)
@pytest.mark.parametrize(
    ("group", "ask", "other", "listed"),
    [
        ("workloads", load_workload, lambda: load_workload("prose:short"), "workloads"),
        ("policies", parse_policy, lambda: parse_policy("static:exit=2"), "policies"),
        ("transforms", parse_transform, lambda: parse_transform("int8"), "transforms"),
        ("hardware", find_machine, lambda: find_machine("h100"), "hardware"),
    ],
)
def test_one_that_does_not_load_is_named_and_stops_nobody_else(
    install: Install,
    group: str,
    ask: Callable[[str], Any],
    other: Callable[[], Any],
    listed: str,
    source: str,
    what: str,
) -> None:
    place = install(group, source)
    with pytest.raises(InputError, match=what) as refused:
        ask("mine")
    assert refused.value.where == place
    assert other() is not None
    outcome = run_offramp("list", listed).require(0)
    assert "cannot be used" in outcome.out


WORKLOAD = """
from offramp.workloads.workload import Document, Workload, WorkloadSource

def load(argument):
    {}

Mine = WorkloadSource("{}", load, "text", "n", "l", "d")
"""


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return None", "an object of type NoneType, not a Workload"),
        ("return ['a text']", "an object of type list, not a Workload"),
        ("return {}['x']", "the workload mine failed: KeyError: 'x'"),
        ("raise SystemExit", "the workload mine failed: SystemExit"),
        ("return Workload('mine', 'text', ('a', 'b'), 'l', 's')", "documents cannot be tuple"),
        ("return Workload('prose', 'text', (Document('a', 'x'),), 'l', 's')", "mine calls itself 'prose'"),
        ("return Workload('mine', 'text', (Document('a', 'x', (5, -7)),), 'l', 's')", "at least 0"),
    ],
)
def test_a_workload_that_is_none_is_named(install: Install, body: str, what: str) -> None:
    place = install("workloads", WORKLOAD.format(body, "mine"))
    with pytest.raises(WorkloadError, match=what) as refused:
        load_workload("mine")
    assert place in refused.value.where


@pytest.mark.parametrize("name", ["yours", "given", "continued"])
def test_a_workload_has_the_name_of_its_entry_point(install: Install, name: str) -> None:
    install("workloads", WORKLOAD.format("return None", name))
    with pytest.raises(WorkloadError, match=f"'mine' calls itself '{name}'"):
        load_workload("mine")


POLICY = """
import sys
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from offramp.policies.policy import Decider, ExitPolicy

class Leaves(Decider):
    def __init__(self, streams):
        self.count = streams

    def decide(self, exit, facts):
        return {decide}

@dataclass(frozen=True)
class Mine(ExitPolicy):
    value: int = {value}

    kind: ClassVar[str] = "mine"

    def needs(self, layers):
        return {needs}

    def decider(self, layers, streams):
        return {decider}

    {more}
"""
WORDLESS = "class Wordless(Exception):\n    def __str__(self):\n        raise ValueError\n\n"
ALL_LEAVE = {
    "decide": "np.ones(self.count, bool)",
    "value": "1",
    "needs": "{1: ('max_prob',)}",
    "decider": "Leaves(streams)",
    "more": "",
}


def test_a_policy_that_answers_as_it_should_is_replayed(install: Install) -> None:
    install("policies", POLICY.format(**ALL_LEAVE))
    trace = make_trace()
    assert (replay_decisions(parse_policy("mine"), trace).exits == 1).all()
    install("policies", POLICY.format(**{**ALL_LEAVE, "decide": "[True] * self.count"}))
    assert (replay_decisions(parse_policy("mine"), trace).exits == 1).all()


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ({"decide": "1 / 0"}, "the policy mine failed: ZeroDivisionError: division by zero"),
        ({"decide": "np.full(self.count, np.nan)"}, r"it answers float64 \[\d+\] for \d+ streams"),
        ({"decide": "np.ones(self.count + 1, bool)"}, r"it answers bool \[\d+\] for \d+ streams"),
        ({"decide": "True"}, r"it answers True for \d+ streams"),
        ({"decide": "facts['entropy'] > 1"}, "reads 'entropy', which needs does not list"),
        ({"decide": "{}['x']"}, "the policy mine failed: KeyError: 'x'"),
        ({"needs": "None"}, r"needs gives None, not Mapping\[int, tuple"),
        ({"needs": "{'1': ('max_prob',)}"}, "needs gives {'1': .*, not Mapping"),
        ({"needs": "{1: (5,)}"}, "needs gives {1: .*, not Mapping"),
        ({"needs": "{9: ('max_prob',)}"}, r"the exits \[9\] of its needs do not ascend"),
        ({"needs": "{2: ('max_prob',), 1: ('max_prob',)}"}, r"the exits \[2, 1\] of its needs"),
        ({"needs": "layers / 0"}, "ZeroDivisionError"),
        ({"decider": "None"}, "decider gives None, not Decider"),
        ({"decider": "{}['x']"}, "the policy mine failed: KeyError: 'x'"),
        ({"value": "1.5"}, "'1.5' is not a whole number"),
        ({"decide": "sys.exit(0)"}, "the policy mine failed: SystemExit: 0"),
        ({"needs": "{1: ('luck',)}"}, "its needs has the unknown fact 'luck'"),
        ({"more": "document_facts = property(lambda self: ('luck',))"}, "the unknown fact 'luck'"),
        ({"more": "__str__ = lambda self: 1 / 0"}, "the policy mine failed: ZeroDivisionError"),
        ({"more": "__str__ = lambda self: 'never'"}, "its text 'never' does not begin with its name"),
        ({"more": "__str__ = lambda self: 'mine:value=7'"}, "'mine:value=7' is read as another policy"),
        ({"more": "for_task = lambda self, task: None"}, "for_task gives None, not ExitPolicy"),
        ({"more": "short_list = property(lambda self: np.nan)"}, "short_list gives nan, not bool"),
        ({"more": "leaves_at = lambda self, layers: (layers,)"}, r"the exits \[6\] of its leaves_at"),
        ({"more": "full_depth = property(lambda self: True)"}, r"it says full_depth, and leaves at \[1\]"),
    ],
)
def test_a_policy_that_answers_what_none_may_is_named(
    install: Install, fault: dict[str, str], what: str
) -> None:
    place = install("policies", POLICY.format(**{**ALL_LEAVE, **fault}))
    for text in ("mine", "votes:need=1,of=[mine]"):
        with pytest.raises(PolicyError, match=what) as refused:
            replay_decisions(parse_policy(text), make_trace())
        if "whole number" not in what:  # which the grammar points at
            assert place in refused.value.where


@pytest.mark.parametrize(
    ("fault", "facts"),
    [
        ({"decide": "facts['top1'].fill(5)", "needs": "{1: ('top1',)}"}, ("top1",)),
        ({"more": "final_facts = ('top1',)", "decider": "Ends(streams)"}, ("top1",)),
        ({"decider": "Begins(streams)"}, ()),
        ({"decider": "Flips(streams)", "needs": "{1: ('top1',)}"}, ("top1",)),
        ({"decider": "Reaches(streams)", "needs": "{1: ('top1',)}"}, ("top1",)),
    ],
)
def test_a_policy_cannot_write_into_what_it_is_given(
    install: Install, fault: dict[str, str], facts: tuple[str, ...]
) -> None:
    writes = """
class Ends(Leaves):
    def end(self, exits, final):
        exits.fill(1)

class Begins(Leaves):
    def begin(self, tokens):
        tokens.index.fill(1)

class Flips(Leaves):
    def decide(self, exit, facts):
        facts["top1"].flags.writeable = True

class Reaches(Leaves):
    def decide(self, exit, facts):
        facts["top1"].base[:1] = b"1"
"""
    source = POLICY.format(**{**ALL_LEAVE, **fault}).replace("@dataclass", f"{writes}\n@dataclass")
    place = install("policies", source)
    trace = make_trace()
    before = {name: trace.fact(name).copy() for name in facts}
    with pytest.raises(PolicyError, match=r"read-only|cannot set WRITEABLE|item assignment") as refused:
        replay_decisions(parse_policy("mine"), trace)
    assert place in refused.value.where
    for name, values in before.items():
        assert (trace.fact(name) == values).all()


@pytest.mark.parametrize("place", ["decide", "import"])
def test_an_error_that_cannot_be_said_is_named_by_its_type(install: Install, place: str) -> None:
    body = {**ALL_LEAVE, "decide": "(_ for _ in ()).throw(Wordless)"} if place == "decide" else ALL_LEAVE
    ending = "" if place == "decide" else "raise Wordless"
    install("policies", WORDLESS + POLICY.format(**body) + ending)
    with pytest.raises(PolicyError, match="Wordless: an error without words"):
        replay_decisions(parse_policy("mine"), make_trace())


@pytest.mark.parametrize("said", ["'  '", "5", "''"])
def test_a_policy_with_an_odd_docstring_is_listed(install: Install, said: str) -> None:
    install("policies", POLICY.format(**{**ALL_LEAVE, "more": f"__doc__ = {said}"}))
    assert "mine:value=1" in run_offramp("list", "policies").require(0).out


def test_a_policy_that_can_change_is_refused(install: Install) -> None:
    place = install("policies", POLICY.format(**ALL_LEAVE).replace("(frozen=True)", ""))
    with pytest.raises(PolicyError, match="not a frozen dataclass") as refused:
        parse_policy("mine")
    assert refused.value.where == place


@pytest.mark.parametrize(
    ("group", "source", "what"),
    [
        ("hardware", "source = 5", "not a machine whose name"),
        ("hardware", "description = None", "not a machine whose name"),
        ("hardware", "name = property(lambda self: 1 / 0)", "cannot be read: ZeroDivisionError"),
        ("workloads", 'WorkloadSource("mine", load, "text", "n", 5, "d")', "not a WorkloadSource whose name"),
        ("workloads", 'WorkloadSource("mine", load, "text", 5, "l", "d")', "not a WorkloadSource whose name"),
    ],
)
def test_what_is_listed_of_a_plug_in_is_text(install: Install, group: str, source: str, what: str) -> None:
    if group == "hardware":
        text = MACHINE.format(costs="costs", profile={}).replace("    inner", f"    {source}\n    inner")
    else:
        text = WORKLOAD.format("pass", "mine").rpartition("Mine = ")[0] + f"Mine = {source}"
    install(group, text)
    said = " ".join(run_offramp("list", group).require(0).out.split())
    assert "cannot be used" in said
    with pytest.raises(InputError, match=what):
        (find_machine if group == "hardware" else load_workload)("mine")


def test_what_stops_the_command_is_no_fault_of_a_plug_in(install: Install) -> None:
    install("policies", POLICY.format(**{**ALL_LEAVE, "decide": "(_ for _ in ()).throw(KeyboardInterrupt)"}))
    with pytest.raises(KeyboardInterrupt):
        replay_decisions(parse_policy("mine"), make_trace())


MACHINE = """
import dataclasses
import numpy as np
from offramp.costs.machine_registry import find_machine

class Machine:
    name, source, kind = "mine", "a test", "roofline"
    inner = find_machine("h100")

    def token_costs(self, *arguments, **options):
        costs = self.inner.token_costs(*arguments, **options)
        return {costs}

    def to_json(self):
        return {profile}

Mine = Machine()
"""


@pytest.mark.parametrize(
    ("costs", "what"),
    [
        ("None", "its prices are of type NoneType"),
        ("{}['x']", "the machine mine failed: KeyError: 'x'"),
        ("dataclasses.replace(costs, layers=-costs.layers)", "negative or not finite"),
        ("dataclasses.replace(costs, layers=costs.layers * np.nan)", "negative or not finite"),
        ("dataclasses.replace(costs, layers=costs.layers * 0 + 1e308)", "or above 1e\\+30"),
        ("dataclasses.replace(costs, layers=costs.layers[:1])", "not one price per layer"),
        ("dataclasses.replace(costs, unit='bytes')", "its prices are in bytes"),
        ("dataclasses.replace(costs, probes={})", "no price for a probe"),
    ],
)
def test_a_machine_whose_prices_cannot_be_charged_is_named(install: Install, costs: str, what: str) -> None:
    place = install("hardware", MACHINE.format(costs=costs, profile={}))
    with pytest.raises(InputError, match=what) as refused:
        machine_prices(find_machine("mine"), example_shape(), 3.0)
    assert place in refused.value.where


def test_a_machine_has_the_name_of_its_entry_point(install: Install) -> None:
    place = install("hardware", MACHINE.format(costs="costs", profile={}).replace('"mine"', '"h100"'))
    with pytest.raises(InputError, match="'mine' calls itself 'h100'") as refused:
        find_machine("mine")
    assert refused.value.where == place


@pytest.mark.parametrize(
    ("profile", "what"),
    [("{'x': object()}", "is not JSON"), ("{'x': float('nan')}", "is not JSON"), ("1 / 0", "ZeroDivision")],
)
def test_a_machine_whose_profile_is_not_json_is_named(install: Install, profile: str, what: str) -> None:
    place = install("hardware", MACHINE.format(costs="costs", profile=profile))
    machine = find_machine("mine")
    assert machine_prices(machine, example_shape(), 3.0, batch=2).batch == 2
    with pytest.raises(InputError, match=what) as refused:
        profile_of(machine)
    assert place in refused.value.where


TRANSFORM = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Mine:
    name: ClassVar[str] = "mine"
    text = {text}

    def check(self, dtype=None):
        {check}

    def apply(self, model):
        return {apply}
"""
WORKS = {"text": "'mine'", "check": "pass", "apply": "model"}


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ({"apply": "None"}, "apply gives None, not Model"),
        ({"apply": "model.hf"}, "gives an object of type LlamaForCausalLM, not a Model"),
        ({"apply": "{}['x']"}, "the transform mine failed: KeyError: 'x'"),
        ({"apply": "exit()"}, "the transform mine failed: SystemExit"),
        ({"apply": "[p.data.fill_(float('nan')) for p in model.hf.parameters()] and model"}, "NaN"),
        ({"apply": "model.hf.model.layers.__delitem__(3) or model"}, "its stack does not hold the layers"),
        ({"check": "{}['x']"}, "the transform mine failed: KeyError: 'x'"),
        ({"text": "property(lambda self: {}['x'])"}, "the transform mine failed: KeyError: 'x'"),
        ({"text": "property(lambda self: 'int8')"}, "its text 'int8' does not begin with its name"),
        ({"text": "'int8'"}, "its text 'int8' does not begin with its name"),
        ({"text": "5"}, "its text 5 does not begin with its name"),
    ],
)
def test_a_transform_that_does_not_do_is_named(install: Install, fault: dict[str, str], what: str) -> None:
    place = install("transforms", TRANSFORM.format(**{**WORKS, **fault}))
    with pytest.raises(InputError, match=what) as refused:
        apply_transform(*read_transforms("mine", "float32"), example_model())
    assert place in refused.value.where


def test_what_offramps_own_raise_is_left_as_it_is() -> None:
    from offramp.plug_ins import asking

    with pytest.raises(ZeroDivisionError), asking(parse_policy("never"), "the policy never"):
        1 / 0  # noqa: B018
