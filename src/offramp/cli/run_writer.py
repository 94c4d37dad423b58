"""A run's page and summary, put together from what is there so far."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offramp.cli.certificates import settled
from offramp.cli.decoding_stage import DecodingResult
from offramp.cli.preparation import Prepared, describe_heads, describe_machine
from offramp.cli.provenance import describe_request, describe_run
from offramp.cli.run_folder import COMBINED_FILE, SUMMARY_FILE
from offramp.costs.machine import machine_fingerprint
from offramp.decoding.measurement.combined import CombineResult, read_combined
from offramp.files import sealed, write_json_atomically
from offramp.models.model import Model
from offramp.policies.policy_cost import mean_position
from offramp.report.page import write_report
from offramp.report.run_result import Progress, RunResult, Timing, WorkloadResult
from offramp.report.summary import summarise

FIRST_POSITION = 64.0
"""Where prices are shown at before any token was traced."""


@dataclass(frozen=True)
class FinishedRun:
    """A run's result and where its page and summary lie."""

    result: RunResult
    report: Path
    summary: dict[str, Any]


@dataclass
class Writer:
    """Puts the run together from what is there so far, and writes its page after each stage.

    A finished run keeps its page until the new one is whole.
    """

    model: Model
    folder: Path
    prepared: Prepared | None = None
    results: list[WorkloadResult] = field(default_factory=list)
    measured: dict[str, Timing] = field(default_factory=dict)
    decoding: DecodingResult = field(default_factory=DecodingResult)
    missing: dict[str, str] = field(default_factory=dict)

    def settle(self) -> None:
        """Every verdict again, with what was timed of its policy."""
        for place, result in enumerate(self.results):
            decoded = next((one for one in self.decoding.decoded if one.workload == result.name), None)
            verdicts = settled(result.replayed, result.tuned, decoded)
            self.results[place] = replace(result, verdicts=verdicts)

    def so_far(self, running: str, to_come: Sequence[str]) -> None:
        """Write the page of an unfinished run: what is done, what is running now, what is to come."""
        if (self.folder / SUMMARY_FILE).exists():
            return
        done = [] if self.prepared is None else ["the machine timed"]
        done += [f"{result.name} traced, scored and searched" for result in self.results]
        done += [f"{decoded.workload} decoded" for decoded in self.decoding.decoded]
        progress = Progress(tuple(done), running, tuple(to_come))
        write_report(self.result(progress), self.folder)

    def finished(self) -> FinishedRun:
        """Write page and summary of the whole run."""
        result = self.result(None)
        report = write_report(result, self.folder)
        summary = sealed(summarise(result))
        write_json_atomically(self.folder / SUMMARY_FILE, summary)
        return FinishedRun(result, report, summary)

    def result(self, progress: Progress | None) -> RunResult:
        """The run as the report takes it."""
        hardware = heads = None
        if self.prepared is not None:
            heads = describe_heads(self.prepared.heads)
            position = mean_position(self.results[0].trace) if self.results else FIRST_POSITION
            hardware = describe_machine(self.prepared, self.model.shape, position)
        return RunResult(
            model_name=self.model.shown_name,
            layers=self.model.layers,
            workloads=tuple(self.results),
            provenance={
                **describe_run(self.model),
                **describe_request({result.name: result.trace for result in self.results}),
                **self.hardware_fingerprint(),
                **({} if self.prepared is None else self.prepared.missing),
                **self.missing,
            },
            measured=self.measured,
            command=shlex.join(["offramp", *sys.argv[1:]]),
            hardware=hardware,
            heads=heads,
            decoding=self.decoding.decoded,
            not_decoded=self.decoding.missing,
            progress=progress,
            combined=self.combined(),
        )

    def hardware_fingerprint(self) -> dict[str, str]:
        """SHA-256 of the figures of the machine that speed is predicted for, as studies have it."""
        machine = None if self.prepared is None else self.prepared.machine
        if machine is None:
            return {}
        return {"hardware_fingerprint": machine_fingerprint(machine)}

    def combined(self) -> CombineResult | None:
        """What `offramp bench --combine` left in the folder; None without it, or if it is of another model.

        Raises DamagedFileError if it was edited.
        """
        path = self.folder / COMBINED_FILE
        if not path.is_file():
            return None
        found = read_combined(path)
        same = found.circumstances["model_fingerprint"] == self.model.identity.fingerprint
        return found if same else None
