"""What trainings of every kind say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offramp.lab.exits.record import Spent


def earlier_notes(earlier: Spent | None) -> list[str]:
    """What the trainings took that one began from; no line where there were none."""
    if earlier is None:
        return [
            "what the trainings took that it began from is not known: no record lies beside what they gave"
        ]
    if not earlier.seconds:
        return []
    before = f"{earlier.seconds:,.0f} s and {earlier.tokens:,} tokens"
    return [f"before that the trained model or exits that it began from took {before}"]
