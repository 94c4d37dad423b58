"""What exits add: every figure of docs/results again, from the kept measurements of the studies beside this file.

`keep STUDY_FOLDER` copies what was measured, `write` makes tables, picture and the marked parts of the pages,
`check` fails where one of them differs from what the kept measurements say.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.scoring.estimate import Estimate
from offramp.studies.folder import StudyFolder
from offramp.studies.work.decode import DecodedPolicies, DecodeWork
from offramp.timing.results import Contender
from offramp.tuning.verdict import Verdict

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "added"
PAGES = (ROOT / "docs" / "results" / "README.md",)
NAMES = {"code": "code", "prose": "prose", "math": "math"}
"""Of texts, by a word in the workload's name."""


@dataclass(frozen=True)
class Measured:
    """One text of one model, decoded."""

    model: str
    text: str
    transform: str
    dtype: str
    decoded: DecodedPolicies

    @property
    def name(self) -> str:
        """As shown."""
        return f"{self.model}, {self.text}"


def keep(folder: Path) -> None:
    """Copy what every decoding of a study measured. Raises InputError for what is no study's folder."""
    study = StudyFolder(folder)
    plan = study.read_plan()
    for cell in plan.cells:
        result = folder / "tasks" / "decode" / cell.task / "result.json"
        if cell.kind != DecodeWork.kind or not result.exists():
            continue
        text = next(name for word, name in NAMES.items() if word in cell.workload)
        settings = plan.study.settings
        kept = {
            "study": plan.study.name,
            "model": cell.model,
            "text": text,
            "transform": cell.transform,
            "dtype": settings.dtype,
            "workload": cell.workload,
            "decoded": json.loads(result.read_text()),
        }
        name = "-".join(part for part in (cell.model, cell.transform, text) if part)
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def kept_measurements(folder: Path = KEPT) -> list[Measured]:
    """All that were kept, by file name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        decoded = DecodeWork.read(kept["decoded"])
        if isinstance(decoded, DecodedPolicies):
            fields = (kept["model"], kept["text"], kept["transform"], kept["dtype"])
            found.append(Measured(*fields, decoded))
    return found


@dataclass(frozen=True)
class Credited:
    """What exits add at one floor."""

    measured: Measured
    verdict: Verdict
    contender: Contender | None
    """That was timed for it, None where nothing was."""
    credit: Estimate[float] | None
    """Computed again from the ratios of prompts, None where nothing was timed."""
    over: str


def credited(measured: Measured) -> list[Credited]:
    """What exits add at every floor of a measurement, by the policy that its verdict is about."""
    rows = []
    for verdict in measured.decoded.verdicts:
        policy = verdict.tried.policy if verdict.tried is not None else verdict.policy
        names = [choice.contender for choice in measured.decoded.chosen if choice.policy == policy]
        contender, credit = None, None
        if names:
            contender = measured.decoded.bench.contender(names[0])
            credit = measured.decoded.bench.credit(names[0], verdict.floor)
        over = "" if credit is None else credit.over
        rows.append(Credited(measured, verdict, contender, None if credit is None else credit.estimate, over))
    return rows


def figure(value: float | None, digits: int = 3) -> str:
    """A number as shown, empty for none."""
    return "" if value is None else f"{value:.{digits}f}"


def interval(estimate: Estimate[float] | None) -> str:
    """ "1.021 (0.973 to 1.071)"."""
    if estimate is None:
        return "not timed"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def percent(share: float | None) -> str:
    """ "97.1 %"."""
    return "" if share is None else f"{100 * share:.1f} %"
