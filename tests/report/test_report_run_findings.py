"""What a run recommends to decode with."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from offramp.files import safe_name
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.report.run_findings import recommended_file
from offramp.tuning.verdict import Speed, Verdict

MEASURED = Speed(1.04, 0.99, 1.09, "measured", "local", True)
SLOWER = Speed(0.967, 0.94, 1.0, "measured", "local", True)


@pytest.mark.parametrize(
    ("changes", "recommended"),
    [
        ({}, True),
        ({"decision": "too close to call"}, True),
        ({"decision": "does not pay"}, False),
        ({"speed": SLOWER}, False),  # certified, and predicted to be faster, but the stopwatch says no
        ({"speed": None}, False),
        ({"certified": False}, False),
        ({"policy": Never()}, False),
    ],
)
def test_only_what_is_certified_and_not_found_slower_is_recommended(
    changes: dict[str, Any], recommended: bool
) -> None:
    facts = {
        "decision": "pays",
        "certified": True,
        "policy": StaticExit(4),
        "speed": MEASURED,
        "floor": 0.95,
    }
    verdict = mock.Mock(spec=Verdict, **{**facts, **changes})
    file = Path("run/policies") / f"{safe_name('prose:short')}-tuned-0.95.json"
    assert recommended_file(Path("run"), "prose:short", verdict) == (file if recommended else None)
