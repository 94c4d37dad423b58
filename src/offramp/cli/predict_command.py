"""`offramp predict`: a policy on another workload or machine, or a model's saving from its score alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output, stage
from offramp.cli.options import AsJson, refuse_idle
from offramp.cli.run_contents import contents_at, machine_near, trace_for
from offramp.cli.run_folder import find_trace
from offramp.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from offramp.tuning.from_scores import ScorePrediction
    from offramp.tuning.predict import Prediction

SCORE, LEVEL = "composite", 0.9


def predict(
    trace: Annotated[
        Path, typer.Option("--trace", help="The trace to predict for: its folder, or that of a run.")
    ],
    policy: Annotated[
        str | None,
        typer.Argument(help="What offramp tune wrote, or any policy: a .json or a text.", show_default=False),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            "--hardware",
            help="local, a name of offramp list hardware, or a .toml profile. Without it: bytes moved.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            help="Sequences decoded side by side, in lockstep. By default as tuned, or 1.",
            show_default=False,
        ),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            help="Keys and values of skipped layers: propagate, mapped or recompute. By default as tuned.",
            show_default=False,
        ),
    ] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Judge on the documents only that tuning did not use.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Draws the documents behind the intervals.")] = 0,
    from_scores: Annotated[
        Path | None,
        typer.Option(
            "--from-scores",
            help="Instead of a policy: a .json or .jsonl of other models' scores and savings.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[str, typer.Option("--score", help="With --from-scores: the score to go by.")] = SCORE,
    level: Annotated[float, typer.Option("--level", help="With --from-scores: the interval's.")] = LEVEL,
    floor: Annotated[
        str | None,
        typer.Option("--floor", help="With --from-scores: only cells at this floor.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a policy's speed and quality on another trace or machine, and whether its floor holds."""
    if (policy is None) == (from_scores is None):
        raise InputError(
            "there is nothing to predict with" if policy is None else "a policy and --from-scores are given",
            where="offramp predict",
            fix="give a policy, or --from-scores FILE, not both",
        )
    only_scores = {"--score": score != SCORE, "--level": level != LEVEL, "--floor": floor is not None}
    only_policy = {
        "--batch": batch is not None,
        "--kv": kv is not None,
        "--unseen": unseen,
        "--seed": seed != 0,
    }
    if from_scores is None:
        refuse_idle({option: (given, "with a policy", "") for option, given in only_scores.items()})
    else:
        refuse_idle({option: (given, "with --from-scores", "") for option, given in only_policy.items()})
    out = Output(as_json)
    if from_scores is not None:
        _predict_from_score(out, trace, from_scores, score, level, floor, hardware)
        return
    from offramp.tracing.trace import Trace
    from offramp.tuning.predict import named_policy
    from offramp.tuning.predict import predict as predict_policy
    from offramp.tuning.splits import require_seed
    from offramp.tuning.tuned import Tuned

    require_seed(seed)
    named = named_policy(str(policy))
    refuse_idle(
        {"--unseen": (unseen and not isinstance(named, Tuned), "with a policy that was not tuned", "")}
    )
    place = trace_for(trace, policy)
    loaded, machine = Trace.load(place), machine_near(contents_at(place), hardware)
    with stage("predicting"):
        found = predict_policy(named, loaded, hardware=machine, batch=batch, kv=kv, seed=seed, unseen=unseen)
    _show(out, found)
    out.finish(_to_json(found))


def _predict_from_score(
    out: Output,
    trace: Path,
    cells: Path,
    score: str,
    level: float,
    floor: str | None,
    machine: str | None,
) -> None:
    from offramp.scoring.scoring import score as score_trace
    from offramp.tracing.trace import Trace
    from offramp.tuning.from_scores import predict_from_score, read_cells

    known = read_cells(cells)
    with stage("scoring"):
        card = score_trace(Trace.load(find_trace(trace)))
    found = predict_from_score(known, card, score, level, floor=floor, machine=machine)
    _show_score(out, found)
    out.finish(asdict(found))


def _show(out: Output, found: Prediction) -> None:
    from rich.table import Table

    from offramp.report.formats import counted, decimal, duration, estimate_text, gain_text, percent, times
    from offramp.scoring.documents import lengths_text
    from offramp.tuning.floor import NATS, loss_text
    from offramp.tuning.pricing import BYTES

    def cost(value: float) -> str:
        return f"{value / 1e6:,.1f} MB" if found.machine == BYTES else duration(value)

    def nats(value: float) -> str:
        return decimal(value, 4)

    batching = f" in {found.batching}" if found.batching else ""
    out.console.print(
        f"{found.policy} on {found.workload}, {counted(found.documents, 'document')}"
        f"{lengths_text(found.document_tokens)} (replayed, {found.machine}, batch {found.batch}{batching})",
        markup=False,
    )
    table = Table.grid(padding=(0, 2))
    rows = {
        "speed over the full model": estimate_text(found.net_speedup, times),
        **({} if found.gain is None else {"saved of plain decoding": gain_text(found.gain)}),
        "a token takes": f"{cost(found.seconds_per_token)}, full model {cost(found.plain_seconds_per_token)}",
        "probes' share of it": percent(found.probe_share),
        "layers skipped": estimate_text(found.skip_ratio, percent),
        "agreement with the full model": estimate_text(found.agreement, percent),
    }
    if found.reference_agreement is not None:
        rows["agreement with the original one"] = estimate_text(found.reference_agreement, percent)
    if found.floor is not None and found.floor.clip is not None:
        rows[f"{NATS[found.floor.kind]}, clipped"] = f"{estimate_text(found.quality, nats)} nats"
    if found.floor is not None and found.risk_low is not None and found.risk_high is not None:
        rows[f"the floor {found.floor}"] = (
            f"{found.floor_answer}: mean loss between {loss_text(found.floor, found.risk_low, '.4f')} and "
            f"{loss_text(found.floor, found.risk_high, '.4f')} (delta {found.delta:g}), allowed "
            f"{loss_text(found.floor, found.floor.risk)}"
        )
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
    out.console.print(table)
    if found.shift:
        out.console.print(_shift_table(found))
    for note in found.notes:
        out.console.print(f"note: {note}", markup=False)


def _shift_table(found: Prediction) -> Table:
    """What the policy reads at its checks: the tuning documents above, these below."""
    from offramp.report.word_table import WordTable

    table = WordTable(title="what its checks read")
    for name in ("exit", "fact", "texts", "5 %", "median", "95 %", "agreement", "max_prob less it"):
        table.add_column(name)
    for row in found.shift:
        tuned = _shift_cells(row.tuned_quantiles, row.tuned_agreement, row.tuned_calibration)
        other = _shift_cells(row.other_quantiles, row.other_agreement, row.other_calibration)
        table.add_row(str(row.exit), row.fact or "top1", "tuned on", *tuned)
        table.add_row("", "", "here", *other)
    return table


def _shift_cells(quantiles: tuple[float, ...], agreement: float, calibration: float | None) -> list[str]:
    """The 5 %, 50 % and 95 % quantiles, the agreement and the calibration; "" for what there is not."""
    from offramp.report.formats import decimal, percent

    shown = [decimal(quantiles[place], 3) for place in (0, 2, 4)] if quantiles else ["", "", ""]
    return [*shown, percent(agreement), "" if calibration is None else decimal(calibration, 3)]


def _show_score(out: Output, found: ScorePrediction) -> None:
    from offramp.report.formats import counted, percent, range_text

    interval = range_text(percent(found.low), percent(found.high))
    ignored = range_text(*map(percent, found.without_score))
    for line in (
        f"{found.score} {found.value:.3f} at {found.floor} on {found.machine}",
        f"  predicted saving of time: {percent(found.saving)}",
        f"  at least {found.level:.0%} of such models: {interval} (without the score: {ignored})",
        f"  from {counted(found.bases, 'independently trained model')}, {counted(found.cells, 'cell')}",
        *(f"note: {note}" for note in found.notes),
    ):
        out.console.print(line, markup=False)


def _to_json(found: Prediction) -> dict[str, Any]:
    return {**asdict(found), "floor": None if found.floor is None else str(found.floor)}
