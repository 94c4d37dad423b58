"""One verdict in words: what is kept as executed, at what speed, against which worth."""

from __future__ import annotations

from offramp.report.basis import machine_name
from offramp.report.credit import CUT
from offramp.report.formats import counted, faster, gain_text, interval_text, percent, times, whole_percent
from offramp.tuning.results import Speed, Verdict
from offramp.tuning.verdict import percent_down


def executed_words(verdict: Verdict) -> str:
    """ "keeps 96.2 % as executed (certified ≥ 95 %, 61 documents)", or how much is known."""
    certificate, agreement = verdict.certificate, verdict.executed_agreement
    floor = whole_percent(verdict.floor)
    if certificate is None or not certificate.executed:
        return f"keeps {_replayed(verdict)} in replay (not executed)"
    shown = certificate.stopped_after or 0
    tried = verdict.tried
    if tried is not None and tried.executed is not None:
        kept = f"kept {percent_down(tried.executed)} as executed on {counted(tried.documents, 'document')}"
        return f"{kept}, not certified ≥ {floor} yet"
    if agreement is not None and agreement.value is not None:
        kept = f"keeps {percent_down(agreement.value)} as executed"
    elif certificate.empirical_risk is not None:
        kept = f"kept {percent_down(1.0 - certificate.empirical_risk)} as executed"
    else:
        return f"is not certified to keep {floor}"
    if not verdict.certified:
        return f"{kept} (not certified ≥ {floor})"
    return f"{kept} (certified ≥ {floor}, {counted(shown, 'document')})"


def _replayed(verdict: Verdict) -> str:
    value = verdict.agreement.value
    return "an unknown share" if value is None else percent_down(value)


def speed_words(verdict: Verdict) -> str:
    """ "measured 1.081 × (1.061 to 1.099)" or "predicted ..."; what is missing where there is none."""
    speed = verdict.speed
    if speed is None:
        return "without a speed"
    limits = interval_text(speed.low, speed.high, times)
    return f"{how_words(speed)} {times(speed.value)}{f' ({limits})' if limits else ''}"


def how_words(speed: Speed) -> str:
    """How a speed is known."""
    if speed.how == "measured":
        return "measured"
    return f"predicted for {machine_name(speed.machine)}"


def worth_words(verdict: Verdict) -> str:
    """The speed's interval as a change, and the change that would be worth it."""
    speed = verdict.speed
    if speed is None:
        return ""
    counts = f"you count more than {percent(verdict.worth, 0 if verdict.worth >= 0.01 else 1)} as worth it"
    if speed.low is None or speed.high is None:
        return f"; {counts}"
    change = interval_text(speed.low, speed.high, lambda value: percent(value - 1))
    return f": {change} faster; {counts}"


def saved_words(verdict: Verdict) -> str:
    """Where the gain comes from, and what of it early exit adds to a smaller head alone."""
    parts = gain_text(verdict.gain)
    said = f"; saves of plain decoding: {parts}" if parts else ""
    credit = verdict.credit
    if verdict.without != "never" and credit is not None and credit.value is not None:
        said += f"; beside {CUT} it is {faster(credit.value)}"
    return said
