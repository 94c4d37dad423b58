"""What a training of gates is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from offramp.kit.defaults import LOCAL
from offramp.kit.numbers import Count, Share
from offramp.kit.request import Request, one_word, python_only
from offramp.kit.rules import Beside, Must
from offramp.policies.names import StrategyName
from offramp.tracing.request import FITTING_TOKENS
from offramp.training.request import FromHeads

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.tuning.floor import Floor


@dataclass(frozen=True, kw_only=True)
class GateTraining(FromHeads, Request):
    """Networks that decide who leaves, for one machine and one floor (`offramp.training.gate`)."""

    kind: ClassVar[str] = "gate"

    at: Annotated[
        str | Sequence[Count] | None,
        one_word,
        Beside(
            lambda at, asked: at is not None or asked.start is not None,
            "given, as in 12,20",
            "name some, or exits that are trained, with --from DIR",
        ),
    ] = None
    tokens: Count = FITTING_TOKENS
    floor: Annotated[
        Share | None,
        Must(lambda floor: floor is not None, "given, as in 0.95", "say what to keep: --floor 0.95"),
    ] = None
    """The agreement to keep, as in 0.95."""
    hardware: str | Machine = LOCAL
    """The machine whose seconds are saved: local, a name of offramp list hardware, or a .toml profile."""
    kv: Annotated[StrategyName, python_only] = "propagate"
    """The K,V strategy whose prices are charged."""

    def check(self) -> None:
        """Refuse an unknown machine, and a folder of something else."""
        super().check()
        if isinstance(self.hardware, str) and self.hardware != LOCAL:  # that of a model is looked up later
            from offramp.costs.hardware import find_machine

            find_machine(self.hardware)
        if self.output is not None:
            from offramp.training.folder import GATES_FOLDER

            GATES_FOLDER.require(Path(self.output), overwrite=self.overwrite)

    @property
    def wanted(self) -> Floor:
        """The floor on agreement."""
        from offramp.tuning.floor import make_floor

        assert self.floor is not None  # by its annotation
        return make_floor({"agreement": self.floor})
