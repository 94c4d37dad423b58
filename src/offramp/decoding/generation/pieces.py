"""The text of tokens one by one: what each of them completes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Pieces:
    """Turns tokens into text one by one; the pieces together are the text of all tokens.

    A character that takes several tokens is held back until it is whole, as transformers' streamers do.
    decode: token ids to text.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        # The last piece's tokens go along: some tokenizers treat the first token of a text differently.
        self._tokens: list[int] = []
        self._given = 0

    def add(self, token: int) -> str:
        """The text that a token completes, empty if it completes none."""
        self._tokens.append(token)
        text = self._pending()
        if not text or text.endswith(INCOMPLETE):
            return ""
        self._tokens, self._given = self._tokens[self._given :], len(self._tokens) - self._given
        return text

    def rest(self) -> str:
        """What was held back, if no more tokens come."""
        text = self._pending()
        self._given = len(self._tokens)
        return text

    def _pending(self) -> str:
        before = self._decode(self._tokens[: self._given])
        return self._decode(self._tokens)[len(before) :]


def pieces_of(decode: Callable[[list[int]], str], tokens: Sequence[int]) -> tuple[str, ...]:
    """What each of some tokens adds to their text; the last one also what stays incomplete."""
    pieces = Pieces(decode)
    given = [pieces.add(token) for token in tokens]
    return (*given[:-1], given[-1] + pieces.rest()) if given else ()
