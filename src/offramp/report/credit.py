"""What early exit is credited with, in words and as JSON: what it adds to the best without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from offramp.report.formats import faster, whole_percent
from offramp.scoring.finite import finite_json
from offramp.tuning.credit import Credit, early_exit_credit
from offramp.tuning.results import LeagueEntry

CUT = "plain decoding with its output head cut to the short list"


def credits_of(league: Sequence[LeagueEntry]) -> list[Credit]:
    """The credit at each floor of a league, the strictest first; none where families were not ranked."""
    if all(entry.rank is None for entry in league):
        return []
    floors = sorted({entry.floor for entry in league}, reverse=True)
    return [early_exit_credit(league, floor) for floor in floors]


def credit_sentence(credit: Credit) -> str:
    """One floor in a sentence or two."""
    if credit.ratio is None or credit.speedup is None:
        return f"No early exit holds {whole_percent(credit.floor)} agreement on the documents that judge."
    if credit.without == "never":
        return (
            "Nothing that leaves no layer out is faster than plain decoding here, so all that the best early "
            f"exit gains is its own: {faster(credit.speedup)}."
        )
    return (
        f"Without any early exit, {CUT} is {faster(credit.without_speedup)}. The best early exit, "
        f"{faster(credit.speedup)} than plain decoding, is credited with what it adds to that: "
        f"{faster(credit.ratio)}."
    )


def credit_json(workload: str, credit: Credit) -> dict[str, Any]:
    """One floor of one workload as a JSON object."""
    value: dict[str, Any] = finite_json({"workload": workload, **asdict(credit), "ratio": credit.ratio})
    return value
