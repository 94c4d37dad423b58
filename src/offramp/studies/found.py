"""What the names of a study stand for, as it was found here: plain data for recipes and estimates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offramp.costs.machine import Machine
from offramp.models.identity import ModelIdentity
from offramp.models.shape import ELEMENT_BYTES
from offramp.studies.entries import ModelEntry, WorkloadEntry
from offramp.studies.work.inputs import TextUsed
from offramp.tracing.exit_heads import ExitHeads


@dataclass(frozen=True)
class FoundModel:
    """A model. source: what it is loaded by. identity: None if it is not here.

    attention: the implementation that a model object was loaded with, None for the family's own.
    layers, hidden, vocabulary, parameters: by its files, else by the study's; None if neither says. context:
    tokens that it takes, None if its files do not say.
    model_type: of its config. missing: why it cannot be had here, None if it can. damaged: whether that is
    since its files are not whole or not safe.
    """

    entry: ModelEntry
    source: str
    identity: ModelIdentity | None = None
    attention: str | None = None
    layers: int | None = None
    hidden: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    parameters: float | None = None
    model_type: str | None = None
    missing: str | None = None
    damaged: bool = False

    def weight_bytes(self, dtype: str) -> float | None:
        """Bytes of the weights as they are loaded, None if it is not known how many there are."""
        return None if self.parameters is None else self.parameters * ELEMENT_BYTES[dtype]

    def fingerprint(self, transforms: Sequence[str]) -> str | None:
        """Of the transformed model, None if it is not here."""
        if self.identity is None:
            return None
        return dataclasses.replace(self.identity, transforms=tuple(transforms)).fingerprint


@dataclass(frozen=True)
class FoundWorkload:
    """A workload. source: what it is loaded by. mode: "text" or "generation". missing: as a model's.

    kind: its name without any place: "prose:short", but "txt" for "txt:notes.txt". documents: how many it
    has, None if it is not here.
    """

    entry: WorkloadEntry
    source: str
    kind: str
    mode: str
    fingerprint: str | None = None
    missing: str | None = None
    documents: int | None = None

    @property
    def used(self) -> TextUsed:
        """Which text it is, for what is made of it."""
        source = None if self.fingerprint else self.source
        return TextUsed(self.kind, self.fingerprint, source, self.mode == "generation")

    @property
    def why_missing(self) -> str | None:
        """Why it cannot be had here, with its name."""
        return None if self.missing is None else f"{self.entry.name}: {self.missing}"


@dataclass(frozen=True)
class FoundMachine:
    """A machine. source: name or path. fingerprint: of its figures, None for this machine's own timings.

    machine: itself, None likewise, and where bytes are counted.
    """

    source: str
    fingerprint: str | None = None
    machine: Machine | None = None


@dataclass(frozen=True)
class FoundHeads:
    """Heads, or exits that are trained: the workloads that they are made on, or the file that holds them.

    own: whether they are fitted on the workload that is traced. facts: that a trace made with them has beside
    its own. given: what the file holds. reads_exits: whether exits are read through them.
    """

    workloads: tuple[FoundWorkload, ...] = ()
    file: str | None = None
    facts: tuple[str, ...] = ()
    given: ExitHeads | None = None
    own: bool = False
    reads_exits: bool = False


@dataclass(frozen=True)
class Found:
    """All of them, by the study's names. measuring: workloads that layers to prune are chosen on, by source.

    unfit: why a transform cannot be done on this machine, by its text.
    """

    models: Mapping[str, FoundModel]
    workloads: Mapping[str, FoundWorkload]
    machines: Mapping[str, FoundMachine]
    heads: Mapping[str, FoundHeads]  # those of trainings among them
    measuring: Mapping[str, FoundWorkload]
    unfit: Mapping[str, str]

    @property
    def unavailable(self) -> dict[str, str]:
        """Why a model or workload cannot be had here, by name."""
        missing = {name: one.missing for name, one in self.workloads.items()}
        missing |= {name: one.missing for name, one in self.models.items()}
        return {name: why for name, why in missing.items() if why is not None}

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of models whose files are not whole or not safe."""
        return tuple(name for name, one in self.models.items() if one.damaged)

    def why_not(self, model: FoundModel, texts: Sequence[str]) -> str | None:
        """Why a model cannot be had here with what is done to it, None if it can."""
        return model.missing or next((self.unfit[text] for text in texts if text in self.unfit), None)
