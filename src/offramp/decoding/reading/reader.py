"""What a decoder reads at an exit: the facts of a policy, and the exit's logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FactValues = Mapping[str, NDArray[Any]]


class Reader(Protocol):
    """Reads exits of the tokens that are decoded now, with the arithmetic of the tracer.

    hidden, before: the layer's output and its input [rows, 1, hidden]; rows may be fewer than sequences.
    """

    def begin(self) -> None:
        """A new token: forget what was read of the one before."""

    def wants_before(self, exit: int) -> bool:
        """Whether a fact read at this exit compares with the state before its layer."""

    def read(self, exit: int, facts: tuple[str, ...], hidden: Tensor, before: Tensor | None) -> FactValues:
        """Some facts of an exit below L: by name, [rows]."""

    def logits(self, exit: int, hidden: Tensor) -> Tensor:
        """The exit's logits, float32 [rows, vocabulary], through its lens or its own head if it has one.

        Off the short list if that is what it reads, at exit L as well; else L is the full model's to read.

        Kept from `read` if that has computed them for the same hidden states.
        """

    def final(
        self, facts: tuple[str, ...], logits: Tensor, hidden: Tensor, before: Tensor | None
    ) -> FactValues:
        """Facts at exit L, from the full model's logits [rows, vocabulary]."""

    def keep_rows(self, rows: NDArray[np.int64]) -> None:
        """Only these of the current rows go on (others left); what was read before shrinks with them."""
