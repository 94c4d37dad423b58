"""A verdict and its certificate in words: what is kept, at what speed, on what that rests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from offramp.kit.defaults import LOCAL
from offramp.report.formats import (
    counted,
    decimal,
    duration,
    estimate_text,
    faster,
    gain_text,
    interval_text,
    listed,
    percent,
    timed_text,
    times,
    whole_percent,
)
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.scoring.estimate import Estimate
from offramp.tuning.certificate import Certificate
from offramp.tuning.floor import REFERENCE, Floor, FloorKind
from offramp.tuning.pricing import BYTES
from offramp.tuning.ranking import RankedPolicy, ReplayedCredit, replayed_credit
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import CUT, Speed, Verdict, without_words

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
        "reference_agreement": f"{whole_percent(value)} agreement with the original model",
        "nll": f"an increase in NLL of at most {nats(value)}",
        "kl": f"a divergence (KL) of at most {nats(value)}",
    }
    return words[floor.kind]


def loss_words(floor: Floor) -> str:
    """What a policy at the floor loses at most, to follow "this policy"."""
    if floor.clip is None:
        leaves = "departs from the original model on" if floor.kind == REFERENCE else "loses"
        return f"{leaves} at most {whole_percent(round(floor.risk, 6))} of tokens"
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
            what = "the full model, without any exit," if tuned.policy_text == "never" else "this policy"
            return (
                f"Decoded from {settled}, {what} {loss_words(floor)} that it generates, "
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


def machine_name(name: str) -> str:
    """A machine as it stands in a sentence."""
    return "this machine" if name == LOCAL else name


def cost_text(machine: str, cost: float) -> str:
    """A token's cost: time on a machine, megabytes where bytes are counted."""
    return f"{decimal(cost / 1e6, 1)} MB" if machine == BYTES else duration(cost)


def bases(run: RunResult) -> list[str]:
    """What the run's verdicts rest on, each once."""
    return list(dict.fromkeys(verdict.basis for workload in run.workloads for verdict in workload.verdicts))


def basis_words(basis: str) -> str:
    """What a speed is predicted from, to follow "predicted from"."""
    if basis == BYTES:
        return "the bytes each token moves through memory"
    if basis == LOCAL:
        return "the times of layers, probes and head measured on this machine"
    return f"the times of layers, probes and head that the profile of {basis} gives"


def plain_seconds(run: RunResult, workload: WorkloadResult, basis: str) -> float | None:
    """Seconds per token of plain decoding, at batch size 1, that a speed refers to; None if unknown.

    Of the basis machine's own profile where that is known, so that prediction and reference have the same
    source; else the stopwatch's, which holds for this machine only.
    """
    if basis != BYTES:
        if run.hardware is not None and run.hardware.name == basis:
            return run.hardware.plain_seconds_per_token
        known = [a.plain_seconds_per_token for a in workload.machines if (a.machine, a.batch) == (basis, 1)]
        known += [t.plain_seconds_per_token for t in workload.tuned if (t.machine, t.batch) == (basis, 1)]
        if known:
            return known[0]
    measured = run.plain_seconds_per_token
    return measured.value if measured is not None and basis in (BYTES, LOCAL) else None


def speed_words(verdict: Verdict) -> str:
    """ "measured 1.081 × (1.061 to 1.099)" or "predicted ..."; what is missing where there is none."""
    speed = verdict.speed
    if speed is None:
        return "without a speed"
    return f"{how_words(speed)} {timed_text(speed.value, speed.low, speed.high, times)}"


def how_words(speed: Speed) -> str:
    """How a speed is known."""
    if speed.how == "measured":
        return "measured"
    return f"predicted for {machine_name(speed.machine)}"


def worth_words(verdict: Verdict) -> str:
    """The gain that counts as paying: "; a gain counts from 5 % on (--worth)"."""
    if verdict.speed is None:
        return ""
    return f"; a gain counts from {percent(verdict.worth, 0 if verdict.worth >= 0.01 else 1)} on (--worth)"


def saved_words(verdict: Verdict) -> str:
    """Where the gain comes from, and what exits add to the best decoder without them."""
    parts = gain_text(verdict.gain)
    said = f"; saves of plain decoding, by price: {parts}" if parts else ""
    credit, speed = verdict.credit, verdict.speed
    same = speed is None or credit is None or credit.value is None or credit.value == speed.value
    if same or credit is None or credit.value is None or speed is None:
        return said
    shown = timed_text(credit.value, credit.low, credit.high, times)
    return f"{said}; {how_words(speed)} {shown} over {without_words(verdict.without)}"


def credits_of(families: Sequence[RankedPolicy]) -> list[ReplayedCredit]:
    """What replay credits early exit with at each floor, the strictest first; none without ranks."""
    if all(entry.rank is None for entry in families):
        return []
    floors = sorted({entry.floor for entry in families}, reverse=True)
    return [replayed_credit(families, floor) for floor in floors]


def credit_sentence(credit: ReplayedCredit) -> str:
    """One floor in a sentence or two."""
    if credit.ratio is None or credit.speedup is None:
        return (
            f"No early exit holds {whole_percent(credit.floor)} agreement in replay on the documents that "
            "judge."
        )
    if credit.without == "never":
        return (
            "In replay nothing that leaves no layer out is faster than plain decoding, so that all that the "
            f"best early exit would gain is its own: {faster(credit.speedup)}."
        )
    return (
        f"In replay, without any early exit, {CUT} is {faster(credit.without_speedup)}. The best early exit, "
        f"{faster(credit.speedup)} than plain decoding, would be credited with what it adds to that: "
        f"{faster(credit.ratio)}."
    )


def transform_sentence(run: RunResult) -> str | None:
    """What the transforms of the model cost before any early exit; None for a model without transforms."""
    costs = [cost for workload in run.workloads if (cost := transform_cost(workload)) is not None]
    if not costs:
        return None
    return (
        "What the transform itself costs: the full model, as transformed, says what the untransformed one "
        f"says on {listed(costs)}. Agreement is with the transformed full model wherever “untransformed” is "
        "not said."
    )


def transform_cost(workload: WorkloadResult) -> str | None:
    """Agreement of the transformed full model with the untransformed one on one workload."""
    kept = workload.card.reference_agreement
    if kept is None or kept.value is None:
        return None
    limits = interval_text(kept.low, kept.high, percent)
    why = f"95 % interval {limits}" if limits else f"no interval: {kept.no_interval}"
    return f"{percent(kept.value)} of the tokens of {workload.name} ({why})"


def reference_line(reference: Estimate | None) -> str:
    """Agreement with the untransformed model, to stand below an agreement; "" without transforms."""
    if reference is None:
        return ""
    if reference.value is None:
        return "untransformed: undefined"
    return f"untransformed: {estimate_text(reference, percent)}"
