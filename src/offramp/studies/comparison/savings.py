"""Shares of time saved, from speedups, by the place where they are: a floor on a machine."""

from __future__ import annotations

SAVING = "saving, "
"""Begins the name of a figure: the share of time saved at a place."""


def share_saved(speedup: float) -> float:
    """Share of the full model's time that a net speedup saves: 1 - 1 / speedup; negative if it is slower."""
    return 1.0 - 1.0 / speedup


def floor_text(agreement: float) -> str:
    """A floor on agreement as on the command line: 0.95 -> "agreement=0.95"."""
    return f"agreement={agreement:g}"


def place_text(floor: str, machine: str) -> str:
    """A floor on a machine as a key: "agreement=0.95 | h100"."""
    return f"{floor} | {machine}"


def floor_and_machine(place: str) -> tuple[str, str]:
    """What `place_text` joined."""
    floor, _, machine = place.partition(" | ")
    return floor, machine
