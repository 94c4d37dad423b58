"""How long the text of a trace is in bytes and characters, so that other tokenizers can be compared with it.

What is counted is the observed text: the tokens whose probability the trace holds (`next_token` of every
row). A run of consecutive rows is decoded behind the token of its first row, which was not observed, and that
token's own text taken off, so that spaces at the seam come out right. Special tokens (an end token, the marks
of a chat template) are no text: they count nothing. A character is counted where the last of its bytes was
observed. If a run ends within a character, the tokenizer writes U+FFFD for the bytes it has: each such mark
at the end counts as one byte and as no character, up to two bytes too few (a U+FFFD of the text itself, too).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.tracing.trace import Trace

PARTIAL = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens left out."""


@dataclass(frozen=True)
class TextSize:
    """Bytes in UTF-8, characters, and tokens of some observed text."""

    bytes: int
    characters: int
    tokens: int

    def __add__(self, other: TextSize) -> TextSize:
        """Both texts together."""
        return TextSize(
            self.bytes + other.bytes, self.characters + other.characters, self.tokens + other.tokens
        )


NOTHING = TextSize(0, 0, 0)


def text_sizes(trace: Trace, decode: Decode) -> dict[str, TextSize]:
    """The observed text of every document with rows, by its id."""
    found: dict[str, TextSize] = {}
    for rows in runs_of(trace):
        first = int(trace.token[rows[0]])
        observed = trace.next_token[rows].tolist()
        size = observed_size(decode, first, observed)
        identity = trace.documents[int(trace.document[rows[0]])].id
        found[identity] = found.get(identity, NOTHING) + size
    return found


def runs_of(trace: Trace) -> Iterator[NDArray[np.int64]]:
    """The rows of every stretch of text without a gap: each row's token is the one before's next token."""
    follows = (
        (trace.document[1:] == trace.document[:-1])
        & (trace.position[1:] == trace.position[:-1] + 1)
        & (trace.token[1:] == trace.next_token[:-1])
    )
    rows = np.arange(trace.token_count)
    yield from np.split(rows, np.flatnonzero(~follows) + 1) if trace.token_count else ()


def observed_size(decode: Decode, first: int, observed: Sequence[int]) -> TextSize:
    """The size of a run of observed tokens behind one that was not."""
    (bytes_in, characters_in), (bytes_before, characters_before) = (
        _size(decode(ids)) for ids in ([first, *observed], [first])
    )
    return TextSize(bytes_in - bytes_before, characters_in - characters_before, len(observed))


def _size(text: str) -> tuple[int, int]:
    """Bytes and characters, marks of a partial character at the end as one byte each."""
    whole = text.rstrip(PARTIAL)
    return len(whole.encode()) + len(text) - len(whole), len(whole)


def bits_per_byte(trace: Trace, size: int, place: int = -1) -> float | None:
    """Summed NLL of the observed tokens, in bits, over the text's bytes; None without any.

    Unlike nats per token, it does not depend on how a tokenizer cuts the text. place: of the exit among the
    traced ones, by default the last.
    """
    nats = float(np.sum(trace.fact("nll")[:, place], dtype=np.float64))
    return nats / math.log(2.0) / size if size else None
