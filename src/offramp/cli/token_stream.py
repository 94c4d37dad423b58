"""A streamer for `offramp.generate` that shows one answer on a console while it grows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from offramp.cli.token_text import Painter, Pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class TokenStream:
    """Shows the tokens of one sequence as they come, without the end token.

    It is one of transformers' streamers, which are given the prompt first; the decoding loop gives it the
    exits as well, just before.
    """

    def __init__(
        self, painter: Painter, decode: Callable[[list[int]], str], end_tokens: Collection[int]
    ) -> None:
        self._painter = painter
        self._pieces = Pieces(decode)
        self._end_tokens = frozenset(end_tokens)
        self._exit = painter.layers
        self._follows = False

    def put_exits(self, exits: NDArray[np.int64]) -> None:
        """Where the prediction of the next tokens left, int64 [1]."""
        self._exit = int(exits[0])
        self._follows = True

    def put(self, tokens: Tensor) -> None:
        """A new token, int64 [1]; the prompt, which comes without an exit, is not shown."""
        if self._follows:
            self.show(int(tokens[0]), self._exit)
        self._follows = False

    def show(self, token: int, exit: int) -> None:
        """Write what the token completes."""
        if token not in self._end_tokens:
            self._exit = exit
            self._painter.write(self._pieces.add(token), exit)

    def end(self) -> None:
        """No more tokens: write what is left, and end the line."""
        self._painter.write(self._pieces.rest(), self._exit)
        self._painter.end_line()
