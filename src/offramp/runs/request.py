"""`Run`: what `offramp run` and `offramp.run` are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.commands import RunCall, no_option, words_of
from offramp.defaults import DEFAULT_MODEL, DEFAULT_WORKLOADS, FLOORS, LOCAL, WORTH
from offramp.errors import InputError, WorkloadError
from offramp.kit.numbers import Minutes
from offramp.kit.request import (
    Request,
    Writes,
    added_later,
    argument,
    as_call,
    fields_of,
    flags,
    not_identity,
    not_repeated,
    python_only,
)
from offramp.kit.rules import Worth, only_with
from offramp.tracing.asked import Made, Measuring, OnDevice, Placed, Streamed

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.report.run_findings import Findings
    from offramp.workloads.workload import Workload

DECODE_MINUTES = 3.5
"""Of a run's real decoding, all texts together, unless --minutes says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Run(Measuring, Placed, Streamed, Made, Request):
    """Would early exit pay? Traces a model, searches policies, decodes with the best, and writes a page.

    Stopped? Run it again: it resumes after the last whole part. What was timed is kept; --overwrite times it
    again.
    """

    model: Annotated[str | Model, argument] = field(default=DEFAULT_MODEL, kw_only=False)
    """smollm2, a Hub id, a local folder or a .gguf file; in Python also a model (offramp.wrap)."""
    workloads: Annotated[str | Workload | Iterable[Any] | None, not_identity, flags("--workload", "-w")] = (
        field(default=None, kw_only=False)
    )
    """May be given several times. By default {DEFAULT_WORKLOADS[0]} and {DEFAULT_WORKLOADS[1]}."""
    hardware: str = LOCAL
    """The machine to predict for: local (timed first), one of offramp list hardware, or a .toml."""
    worth: Worth = WORTH
    """What exits must add, to the best decoder without them, to be worth it."""
    floors: Annotated[str | float | Sequence[str | float], added_later, flags("--floor")] = FLOORS
    """An agreement that you will not give up, as 0.95 or agreement=0.95; may be given several times. By
    default {FLOORS[0]:g}, {FLOORS[1]:g} and {FLOORS[2]:g}."""
    decode: Annotated[bool, not_identity, flags("--decode/--no-decode")] = True
    """End with real decoding of the chosen policies, timed beside plain decoding. Without it, every speed is
    a prediction."""
    minutes: Annotated[Minutes | None, not_identity, not_repeated, only_with("decode")] = None
    """Minutes of that real decoding, all texts together: of documents for certificates, and of timing. By
    default {DECODE_MINUTES:g}. Where a verdict is inconclusive, the same command with more goes on."""
    beside: Annotated[str | Sequence[str], not_identity, only_with("decode")] = ()
    """What you would use instead of exits, timed in the same turns: int8, llama.cpp (of a .gguf file), or
    several at once, as "int8 + prompt_lookup"; may be given several times."""
    output: Annotated[Path | str | None, not_identity, Writes(Run.require_own)] = None
    """Folder for everything. By default runs/<model>-<key>."""
    progress: Annotated[bool, python_only] = False
    """Say on standard error what goes on."""

    @property
    def ways_beside(self) -> tuple[str, ...]:
        """What stands beside the policies, as texts."""
        return (self.beside,) if isinstance(self.beside, str) else tuple(self.beside)

    def settle(self) -> dict[str, Any]:
        """A model and texts at hand by the names that this process finds them by; floors as numbers."""
        return {
            **super().settle(),
            **self._named_model(),
            "workloads": None if self.workloads is None else self._named_texts(),
            "floors": self.levels,
            "beside": self.ways_beside,
            "output": self.folder,
        }

    def check(self) -> None:
        """Refuse a model, a worth and floors that are none."""
        super().check()
        from offramp.models.source import is_object, known_path
        from offramp.tuning.floor import make_floor

        if not is_object(self.name):
            known_path(self.name)
        for floor in self.levels:
            make_floor({"agreement": floor})

    def require_own(self, output: Path) -> None:
        """Refuse a folder of something else."""
        from offramp.runs.folder import RUN_FOLDER

        RUN_FOLDER.require(output, overwrite=True)

    @property
    def resumes(self) -> bool:
        """With every task."""
        return True

    @property
    def name(self) -> str:
        """Of the model, settled: that by which it is found."""
        return str(self.model)

    @property
    def levels(self) -> tuple[float, ...]:
        """The floors as numbers, the strictest first."""
        return read_floors(self.floors)

    @property
    def folder(self) -> Path | None:
        """That was named, None for the usual one."""
        return None if self.output is None else Path(self.output)

    def texts(self) -> list[Workload]:
        """The workloads. Raises WorkloadError."""
        from offramp.workloads.registry import load_workload

        named = DEFAULT_WORKLOADS if self.workloads is None else self._named_texts()
        return [load_workload(name) for name in named]

    def carry_out(self) -> Findings:
        """What it found; nothing is said while it goes on, unless `progress`."""
        workloads = self.texts()
        from offramp.runs.stages import carry_out
        from offramp.tracing.progress import quietly

        with quietly(not self.progress):
            return carry_out(self, workloads)

    def call(self, *, named: bool) -> RunCall:
        """What repeats the run. named: whether the model has a name that loads it."""
        given = self.given()
        of_model = {name: given.pop(name) for name in OF_MODEL if name in given}
        return RunCall(tuple(words_of(no_option(self.name), **of_model)) if named else None, given)

    def _named_model(self) -> dict[str, Any]:
        if isinstance(self.model, str):
            return {}
        from offramp.models.model import Model, not_wrapped
        from offramp.models.source import name_object

        if not isinstance(self.model, Model):
            raise not_wrapped(self.model)
        return {
            "model": name_object(self.model),
            "dtype": self.model.dtype,
            "device": str(self.model.stack.device),
        }

    def _named_texts(self) -> tuple[str, ...]:
        """Names of the workloads, each once. Raises InputError for one that is not found again by its name:
        a study names its texts."""
        from offramp.workloads.given import read_workload
        from offramp.workloads.registry import load_workload
        from offramp.workloads.workload import Workload

        one = isinstance(self.workloads, str | Workload)
        listed: list[Any] = [self.workloads] if one else list(self.workloads or ())  # type: ignore[arg-type]
        if not listed:
            raise InputError("there is no workload", where="workloads=", fix="give a name, or a workload")
        names = []
        for given in listed:
            names.append(given if isinstance(given, str) else read_workload(given).name)
            if isinstance(given, str):
                continue
            try:
                same = load_workload(names[-1]).fingerprint == read_workload(given).fingerprint
            except WorkloadError:
                same = False
            if not same:
                raise InputError(
                    f"by the name {names[-1]!r} another text is found, or none",
                    where="workloads=",
                    fix="give the texts themselves: offramp.workload_of([document.text for document in "
                    "workload.documents], name=...)",
                )
        return tuple(dict.fromkeys(names))


run = as_call(Run)
"""`offramp.run`: a run, asked for from Python."""

OF_MODEL = tuple(field.switch(True) for part in (OnDevice, Placed) for field in fields_of(part))
"""Options of the model, which every command on it takes."""


def read_floors(given: str | float | Sequence[str | float]) -> tuple[float, ...]:
    """Floors on agreement, the strictest first: 0.95 or "agreement=0.95", one or several.

    Raises InputError for another kind of floor, or what is none.
    """
    floors = []
    for text in given if isinstance(given, Sequence) and not isinstance(given, str) else (given,):
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
    if not floors:
        raise InputError("there is no floor", where="--floor", fix="give a share of the tokens, as 0.95")
    return tuple(sorted(set(floors), reverse=True))
