"""A generated text as a part of a page: every token in the colour of the layer that it left after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from offramp.report.formats import counted, percent, visible_piece
from offramp.report.html import fragment
from offramp.report.passage import depth_plot, exits_figure, shown_piece

if TYPE_CHECKING:
    from offramp.decoding.generation.result import Generation


def generation_section(one: Generation) -> Markup:
    """The text, coloured by exit, where its tokens left, and what was run for them."""
    exits, counts = np.unique(one.exits, return_counts=True)
    title = "Where tokens left"
    plot = depth_plot(
        exits, counts, one.layers, title, "Share of new tokens by the layer that they left after."
    )
    note = (
        "New tokens by the layer that they left after; the strip is the text's colour key. The first leaves "
        f"after layer {one.layers}, since the prompt runs whole."
    )
    new = counted(len(one.tokens), "new token")
    return fragment(
        "notebook",
        "generation",
        said=f"{new} after {one.prompt_tokens:,} of the prompt, {percent(one.skip_ratio)} of the layers "
        f"skipped, ended by: {one.stopped}.",
        problem=one.problem,
        tokens=token_parts(one),
        given=one.tokens != one.chosen,
        left=exits_figure(title, note, plot, exits, counts, caption=title, kind="executed"),
    )


def token_parts(one: Generation) -> list[tuple[Markup, str, str]]:
    """Pieces of the text with their styles, and labels that say in words what a colour says.

    A token that completes no character is shown with the one that does.
    """
    parts = []
    for piece, token, chosen, exit in zip(
        one.pieces, one.tokens, one.chosen, one.exits.tolist(), strict=True
    ):
        if piece:
            other = token != chosen
            label = f"{visible_piece(piece)}: left after layer {exit} of {one.layers}"
            label += "; the model chose another token" if other else ""
            parts.append((shown_piece(piece), f"t e{exit}{' other' if other else ''}", label))
    return parts
