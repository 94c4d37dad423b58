"""Texts in the colours of layers: a passage of a trace, a generated text, and how many tokens stop where."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offramp.report.drawing import drawn, nice_ticks
from offramp.report.formats import counted, percent, percent_tick, visible_piece
from offramp.report.html import Kind, fragment, text
from offramp.report.plots import FLAT, Axis, Box, Plot
from offramp.report.run_result import WorkloadResult
from offramp.report.table import Column, Table
from offramp.scoring.components import saturation
from offramp.studies.work.trace import Passage, PassageToken

if TYPE_CHECKING:
    from offramp.decoding.generation.result import Generation

STRIP = 0.12
"""Height of the strip of colours, as a share of the highest bar's."""


def passage_section(workload: WorkloadResult, layers: int, identity: str) -> Markup:
    """The passage, the panel that shows every layer's prediction, and where all tokens could have stopped."""
    part = passage_part(workload.passage, identity, depth_figure(workload, layers))
    return fragment("run", "passage_section", part)


def passage_part(passage: Passage, identity: str, depths: Markup | None = None) -> Markup:
    """The passage with its panel. identity: of its elements on the page. depths: a figure below it."""
    return fragment(
        "run",
        "passage",
        id=identity,
        lead=visible_piece(passage.lead),
        tokens=[token_part(passage, token) for token in passage.tokens],
        shown=(
            f"Document “{passage.document}”: its first {len(passage.tokens)} of {passage.document_tokens} "
            "traced tokens."
        ),
        data=passage_data(passage),
        depths=depths,
    )


def token_part(passage: Passage, token: PassageToken) -> tuple[Markup, str, str]:
    """One token of the running text, its style, and a label that says in words what its colour says."""
    other = token.full_prediction != token.piece
    label = (
        f"{visible_piece(token.piece)}: could stop after layer {token.saturation_exit} of {passage.exits[-1]}"
    )
    if other:
        label += f"; the full model says {visible_piece(token.full_prediction)}"
    style = f"t e{token.saturation_exit}{' other' if other else ''}"
    return shown_piece(token.piece), style, label


def shown_piece(piece: str) -> Markup:
    """A token in running text: its inner spaces as they are, anything that would not show as a sign."""
    if not piece.strip(" "):
        return text(visible_piece(piece))
    visible = visible_piece(piece)
    body = visible.strip("·") if piece.startswith(" ") or piece.endswith(" ") else visible
    left, right = len(piece) - len(piece.lstrip(" ")), len(piece) - len(piece.rstrip(" "))
    # Two or more spaces are shown as signs: they would otherwise look like one.
    before = " " if left == 1 else "·" * left
    after = " " if right == 1 else "·" * right
    return text(before + body + after) + Markup("<br>" if "\n" in piece else "")


def passage_data(passage: Passage) -> Markup:
    """The passage for the script: pieces once, then per token indices, per mille of confidence, agreement."""
    index: dict[str, int] = {}

    def number(piece: str) -> int:
        return index.setdefault(visible_piece(piece), len(index))

    tokens = [
        [
            number(token.piece),
            number(token.full_prediction),
            token.first_match_exit,
            token.saturation_exit,
            [number(piece) for piece in token.predictions],
            [round(1000 * value) if np.isfinite(value) else None for value in token.max_prob],
            "".join("1" if agrees else "0" for agrees in token.agrees),
        ]
        for token in passage.tokens
    ]
    value = {"exits": passage.exits, "tokens": tokens, "pieces": list(index)}
    # "<" must not appear, or a token could close the script element.
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def depth_figure(workload: WorkloadResult, layers: int) -> Markup:
    """Where all traced tokens of the workload could have stopped; also the passage's colour key."""
    trace = workload.trace
    counts = np.bincount(saturation(trace.agreement), minlength=len(trace.exits))
    note = (
        f"All {max(int(counts.sum()), 1):,} traced tokens of {workload.name} by the layer from which the "
        "prediction stays; the strip is the passage's colour key."
    )
    return exits_figure(note, depth_plot(trace.exits, counts, layers), trace.exits, counts, "measured")


def left_figure(taken: NDArray[np.int64], layers: int, note: str, kind: Kind) -> Markup:
    """Where tokens left. taken: int64 [tokens], the layer that each left after."""
    exits, counts = np.unique(taken, return_counts=True)
    said = "Share of tokens by the layer that they leave after."
    plot = depth_plot(exits, counts, layers, "Where tokens leave", said)
    return exits_figure(note, plot, exits, counts, kind)


def exits_figure(
    note: str, plot: Plot, exits: NDArray[np.int64], counts: NDArray[np.int64], kind: Kind
) -> Markup:
    """Tokens by layer, drawn and as a table; exits, counts: int64 [exits]."""
    total = max(int(counts.sum()), 1)
    rows = zip(exits.tolist(), counts.tolist(), np.cumsum(counts).tolist(), strict=True)
    table: Table[tuple[int, int, int]] = Table(
        (
            Column("Layer", lambda row: f"layer {row[0]}"),
            Column("Tokens", lambda row: row[1]),
            Column("Share", lambda row: row[1] / total, percent),
            Column("Up to here", lambda row: row[2] / total, percent),
        ),
        caption=plot.title,
        words=1,
    )
    return drawn(plot, table.html(rows), note=note, kind=kind)


def depth_plot(
    exits: NDArray[np.int64],
    counts: NDArray[np.int64],
    layers: int,
    title: str = "Where tokens could have stopped",
    description: str = "Share of all traced tokens by the layer from which the prediction no longer changes.",
) -> Plot:
    """Bars over layers 1..L on a strip of the passage's colours; exits, counts: int64 [exits]."""
    share = counts / max(int(counts.sum()), 1)
    tallest = float(share.max()) or 1.0
    strip = [Box(layer, layer + 1, -STRIP * tallest, 0.0, f"e{layer}") for layer in range(1, layers + 1)]
    bars = [
        Box(layer, layer + 1, 0.0, part, f"bar e{layer}", f"layer {layer}: {100 * part:.1f} % of tokens")
        for layer, part in zip(exits.tolist(), share.tolist(), strict=True)
    ]
    ends = {1: "layer 1", layers + 1: f"layer {layers}, the full model"}
    return Plot(
        title=title,
        description=description,
        x=Axis("", (1, layers + 1), lambda layer: ends[int(layer)], ticks=tuple(ends)),
        y=Axis("share of tokens", (-STRIP * tallest, tallest), percent_tick, nice_ticks(0.0, tallest, 3)),
        boxes=(*strip, *bars),
        size=FLAT,
        style="wide",
    )


def generation_section(generation: Generation) -> Markup:
    """The text, coloured by exit, where its tokens left, and what was run for them."""
    note = (
        "New tokens by the layer that they left after; the strip is the text's colour key. The first leaves "
        f"after layer {generation.layers}, since the prompt runs whole."
    )
    new = counted(len(generation.tokens), "new token")
    return fragment(
        "notebook",
        "generation",
        said=f"{new} after {generation.prompt_tokens:,} of the prompt, {percent(generation.skip_ratio)} of "
        f"the layers skipped, ended by: {generation.stopped}.",
        problem=generation.problem,
        tokens=token_parts(generation),
        given=generation.tokens != generation.chosen,
        left=left_figure(generation.exits, generation.layers, note, "executed"),
    )


def token_parts(generation: Generation) -> list[tuple[Markup, str, str]]:
    """Pieces of the text with their styles, and labels that say in words what a colour says.

    A token that completes no character is shown with the one that does.
    """
    parts = []
    for piece, token, chosen, exit in zip(
        generation.pieces, generation.tokens, generation.chosen, generation.exits.tolist(), strict=True
    ):
        if piece:
            other = token != chosen
            label = f"{visible_piece(piece)}: left after layer {exit} of {generation.layers}"
            label += "; the model chose another token" if other else ""
            parts.append((shown_piece(piece), f"t e{exit}{' other' if other else ''}", label))
    return parts
