"""What the full model makes of a prompt before it answers: known when the first token is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offramp.tracing.head import Head
from offramp.tracing.table import FactTable
from offramp.workloads.packing import Context

PROMPT_TOKENS = 32
"""Last tokens of a prompt whose entropy is averaged."""


class PromptStates:
    """The last layer's states of the ends of prompts, kept while contexts run."""

    def __init__(self) -> None:
        self._contexts: list[Context] = []
        self._states: list[Tensor] = []

    def keep(self, contexts: Sequence[Context], states: Tensor) -> None:
        """Keep the prompts' last states of a batch [contexts, positions, features]."""
        for context, of_context in zip(contexts, states, strict=True):
            self._contexts.append(context)
            self._states.append(of_context[_first(context) : context.first_row].clone())

    def entropy(self, table: FactTable, head: Head, normed: Callable[[Tensor], Tensor]) -> dict[int, float]:
        """Mean entropy at exit L over each prompt's last tokens, nats, by document.

        A prompt with a non-finite number is noted as its document's defect.
        """
        together = torch.split(torch.cat(self._states), head.exact_rows)
        per_token = torch.cat([_entropy(head, normed(some)) for some in together])
        found = {}
        lengths = [len(states) for states in self._states]
        for context, entropy in zip(self._contexts, torch.split(per_token, lengths), strict=True):
            for place in torch.nonzero(~torch.isfinite(entropy)).flatten().tolist():
                table.note_defect(table.final, context.document, _first(context) + place)
            found[context.document] = float(entropy.double().mean())
        return found


def _first(context: Context) -> int:
    return max(0, context.first_row - PROMPT_TOKENS)


def _entropy(head: Head, states: Tensor) -> Tensor:
    """Entropy in float32 accuracy: [rows], nats."""
    wanted = torch.zeros(len(states), 2, dtype=torch.long)
    return head.statistics(states, head.exact_output(states), wanted)[0].entropy.clamp(min=0)
