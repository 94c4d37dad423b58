"""Which floors on agreement a text's documents could certify at all: said before anything is run."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.tuning.bounds import fewest_documents

BESIDE_CERTIFYING = 2
"""Documents that do not certify, at the least: one is searched on, and one reported."""


def documents_for(floor: float, delta: float) -> int:
    """Documents at the least with which a floor may be certified, if nothing is lost on any of them.

    floor: of agreement. delta: the chance that its certificate is wrong.
    """
    return fewest_documents(1.0 - floor, delta) + BESIDE_CERTIFYING


def certifiable_floors(documents: int, floors: Sequence[float], delta: float) -> tuple[float, ...]:
    """Those of some floors that so many documents could certify."""
    return tuple(floor for floor in floors if documents >= documents_for(floor, delta))


def certifiable_words(documents: int, floors: Sequence[float], delta: float) -> str:
    """What so many documents could certify, to follow their number and whose they are.

    "can at best certify 90 % (25 needed), never 95 % (48 needed) or 99 % (234)".
    """
    could = certifiable_floors(documents, floors, delta)
    never = [floor for floor in floors if floor not in could]
    if not could:
        return f"can never certify {_listed(never, delta, 'or')}"
    beyond = f", never {_listed(never, delta, 'or')}" if never else ""
    return f"can at best certify {_listed(could, delta, 'and')}{beyond}"


def _listed(floors: Sequence[float], delta: float, joined: str) -> str:
    """ "90 % (25 needed), 95 % (48) and 99 % (232)", the loosest first."""
    said = [
        f"{100 * floor:g} % ({documents_for(floor, delta):,}{' needed' if place == 0 else ''})"
        for place, floor in enumerate(sorted(floors))
    ]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} {joined} {said[-1]}"
