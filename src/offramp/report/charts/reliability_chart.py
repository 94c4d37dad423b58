"""A reliability diagram: how often an exit agrees with the full model, by how sure it is."""

from __future__ import annotations

import math

import numpy as np

from offramp.report.charts.drawing import drawing, label, line
from offramp.report.charts.scale import Scale
from offramp.scoring.card import ReliabilityDiagram

WIDTH, HEIGHT = 184, 196
LEFT, RIGHT, TOP, BOTTOM = 34, 174, 24, 160
LARGEST_RADIUS = 9.0


def reliability_svg(diagram: ReliabilityDiagram) -> str:
    """One diagram; a disc's area is the share of tokens in the bin, the line to the diagonal its error."""
    x, y = Scale(0, 1, LEFT, RIGHT), Scale(0, 1, BOTTOM, TOP)
    parts = [label(LEFT, 14, f"layer {diagram.exit}", style="row")]
    for tick in (0.0, 0.5, 1.0):
        parts += [line(LEFT, y(tick), RIGHT, y(tick), "grid"), line(x(tick), TOP, x(tick), BOTTOM, "grid")]
        parts.append(label(LEFT - 5, y(tick) + 4, f"{tick:g}", anchor="end"))
        parts.append(label(x(tick), BOTTOM + 15, f"{tick:g}", anchor="middle"))
    parts.append(line(x(0), y(0), x(1), y(1), "rule"))
    parts.append(label((LEFT + RIGHT) / 2, HEIGHT - 4, "confidence", anchor="middle", style="name"))
    parts.append(label(RIGHT, 14, "agreement ↑", anchor="end", style="name"))
    largest = max(int(diagram.count.max()), 1)
    dots = []
    for count, confidence, agreement in zip(
        diagram.count, diagram.confidence, diagram.agreement, strict=True
    ):
        if not count or not np.isfinite(confidence + agreement):
            continue
        px, py = x(float(confidence)), y(float(agreement))
        radius = max(2.0, LARGEST_RADIUS * math.sqrt(int(count) / largest))
        title = f"{int(count)} tokens, confidence {confidence:.2f}, agreement {agreement:.2f}"
        dots.append(line(px, y(float(confidence)), px, py, "gap"))
        at = f'cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}"'
        dots.append(f'<circle class="disc" {at}><title>{title}</title></circle>')
    parts.append(f'<g class="s0">{"".join(dots)}</g>')
    title = f"Reliability of layer {diagram.exit}"
    description = "Agreement with the full model against confidence."
    return drawing(WIDTH, HEIGHT, title, description, "".join(parts), style="small")
