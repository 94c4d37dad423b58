"""Figures that do not depend on how a tokenizer cuts the text, and where figures per token mislead."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.studies.comparison.results import Row

APART = 0.005
"""Mean token lengths of one text that differ by less than this share are called equal."""


def characters_per_second(
    characters_per_token: float | None, seconds_per_token: float | None
) -> float | None:
    """Speed in text instead of tokens; None where one of the two is not known."""
    if characters_per_token is None or not seconds_per_token:
        return None
    return characters_per_token / seconds_per_token


def per_byte_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """A sentence for each workload whose text the models cut into tokens of different lengths.

    Answers that each model wrote itself are no text that they share.
    """
    notes = []
    for workload in dict.fromkeys(row.workload for row in rows):
        lengths = {
            row.model.shown: row.bytes_per_token
            for row in rows
            if row.workload == workload and row.bytes_per_token is not None and not row.own_text
        }
        if not lengths:
            continue
        shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
        if lengths[longest] > (1.0 + APART) * lengths[shortest]:
            notes.append(
                f"On {workload} a token of {shortest} is {lengths[shortest]:.2f} bytes of text, one of "
                f"{longest} {lengths[longest]:.2f}: nats per token and seconds per token mislead between "
                "them, bits per byte and characters per second do not. Equally many tokens are then "
                "not equally much text."
            )
    return tuple(notes)
