"""What `offramp run` needs before it traces: a profile of this machine and a few fitted exit heads."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offramp.cli.console import stage
from offramp.cli.decoding_file import read_kept
from offramp.cli.local_profile import local_profile
from offramp.cli.run_folder import HEADS_FILE
from offramp.costs.hardware import LOCAL, find_machine
from offramp.costs.machine import Machine
from offramp.costs.timings import TimingsProfile
from offramp.errors import DamagedFileError, InputError, ModelError
from offramp.models.model import Model
from offramp.models.shape import ModelShape
from offramp.report.run_result import price_list
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.fitting.fit import fit_heads
from offramp.tracing.heads_file import read_heads, write_heads
from offramp.workloads.workload import Workload

RUN_SIGNALS = ("logit_gap", "restricted")
"""Recorded by every run: they cost next to nothing, and cheap probes are where a policy can win."""

FITTING_TOKENS = 400
FITTED = ("correctness",)
"""What a run fits by itself: a classifier of the hidden state, whose probe is the cheapest of all."""


@dataclass(frozen=True)
class Prepared:
    """What every workload of a run shares.

    machine: that speed is predicted for, None if its parts could not be timed. heads: None if none could be
    fitted. missing: why something is missing, by name, for the report's provenance. machine_note: how its
    timings were come by, None for a machine that was not timed here.
    """

    machine: Machine | None
    heads: ExitHeads | None
    missing: Mapping[str, str]
    machine_note: str | None = None


def prepare(
    model: Model,
    workloads: Sequence[Workload],
    given: ExitHeads | None,
    hardware: str,
    folder: Path,
    *,
    exits: str = "all",
) -> Prepared:
    """Measure the machine and fit heads for the exits that are traced, as far as the model allows."""
    decoded = read_kept(folder)
    used_before = None if decoded is None else decoded.machine
    machine, note, no_machine = machine_of(model, hardware, used_before)
    heads, no_heads = heads_of(model, workloads, given, folder, exits=exits)
    missing = {"machine_not_timed": no_machine, "heads_not_fitted": no_heads}
    stated = {name: why for name, why in missing.items() if why is not None}
    return Prepared(machine, heads, stated, note)


def machine_of(
    model: Model, hardware: str, used_before: str | None = None
) -> tuple[Machine | None, str | None, str | None]:
    """The machine that speed is predicted for, how its timings were come by, and why there is none.

    "local" is this machine: its profile is measured unless one of this model, dtype and thread count is kept
    that holds at this moment. used_before: as of `local_profile`.

    Raises InputError for an unknown machine.
    """
    if hardware != LOCAL:
        found = find_machine(hardware, model_fingerprint=model.identity.fingerprint, dtype=model.dtype)
        return found, None, None
    try:
        timed = local_profile(model, used_before=used_before)
    except ModelError as error:  # what can be traced still has its answer, in bytes moved
        return None, None, error.what
    return timed.profile, timed.note, None


def heads_of(
    model: Model, workloads: Sequence[Workload], given: ExitHeads | None, folder: Path, *, exits: str = "all"
) -> tuple[ExitHeads | None, str | None]:
    """The exit heads of a run, or None and the reason why there are none.

    given: heads of the user's; without them a few are fitted, once per run folder.
    """
    if given is not None:
        return given, None
    path = folder / HEADS_FILE
    if path.exists():
        try:
            return read_heads(path), None
        except (DamagedFileError, InputError) as error:
            print(f"offramp: fitted again: {error.what}", file=sys.stderr)
    try:
        with stage("fitting classifiers on documents of their own"):
            heads = fit_heads(
                model,
                list(workloads),
                tokens=FITTING_TOKENS,
                exits=exits,
                lens=False,
                classifiers=FITTED,
                progress=False,
            )
    except (ModelError, InputError) as error:  # too few documents, or a model of several hidden states
        return None, error.what
    write_heads(heads, path)
    return heads, None


def describe_machine(prepared: Prepared, shape: ModelShape, position: float) -> dict[str, Any] | None:
    """What the report shows of a machine: its prices of one token at this position."""
    machine = prepared.machine
    if machine is None:
        return None
    details = machine.details if isinstance(machine, TimingsProfile) else {}
    load = details.get("load_average")
    return price_list(
        machine,
        machine.token_costs(shape, position),
        self_check_ratio=details.get("check", {}).get("plain_step_over_generate"),
        threads=details.get("machine", {}).get("threads"),
        load=load[0] if load else None,
        note=prepared.machine_note,
    )


def describe_heads(heads: ExitHeads | None) -> dict[str, Any] | None:
    """What the report shows of fitted heads."""
    if heads is None:
        return None
    explained = None if heads.lens is None else heads.lens.explained
    classifiers = {
        name: {
            "exits": len(heads.exits),
            "better_than_chance": int(np.sum(classifier.better_than_chance)),
            "auroc": _median(classifier.auroc),
        }
        for name, classifier in heads.classifiers.items()
    }
    return {
        "documents": sum(len(documents) for documents in heads.seen_documents.values()),
        "exits": len(heads.exits),
        "lens": heads.lens is not None,
        "lens_explained": None if explained is None else float(np.mean(explained)),
        "output": heads.output is not None,
        "imported": "imported" in heads.provenance,
        "classifiers": classifiers,
    }


def _median(values: Any) -> float | None:
    defined = values[np.isfinite(values)]
    return float(np.median(defined)) if defined.size else None
