"""Tables of a tuned policy for the terminal: its candidates, and the front of the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offramp.report.timing import PolicyNames
    from offramp.report.word_table import WordTable
    from offramp.tuning.tuned import Tuned

# Points of the front that the terminal shows.
SHOWN_POINTS = 8


def candidates_table(tuned: Tuned, names: PolicyNames) -> WordTable:
    """What was decoded to certify it, in the order of the tests; the lossless contender last."""
    from rich.text import Text

    from offramp.report.formats import percent, times
    from offramp.report.word_table import WordTable

    kept = tuned.floor.kind.replace("_", " ")
    table = WordTable(
        title="candidates, from cautious to bold",
        caption=f"replayed and rerun: {kept} on the search documents; executed: on those decoded",
    )
    heads = ("replayed", "rerun", "executed", "documents", "speed", "K and V", "outcome", "policy")
    for name in heads:
        table.add_column(name)
    for one in tuned.candidates:
        table.add_row(
            percent(one.replayed),
            percent(one.rerun),
            "-" if one.executed is None else percent(one.executed),
            str(one.documents) if one.documents else "-",
            times(one.predicted_speed),
            "-" if one.policy == "never" else one.kv,
            one.outcome,
            # Brackets of a policy are no markup.
            Text(names.of(one.policy)),
        )
    return table


def front_table(tuned: Tuned, names: PolicyNames) -> WordTable:
    """A few points of the Pareto front, from cautious to bold."""
    from rich.text import Text

    from offramp.report.formats import percent, times
    from offramp.report.word_table import WordTable
    from offramp.tuning.answers import ALONE

    batched = tuned.batch > 1
    title = "fastest policies on the search documents"
    caption = f"batch {tuned.batch} in lockstep: {ALONE}" if batched else None
    table = WordTable(title=title, caption=caption)
    # A skip of each token alone would contradict the speed in lockstep.
    kept = tuned.floor.kind.replace("_", " ")
    for name in (kept, "speed", *(() if batched else ("layers skipped",)), "policy"):
        table.add_column(name)
    step = max(1, -(-len(tuned.front) // SHOWN_POINTS))
    for point in tuned.front[::step]:
        quality = percent(point.quality) if tuned.floor.clip is None else nats(point.quality)
        skip = () if batched else (percent(point.skip_ratio),)
        # Brackets of a policy are no markup.
        table.add_row(quality, times(point.net_speedup), *skip, Text(names.of(point.policy)))
    return table


def nats(value: float) -> str:
    """A loss in nats."""
    return f"{value:.4f} nats"
