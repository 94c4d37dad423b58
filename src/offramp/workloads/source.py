"""A source of workloads: what a registry entry holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from offramp.workloads.workload import Mode, Workload


@dataclass(frozen=True)
class WorkloadSource:
    """One kind of workload that `load_workload` knows.

    name: the word before the colon ("prose", "txt").
    load: makes the workload from the text after the colon ("" where `argument` is empty).
    argument: grammar of that text ("PATH#field"), empty if the source takes none.
    documents, licence, description: for people, one phrase each.
    """

    name: str
    load: Callable[[str], Workload]
    mode: Mode
    documents: str
    licence: str
    description: str
    argument: str = ""

    @property
    def grammar(self) -> str:
        """How the source is written on the command line: "prose", "txt:PATH"."""
        return f"{self.name}:{self.argument}" if self.argument else self.name
