"""The answer on top of a page: the verdict in a sentence, key numbers, a run's floors."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from offramp.report.caveats import caveats, left_over, not_claimed
from offramp.report.findings import (
    Finding,
    best_certified,
    comparison_decision,
    findings_of,
    main_verdicts,
    run_decision,
)
from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    duration,
    estimate_text,
    limits_text,
    listed,
    milliseconds,
    percent,
    range_text,
    signed_change,
    thousandths,
    timed_interval,
    times,
    too_wide,
    whole_percent,
)
from offramp.report.headline import (
    certificate_answer,
    comparison_headline,
    families_answer,
    grounds_of,
    machines_answer,
    passed_how,
    short_answer,
)
from offramp.report.html import (
    Column,
    KeyNumber,
    Kind,
    cards,
    fragment,
    pill,
    policy_code,
    stack,
    stacked,
    text,
)
from offramp.report.names import distinct, floor_shown, heads_name, line_name, machine_shown
from offramp.report.ranking import believed, fastest, replayed, sample_text, why_no_answer
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.verdict_words import (
    bases,
    basis_words,
    how_words,
    plain_seconds,
    reference_line,
    speed_words,
    transform_sentence,
)
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Saving, Strategy
from offramp.tuning.verdict import Speed, Verdict, kept_words

ANSWER_TOKENS = 64


COLUMNS = (
    Column("Keep"),
    Column("Verdict"),
    Column("Policy"),
    Column("Kept", "executed"),
    Column("Speed"),
    Column("Beside it, replayed", "replayed"),
    Column("Documents"),
)


def verdict_section(run: RunResult) -> Markup:
    """Everything a hurried reader needs."""
    texts = listed([workload.name for workload in run.workloads])
    transforms = transform_sentence(run)
    return fragment(
        "run",
        "verdict",
        decision=run_decision(run),
        where=f"{run.model_name} · {run.layers} layers · {texts} · one sequence at a time",
        answer=short_answer(run),
        grounds=grounds_line(run),
        keys=key_numbers(run),
        short=in_short(run),
        transforms=transforms,
        floors=floors_table(run),
        basis=listed([basis_words(one) for one in bases(run)]),
        tokens=ANSWER_TOKENS,
        caveats=[note for note in caveats(run) if note != transforms],
    )


def grounds_line(run: RunResult) -> str:
    """What the answer rests on, below it."""
    grounds = grounds_of(run)
    if run_decision(run) == "depends on the text":  # it begins with a text's name
        return grounds
    return grounds[:1].upper() + grounds[1:]


def in_short(run: RunResult) -> Markup:
    """The answers of ranking, certificate and machines, one row a workload; nothing if none was asked for."""
    columns: dict[str, Callable[[WorkloadResult], str | None]] = {
        "Fastest policy, replayed": families_answer,
        "Certificates": certificate_answer,
        "Where it would pay": machines_answer,
    }
    asked = {name: answer for name, answer in columns.items() if any(map(answer, run.workloads))}
    if not asked:
        return Markup()
    rows = [[w.name, *[answer(w) or "not asked" for answer in asked.values()]] for w in run.workloads]
    names = [Column("Text"), *[Column(name) for name in asked]]
    return cards(names, {"": rows}, caption="In short", style="short")


def key_numbers(run: RunResult) -> list[KeyNumber]:
    """Three figures: what is kept as executed, the speed that it gives, and what an oracle could skip."""
    if not any(verdict.certificate for _, verdict in main_verdicts(run)) and not run.decoding:
        return [speed_card(run), oracle_card(run), plain_card(run)]
    return [kept_card(run), speed_card(run), oracle_card(run)]


def kept_card(run: RunResult) -> KeyNumber:
    """Executed agreement at the main floor."""
    found = main_verdicts(run)
    certified = [v.kept for _, v in found if v.certified and v.policy != "never" and v.kept is not None]
    values = [kept.value for kept in certified if kept.value is not None]
    floor = whole_percent(found[0][1].floor) if found else "95 %"
    lines = [(name, kept_line(verdict)) for name, verdict in found]
    what = (
        "of the tokens that the policy generates are the full model's choice on the same prefix; the "
        f"floor is {floor}"
    )
    return KeyNumber("executed", span_text(values, percent) or "nothing certified", what, lines)


def kept_line(verdict: Verdict) -> str:
    """What one workload's policy keeps."""
    if verdict.policy != "never" or verdict.tried is not None:
        return kept_words(verdict)
    certificate = verdict.certificate
    if certificate is None or not certificate.executed:
        return "not executed"
    if certificate.documents < certificate.documents_needed:
        return f"not certifiable: {certificate.documents} documents, {certificate.documents_needed} needed"
    if verdict.decision == "too close to call":
        return f"open: {certificate.stopped_after or 0} documents decoded, {certificate.documents} at hand"
    return "nothing faster is certified: plain decoding stays"


def _speed_line(verdict: Verdict) -> str:
    if verdict.speed is None:
        return _without_speed(verdict)
    return speed_words(verdict) + (" (tried, not certified)" if verdict.tried is not None else "")


def _without_speed(verdict: Verdict) -> str:
    open_still = verdict.decision == "too close to call"
    return "nothing is certified yet" if open_still else "best never to exit"


def speed_card(run: RunResult) -> KeyNumber:
    """Speed over the fastest plain decoder at the main floor."""
    found = main_verdicts(run)
    measured = any(v.speed is not None and v.speed.how == "measured" for _, v in found)
    speeds = [v.speed for _, v in found if v.speed is not None and v.policy != "never"]
    values = [one.value for one in speeds if not too_wide(one.value, one.low, one.high)]
    lines = [(name, _speed_line(v)) for name, v in found]
    lines += [(name, f"not decoded: {why}") for name, why in run.not_decoded.items() if not measured]
    plain = run.plain_seconds_per_token
    token = "" if plain is None else f"; plain decoding takes {milliseconds(plain.value)} a token, measured"
    what = f"faster decoding than the fastest plain decoder, every probe and repair paid for{token}"
    kind: Kind = "measured" if measured else "predicted"
    nothing = "nothing certified" if any(v.tried is not None for _, v in found) else "nothing faster"
    if speeds and not values:
        nothing = "too few prompts"
    samples = dict.fromkeys(sample_text(one) for one in run.decoding) if measured else {}
    if samples:
        what += f"; timed on {listed(list(samples))} a text"
    return KeyNumber(kind, span_text(values, signed_change) or nothing, what, lines)


def span_text(values: list[float], number: NumberFormat) -> str:
    """One number, or the lowest and highest."""
    if not values:
        return ""
    low, high = number(min(values)), number(max(values))
    return low if low == high else range_text(low, high)


def oracle_card(run: RunResult) -> KeyNumber:
    """What an oracle that knows the final answer could skip."""
    estimates = [(workload.name, workload.card.saturation_skip) for workload in run.workloads]
    values = [estimate.value for _, estimate in estimates if estimate.value is not None]
    lines = [(name, estimate_text(estimate, percent)) for name, estimate in estimates]
    what = (
        "of the layers could be skipped at 100 % agreement by an oracle that knows when each answer is "
        "settled; no policy knows that, and one that may change answers can skip more"
    )
    return KeyNumber("measured", span_text(values, percent) or "undefined", what, lines)


def plain_card(run: RunResult) -> KeyNumber:
    """Seconds per token of plain decoding, or half-depth agreement where it was not timed."""
    plain = run.plain_seconds_per_token
    if plain is not None:
        interval = timed_interval(plain.value, plain.low, plain.high, milliseconds)
        lines = [("interval", interval or "none")]
        lines.append(("machine", f"{plain.threads} threads, load {decimal(plain.load, 1)}"))
        what = "per token for plain decoding on this machine, the time that early exit would have to beat"
        return KeyNumber("measured", milliseconds(plain.value), what, lines)
    halves = [(workload.name, half_depth_agreement(workload)) for workload in run.workloads]
    values = [value for _, value in halves if value is not None]
    what = (
        "of tokens already have the full model's answer half-way through the layers (plain decoding "
        f"was not timed{'' if run.progress is None else ' yet'})"
    )
    lines = [(name, "undefined" if value is None else percent(value)) for name, value in halves]
    return KeyNumber("measured", span_text(values, percent) or "undefined", what, lines)


def half_depth_agreement(workload: WorkloadResult) -> float | None:
    """Agreement at the traced exit nearest to half of the layers."""
    curves = workload.card.curves
    if "agreement" not in curves.values:
        return None
    nearest = abs(curves.exits - curves.exits[-1] / 2).argmin()
    return float(curves.values["agreement"][nearest])


def floors_table(run: RunResult) -> Markup:
    """The verdicts at every floor, one row each; nothing where no policy could be judged."""
    if not any(workload.verdicts for workload in run.workloads):
        return Markup()
    groups = {w.name: [floor_row(run, w, verdict) for verdict in w.verdicts] for w in run.workloads}
    caption = "Verdict by workload and quality floor, batch size 1"
    nothing = "no policy could be judged on this workload"
    return cards(COLUMNS, groups, caption=caption, style="floors", nothing=nothing)


def floor_row(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> list[Markup]:
    """One verdict."""
    unchanged = percent(verdict.floor**ANSWER_TOKENS, 0 if verdict.floor > 0.96 else 1)
    left = f"{unchanged} of {ANSWER_TOKENS}-token answers unchanged"
    return [
        stack(whole_percent(verdict.floor), left),
        pill(verdict.decision) + fragment("run", "why", verdict.reason, verdict.missing),
        policy_cell(verdict),
        kept_cell(verdict),
        speed_cell(run, workload, verdict),
        replayed_cell(verdict),
        documents_cell(workload, verdict),
    ]


def policy_cell(verdict: Verdict) -> Markup:
    """What to decode with, and what was tried where nothing is certified yet."""
    tried = verdict.tried
    if tried is not None:
        found = stack(policy_code(verdict.policy), "tried:") + policy_code(tried.policy)
        return stack(found, f"K and V: {tried.kv}")
    return stack(policy_code(verdict.policy), "" if verdict.kv is None else f"K and V: {verdict.kv}")


def kept_cell(verdict: Verdict) -> Markup:
    """Executed agreement and its certificate: one status a floor."""
    certificate, tried = verdict.certificate, verdict.tried
    if tried is not None and tried.executed is not None:
        documents = counted(tried.documents, "document")
        return stack(percent(tried.executed), f"{documents}, not certified yet")
    if verdict.policy == "never":
        return stack("100 %", "plain decoding")
    if certificate is None or not certificate.executed:
        return text("not executed")
    value = text("not known") if verdict.kept is None else stacked(verdict.kept, percent)
    if verdict.certified:
        return stack(value, f"certified ≥ {whole_percent(verdict.floor)}")
    return stack(value, "not certified")


def speed_cell(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> Markup:
    """The speed with its interval, and how it is known."""
    speed = verdict.speed
    if speed is None:
        return stack(times(1.0), "plain decoding")
    limits = timed_interval(speed.value, speed.low, speed.high, times)
    seconds = plain_seconds(run, workload, verdict.basis)
    token = "" if seconds is None else f"{duration(seconds / speed.value)} a token"
    return stack(times(speed.value), limits, how_words(speed), token)


def replayed_cell(verdict: Verdict) -> Markup:
    """What the trace alone said of its own choice."""
    if verdict.agreement.value is None:
        return stack("undefined", verdict.agreement.undefined or "")
    said = f"{percent(verdict.agreement.value)} agreement"
    if verdict.net_speedup.value is not None:
        said += f", {times(verdict.net_speedup.value)} predicted"
    if verdict.skip_ratio.value is not None:
        said += f", {percent(verdict.skip_ratio.value)} of the layers skipped"
    cell = text(said)
    if verdict.replayed_policy not in (verdict.policy, "never"):
        cell = stack(cell, "by another policy: ") + policy_code(verdict.replayed_policy)
    if verdict.reference_agreement is not None:
        cell = stack(cell, reference_line(verdict.reference_agreement))
    return cell


def documents_cell(workload: WorkloadResult, verdict: Verdict) -> Markup:
    """What a certificate rests on, and what it needs."""
    certificate = verdict.certificate
    needed = f"a certificate needs {verdict.documents_needed} or more"
    if certificate is None or not certificate.executed:
        halves = f"chosen on {verdict.fit_documents}, judged on {verdict.report_documents}"
        return stack(halves, lengths_text(lengths_of(workload.trace)).strip(), needed)
    decoded = certificate.stopped_after or 0
    length = f"{certificate.new_tokens} new tokens each" if certificate.new_tokens else ""
    return stack(f"{decoded} decoded of {certificate.documents}", length, needed)


def answer_section(comparison: Comparison) -> Markup:
    """Headline, the sentences behind it, the best of each kind as cards, and what is not claimed."""
    return fragment(
        "comparison",
        "verdict",
        title=comparison.title,
        decision=comparison_decision(comparison),
        size=size_of(comparison),
        headline=comparison_headline(comparison),
        cards=cards_of(comparison),
        not_claimed=[*left_over(comparison), *not_claimed(comparison)],
    )


def size_of(comparison: Comparison) -> str:
    """ "9 models · 2 workloads · 1,920 tokens each"."""
    rows = comparison.rows
    models = distinct([row.model.shown for row in rows])
    workloads = distinct([row.workload for row in rows])
    tokens = sorted({row.tokens for row in rows})
    each = f"{tokens[0]:,} tokens each" if len(tokens) == 1 else "unequal numbers of tokens"
    parts = [counted(len(models), "model"), counted(len(workloads), "workload"), *([each] if tokens else [])]
    bases = distinct([row.model.base for row in rows])
    if len(bases) < len(models):
        parts.insert(1, f"{counted(len(bases), 'independent training')}")
    return " · ".join(parts)


def cards_of(comparison: Comparison) -> list[KeyNumber]:
    """The best certified, replayed and measured speed, and the most suited by score."""
    found, strategies = findings_of(comparison), comparison.strategies
    cards = []
    if found:
        cards.append(_certified_card(best_certified(found), len(found)))
    predicted = fastest(replayed(strategies))
    if predicted is not None:
        cards.append(_strategy_card("Fastest by replay", "predicted", predicted))
    if any(one.basis == "measured" for one in strategies):
        measured, title = fastest(believed(strategies)), "Fastest decoded for real"
        if measured is None:
            nothing = why_no_answer(strategies) or "no policy that exits was decoded"
            cards.append(KeyNumber("measured", "none", nothing, title=title))
        else:
            cards.append(_strategy_card(title, "measured", measured))
    return cards + _suited_card(comparison)


def _certified_card(best: Finding[Saving] | None, asked: int) -> KeyNumber:
    title = "Best net speed that passed its floor"
    if best is None:
        said = f"no policy that exits early passed in {counted(asked, 'answer')}"
        return KeyNumber("predicted", "none", said, title=title)
    model, workload, machine = best.cell
    facts = {
        "model": model,
        "workload": workload,
        "machine": machine_shown(machine),
        "keeps": floor_shown(best.floor),
        "passed": passed_how(best),
    }
    kind: Kind = "measured" if best.timed else "predicted"
    return KeyNumber(kind, *_speed(best.speed), list(facts.items()), title, best.policy)


def _strategy_card(title: str, kind: Kind, found: Strategy) -> KeyNumber:
    facts = {
        "model": line_name(found.model, found.heads),
        "workload": found.workload,
        "machine": machine_shown(found.machine),
        "floor": floor_shown(found.floor),
        "agreement": "–" if found.agreement.value is None else percent(found.agreement.value),
    }
    return KeyNumber(kind, *_speed(found.net_speedup), list(facts.items()), title, found.policy)


def _suited_card(comparison: Comparison) -> list[KeyNumber]:
    """The row with the highest composite; none without one."""
    known = [row for row in comparison.rows if _composite(row.scores.get("composite")) is not None]
    if not known:
        return []
    best = max(known, key=lambda row: row.scores["composite"].value or 0.0)
    composite = best.scores["composite"]
    facts = {
        "model": best.model.shown,
        "workload": best.workload,
        "exit heads": heads_name(best.heads),
        "oracle skips": _share(best.scores.get("saturation_skip")),
    }
    limits = limits_text(composite.low, composite.high, thousandths)
    what = f"composite of 0 to 1{f', {limits}' if limits else ''}"
    big = thousandths(composite.value or 0.0)
    return [KeyNumber("measured", big, what, list(facts.items()), "Most suited by score")]


def _composite(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _share(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate.value is None else percent(estimate.value)


def _speed(speed: Speed | Estimate | None) -> tuple[str, str]:
    """A speed in large, and what it is over with its interval."""
    assert speed is not None, "the best has a speed"
    limits = limits_text(speed.low, speed.high, thousandths)
    without = ", no interval" if speed.low is None else ""
    return times(speed.value or 0.0), f"plain decoding{f', {limits}' if limits else without}"
