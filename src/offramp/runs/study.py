"""The study of one model that a run is: what it is asked for, as a study file would say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offramp.costs.hardware import find_machine
from offramp.errors import InputError, printable
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.defaults import BYTES, DELTA, FLOORS, LOCAL, ROUNDS
from offramp.kit.given_file import Source
from offramp.report.formats import whole_percent
from offramp.runs.request import DECODE_MINUTES, Run
from offramp.studies.entries import AUTO, NONE, OWN
from offramp.studies.study import INLINE, Study
from offramp.studies.study_file import check_study
from offramp.tracing.loading import ModelRequest
from offramp.tuning.certifiable import documents_for
from offramp.tuning.verdict import from_main
from offramp.workloads.workload import Workload

SIGNALS = ("logit_gap", "restricted")
"""Recorded by every run: they cost next to nothing, and cheap probes are where a policy can win."""

FITTING_TOKENS = 200
CLASSIFIERS = ("correctness",)
"""What a run fits by itself on each text: a classifier of the hidden state, whose probe is the cheapest."""

CERTIFYING = 0.42
"""Share of these that reruns and documents for certificates may take; the rest is for the stopwatch."""


def run_study(
    asked: Run,
    model: ModelRequest,
    workloads: Sequence[Workload],
    given: ExitHeads | None,
    threads: int,
    *,
    streamed: bool,
    unavailable: Mapping[str, str],
) -> Study:
    """The study of a run.

    given: the exit heads of --heads. unavailable: why this machine or own heads cannot be had, by name.

    Raises InputError for what does not fit together.
    """
    from offramp.decoding.openings import PROMPTS

    transform = " + ".join(model.texts)
    timed = asked.hardware == LOCAL and LOCAL not in unavailable and not streamed
    machine: Any = LOCAL if timed else BYTES
    if asked.hardware != LOCAL:
        machine = {"name": find_machine(asked.hardware).name, "source": asked.hardware}
    settings = {
        "name": "run",
        "title": model.name,
        "tokens": asked.tokens,
        "device": model.device,
        "dtype": model.dtype,
        "threads": threads,
        "exits": asked.layers,
        "context": asked.context,
        "document_tokens": asked.document_tokens,
        "signals": SIGNALS,
        "floors": asked.levels,
        "worth": float(asked.worth),
        "details": True,
    }
    values: dict[str, Any] = {
        "study": settings,
        "models": [
            {
                "name": printable(model.source.name),
                "source": asked.name,
                "trust_remote_code": asked.trust_remote_code,
            }
        ],
        "workloads": [workload.name for workload in workloads],
        "transforms": [{"name": transform, "steps": model.texts} if transform else NONE],
        "heads": [_heads(asked, given, fitted=OWN not in unavailable and not streamed)],
        "machines": [machine],
    }
    if streamed:
        values["large"] = {"stream": True, "memory": asked.memory}
    elif asked.decode:
        seconds = 60.0 * (asked.minutes or DECODE_MINUTES) / len(workloads)
        values["certify"] = {"seconds": CERTIFYING * seconds}
        values["decode"] = {
            "floor": min(asked.levels, key=from_main),
            "new_tokens": AUTO,
            "seconds": (1.0 - CERTIFYING) * seconds,
            "prompts": PROMPTS,
            "rounds": ROUNDS,
        }
    study = Study.of(values, Source(INLINE, "run"))
    check_study(study)
    return study


def _heads(asked: Run, given: ExitHeads | None, *, fitted: bool) -> Any:
    if given is not None:
        parts = [] if given.lens is None else ["linear lens" if given.mlp is None else "network"]
        parts += ["own output heads"] if given.output is not None else []
        parts += ["K,V maps"] if given.holds_maps_alone else []
        return {"name": ", ".join([*parts, *given.classifiers]), "file": str(asked.heads)}
    if not fitted:
        return NONE
    return {
        "name": ", ".join(CLASSIFIERS),
        "fit": [OWN],
        "tokens": FITTING_TOKENS,
        "lens": False,
        "classifiers": CLASSIFIERS,
    }


def require_documents(workloads: Sequence[Workload], floors: Sequence[float] = FLOORS) -> None:
    """Refuse texts on which no floor of a run could be certified, before anything is loaded.

    Raises InputError with how many documents there are, and how many are needed.
    """
    needed = {floor: documents_for(floor, DELTA) for floor in floors}
    loosest = min(floors)
    for workload in workloads:
        found = len(workload.documents)
        if found < needed[loosest]:
            listed = ", ".join(
                f"{count} for {whole_percent(floor)}" for floor, count in sorted(needed.items())
            )
            raise InputError(
                f"not enough documents: {workload.name} has {found}, and a floor on agreement needs more: "
                f"{listed}, even if nothing is lost on any of them",
                where=f"--workload {workload.name}",
                fix="give more texts (a text file is split into documents at its blank lines), or measure "
                "the layers alone: offramp trace, then offramp score",
            )
