"""What to bear in mind before quoting a comparison: how figures were had, and what is not claimed."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.report.findings import NOT_CERTIFIABLE, Finding, findings_of
from offramp.report.formats import counted, listed
from offramp.report.names import distinct, floor_shown, row_name
from offramp.report.ranking import believed, decoded_for_real, replayed, why_no_answer
from offramp.scoring.card import ESTIMATES
from offramp.scoring.rank_correlation import BASES_NEEDED
from offramp.studies.comparison.results import Comparison, Strategy, documents_in_all, lacks
from offramp.tuning.tuned import Tuned


def lacking(findings: Sequence[Finding[Tuned]]) -> str:
    """What kept these from a certificate, and what the floor that needs least would take."""
    short = [one.detail for one in findings if lacks(one.detail) == "documents"]
    open_yet = sum(lacks(one.detail) == "time" for one in findings)
    failed = len(findings) - len(short) - open_yet
    said = []
    if short:
        said.append(_too_few_documents(short))
    if open_yet:
        where = "" if open_yet == len(findings) else f"in {open_yet:,} "
        said.append(f"{where}the time to decode in was used up before a test was settled")
    if failed:
        where = "elsewhere " if said else ""
        said.append(f"{where}every faster policy failed the test of its floor")
    return "; ".join(said)


def _too_few_documents(short: Sequence[Tuned]) -> str:
    """What was at hand to certify on, and what the floor that needs least would take."""
    easiest = min(short, key=lambda answer: (answer.certificate.documents_needed, documents_in_all(answer)))
    certificate = easiest.certificate
    said = f"{counted(certificate.documents, 'document')}{certificate.of_tokens} to certify on, "
    said += f"{certificate.documents_needed:,} needed"
    if certificate.documents >= certificate.documents_needed:
        said = "no document is left to search on"
    return f"{said} for {floor_shown(easiest.floor)} (trace at least {documents_in_all(easiest):,} in all)"


def left_over(comparison: Comparison) -> list[str]:
    """How much could not be certified, or was measured but must not be believed."""
    said = []
    answers = findings_of(comparison)
    unknown = [one for one in answers if one.decision == NOT_CERTIFIABLE]
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        said.append(
            f"{len(unknown):,} of {counted(len(answers), 'answer')} (a cell at a floor) {verb} not "
            f"certifiable: {lacking(unknown)}."
        )
    no_answer = why_no_answer(comparison.strategies)
    if no_answer:
        count = len(decoded_for_real(comparison.strategies))
        said.append(
            f"Of {counted(count, 'measurement')} of policies decoded for real, left out: {no_answer}."
        )
    missed = sum(one.missed for one in answers if one.exits)
    if missed:
        count = len(answers)
        said.append(
            f"Of {counted(count, 'answer')}, certified on given text and below the floor when decoded, and "
            f"so not said to pay: {missed:,}."
        )
    broken = combined_with_defects(comparison)
    if broken:
        count = len(comparison.combined)
        said.append(
            f"Of {counted(count, 'measurement')} of accelerations together, with a defect: {broken:,}."
        )
    return said


def not_claimed(comparison: Comparison) -> list[str]:
    """What a reader must not take from the comparison."""
    said = []
    answers, strategies = findings_of(comparison), comparison.strategies
    bases = distinct([row.model.base for row in comparison.rows])
    if len(bases) < BASES_NEEDED:
        said.append(
            "Nothing is claimed about models in general: "
            f"{counted(len(bases), 'independently trained model')} of the {BASES_NEEDED} that it takes. "
            "Variants of one model are not independent."
        )
    if strategies or answers:
        said.append(
            "A predicted speed is computed from a replay and a machine's prices, its interval is over "
            f"documents, not over these prices; {_timed(strategies)}."
        )
    if len(answers) > 1 or len(replayed(strategies)) > 1:
        said.append(
            "The best of many is chosen with hindsight, and its own interval does not account for that."
        )
    passed = {one.certified for one in answers} - {""}
    if "replayed" in passed:
        said.append(
            "A replay bound speaks of given text with the full model's keys and values: what a policy keeps "
            "when it decodes may be less, so nothing pays by it. Only what was decoded is certified."
        )
    if passed:
        said.append("Each statement about a floor has its own chance of being wrong.")
    few = [row for row in comparison.rows if all(getattr(row.card, name).low is None for name in ESTIMATES)]
    if few:
        names = distinct([f"{row_name(row)} on {row.workload}" for row in few])
        shown = listed(names) if len(names) <= 4 else f"{len(names)} cells"
        said.append(f"No interval is given for {shown}: too few documents to say how sure the figures are.")
    if comparison.failures:
        count = counted(len(comparison.failures), "cell")
        said.append(f"{count} failed or did not run; each is named with its reason.")
    return said + list(comparison.notes)


def _timed(strategies: Sequence[Strategy]) -> str:
    """What the stopwatch adds to predicted speeds."""
    if believed(strategies):
        return "only what is marked measured was timed"
    broken = any(one.defect for one in strategies)
    return "what was timed here has a defect" if broken else "none was timed here"


def combined_with_defects(comparison: Comparison) -> int:
    """Measurements of accelerations together with something wrong."""
    return sum(bool(combined.defects) for combined in comparison.combined)
