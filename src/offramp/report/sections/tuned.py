"""The tuned policy and its certificate in plain words, one card a floor, and the Pareto front."""

from __future__ import annotations

from offramp.report.basis import cost_text, machine_name
from offramp.report.certificate import (
    certificate_sentence,
    floor_words,
    method_name,
    risk_text,
    status,
)
from offramp.report.formats import counted, estimate_text, gain_text, percent, times, whole_percent
from offramp.report.markup import element, kind_chip, policy_code, text
from offramp.report.run_result import WorkloadResult
from offramp.report.sections.floors import ANSWER_TOKENS
from offramp.report.sections.front import front_figures
from offramp.tuning.floor import Floor
from offramp.tuning.pricing import BYTES
from offramp.tuning.tuned import Tuned

STATUS_STYLES = {
    "certified": "pays",
    "not certifiable": "does-not-pay",
    "not certified": "does-not-pay",
    "nothing to certify": "does-not-pay",
}
ROLES = {
    "heads": "fitting heads",
    "search": "searching",
    "certify": "the test",
    "report": "the report",
}


def tuned_section(workload: WorkloadResult) -> str:
    """One card for every floor tried, then the candidates; nothing if nothing was tuned."""
    if not workload.tuned:
        return ""
    cards = "".join(tuned_card(tuned) for tuned in workload.tuned)
    executed = any(tuned.certificate.executed for tuned in workload.tuned)
    return (
        element(
            "h3", "What is kept on documents like these " + kind_chip("measured" if executed else "replayed")
        )
        + element("div", cards, class_="keys certificates")
        + front_figures(workload)
    )


def tuned_card(tuned: Tuned) -> str:
    """One floor: what is certified, for which policy, at what speed, resting on what."""
    state = status(tuned)
    pill = element("span", text(state), class_=f"decision {STATUS_STYLES.get(state, '')}".strip())
    return element(
        "div",
        element("h4", text(f"Keep {floor_words(tuned.floor)} ") + pill)
        + element("p", text(certificate_sentence(tuned)), class_="answer")
        + answers_left(tuned.floor)
        + policy_line(tuned)
        + element("dl", "".join(entry(name, value) for name, value in facts(tuned)))
        + small_print(tuned),
        class_="key",
    )


def entry(name: str, value: str) -> str:
    """A name and a value."""
    return element("div", element("dt", text(name)) + element("dd", text(value)))


def answers_left(floor: Floor) -> str:
    """What the floor means for a whole answer."""
    if floor.clip is not None:
        return ""
    left = floor.value**ANSWER_TOKENS
    share = percent(left, 0 if left > 0.1 else 1)
    answers = f" = {share} of {ANSWER_TOKENS}-token answers stay unchanged if misses are independent."
    power = text(f"Per token, not per answer: {floor.value:g}") + element("sup", str(ANSWER_TOKENS))
    return element("p", power + text(answers), class_="note")


def policy_line(tuned: Tuned) -> str:
    """The policy, or that the full model is the answer."""
    if tuned.policy_text == "never":
        return element("p", element("strong", "Answer: the full model, no early exit."))
    return element("p", policy_code(tuned.policy_text))


def facts(tuned: Tuned) -> list[tuple[str, str]]:
    """What the certificate rests on, and the speed of what it certifies."""
    certificate, floor = tuned.certificate, tuned.floor
    found = [("method", method_name(certificate.method))]
    if certificate.delta is not None:
        found.append(("chance that it is wrong (δ)", whole_percent(certificate.delta)))
    needed = f"{certificate.documents_needed:,} needed at least"
    found.append(("documents to test on", f"{certificate.documents:,}{certificate.of_tokens} ({needed})"))
    if certificate.stopped_after is not None:
        found.append(("settled after", counted(certificate.stopped_after, "document")))
    if tuned.executed_agreement is not None:
        found.append(("executed agreement", estimate_text(tuned.executed_agreement, percent)))
    found.append(("largest loss allowed", risk_text(floor, floor.risk)))
    if certificate.empirical_risk is not None:
        found.append(("loss on those documents", risk_text(floor, certificate.empirical_risk)))
    if certificate.risk_bound is not None:
        found.append(("largest loss not ruled out", risk_text(floor, certificate.risk_bound)))
    if certificate.tested:
        found.append(("candidates tested, passed", f"{certificate.tested:,}, {certificate.passed:,}"))
    return found if tuned.policy_text == "never" else found + speed_facts(tuned)


def speed_facts(tuned: Tuned) -> list[tuple[str, str]]:
    """What the chosen policy would do on documents that neither search nor certificate saw."""
    machine = tuned.machine
    in_bytes = machine == BYTES
    where = "bytes moved" if in_bytes else machine_name(machine)

    def cost(value: float) -> str:
        return cost_text(machine, value)

    found = [
        (f"net speed, {where}, batch {tuned.batch}", estimate_text(tuned.net_speedup, times)),
        (
            f"{'moved' if in_bytes else 'time'} per token, predicted",
            estimate_text(tuned.seconds_per_token, cost),
        ),
        ("plain decoding there", cost(tuned.plain_seconds_per_token)),
        ("probes' share of it", percent(tuned.probe_share)),
        *([("saved of plain decoding", gain_text(tuned.gain))] if tuned.gain is not None else []),
        ("layers skipped", estimate_text(tuned.skip_ratio, percent)),
    ]
    if tuned.floor.kind == "agreement":
        found.append(("agreement on unseen documents", estimate_text(tuned.quality, percent)))
    if tuned.reference_agreement is not None:
        found.append(("with the untransformed model", estimate_text(tuned.reference_agreement, percent)))
    return found


def small_print(tuned: Tuned) -> str:
    """The guarantee word for word, the assumption, and which documents did what."""
    certificate = tuned.certificate
    roles = [
        f"{counted(count, 'document')} for {ROLES.get(role, role)}" for role, count in tuned.documents.items()
    ]
    lines = [
        f"The tuner's answer: {tuned.answer}",
        f"{'Certificate' if certificate.executed else 'Replay bound'}: {certificate.guarantee}",
        f"Assumed: {certificate.assumption}",
        f"Disjoint sets: {', '.join(roles)}" if roles else "",
        f"Keys and values of skipped layers: {tuned.kv}",
    ]
    items = "".join(element("li", text(line)) for line in lines if line)
    return element("details", element("summary", "the small print") + element("ul", items, class_="note"))
