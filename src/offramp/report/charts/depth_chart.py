"""A histogram of the layers at which tokens could have stopped, in the colours of the passage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.report.charts.drawing import drawing, label, line

WIDTH, HEIGHT = 360, 108
LEFT, RIGHT, TOP, BOTTOM = 8, 352, 20, 74


def depth_svg(exits: NDArray[np.int64], counts: NDArray[np.int64], layers: int) -> str:
    """Bars over layers 1..L above a colour scale; exits, counts: int64 [exits]."""
    share = counts / max(int(counts.sum()), 1)
    tallest = float(share.max()) or 1.0
    step = (RIGHT - LEFT) / layers
    gap = 1.0 if step > 4 else 0.0
    parts = []
    for layer in range(1, layers + 1):
        x = LEFT + (layer - 1) * step
        parts.append(f'<rect class="e{layer}" x="{x:.1f}" y="{BOTTOM + 4}" width="{step:.2f}" height="8"/>')
    for exit_layer, part in zip(exits, share, strict=True):
        x, height = LEFT + (int(exit_layer) - 1) * step, (BOTTOM - TOP) * float(part) / tallest
        box = (
            f'x="{x + gap / 2:.1f}" y="{BOTTOM - height:.1f}" width="{step - gap:.2f}" height="{height:.1f}"'
        )
        title = f"layer {exit_layer}: {100 * part:.1f} % of tokens"
        parts.append(f'<rect class="bar e{exit_layer}" {box}><title>{title}</title></rect>')
    parts.append(line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"))
    parts.append(label(LEFT, HEIGHT - 7, "layer 1"))
    parts.append(label(RIGHT, HEIGHT - 7, f"layer {layers}, the full model", anchor="end"))
    at = int(share.argmax())
    anchor = "end" if 2 * int(exits[at]) > layers else "start"
    x = LEFT + (int(exits[at]) - (0 if anchor == "end" else 1)) * step
    parts.append(label(x, TOP - 6, f"{100 * tallest:.0f} % of tokens", anchor=anchor))
    description = "Share of all traced tokens by the layer from which the prediction no longer changes."
    return drawing(
        WIDTH, HEIGHT, "Where tokens could have stopped", description, "".join(parts), style="wide"
    )
