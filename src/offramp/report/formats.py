"""Numbers, intervals and token pieces as text. An undefined figure becomes its reason, never a number."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable

from offramp.policies.cost_breakdown import GAIN_PARTS, Gain
from offramp.scoring.estimate import Estimate
from offramp.timing.results import TOO_FEW_PROMPTS, Credit
from offramp.tuning.floor import Floor, FloorKind
from offramp.tuning.verdict import Speed
from offramp.tuning.verdict_words import TOO_WIDE
from offramp.workloads.registry import split_continued

MINUS = "−"
NumberFormat = Callable[[float], str]
Timed = Estimate | Speed | Credit
"""A time or a ratio of times with its interval, or a share beside them."""


def decimal(value: float, digits: int = 2) -> str:
    """A decimal number with a true minus sign and no negative zero; "–" for NaN."""
    if not math.isfinite(value):
        return "–"
    text = f"{round(value, digits) + 0.0:.{digits}f}"
    return text.replace("-", MINUS)


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage: 0.0132 -> "1.3 %"."""
    text = decimal(100 * value, digits)
    return text if text == "–" else f"{text} %"


def whole_percent(value: float) -> str:
    """A share as a percentage without needless decimals: 0.95 -> "95 %", 0.995 -> "99.5 %"."""
    return f"{100 * value:.4g} %"


def whole(value: float) -> str:
    """A count without decimals: "12,300"."""
    return f"{value:,.0f}"


def thousandths(value: float) -> str:
    """Three decimals."""
    return decimal(value, 3)


def percent_tick(value: float) -> str:
    """A share on an axis, without needless decimals."""
    return f"{plain_tick(100 * value)} %"


def plain_tick(value: float) -> str:
    """A number on an axis, without needless decimals."""
    return f"{value:.6g}".replace("-", MINUS)


def times(value: float) -> str:
    """A speedup: 1.013 -> "1.013 ×"."""
    text = decimal(value, 3)
    return text if text == "–" else f"{text} ×"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds: 0.0583 -> "58.3 ms"."""
    return f"{decimal(1000 * seconds, 1)} ms"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits their size, three digits: "6.1 µs", "58.3 ms", "1.2 s"; "–" for NaN."""
    if not math.isfinite(seconds):
        return "–"
    unit, factor = next(
        ((u, f) for u, f in (("s", 1.0), ("ms", 1e3)) if abs(seconds) * f >= 0.9995), ("µs", 1e6)
    )
    value = seconds * factor
    return f"{decimal(value, 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2)} {unit}"


def interval_text(low: float | None, high: float | None, number: NumberFormat = decimal) -> str:
    """The interval alone, "" if there is none; a unit that both ends share is written once."""
    return "" if low is None or high is None else range_text(number(low), number(high))


def limits_text(low: float | None, high: float | None, number: NumberFormat) -> str:
    """An interval; "" without one, and where both ends are written alike.

    Documents that all cost the same have such an interval; written out it would look like precision.
    """
    if low is None or high is None or number(low) == number(high):
        return ""
    return interval_text(low, high, number)


def short_text(value: float, low: float | None, high: float | None, number: NumberFormat) -> str:
    """A value with `limits_text`: "0.412 (0.402 to 0.421)"."""
    limits = limits_text(low, high, number)
    return f"{number(value)} ({limits})" if limits else number(value)


def too_wide(timed: Timed) -> bool:
    """Whether an interval of times or their ratio says no more than that there were too few prompts."""
    value, low, high = timed.value, timed.low, timed.high
    if value is None or low is None or high is None:
        return False
    return high > TOO_WIDE * value or TOO_WIDE * low < value


def limits_of(timed: Timed, number: NumberFormat) -> str:
    """The interval; of what is no share in words where it is too wide to say anything."""
    if number is not percent and too_wide(timed):
        return TOO_FEW_PROMPTS
    return interval_text(timed.low, timed.high, number)


def timed_text(timed: Timed, number: NumberFormat) -> str:
    """A figure of a timing with `limits_of`: "1.120 × (1.090 to 1.150 ×)"; "–" for none."""
    if timed.value is None:
        return "–"
    limits = limits_of(timed, number)
    return f"{number(timed.value)} ({limits})" if limits else number(timed.value)


def range_text(low: str, high: str) -> str:
    """Two numbers with units as a range: "1.4 %", "1.8 %" -> "1.4 to 1.8 %"."""
    unit = high.rpartition(" ")[2]
    if " " in high and low.endswith(f" {unit}"):
        low = low.removesuffix(f" {unit}")
    return f"{low} to {high}"


def estimate_text(estimate: Estimate, number: NumberFormat = decimal) -> str:
    """Value and interval, or why there is no value."""
    if estimate.value is None:
        return f"undefined: {estimate.undefined or 'no reason recorded'}"
    limits = interval_text(estimate.low, estimate.high, number)
    return f"{number(estimate.value)} ({limits})" if limits else number(estimate.value)


def faster(speedup: float) -> str:
    """A speedup in words: 1.013 -> "1.3 % faster", 0.97 -> "3.0 % slower", 1.0 -> "no faster"."""
    change = round(100 * (speedup - 1), 1)
    if change == 0:
        return "no faster"
    return f"{abs(change):.1f} % {'faster' if change > 0 else 'slower'}"


def gain_text(gain: Gain | None, digits: int = 1) -> str:
    """Where a gain comes from, in shares of plain decoding's time or bytes: "layers +3.1 %, head +1.9 %,
    probes −0.2 %"; "" where it is not known."""
    if gain is None:
        return ""
    return ", ".join(f"{name} {signed_percent(getattr(gain, name), digits)}" for name in GAIN_PARTS)


def signed_percent(value: float, digits: int = 1) -> str:
    """A share as a percentage with its sign, none for 0: 0.031 -> "+3.1 %"."""
    rounded = percent(value, digits)
    return f"+{rounded}" if round(100 * value, digits) > 0 else rounded


def moment(when: str) -> str:
    """A date and time of UTC in ISO 8601, to the minute: "2026-01-31 12:05 UTC"."""
    return f"{datetime.datetime.fromisoformat(when).astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def listed(names: list[str]) -> str:
    """Names as English: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


LONGEST_SOURCE = 24
"""Characters of a workload's name that a table shows whole."""


def short_source(name: str) -> str:
    """A workload's name for a table: of a long path its kind and last part, "jsonl:…/words.jsonl#text"."""
    prefix, text = split_continued(name)
    kind, colon, path = text.partition(":")
    if len(name) <= LONGEST_SOURCE or "/" not in path:
        return name
    return f"{prefix}{kind}{colon}…/{path.rstrip('/').rpartition('/')[2]}"


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 document", "4,096 tokens"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def visible_piece(piece: str) -> str:
    """A token's text with whitespace and control characters made visible.

    A space at an end of the piece becomes "·", a line break "⏎", a tab "⇥", another control character its
    code point; an empty piece becomes "∅".
    """
    if not piece:
        return "∅"
    body = piece.strip(" ")
    left = len(piece) - len(piece.lstrip(" ")) if body else len(piece)
    right = len(piece) - len(piece.rstrip(" ")) if body else 0
    return "·" * left + "".join(visible_character(character) for character in body) + "·" * right


def visible_text(text: str) -> str:
    """A generated text with its lines as they are, and signs for characters that would not show."""
    return "\n".join("".join(map(visible_character, line)) for line in text.split("\n"))


def visible_character(character: str) -> str:
    """One character, or a visible sign for one that would not show."""
    signs = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}
    if character in signs:
        return signs[character]
    # Bidirectional controls and other format characters could reorder the page's own text.
    return character if character.isprintable() or character == " " else f"⟨{ord(character):04X}⟩"


def nats(value: float) -> str:
    """A loss in nats."""
    return f"{decimal(value, 3)} nats"


def floor_words(floor: Floor) -> str:
    """What is to be kept: "99 % agreement"."""
    return value_words(floor, floor.value)


def value_words(floor: Floor, value: float) -> str:
    """A value of a floor's kind, as a thing to keep."""
    words: dict[FloorKind, str] = {
        "agreement": f"{whole_percent(value)} agreement",
        "reference_agreement": f"{whole_percent(value)} agreement with the original model",
        "nll": f"an increase in NLL of at most {nats(value)}",
        "kl": f"a divergence (KL) of at most {nats(value)}",
    }
    return words[floor.kind]
