"""The page on policies names every kind, parameter and signal, and its examples are policies."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from offramp.policies.grammar import BUILT_IN, parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.signals import SIGNALS

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
