"""A passage of the workload: every token in the colour of the layer where it could have stopped."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from offramp.report.comparison_words import percent_tick
from offramp.report.formats import percent, visible_piece
from offramp.report.markup import element, figure, kind_chip, table, text
from offramp.report.plot.plot import FLAT, Axis, Box, Plot
from offramp.report.plot.scale import nice_ticks
from offramp.report.run_result import Passage, PassageToken, WorkloadResult
from offramp.scoring.oracles import saturation

STRIP = 0.12
"""Height of the strip of colours, as a share of the highest bar's."""


def passage_section(workload: WorkloadResult, layers: int, identity: str) -> str:
    """The passage, the panel that shows every layer's prediction, and where all tokens could have stopped."""
    passage = workload.passage
    intro = (
        "Each token has the colour of the layer from which the model's prediction of it no longer "
        "changes. This is the oracle: it knows the full model's answer beforehand, which no policy does, so "
        "it is a bound, at 100 % agreement, and not a promise. Point at a token, tap it, or move through the "
        "passage with the arrow keys to see what each layer would have said."
    )
    shown = (
        f"Document “{passage.document}”: its first {len(passage.tokens)} of {passage.document_tokens} "
        "traced tokens."
    )
    marks = "A dotted underline marks a token that the full model would not have written itself."
    reading = (
        element("div", passage_text(passage, identity), class_="reading")
        + element("p", text(f"{shown} {marks}"), class_="note")
        + passage_data(passage, identity)
        + depth_figure(workload, layers)
        + element(
            "details",
            element("summary", "The passage as a table") + passage_table(passage),
            class_="passage-table",
        )
    )
    return (
        element("h3", "Where it could have stopped " + kind_chip("measured"))
        + element("p", text(intro))
        + element("div", element("div", reading) + panel(identity), class_="passage-frame")
    )


def passage_text(passage: Passage, identity: str) -> str:
    """The tokens as running text; one of them is in the tab order, arrow keys reach the others."""
    lead = element(
        "span", text(visible_piece(passage.lead)), class_="lead", title="the first input, not predicted"
    )
    tokens = "".join(token_span(passage, token, index) for index, token in enumerate(passage.tokens))
    return element(
        "div",
        lead + tokens,
        class_="passage",
        id_=f"passage-{identity}",
        role="group",
        aria_label="Passage; arrow keys move between tokens",
    )


def token_span(passage: Passage, token: PassageToken, index: int) -> str:
    """One token; its label says in words what its colour says."""
    other = token.full_prediction != token.piece
    name = (
        f"{visible_piece(token.piece)}: could stop after layer {token.saturation_exit} of {passage.exits[-1]}"
    )
    if other:
        name += f"; the full model says {visible_piece(token.full_prediction)}"
    return element(
        "span",
        shown_piece(token.piece),
        class_=f"t e{token.saturation_exit}{' other' if other else ''}",
        role="button",
        tabindex=0 if index == 0 else -1,
        aria_label=name,
    )


def shown_piece(piece: str) -> str:
    """A token in running text: its inner spaces as they are, anything that would not show as a sign."""
    if not piece.strip(" "):
        return text(visible_piece(piece))
    visible = visible_piece(piece)
    body = visible.strip("·") if piece.startswith(" ") or piece.endswith(" ") else visible
    left, right = len(piece) - len(piece.lstrip(" ")), len(piece) - len(piece.rstrip(" "))
    # Two or more spaces are shown as signs: they would otherwise look like one.
    before = " " if left == 1 else "·" * left
    after = " " if right == 1 else "·" * right
    return text(before + body + after) + ("<br>" if "\n" in piece else "")


def panel(identity: str) -> str:
    """Where the script writes the predictions of the chosen token; without scripts it is not shown."""
    hint = element("p", "Choose a token to see what every layer said in its place.", class_="sub")
    return element("div", hint, class_="panel", id_=f"panel-{identity}", aria_live="polite")


def passage_data(passage: Passage, identity: str) -> str:
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
    content = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return element("script", content, type_="application/json", id_=f"data-{identity}")


def depth_figure(workload: WorkloadResult, layers: int) -> str:
    """Where all traced tokens of the workload could have stopped; also the passage's colour key."""
    trace = workload.trace
    counts = np.bincount(saturation(trace.agreement), minlength=len(trace.exits))
    total = max(int(counts.sum()), 1)
    running = np.cumsum(counts)
    rows = [
        [f"layer {layer}", str(int(count)), percent(int(count) / total), percent(int(sum_) / total)]
        for layer, count, sum_ in zip(trace.exits, counts, running, strict=True)
    ]
    return figure(
        "Where tokens could have stopped",
        f"All {total:,} traced tokens of {workload.name} by the layer from which the prediction stays; the "
        "strip is the "
        "passage's colour key.",
        depth_plot(trace.exits, counts, layers).svg(),
        table(
            ["Layer", "Tokens", "Share", "Up to here"], rows, caption="Tokens by the layer they could stop at"
        ),
        kind="measured",
    )


def depth_plot(exits: NDArray[np.int64], counts: NDArray[np.int64], layers: int) -> Plot:
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
        title="Where tokens could have stopped",
        description="Share of all traced tokens by the layer from which the prediction no longer changes.",
        x=Axis("", (1, layers + 1), lambda layer: ends[int(layer)], ticks=tuple(ends)),
        y=Axis("share of tokens", (-STRIP * tallest, tallest), percent_tick, nice_ticks(0.0, tallest, 3)),
        boxes=(*strip, *bars),
        size=FLAT,
        style="wide",
    )


def passage_table(passage: Passage) -> str:
    """The passage's tokens with their exits and predictions at a few layers."""
    last = len(passage.exits) - 1
    at = sorted({round(last * part) for part in (0.25, 0.5, 0.75)})
    header = [
        "Token",
        "Full model says",
        "First match",
        "Stays from",
        *[f"Layer {passage.exits[i]} says" for i in at],
    ]
    rows = [
        [
            visible_piece(token.piece),
            visible_piece(token.full_prediction),
            str(token.first_match_exit),
            str(token.saturation_exit),
            *[f"{visible_piece(token.predictions[i])} ({percent(token.max_prob[i], 0)})" for i in at],
        ]
        for token in passage.tokens
    ]
    return table(
        header,
        rows,
        caption="Tokens of the passage and the layers where they could have stopped",
        numeric_from=9,
    )
