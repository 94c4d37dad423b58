"""Oracles: what a policy that knew the full model's answer would do. Bounds that nothing reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.policy import Decider, ExitPolicy, Parameter
from offramp.policies.reading import one_of
from offramp.scoring.components import first_match, saturation
from offramp.tracing.trace import Trace

ORACLES = {"first_match": first_match, "saturation": saturation}


@dataclass(frozen=True)
class Oracle(ExitPolicy):
    """Leaves where the exit agrees with the full model, which no decoder can know. It checks for free.

    first_match: the first traced exit that agrees; it overstates what can be saved, since a later exit may
    disagree again. saturation: the first from which on all agree, the saturation event of Geva et al.
    (arXiv 2203.14680).
    """

    which: str

    kind: ClassVar[str] = "oracle"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("which", one_of(*ORACLES), "first_match or saturation"),
    )
    reachable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse what the grammar would refuse, for policies built in Python."""
        self.parameters[0].read(self.which)

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """It is asked nowhere."""
        return {}

    def decider(self, layers: int, streams: int) -> Decider:
        """Raises PolicyError: no decoder can follow it."""
        raise PolicyError(
            "an oracle knows the full model's answer: it can be replayed, but nothing can decode with it",
            where=str(self),
            fix="choose a policy that decides from signals",
        )

    def exits_of(self, trace: Trace) -> NDArray[np.int64]:
        """The exits that it takes on a trace: int64 [tokens]."""
        columns = ORACLES[self.which](trace.agreement)
        return np.asarray(trace.exits[columns], dtype=np.int64)
