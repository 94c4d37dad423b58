"""The layer x position picture: what the model would say at every depth."""

from __future__ import annotations

import math

from offramp.report.formats import visible_piece
from offramp.report.markup import element, kind_chip, text
from offramp.report.run_result import PredictionGrid

STRENGTHS = 5


def grid_section(grid: PredictionGrid) -> str:
    """The picture as a real table: rows are layers, columns positions, headers stay in view."""
    note = (
        "Each cell is the most probable next token at that layer. Blue and bold: the same as the full "
        "model's. Orange: "
        "another. The stronger the colour, the surer the layer; strong orange is misplaced confidence. "
        "Below the line "
        "in each column the answer no longer changes. A dot stands for a space."
    )
    if len(grid.exits) < grid.traced_exits:
        note += f" {len(grid.exits)} of {grid.traced_exits} traced layers are shown, evenly spaced."
    key = "".join(
        element("span", text(word), class_=f"key-cell {name}")
        for name, word in (
            ("a1", "agrees, unsure"),
            ("a4", "agrees, sure"),
            ("d1", "differs, unsure"),
            ("d4", "differs, sure"),
        )
    )
    caption = element("caption", text(f"Predictions by layer and position, document {grid.document}"))
    inner = element("table", caption + header(grid) + element("tbody", rows(grid)), class_="grid")
    frame = element(
        "div",
        inner,
        class_="scroll grid-frame",
        tabindex=0,
        role="region",
        aria_label="Predictions by layer and position",
    )
    return (
        element("h3", "What each layer would say " + kind_chip("measured"))
        + element("p", text(note))
        + element("p", key, class_="grid-key")
        + frame
    )


def header(grid: PredictionGrid) -> str:
    """The token read and the one that follows, above each column."""
    cells = "".join(element("th", text(visible_piece(piece)), scope="col") for piece in grid.inputs)
    top = element("tr", element("th", "after", scope="row", class_="corner") + cells)
    return element("thead", top)


def rows(grid: PredictionGrid) -> str:
    """One row a layer, then what the text says."""
    parts = []
    for row, layer in enumerate(grid.exits):
        cells = "".join(cell(grid, row, column) for column in range(len(grid.inputs)))
        parts.append(element("tr", element("th", str(layer), scope="row") + cells))
    targets = "".join(element("td", text(visible_piece(piece))) for piece in grid.targets)
    parts.append(element("tr", element("th", "text", scope="row") + targets, class_="targets"))
    return "".join(parts)


def cell(grid: PredictionGrid, row: int, column: int) -> str:
    """One prediction; the class holds agreement, confidence and where the answer settles."""
    agrees, probability = grid.agrees[row][column], grid.max_prob[row][column]
    known = math.isfinite(probability)
    strength = min(int(probability * STRENGTHS), STRENGTHS - 1) if known else 0
    settled = grid.exits[row] >= grid.saturation_exits[column]
    settles = settled and (row == 0 or grid.exits[row - 1] < grid.saturation_exits[column])
    names = f"{'a' if agrees else 'd'}{strength}{' x' if settles else ''}"
    title = f"{100 * probability:.0f}%" if known else "undefined"
    return f'<td class="{names}" title="{title}">{text(visible_piece(grid.pieces[row][column]))}</td>'
