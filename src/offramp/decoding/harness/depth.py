"""How deep the tokens of an evaluation went, task by task: what stands beside the accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WORDS = 2
"""Columns of the table that hold words, not numbers."""


@dataclass(frozen=True)
class Depth:
    """Sums over requests to a model of so many layers (L).

    requests: answered by the model, not by a cache of answers. tokens: new or scored ones. exits: sum of the
    exits that predicted them. fed: tokens that ran for their sake, the prompt's not included; the last new
    token of a generation is never fed. layers_executed: layers that ran for those.
    """

    layers: int
    requests: int = 0
    tokens: int = 0
    exits: int = 0
    fed: int = 0
    layers_executed: int = 0

    def plus(self, other: Depth) -> Depth:
        """Both together, of one model."""
        return Depth(
            layers=self.layers,
            requests=self.requests + other.requests,
            tokens=self.tokens + other.tokens,
            exits=self.exits + other.exits,
            fed=self.fed + other.fed,
            layers_executed=self.layers_executed + other.layers_executed,
        )

    @property
    def mean_exit(self) -> float | None:
        """Mean exit per new or scored token, None without any."""
        return self.exits / self.tokens if self.tokens else None

    @property
    def layers_skipped(self) -> float | None:
        """Share of the fed tokens' layers that did not run, None without any; negative if more ran."""
        return 1.0 - self.layers_executed / (self.fed * self.layers) if self.fed else None

    def to_json(self) -> dict[str, Any]:
        """Sums and means for lm-eval's results file."""
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "mean_exit": self.mean_exit,
            "layers_executed": self.layers_executed,
            "layers_of_full_model": self.fed * self.layers,
            "layers_skipped": self.layers_skipped,
        }


class Depths:
    """Depths of a run.

    found: by task and type of request ("generate_until", "loglikelihood", "loglikelihood_rolling").
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self.found: dict[tuple[str, str], Depth] = {}

    def add(self, task: str, kind: str, depth: Depth) -> None:
        """Requests of a type, made by a task."""
        self.found[task, kind] = self.found.get((task, kind), Depth(self._layers)).plus(depth)

    def to_json(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By task, then by type of request."""
        tasks = dict.fromkeys(task for task, _ in self.found)
        return {
            task: {kind: depth.to_json() for (of, kind), depth in self.found.items() if of == task}
            for task in tasks
        }


def depth_table(depths: Depths) -> str:
    """A table of tasks and types of request for people, in the style of lm-eval's own."""
    rows = [("Tasks", "Request type", "Tokens", "Mean exit", "Layers skipped")]
    for (task, kind), depth in depths.found.items():
        mean = "-" if depth.mean_exit is None else f"{depth.mean_exit:.2f} of {depth.layers}"
        skipped = "-" if depth.layers_skipped is None else f"{100 * depth.layers_skipped:.1f} %"
        rows.append((task, kind, str(depth.tokens), mean, skipped))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    rule = ["-" * width if column < WORDS else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        f"{cell:<{width}}" if column < WORDS else f"{cell:>{width}}"
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"|{'|'.join(cells)}|"
