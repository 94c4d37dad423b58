"""What exits hold beside what the model's own head reads of them: one sentence, one table."""

from __future__ import annotations

from offramp.report.formats import counted, decimal, estimate_text, percent
from offramp.report.word_table import WordTable
from offramp.scoring.readings import Readings

COMPONENT_NAMES = (("Representation quality", "representation"), ("Information increment", "increment"))
TITLE = "What the exits hold"


def readings_sentence(readings: Readings) -> str:
    """How much of the distance between the raw reading and the ceiling the fitted heads close, in words."""
    closed, raw = readings.closed, readings.raw.representation
    through = readings.through[:1].upper() + readings.through[1:]
    left_out = readings.left_out
    taken = (
        f" (on {counted(readings.documents, 'document')}; {left_out} that fitting saw "
        f"{'is' if left_out == 1 else 'are'} left out)"
        if left_out
        else ""
    )
    if closed.value is None or raw.value is None:
        return f"What {readings.through} closes is undefined: {closed.undefined}{taken}."
    between = f"between what the model's own head reads ({decimal(raw.value)}) and the ceiling"
    distance = f"of the distance in representation quality {between} ({decimal(readings.ceiling)})"
    share = estimate_text(closed, percent)
    if closed.low is not None and closed.high is not None and closed.low <= 0.0 <= closed.high:
        return f"{through}: not shown to close anything {distance}: {share}{taken}."
    if closed.value < 0.0:
        return f"{through} reads less than the model's own head: {share} {distance}{taken}."
    return f"{through} closes {share} {distance}{taken}."


def readings_table(readings: Readings) -> WordTable:
    """Both readings and what lies between them, with intervals."""
    table = WordTable(title=TITLE)
    for name in ("", "own head", "through heads", "gained"):
        table.add_column(name)
    for words, name in COMPONENT_NAMES:
        sides = (readings.raw, readings.fitted, readings.gained)
        table.add_row(words.lower(), *[estimate_text(getattr(side, name)) for side in sides])
    return table
