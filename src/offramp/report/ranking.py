"""Strategies of a comparison beside each other: how fast, and how they stand to their floors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from offramp.studies.comparison.results import Strategy


def fastest(strategies: Iterable[Strategy]) -> Strategy | None:
    """The fastest of those that exit, can be followed and keep a floor; speed alone is no answer.

    One that reaches its floor comes before one that may have missed it by chance.
    """
    known = [
        one
        for one in strategies
        if one.reachable and one.net_speedup.value is not None and not one.plain and keeps_floor(one)
    ]
    return max(known, key=lambda one: (floor_kept(one) == "kept", one.net_speedup.value or 0.0), default=None)


FLOORS_KEPT = ("kept", "perhaps", "not asked", "missed")
"""How a strategy may stand to its floor, the best first."""


def floor_kept(one: Strategy) -> str:
    """How a strategy stands to its floor, of `FLOORS_KEPT`.

    "perhaps": agreement is below it, but its interval is not, or agreement is not known. Without an interval
    agreement itself must reach the floor. Floors of another kind were checked where the strategy was chosen.
    """
    floor, agreement = one.floor, one.agreement
    if floor is None:
        return "not asked"
    if floor.kind != "agreement":
        return "kept"
    if agreement.value is None:
        return "perhaps"
    if agreement.value >= floor.value:
        return "kept"
    return "perhaps" if agreement.high is not None and agreement.high >= floor.value else "missed"


def keeps_floor(one: Strategy) -> bool:
    """Whether a floor was asked for, and the interval of agreement does not lie wholly below it."""
    return floor_kept(one) in ("kept", "perhaps")


def believed(strategies: Sequence[Strategy]) -> list[Strategy]:
    """What was measured in decoding, without a defect."""
    return [
        one
        for one in strategies
        if one.basis == "measured" and not one.defect and one.net_speedup.value is not None
    ]


def decoded_for_real(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Policies that were decoded for real, with a defect or without; plain decoding is none."""
    return [one for one in strategies if one.basis == "measured" and not one.plain]


def why_no_answer(strategies: Sequence[Strategy]) -> str:
    """How many of the policies decoded for real are no answer, and why: "3 below their floor"."""
    all_decoded = decoded_for_real(strategies)
    known = believed(all_decoded)
    broken = sum(one.defect for one in all_decoded)
    missed = sum(floor_kept(one) == "missed" for one in known)
    silent = len(all_decoded) - broken - len(known)
    reasons = {"with a defect": broken, "below their floor": missed, "without a speed": silent}
    return ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)


def replayed(strategies: Sequence[Strategy]) -> list[Strategy]:
    """What was predicted by replay."""
    return [one for one in strategies if one.basis == "predicted"]


@dataclass(frozen=True)
class Standing:
    """A strategy in one place: predicted, measured, or both."""

    predicted: Strategy | None
    measured: Strategy | None

    @property
    def shown(self) -> Strategy:
        """Where its names are read off."""
        one = self.predicted or self.measured
        assert one is not None  # a standing is made of at least one
        return one

    @property
    def rank(self) -> tuple[bool, int, bool, float]:
        """Sorts what can be followed before oracles, what keeps its floor before the rest, then by speed.

        What has a defect has no speed.
        """
        both = [one for one in (self.predicted, self.measured) if one is not None and not one.defect]
        known = [one.net_speedup.value for one in both if one.net_speedup.value is not None]
        place = FLOORS_KEPT.index(floor_kept(self.shown))
        return (not self.shown.reachable, place, not known, -known[0] if known else 0.0)


def beside(strategies: Sequence[Strategy]) -> list[Standing]:
    """Each prediction with the measurement of the same policy in the same place; what has no other, alone."""
    measured = [one for one in strategies if one.basis == "measured"]
    by_key: dict[tuple[object, ...], list[int]] = {}
    for place, one in enumerate(measured):
        by_key.setdefault(_key(one), []).append(place)
    used: set[int] = set()
    found = []
    for one in strategies:
        if one.basis == "measured":
            continue
        match = next((p for p in by_key.get(_key(one), ()) if measured[p].floor in (None, one.floor)), None)
        if match is not None:
            used.add(match)
        found.append(Standing(one, None if match is None else measured[match]))
    found += [Standing(None, one) for place, one in enumerate(measured) if place not in used]
    return found


def _key(one: Strategy) -> tuple[object, ...]:
    return (one.place, one.policy, one.kv)


def floor_note(one: Strategy) -> str:
    """That a strategy misses its floor, or may; "" if it keeps it, or none was asked."""
    if floor_kept(one) == "missed":
        return "misses the floor"
    below = floor_kept(one) == "perhaps" and one.agreement.value is not None
    return "below the floor, perhaps by chance" if below else ""
