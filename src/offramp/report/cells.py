"""What cells of several tables share: decisions, values with intervals, changes in percent."""

from __future__ import annotations

from offramp.report.formats import NumberFormat, interval_text, percent
from offramp.report.markup import element, small, text
from offramp.scoring.estimate import Estimate

DECISION_SIGNS: dict[str, str] = {
    "pays": "✓",
    "does not pay": "✕",
    "too close to call": "≈",
    "not enough documents": "?",
    "not certifiable": "?",
    "depends on the text": "±",
    "undefined": "?",
}


def decision_pill(decision: str) -> str:
    """A decision with its sign and colour."""
    return element(
        "span", text(f"{DECISION_SIGNS[decision]} {decision}"), class_=f"decision {decision_class(decision)}"
    )


def decision_class(decision: str) -> str:
    """The CSS class of a decision."""
    return decision.replace(" ", "-")


def signed_change(speedup: float) -> str:
    """A speedup as a signed change in percent."""
    change = percent(speedup - 1)
    return change if change.startswith(("−", "0.0")) else f"+{change}"


def stacked(estimate: Estimate, number: NumberFormat) -> str:
    """A value with its interval below it, or the reason why there is none."""
    if estimate.value is None:
        return "undefined" + small(estimate.undefined or "")
    shown = number(estimate.value)
    interval = interval_text(estimate.low, estimate.high, number)
    # An interval that rounds to its value says nothing more.
    if interval and all(number(end) == shown for end in (estimate.low, estimate.high) if end is not None):
        return text(shown)
    return text(shown) + small(interval or estimate.no_interval or "")
