"""The page on machines: its examples are read and priced, and it names every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from offramp.costs.machine import example_shape
from offramp.costs.probes import PROBES
from offramp.costs.profile_file import UNITS, read_profile, required_keys

PAGE = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```toml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_examples_price_a_step(tmp_path: Path) -> None:
    roofline, timings = EXAMPLES
    (tmp_path / "card.toml").write_text(roofline, encoding="utf-8")
    (tmp_path / "engine.toml").write_text(timings, encoding="utf-8")
    shape = example_shape(30)
    card, engine = (read_profile(tmp_path / f"{name}.toml") for name in ("card", "engine"))
    assert (card.name, engine.name) == ("lab-card", "our engine")
    costs = engine.token_costs(shape, 1000)
    assert costs.plain == pytest.approx(11.5e-3)
    assert costs.probes["restricted head"] == pytest.approx(0.2e-3)
    assert engine.token_costs(shape, 1000, batch=8).plain == pytest.approx(13.4e-3)
    assert card.token_costs(shape, 1000).probes["cosine"] > 17e-6


def test_every_key_unit_and_probe_is_named() -> None:
    words = set(re.findall(r"`\"?([\w ]+)\"?`", PAGE))
    assert required_keys() - {"batch", "flops_per_second"} <= words
    assert "[flops_per_second]" in PAGE
    assert {*UNITS, *PROBES, "token", "overhead", "key_value", "lens", "probes"} <= words
