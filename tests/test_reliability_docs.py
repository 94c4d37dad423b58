"""`docs/reliability.md` names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_test_that_it_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")))
    assert len(named) > 12
    assert named - {path.stem for path in (ROOT / "tests").rglob("test_*.py")} == set()
