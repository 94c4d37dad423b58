"""What a run found, for a program: findings as plain values, and where the page lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.display import ShownAsHtml
from offramp.policies.figures import PLAIN_DECODING
from offramp.report import POLICIES
from offramp.report.findings import (
    Finding,
    OverallDecision,
    finding_of_verdict,
    main_findings,
    main_verdicts,
    run_decision,
)
from offramp.report.next_step import policy_file
from offramp.report.run_result import RunResult
from offramp.report.words import headline
from offramp.tuning.verdict import Verdict


def recommended_file(folder: Path, workload: str, verdict: Verdict) -> Path | None:
    """Where a run's folder has the policy that a verdict recommends; None where plain decoding stays."""
    speed = verdict.speed
    slower = verdict.decision == "does not pay" or speed is None or speed.value <= 1.0
    if not verdict.certified or verdict.policy == PLAIN_DECODING or slower:
        return None
    return folder / POLICIES / policy_file(workload, verdict.floor)


@dataclass(frozen=True, repr=False)
class Findings(ShownAsHtml):
    """What `offramp.run` found: iterate over it for the finding at every text and floor."""

    result: RunResult = field(repr=False)
    """Everything that the page shows."""
    folder: Path
    """Of the run, a study of one model."""
    report: Path
    """Its page."""
    summary: Mapping[str, Any] = field(repr=False)
    """What its summary.json holds."""

    @property
    def decision(self) -> OverallDecision:
        """The decision at the main floor that all texts share, or that it depends on the text."""
        return run_decision(self.result)

    @property
    def headline(self) -> str:
        """The answer in a sentence or two."""
        return headline(self.result)

    @property
    def main(self) -> tuple[Finding[Verdict], ...]:
        """The finding at the main floor of every text that could be judged."""
        return tuple(main_findings(self.result))

    @property
    def recommended(self) -> dict[str, Path | None]:
        """By text, the policy to decode with at the main floor, as `offramp.generate(policy=...)` takes it.

        None where plain decoding stays: nothing is certified, or what is was timed and not found faster.
        """
        return {name: recommended_file(self.folder, name, one) for name, one in main_verdicts(self.result)}

    def __iter__(self) -> Iterator[Finding[Verdict]]:
        for workload in self.result.workloads:
            for verdict in workload.verdicts:
                yield finding_of_verdict(self.result.model_name, workload.name, verdict)

    def __len__(self) -> int:
        return sum(len(workload.verdicts) for workload in self.result.workloads)

    def __repr__(self) -> str:
        return f"Findings({self.decision}: {self.headline} Report: {self.report})"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Every finding as plain numbers and texts (see `Finding.to_dict`)."""
        return [finding.to_dict() for finding in self]
