"""What was tried at each floor of a text, what is certified of it, and how each candidate fared."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from offramp.defaults import BYTES
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.short_names import short_name
from offramp.report.answer_words import machine_name, quality_words
from offramp.report.formats import (
    counted,
    decimal,
    duration,
    estimate_text,
    floor_words,
    gain_text,
    nats,
    percent,
    times,
    whole_percent,
)
from offramp.report.html import fragment
from offramp.report.run_result import WorkloadResult
from offramp.report.table import Cell, Column, Table
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.floor import REFERENCE, Floor
from offramp.tuning.tuned import FrontPoint, Tuned
from offramp.tuning.verdict_words import ALONE

STATUS_STYLES = {
    "certified": "pays",
    "not certifiable": "does-not-pay",
    "not certified": "does-not-pay",
    "nothing to certify": "does-not-pay",
}
Candidates = tuple[Tuned, Candidate]
"""A candidate with the answer that it was tested for."""


def _candidate_cell(row: Candidates) -> Cell:
    _, candidate = row
    name, drafts = short_name(candidate.policy), "drafts by " if candidate.lossless else ""
    # The full model skips no layer.
    kv = "" if candidate.policy == PLAIN_DECODING else f" · {candidate.kv}"
    return Cell(f"{drafts}{name}{kv}", code=str(candidate.policy))


def _executed_text(row: Candidates) -> str:
    _, candidate = row
    if candidate.executed is not None:
        return f"{percent(candidate.executed)} of {counted(candidate.documents, 'document')}"
    return "100 %, lossless" if candidate.lossless else "not decoded"


CANDIDATES: Table[Candidates] = Table(
    (
        Column("Floor", lambda row: floor_words(row[0].floor), on="page"),
        Column("Candidate", _candidate_cell),
        Column("Agreement", lambda row: _kept(row, row[1].replayed), kind="replayed"),
        Column("Agreement (rerun)", lambda row: _kept(row, row[1].rerun), on="terminal"),
        Column("Agreement", _executed_text, kind="executed"),
        Column("Speed", lambda row: row[1].predicted_speed, times, kind="predicted"),
        Column("How its test ended", lambda row: row[1].outcome),
    ),
    style="decoded",
)
"""What was decoded to certify an answer, in the order of the tests, from cautious to bold."""


def _kept(row: Candidates, share: float) -> str | None:
    return percent(share) if row[0].floor.clip is None else None


SHOWN_POINTS = 8
"""Points of the front that a terminal shows."""


def front_table(tuned: Tuned) -> Table[FrontPoint]:
    """Fastest policies of the search, from cautious to bold, where nothing was decoded."""
    batched = tuned.batch > 1
    quality = nats if tuned.floor.clip is not None else percent
    # A skip of each token alone would contradict the speed in lockstep.
    skips = Column[FrontPoint]("Layers skipped", lambda point: point.skip_ratio, percent)
    return Table(
        (
            Column(tuned.floor.kind.replace("_", " "), lambda point: point.quality, quality),
            Column("Speed", lambda point: point.net_speedup, times),
            *([] if batched else [skips]),
            Column("Policy", lambda point: Cell(short_name(point.policy), code=str(point.policy))),
        ),
        caption="Fastest policies on the search documents"
        + (f"; batch {tuned.batch} in lockstep: {ALONE}" if batched else ""),
    )


def front_shown(tuned: Tuned) -> list[FrontPoint]:
    """A few points of the Pareto front."""
    step = max(1, -(-len(tuned.front) // SHOWN_POINTS))
    return list(tuned.front[::step])


def tuned_section(workload: WorkloadResult) -> Markup:
    """Every floor that the tuner answered, then every candidate; nothing if nothing was tuned."""
    if not workload.tuned:
        return Markup()
    executed = any(tuned.certificate.executed for tuned in workload.tuned)
    rows = [(tuned, candidate) for tuned in workload.tuned for candidate in tuned.candidates]
    caption = f"Candidates on {workload.name}, in the order of their tests"
    return fragment(
        "run",
        "tuned",
        "executed" if executed else "replayed",
        [floor_block(tuned) for tuned in workload.tuned],
        CANDIDATES.html(rows, caption=caption),
    )


def floor_block(tuned: Tuned) -> dict[str, Any]:
    """One floor: what is certified, for which policy, at what speed, resting on what."""
    state = status(tuned)
    return {
        "floor": floor_words(tuned.floor),
        "state": state,
        "style": f"decision {STATUS_STYLES.get(state, '')}".strip(),
        "sentence": certificate_sentence(tuned),
        "facts": facts(tuned),
    }


def facts(tuned: Tuned) -> list[tuple[str, str]]:
    """What the certificate rests on, and the speed of what it certifies."""
    certificate, floor = tuned.certificate, tuned.floor
    rows = []
    if not tuned.plain:
        rows.append(("policy", str(tuned.policy)))
    if certificate.tested:
        rows.append(("method", METHODS.get(certificate.method, certificate.method)))
        if certificate.delta is not None:
            rows.append(("chance that it is wrong (δ)", whole_percent(certificate.delta)))
    needed = f"{certificate.documents_needed:,} needed at least"
    rows.append(("documents to test on", f"{certificate.documents:,}{certificate.of_tokens} ({needed})"))
    if certificate.stopped_after is not None:
        rows.append(("settled after", counted(certificate.stopped_after, "document")))
    if tuned.executed_agreement is not None:
        rows.append(("executed agreement", estimate_text(tuned.executed_agreement, percent)))
    if tuned.executed_reference_agreement is not None:
        kept = estimate_text(tuned.executed_reference_agreement, percent)
        rows.append(("executed agreement with the original model", kept))
    if tuned.text_quality is not None:
        rows.append(("how good the texts are", quality_words(tuned.text_quality)))
    rows.append(("largest loss allowed", risk_text(floor, floor.risk)))
    if certificate.empirical_risk is not None:
        rows.append(("loss on those documents", risk_text(floor, certificate.empirical_risk)))
    if certificate.risk_bound is not None:
        rows.append(("largest loss not ruled out", risk_text(floor, certificate.risk_bound)))
    if certificate.tested:
        rows.append(("candidates tested, passed", f"{certificate.tested:,}, {certificate.passed:,}"))
    return rows if tuned.plain else rows + speed_facts(tuned)


def speed_facts(tuned: Tuned) -> list[tuple[str, str]]:
    """What the chosen policy would do on documents that neither search nor certificate saw."""
    machine = tuned.machine
    in_bytes = machine == BYTES
    where = "bytes moved" if in_bytes else machine_name(machine)

    def cost(value: float) -> str:
        return f"{decimal(value / 1e6, 1)} MB" if in_bytes else duration(value)

    rows = [
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
        rows.append(("agreement on unseen documents", estimate_text(tuned.quality, percent)))
    if tuned.reference_agreement is not None:
        rows.append(("agreement with the original model", estimate_text(tuned.reference_agreement, percent)))
    return rows


# A certificate in words.


METHODS: dict[str, str] = {  # a plug-in's own keeps its name
    "wsr": "betting bound (Waudby-Smith and Ramdas)",
    "hb": "Hoeffding–Bentkus bound",
    "crc": "conformal risk control",
    "naive": "none: the floor was only met on the documents searched",
}
NAIVE = "naive"
REPLAY_BOUND = "replay bound"


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
            what = "the full model, without any exit," if tuned.plain else "this policy"
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
        case _ if tuned.plain:
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
