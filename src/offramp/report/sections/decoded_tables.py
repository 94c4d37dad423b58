"""Tables of what was decoded for real: the policies, all contenders, the circumstances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from offramp.decoding.measurement.results import Contender, FreeRunning, Interval
from offramp.report.formats import (
    NumberFormat,
    decimal,
    duration,
    interval_text,
    milliseconds,
    percent,
    timed_interval,
    times,
)
from offramp.report.html import Column, bullets, cards, policy_code, stack, table, text
from offramp.report.ranking import basis_text, kept_text, ranked, sample_text
from offramp.report.run_result import Decoded, DecodedPolicy, WorkloadResult
from offramp.report.timing_words import contender_answer


def ranking_table(decoded: Decoded, workload: WorkloadResult | None) -> Markup:
    """Every way to decode that was timed, by speed; what is not shown to keep its floor comes last."""
    columns = [
        Column("Way to decode"),
        Column("Net speed", "measured"),
        Column("Agreement", "executed"),
        Column("What it rests on"),
    ]
    kept: list[list[str]] = []
    missed: list[list[str]] = []
    for one in ranked(decoded, workload):
        policy = one.policy
        head = one.name if policy is None else stack(policy_code(policy.policy), f"K,V: {policy.kv}")
        row = [head, net_speed(one.timed, decoded.bench.worth), kept_text(one), basis_text(one)]
        (missed if one.misses else kept).append(row)
    groups = {"": kept, "Not shown to keep the floor it was chosen for": missed}
    caption = f"Ranked on {decoded.workload}, {sample_text(decoded)}; lossless ways are among them"
    return cards(columns, groups, caption=caption, style="decoded")


def policy_table(decoded: Decoded) -> Markup:
    """Every decoded policy: speed, skipped layers, agreement of replay beside that of its own text."""
    columns = [
        Column("Policy"),
        Column("Time per token", "predicted"),
        Column("Time per token", "measured"),
        Column("Net speed", "measured"),
        Column("Layers skipped", "measured"),
        Column("Agreement, given text", "replayed"),
        Column("Agreement, own text", "measured"),
        Column("Tokens until it differs", "measured"),
    ]
    groups = {"": [policy_row(decoded, policy) for policy in decoded.policies]}
    caption = f"Policies decoded on {decoded.workload}; time is per new token at batch {decoded.bench.batch}"
    return cards(columns, groups, caption=caption, style="decoded")


def policy_row(decoded: Decoded, policy: DecodedPolicy) -> list[str]:
    """One policy."""
    timed, forecast, answers = decoded.timed(policy), policy.forecast, policy.free_running
    head = stack(policy_code(policy.policy), f"K,V: {policy.kv}")
    if timed.seconds_per_token is None:
        return [head, *["–"] * 6, f"not timed: {timed.left_out or 'no reason recorded'}"]
    predicted = None if forecast is None else forecast.predicted
    skipped = text("–" if forecast is None else percent(forecast.measured_skip))
    if forecast is not None and forecast.predicted_skip is not None:
        skipped = stack(skipped, f"predicted {percent(forecast.predicted_skip)}")
    replayed = None if forecast is None else forecast.predicted_agreement
    return [
        head,
        "–" if predicted is None else milliseconds(predicted),
        with_interval(timed.seconds_per_token, milliseconds),
        net_speed(timed, decoded.bench.worth),
        skipped,
        "–" if replayed is None else percent(replayed),
        "–" if answers is None else with_interval(answers.agreement, percent),
        "–" if answers is None else divergence(answers),
    ]


def net_speed(timed: Contender, worth: float) -> Markup:
    """The ratio to plain decoding with its interval, and what it answers."""
    if timed.ratio is None:
        return text("–")
    return stack(with_interval(timed.ratio, times), contender_answer(timed, worth))


def divergence(answers: FreeRunning) -> Markup:
    """How far generated text follows the full model's, and how many answers are its own."""
    length = answers.new_tokens / max(answers.prompts, 1)
    same = f"{percent(answers.sequence_match.value, 0)} of answers are the full model's"
    return stack(f"{decimal(answers.tokens_before_divergence.value, 1)} of {decimal(length, 0)}", same)


def with_interval(interval: Interval, number: NumberFormat) -> Markup:
    """A figure with its interval below it."""
    return stack(number(interval.value), limits_of(interval, number))


def limits_of(interval: Interval, number: NumberFormat) -> str:
    """The interval of a figure; of times and their ratios only where it says something."""
    if number is percent:
        return interval_text(interval.low, interval.high, number)
    return timed_interval(interval.value, interval.low, interval.high, number)


def contender_tables(decoded: Decoded) -> Markup:
    """Every contender as a row, and the circumstances."""
    bench = decoded.bench
    caption = f"Everything that took turns on {decoded.workload}"
    timed = contender_rows_table(bench.contenders, caption, bench.worth)
    return timed + bullets(bench.notes, "note") + circumstances_table(bench.circumstances)


def contender_rows_table(contenders: Sequence[Contender], caption: str, worth: float) -> Markup:
    """Contenders as rows. worth: the gain that matters, as a share."""
    header = [
        "Contender",
        "Role",
        "ms per token",
        "Net speed",
        "Answer",
        "First token",
        "Layers per token",
        "Heads per token",
        "Same output",
    ]
    return table(header, [contender_row(one, worth) for one in contenders], caption=caption, numeric_from=2)


def circumstances_table(circumstances: Mapping[str, Any]) -> Markup:
    """The machine, the versions, the fingerprints."""
    values = [[name.replace("_", " "), shown(value)] for name, value in circumstances.items()]
    return table(["Circumstance", "Value"], values, caption="Circumstances", numeric_from=9)


def contender_row(contender: Contender, worth: float) -> list[str]:
    """One contender."""
    if contender.left_out is not None or contender.seconds_per_token is None:
        return [
            contender.name,
            contender.role,
            f"left out: {contender.left_out or 'no reason recorded'}",
            *[""] * 6,
        ]
    seconds, first = contender.seconds_per_token, contender.first_token_seconds
    limits = interval_text(seconds.low, seconds.high, lambda value: decimal(1000 * value, 1))
    count = contender.counted
    layers = contender.layers_per_token if count is None else count.layers
    return [
        contender.name,
        contender.role,
        decimal(1000 * seconds.value, 2) + (f" ({limits})" if limits else ""),
        "–" if contender.ratio is None else times(contender.ratio.value),
        contender_answer(contender, worth),
        "–" if first is None else duration(first),
        "–" if layers is None else decimal(layers, 2),
        "–" if count is None else decimal(count.heads, 2),
        "–" if contender.same_output is None else percent(contender.same_output, 0),
    ]


def shown(value: object) -> str:
    """A circumstance as text; nested ones as name and value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown(item) for item in value)
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
