"""Rows and strategies of the folder that `offramp run` left, from its `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.costs.hardware import LOCAL, PROFILES
from offramp.costs.machine import machine_fingerprint
from offramp.costs.profile_file import read_profile
from offramp.errors import DamagedFileError, InputError
from offramp.files import canonical_json, read_sealed_json, sha256_of_text
from offramp.studies.comparison.content import (
    Content,
    answer_text,
    card_fields,
    gain_of,
    interval_estimate,
    league_speedups,
    league_strategy,
    machine_words,
    profile_words,
    saving_of,
    skipped,
)
from offramp.studies.comparison.equality import SETTINGS
from offramp.studies.comparison.results import ModelFacts, Row, Saving, Strategy
from offramp.studies.comparison.savings import floor_text, place_text
from offramp.tuning.pricing import BYTES

SUMMARY = "summary.json"
VERSION = 8
"""Of the summary's schema: the one that is read."""

SHOWN = ("offramp", "code_fingerprint", "dtype", "processor", "threads", "date")
"""Of a run's provenance, where it has them."""

HARDWARE_FINGERPRINT = "hardware_fingerprint"
"""Of a run's provenance: SHA-256 of the profile's figures. Older runs have none."""

MISSHAPEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading raises where a summary lacks a value or holds one of another kind."""


def is_run_folder(path: Path) -> bool:
    """Whether `offramp run` finished in this folder."""
    return (path / SUMMARY).is_file()


def read_run_folder(path: Path) -> Content:
    """What a run found on each of its workloads.

    Raises InputError for a summary of another version, DamagedFileError for one whose bytes changed.
    """
    summary = read_summary(path / SUMMARY)
    try:
        return RunReader(path, summary).content()
    except MISSHAPEN as error:
        raise damaged(path / SUMMARY, error) from error


def read_summary(path: Path) -> dict[str, Any]:
    """A run's summary. Raises InputError and DamagedFileError as `read_run_folder`."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        version = summary["schema_version"]
    except MISSHAPEN as error:
        raise damaged(path, error) from error
    if version != VERSION:
        raise InputError(
            f"the summary has schema version {version}; this offramp compares version {VERSION}",
            where=str(path),
            fix="run the same command again with this offramp; the traces are kept",
        )
    return read_sealed_json(path, _damaged)


def damaged(path: Path, error: Exception) -> DamagedFileError:
    """The error for a summary in which something is missing or of another kind. error: that met it."""
    return _damaged(path, f"no {error}" if isinstance(error, KeyError) else type(error).__name__)


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"the summary of the run is not what offramp writes ({why})",
        where=str(path),
        fix="run the same command again: offramp run",
    )


def known_fingerprint(hardware: Mapping[str, Any]) -> str:
    """A fingerprint for a profile of which only name and source are known. hardware: of a summary.

    That of the built-in profile with this name and source. Any other profile gets one that no figures have:
    better to show one machine under two names than two under one.
    """
    name, source = hardware["name"], hardware["source"]
    built_in = PROFILES / f"{name}.toml"
    if built_in.is_file():
        profile = read_profile(built_in)
        if profile.source == source:
            return machine_fingerprint(profile)
    return sha256_of_text(canonical_json([name, source]))


class RunReader:
    """A run's summary and where it lies."""

    def __init__(self, path: Path, summary: Mapping[str, Any]) -> None:
        self.path = path
        self.summary = summary
        self.provenance: Mapping[str, Any] = summary["provenance"]
        hardware = summary["hardware"]
        self.machine: str = BYTES if hardware is None else hardware["name"]

    def content(self) -> Content:
        """Everything at once."""
        rows = tuple(self.row(scores) for scores in self.summary["scores"])
        name = self.path.name or str(self.path)
        return Content(
            title=f"{self.facts().shown} ({name})",
            description="",
            rows=rows,
            strategies=tuple(strategy for row in rows for strategy in self.strategies(row)),
            combined=tuple(self.combined()),
            failures={
                f"{self.facts().shown} · {workload} · decode": why
                for workload, why in self.summary["decoding"]["not_decoded"].items()
            },
            notes=(
                f"{self.facts().shown} comes from a run, which does not say what it was trained from: "
                "unless a study beside it does, its name counts as an independent training.",
            ),
            provenance={key: self.provenance[key] for key in SHOWN if key in self.provenance},
            machines=self.machines(),
        )

    def machines(self) -> dict[str, str]:
        """What the machine that time was predicted for is, and this one, by name."""
        found: dict[str, str] = {}
        hardware = self.summary["hardware"]
        if hardware is not None and self.machine != LOCAL:
            found[self.machine] = profile_words(
                self.provenance.get(HARDWARE_FINGERPRINT) or known_fingerprint(hardware)
            )
        if {"processor", "threads"} <= self.provenance.keys():
            found[LOCAL] = machine_words(self.provenance)
        return found

    def facts(self) -> ModelFacts:
        """The model: its name, and what was done to it."""
        transform = " + ".join(self.provenance.get("transforms", ()))
        name = str(self.provenance["model"]).removesuffix(f" + {transform}")
        return ModelFacts(name, name, transform)

    def heads(self) -> str:
        """Exit heads in words; "" for the model's own norm and head alone."""
        heads = self.summary["heads"]
        if heads is None:
            return ""
        parts = ["linear lens"] if heads["lens"] else []
        parts += ["own output heads"] if heads["output"] else []
        return ", ".join([*parts, *heads["classifiers"]])

    def row(self, scores: Mapping[str, Any]) -> Row:
        """The row of one workload."""
        workload = scores["workload"]
        (traced,) = self.of(workload, self.provenance["workloads"], key="name")
        return Row(
            model=self.facts(),
            workload=workload,
            heads=self.heads(),
            workload_fingerprint=self.provenance["traced"][workload]["fingerprint"],
            **card_fields(scores),
            savings=tuple(self.savings(workload)),
            exit_speedup=league_speedups(self.of(workload, self.summary["league"]), self.machine),
            measured_speedup=self.measured(workload),
            model_fingerprint=self.provenance["model_fingerprint"],
            trace_folder=str(self.path / traced["trace_folder"]),
            source=f"run {self.path.name or self.path}",
            notes=tuple(scores["notes"]),
            own_text=traced["mode"] == "generation",
            settings=self.settings(workload),
        )

    def settings(self, workload: str) -> dict[str, Any]:
        """How a workload was traced, as far as the summary says."""
        facts = {**self.provenance, **self.provenance["traced"][workload]}
        return {name: facts[name] for name in SETTINGS if name in facts}

    def of(
        self, workload: str, entries: Sequence[Mapping[str, Any]], key: str = "workload"
    ) -> list[Mapping[str, Any]]:
        """Those entries of a list in the summary that are of one workload."""
        return [entry for entry in entries if entry[key] == workload]

    def savings(self, workload: str) -> Iterator[Saving]:
        """What the tuner says at each floor."""
        for tuned in self.of(workload, self.summary["tuned"]):
            yield saving_of(tuned, tuned["machine"])

    def strategies(self, row: Row) -> Iterator[Strategy]:
        """The league by replay, and what was decoded."""
        where = {"model": row.model.shown, "workload": row.workload, "heads": row.heads}
        for entry in self.of(row.workload, self.summary["league"]):
            yield league_strategy(
                entry,
                {**where, "machine": self.machine},
                in_seconds=self.machine != BYTES,
                characters_per_token=None,
            )
        for decoded in self.of(row.workload, self.summary["decoding"]["workloads"]):
            for policy in decoded["policies"]:
                yield self.decoded_strategy(where, decoded, policy, row.exits[-1])

    def decoded_strategy(
        self,
        where: Mapping[str, Any],
        decoded: Mapping[str, Any],
        policy: Mapping[str, Any],
        layers: int,
    ) -> Strategy:
        """One policy of one measurement."""
        (timed,) = (one for one in decoded["contenders"] if one["name"] == policy["contender"])
        counted, quality = timed["counted"], policy["free_running"]
        return Strategy(
            **where,
            machine=LOCAL,
            family=policy["policy"].partition(":")[0],
            policy=policy["policy"],
            kv=policy["kv"],
            floor="" if policy["floor"] is None else floor_text(policy["floor"]),
            basis="measured",
            agreement=interval_estimate(None if quality is None else quality["agreement"], "not judged"),
            skip_ratio=skipped(None if counted is None else counted["layers"], layers),
            net_speedup=interval_estimate(policy["net_speedup"], policy["left_out"] or "not timed"),
            seconds_per_token=policy["measured_seconds_per_token"],
            answer=answer_text(
                policy["answer"], policy["resolution"], decoded["defects"], policy["left_out"]
            ),
            chosen=True,
            gain=gain_of(policy["gain"]),
        )

    def measured(self, workload: str) -> dict[str, float]:
        """Net speedup of a floor's policy by floor and machine, where it was decoded without a defect.

        It is decoded on this machine, whichever one its time was predicted for.
        """
        return {
            place_text(floor_text(policy["floor"]), LOCAL): policy["net_speedup"]["value"]
            for decoded in self.of(workload, self.summary["decoding"]["workloads"])
            if not decoded["defects"]
            for policy in decoded["policies"]
            if policy["floor"] is not None and policy["net_speedup"]
        }

    def combined(self) -> Iterator[Mapping[str, Any]]:
        """Accelerations together, where they were measured into this folder."""
        if "combined" in self.summary:
            yield {key: value for key, value in self.summary["combined"].items() if key != "advice"}
