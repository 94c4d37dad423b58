"""The study of one model that `offramp run` is: what its options ask for, as a study file would say it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offramp.cli.options import require_options, require_placement
from offramp.cli.run_folder import DECODE_MINUTES
from offramp.commands import RunCall, words_of
from offramp.costs.hardware import find_machine
from offramp.errors import InputError
from offramp.kit.defaults import DELTA, FLOORS, LOCAL, ROUNDS, WORTH
from offramp.models.devices import AUTO as AUTO_DEVICE
from offramp.models.memory import parse_size
from offramp.records.given_file import Source
from offramp.report.formats import whole_percent
from offramp.studies.entries import AUTO, BYTES, NONE, OWN
from offramp.studies.study import INLINE, Study
from offramp.studies.study_file import check_study
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.loading import ModelRequest
from offramp.tracing.request import DEFAULT_TOKENS
from offramp.tuning.certifiable import documents_for
from offramp.tuning.floor import make_floor
from offramp.tuning.verdict import from_main, require_worth
from offramp.workloads.workload import Workload

SIGNALS = ("logit_gap", "restricted")
"""Recorded by every run: they cost next to nothing, and cheap probes are where a policy can win."""

FITTING_TOKENS = 200
CLASSIFIERS = ("correctness",)
"""What a run fits by itself on each text: a classifier of the hidden state, whose probe is the cheapest."""

CERTIFYING = 0.42
"""Share of these that reruns and documents for certificates may take; the rest is for the stopwatch."""

NOT_SETTLED = ("overwrite", "repair", "memory", "stream", "workloads_given", "decode", "minutes")
"""Options that change how a run gets its results, not which: a folder is the same run's with any of them."""


def read_floors(given: Sequence[str | float] | str | float | None) -> tuple[float, ...]:
    """Floors on agreement, the strictest first: 0.95 or "agreement=0.95", one or several.

    Raises InputError for another kind of floor, or what is none.
    """
    if given is None:
        return FLOORS
    listed = [given] if isinstance(given, (str, float, int)) else given
    floors = []
    for text in listed:
        kind, _, value = str(text).rpartition("=")
        try:
            floors.append(float(value))
        except ValueError:
            kind = "not a number"
        if kind not in ("", "agreement"):
            raise InputError(
                f"a run has no floor {text!r}",
                where="--floor",
                fix="give a share of the tokens, as 0.95 or agreement=0.95; offramp tune has other floors",
            )
    return tuple(sorted(set(floors), reverse=True))


@dataclass(frozen=True)
class RunOptions:
    """What was asked for on the command line, workloads and folder apart.

    device, dtype: as asked for, "auto" among them; once the model's files are found, as resolved.
    transforms: texts of their grammar. floors: on agreement, the strictest first. minutes: of decoding for
    real, all texts together, None for those of any run. stream: whether layers stay on disk, None if they do
    where the weights do not fit. memory: for them, as "8GB". workloads_given: whether the workloads were
    named, or are those of any run.
    """

    model: str
    tokens: int
    exits: str
    context: int | None
    document_tokens: int | None
    device: str
    dtype: str
    transforms: tuple[str, ...]
    trust_remote_code: bool
    heads: Path | None
    hardware: str
    worth: float
    overwrite: bool
    repair: bool
    floors: tuple[float, ...]
    decode: bool
    minutes: float | None
    stream: bool | None
    memory: str | None
    workloads_given: bool

    def check(self, output: Path | None) -> None:
        """Refuse what makes no sense before anything is read. Raises InputError."""
        require_worth(self.worth)
        for floor in self.floors:
            make_floor({"agreement": floor})
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise InputError(f"{self.minutes} minutes are no time", where="--minutes", fix="give more than 0")
        if self.minutes is not None and not self.decode:
            raise InputError(
                "--minutes means nothing with --no-decode", where="--minutes", fix="leave one out"
            )
        require_options(
            tokens=self.tokens,
            context=self.context,
            document_tokens=self.document_tokens,
            exits=self.exits,
            output=output,
        )
        require_placement(self.device, self.dtype)
        if self.memory is not None:
            parse_size(self.memory, "--memory")

    def call(self, workloads: Sequence[Workload], folder: Path | None, *, named: bool) -> RunCall:
        """What repeats the run, without --minutes and what makes it anew.

        folder: None for the usual one. named: whether the model has a name that loads it.
        """
        placed = {"device": self.device, "dtype": self.dtype}
        model = words_of(
            self.model,
            transforms=self.transforms,
            **{name: given for name, given in placed.items() if given != AUTO_DEVICE},
            trust_remote_code=self.trust_remote_code,
        )
        asked: dict[str, tuple[Any, Any]] = {
            "workload": ([workload.name for workload in workloads] if self.workloads_given else None, None),
            "tokens": (self.tokens, DEFAULT_TOKENS),
            "exits": (self.exits, "all"),
            "hardware": (self.hardware, LOCAL),
            "worth": (float(self.worth), WORTH),
            "floor": (list(self.floors), list(FLOORS)),
            "context": (self.context, None),
            "document_tokens": (self.document_tokens, None),
            "heads": (self.heads and str(self.heads), None),
            "no_decode": (not self.decode, False),
            "stream": (self.stream is True, False),
            "no_stream": (self.stream is False, False),
            "memory": (self.memory, None),
            "output": (folder and str(folder), None),
        }
        options = {name: given for name, (given, usual) in asked.items() if given != usual}
        return RunCall(tuple(model) if named else None, options)

    def settled(self) -> dict[str, Any]:
        """What makes the run another one."""
        found = {name: value for name, value in asdict(self).items() if name not in NOT_SETTLED}
        if self.floors == FLOORS:  # so that a run of before there was the option is the same
            del found["floors"]
        return {**found, "heads": None if self.heads is None else str(self.heads)}


def run_study(
    options: RunOptions,
    asked: ModelRequest,
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

    transform = " + ".join(asked.texts)
    timed = options.hardware == LOCAL and LOCAL not in unavailable and not streamed
    machine: Any = LOCAL if timed else BYTES
    if options.hardware != LOCAL:
        machine = {"name": find_machine(options.hardware).name, "source": options.hardware}
    settings = {
        "name": "run",
        "title": asked.name,
        "tokens": options.tokens,
        "device": options.device,
        "dtype": options.dtype,
        "threads": threads,
        "exits": options.exits,
        "context": options.context,
        "document_tokens": options.document_tokens,
        "signals": SIGNALS,
        "floors": options.floors,
        "worth": float(options.worth),
        "details": True,
    }
    values: dict[str, Any] = {
        "study": settings,
        "models": [
            {
                "name": asked.source.name,
                "source": options.model,
                "trust_remote_code": options.trust_remote_code,
            }
        ],
        "workloads": [workload.name for workload in workloads],
        "transforms": [{"name": transform, "steps": asked.texts} if transform else NONE],
        "heads": [_heads(options, given, fitted=OWN not in unavailable and not streamed)],
        "machines": [machine],
    }
    if streamed:
        values["large"] = {"stream": True, "memory": options.memory}
    elif options.decode:
        seconds = 60.0 * (options.minutes or DECODE_MINUTES) / len(workloads)
        values["certify"] = {"seconds": CERTIFYING * seconds}
        values["decode"] = {
            "floor": min(options.floors, key=from_main),
            "new_tokens": AUTO,
            "seconds": (1.0 - CERTIFYING) * seconds,
            "prompts": PROMPTS,
            "rounds": ROUNDS,
        }
    study = Study.of(values, Source(INLINE, "run", {}))
    check_study(study)
    return study


def _heads(options: RunOptions, given: ExitHeads | None, *, fitted: bool) -> Any:
    if given is not None:
        parts = [] if given.lens is None else ["linear lens" if given.mlp is None else "network"]
        parts += ["own output heads"] if given.output is not None else []
        parts += ["K,V maps"] if given.holds_maps_alone else []
        return {"name": ", ".join([*parts, *given.classifiers]), "file": str(options.heads)}
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
