"""What a training of gates is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from offramp.errors import InputError
from offramp.kit.defaults import LOCAL
from offramp.kit.numbers import Count
from offramp.kit.request import Request, python_only
from offramp.lab.exits.request import FromHeads
from offramp.tracing.request import FITTING_TOKENS

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.tuning.floor import Floor


@dataclass(frozen=True, kw_only=True)
class GateTraining(FromHeads, Request):
    """Networks that decide who leaves, for one machine and one floor (`offramp.lab.exits.gate`)."""

    kind: ClassVar[str] = "gate"

    tokens: Count = FITTING_TOKENS
    floor: float | None = None
    """The agreement to keep, as in 0.95."""
    hardware: str | Machine = LOCAL
    """The machine whose seconds are saved: local, a name of offramp list hardware, or a .toml profile."""
    kv: Annotated[str, python_only] = "propagate"
    """The K,V strategy whose prices are charged."""

    def check(self) -> None:
        """Refuse no floor, no exits, an unknown machine, and a folder of something else."""
        super().check()
        _ = self.wanted
        if self.start is None and self.at is None:
            raise InputError(
                "no exit is named that gets a gate",
                where="--at",
                fix="name some, as in 12,20, or exits that are trained, with --from DIR",
            )
        if isinstance(self.hardware, str) and self.hardware != LOCAL:  # that of a model is looked up later
            from offramp.costs.hardware import find_machine

            find_machine(self.hardware)
        if self.output is not None:
            from offramp.lab.exits.gate_folder import owned_folder

            owned_folder(Path(self.output), overwrite=self.overwrite)

    @property
    def wanted(self) -> Floor:
        """The floor on agreement. Raises InputError for none."""
        from offramp.tuning.floor import make_floor

        if self.floor is None:
            what = "gates are trained for a floor on agreement"
            raise InputError(what, where="--floor", fix="name it, as in 0.95")
        return make_floor({"agreement": self.floor})
