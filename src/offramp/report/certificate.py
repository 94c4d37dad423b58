"""A certificate in plain words."""

from __future__ import annotations

import math

from offramp.report.formats import counted, decimal, faster, percent, whole_percent
from offramp.tuning.certificate import Certificate
from offramp.tuning.floor import Floor, FloorKind
from offramp.tuning.tuned import Tuned

METHODS: dict[str, str] = {
    "wsr": "betting bound (Waudby-Smith and Ramdas)",
    "hb": "Hoeffding–Bentkus bound",
    "crc": "conformal risk control",
    "naive": "none: the floor was only met on the documents searched",
}
NAIVE = "naive"
REPLAY_BOUND = "replay bound"


def method_name(method: str) -> str:
    """A method in words; a plug-in's own keeps its name."""
    return METHODS.get(method, method)


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
        "reference_agreement": f"{whole_percent(value)} agreement with the untransformed model",
        "nll": f"an increase in NLL of at most {nats(value)}",
        "kl": f"a divergence (KL) of at most {nats(value)}",
    }
    return words[floor.kind]


def loss_words(floor: Floor) -> str:
    """What a policy at the floor loses at most, to follow "this policy"."""
    if floor.clip is None:
        return f"loses at most {whole_percent(round(floor.risk, 6))} of tokens"
    clip = f", each token's counted up to {nats(floor.clip)}"
    name = "log-likelihood" if floor.kind == "nll" else "divergence from the full model"
    return f"loses at most {nats(floor.value)} of {name} a token{clip}"


def risk_text(floor: Floor, risk: float | None) -> str:
    """A mean loss as a share of tokens, or in nats; "none" if there is none."""
    if risk is None:
        return "none"
    if floor.clip is None:
        return f"{percent(risk, 2)} of tokens"
    return nats(risk * floor.clip)


def status(tuned: Tuned) -> str:
    """In a word: "not certifiable" means that so few documents could certify no policy.

    Certified is what was decoded; what holds in replay only is a replay bound.
    """
    certificate = tuned.certificate
    if certificate.method == NAIVE:
        return "no guarantee"
    if certificate.holds:
        return "certified" if certificate.executed else REPLAY_BOUND
    if too_few(certificate):
        return "not certifiable"
    return "not certified" if certificate.tested else "nothing to certify"


def too_few(certificate: Certificate) -> bool:
    """Whether so few documents could not certify the floor even without a single loss."""
    return certificate.documents < certificate.documents_needed


def certificate_sentence(tuned: Tuned) -> str:
    """What is certified, or why nothing is."""
    certificate, floor = tuned.certificate, tuned.floor
    documents = counted(certificate.documents, "document") + certificate.of_tokens
    match status(tuned):
        case "certified":
            settled = counted(decoded(certificate), "document") + certificate.of_tokens
            return (
                f"Decoded from {settled}, this policy {loss_words(floor)} that it generates, "
                f"{confidence(certificate)}, on documents like these."
            )
        case "replay bound":
            return (
                f"With {documents} replayed, this policy {loss_words(floor)}, {confidence(certificate)}, on "
                "documents like these, as long as later tokens read the full model's own keys and values: "
                "nothing was decoded."
            )
        case "not certifiable":
            needed = f"{certificate.documents_needed:,} needed"
            found = counted(certificate.documents, "document")
            return f"Not certifiable: {found}, {needed}{_each(certificate)}; {best_possible(tuned)}."
        case "not certified":
            return (
                f"Not certified: on {documents}, none of the candidates tested ({certificate.tested:,}) "
                f"could be shown to keep {floor_words(floor)}."
            )
        case "nothing to certify":
            return f"Nothing to certify: no policy found keeps {floor_words(floor)} and beats the full model."
        case _ if tuned.policy_text == "never":
            return f"No guarantee, and no faster policy kept {floor_words(floor)} on {documents}."
    return (
        f"No guarantee: on {documents} this policy kept {floor_words(floor)}, but nothing follows for others."
    )


def _each(certificate: Certificate) -> str:
    """How long its documents are, after a count."""
    return f" ({certificate.of_tokens.strip()} each)" if certificate.of_tokens else ""


def decoded(certificate: Certificate) -> int:
    """Documents after which an executed test was settled."""
    return certificate.documents if certificate.stopped_after is None else certificate.stopped_after


def confidence(certificate: Certificate) -> str:
    """How sure a certificate is."""
    if certificate.delta is None:
        return "on average over such calibrations"
    return f"with {whole_percent(1 - certificate.delta)} confidence"


def best_possible(tuned: Tuned) -> str:
    """What so few documents could certify at best."""
    floor, best = tuned.floor, tuned.certificate.best_floor
    # Rounded to the weaker side, so that the floor named can really be certified.
    value = (
        decimal(math.floor(1000 * best) / 1000, 3)
        if floor.clip is None
        else nats(math.ceil(1000 * best) / 1000)
    )
    return f"with so few, the best floor that could be certified is {value}"


def short_certificate(tuned: Tuned) -> str:
    """One floor's certificate in a few words."""
    certificate, state = tuned.certificate, status(tuned)
    documents = counted(decoded(certificate), "document") + certificate.of_tokens
    what = f"{floor_words(tuned.floor)}: {state}"
    if state == "not certifiable":
        documents = counted(certificate.documents, "document")
        return f"{what} ({documents}, {certificate.documents_needed:,} needed)"
    if state in ("certified", REPLAY_BOUND):
        speed = tuned.net_speedup.value
        return f"{what} on {documents}" + ("" if speed is None else f", {faster(speed)}")
    return what
