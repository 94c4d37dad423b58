"""A machine: anything that says how many seconds each part of a decoding step takes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from offramp.costs.probes import ProbeSizes
from offramp.costs.token import TokenCosts
from offramp.files import canonical_json, sha256_of_text
from offramp.models.shape import ModelShape


@runtime_checkable
class Machine(Protocol):
    """One hardware profile: roofline constants, or timings measured on a model."""

    @property
    def name(self) -> str:
        """As shown."""

    @property
    def source(self) -> str:
        """Where its numbers come from."""

    @property
    def kind(self) -> str:
        """Either "roofline" or "timings"."""

    def token_costs(
        self,
        shape: ModelShape,
        position: float,
        *,
        batch: int = 1,
        lens: bool = False,
        sizes: ProbeSizes | None = None,
    ) -> TokenCosts:
        """Seconds of one step that decodes a token of each of `batch` sequences at `position` (0 = first).

        Raises InputError for a batch or position that the profile cannot price, or another model than its
        own.
        """

    def to_json(self) -> dict[str, Any]:
        """The whole profile, to be kept beside every number made from it."""


def machine_fingerprint(machine: Machine) -> str:
    """SHA-256 of a machine's figures."""
    return sha256_of_text(canonical_json(machine.to_json()))
