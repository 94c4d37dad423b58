"""What `offramp generate` shows: tokens in the colours of their exits, and the end of it in lines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from offramp.decoding.generation.result import BatchGeneration, Generation, Pieces
from offramp.policies.figures import FreeRunning
from offramp.policies.policy import ExitPolicy
from offramp.report.formats import counted, decimal, duration, percent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console
    from torch import Tensor


# From early exits to late ones. The terminal's own colours, which its user finds legible.
PALETTE = ("blue", "cyan", "green", "yellow", "red")

# What a terminal would obey instead of showing: all control characters but line feed and tab.
CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Painter:
    """Writes pieces of text to a console: coloured by exit on a terminal, else as they are.

    stops: the exits below L where tokens may leave, ascending. layers: L, whose tokens stay plain.
    """

    def __init__(self, console: Console, stops: Sequence[int], layers: int) -> None:
        from rich.console import COLOR_SYSTEMS

        self.console = console
        self.stops = tuple(stops)
        self.layers = layers
        shows = console.is_terminal and not console.no_color
        self._colours = COLOR_SYSTEMS.get(console.color_system or "") if shows else None
        self._at_line_start = True

    def write(self, piece: str, exit: int) -> None:
        """Write the text of a token that left at an exit."""
        if self.console.is_terminal:
            piece = piece.translate(CONTROLS)
        if piece:
            self._at_line_start = piece.endswith("\n")
            self.console.file.write(self._painted(piece, self.colour_of(exit)))
            self.console.file.flush()

    def end_line(self) -> None:
        """Begin a new line unless the text has."""
        if not self._at_line_start:
            self._at_line_start = True
            self.console.file.write("\n")
            self.console.file.flush()

    def colour_of(self, exit: int) -> str | None:
        """The colour of an exit by its place among those where tokens may leave; None for exit L."""
        if exit >= self.layers or not self.stops:
            return None
        place = sum(stop < exit for stop in self.stops)
        return PALETTE[round(place * (len(PALETTE) - 1) / max(1, len(self.stops) - 1))]

    def legend(self) -> str | None:
        """What the colours mean, in them; None where there are none."""
        if self._colours is None or not self.stops:
            return None
        groups: dict[str, list[int]] = {}
        for stop in self.stops:
            groups.setdefault(str(self.colour_of(stop)), []).append(stop)
        named = [self._painted(_range(exits), colour) for colour, exits in groups.items()]
        return f"colour: the layer a token left after: {', '.join(named)}; plain: all {self.layers}"

    def _painted(self, piece: str, colour: str | None) -> str:
        if self._colours is None or colour is None:
            return piece
        from rich.style import Style

        return Style(color=colour).render(piece, color_system=self._colours)


def _range(exits: Sequence[int]) -> str:
    return str(exits[0]) if len(exits) == 1 else f"{exits[0]}-{exits[-1]}"


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


DRAFTING = "speculate"

Decode = Callable[[list[int]], str]
"""From token ids to text."""


@dataclass(frozen=True)
class FullModelCheck:
    """The answers held against the full model."""

    INLINE: ClassVar[tuple[str, ...]] = ("quality",)

    quality: FreeRunning
    """Means over the answers."""
    plain: tuple[Generation, ...]
    """The full model's own greedy answers."""
    shared: tuple[int, ...]
    """New tokens of each answer up to the first that differs from the full model's own."""


@dataclass(frozen=True)
class Answered:
    """What was generated, from which prompts, how."""

    INLINE: ClassVar[tuple[str, ...]] = ("generated",)

    model: str
    policy: ExitPolicy
    kv: str
    prompts: list[str]
    generated: BatchGeneration
    check: FullModelCheck | None
    """None unless it was asked for and nothing broke."""


def summary_lines(batch: BatchGeneration, kv: str, check: FullModelCheck | None, decode: Decode) -> list[str]:
    """The end of a generation in a few lines."""
    new, layers = sum(len(row.tokens) for row in batch.rows), batch.rows[0].layers
    ends = ", ".join(dict.fromkeys(row.stopped for row in batch.rows))
    speed = batch.tokens_per_second
    timing = [f"first after {duration(batch.first_token_seconds)}"]
    if np.isfinite(speed):
        timing.insert(0, f"{decimal(speed, 1)} tokens/s")
    lines = [f"{counted(new, 'new token')} (ended by: {ends}), {', '.join(timing)}"]
    executed, plain = batch.layers_run
    if plain:
        left = "drafts left" if kv == DRAFTING else "tokens left"
        lines.append(
            f"{_skipped(executed, plain)}; {left} after layer {decimal(batch.mean_exit, 1)} of {layers} on "
            "average"
        )
    if batch.drafted:
        lines.append(f"drafts kept: {batch.accepted:,} of {batch.drafted:,}")
    return lines if check is None else [*lines, *check_lines(batch, check, decode)]


def _skipped(executed: int, plain: int) -> str:
    """The share of layers that did not run; or how many times as many ran, after rejected drafts."""
    if executed > plain:
        return (
            f"layers: {decimal(executed / plain)} times as many ran as plainly ({executed:,} for {plain:,})"
        )
    return f"layers skipped: {percent(1 - executed / plain)} ({executed:,} of {plain:,} ran after the prompt)"


def check_lines(batch: BatchGeneration, check: FullModelCheck, decode: Decode) -> list[str]:
    """Agreement on the same text, and where each answer parts from the full model's own."""
    agreement, new = check.quality.agreement.value, check.quality.new_tokens - check.quality.prompts
    lines = [
        f"agreement with the full model on the same text: {percent(agreement)} "
        f"({round(agreement * new):,} of {counted(new, 'token')} after the first)"
    ]
    for place, (row, plain, shared) in enumerate(zip(batch.rows, check.plain, check.shared, strict=True), 1):
        which = f" {place}" if len(batch.rows) > 1 else ""
        lines.append(f"answer{which}: {_divergence(row, plain, shared, decode)}")
    return lines


def _divergence(row: Generation, plain: Generation, shared: int, decode: Decode) -> str:
    if row.tokens == plain.tokens:
        return "the full model's own answer, token for token"
    said, meant = (_token(tokens, shared, decode) for tokens in (row.tokens, plain.tokens))
    return f"parts from the full model's own at new token {shared + 1}: {said} instead of {meant}"


def _token(tokens: Sequence[int], place: int, decode: Decode) -> str:
    return repr(decode([tokens[place]])) if place < len(tokens) else "the end"
