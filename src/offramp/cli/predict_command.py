"""`offramp predict`: a policy on another workload or machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.cli.console import Output
from offramp.errors import InputError
from offramp.kit.defaults import SEED
from offramp.kit.numbers import Count, Whole
from offramp.kit.request import Request, argument
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.report.table import Table
    from offramp.tuning.predict import Prediction
    from offramp.tuning.tuned import Shift


@dataclass(frozen=True, kw_only=True)
class PredictCommand(Request):
    """Predict a policy's speed and quality on another trace or machine, and whether its floor holds."""

    trace: Path
    """The trace to predict for: its folder, or that of a run."""
    policy: Annotated[str, argument]
    """What offramp tune wrote, or any policy: a .json or a text."""
    hardware: str | None = None
    """local, a name of offramp list hardware, or a .toml profile. Without it: bytes moved."""
    batch: Count | None = None
    """Sequences decoded side by side, in lockstep. By default as tuned, or 1."""
    kv: str | None = None
    """Keys and values of skipped layers: propagate, mapped or recompute. By default as tuned."""
    unseen: bool = False
    """Judge on the documents only that tuning did not use."""
    seed: Whole = SEED
    """Draws the documents behind the intervals."""


def predict(asked: PredictCommand, out: Output) -> None:
    """Predict, and show it."""
    from offramp.runs.contents import contents_at, machine_near
    from offramp.runs.folder import find_trace
    from offramp.tracing.trace import Trace
    from offramp.tuning.predict import named_policy
    from offramp.tuning.predict import predict as predict_policy
    from offramp.tuning.tuned import Tuned

    policy = named_policy(asked.policy)
    if asked.unseen and not isinstance(policy, Tuned):
        raise InputError(
            "--unseen means nothing with a policy that was not tuned",
            where="--unseen",
            fix="leave --unseen out",
        )
    place = find_trace(asked.trace)
    loaded, machine = Trace.load(place), machine_near(contents_at(place), asked.hardware)
    with stage("predicting"):
        prediction = predict_policy(
            policy,
            loaded,
            hardware=machine,
            batch=asked.batch,
            kv=asked.kv,
            seed=asked.seed,
            unseen=asked.unseen,
        )
    _show(out, prediction)
    out.finish(_to_json(prediction))


def _show(out: Output, found: Prediction) -> None:
    from offramp.report.formats import counted, decimal, duration, estimate_text, gain_text, percent, times
    from offramp.report.table import pairs
    from offramp.scoring.documents import lengths_text
    from offramp.tuning.floor import NATS, loss_text
    from offramp.tuning.pricing import BYTES

    def cost(value: float) -> str:
        return f"{value / 1e6:,.1f} MB" if found.machine == BYTES else duration(value)

    def nats(value: float) -> str:
        return decimal(value, 4)

    plain = cost(found.plain_seconds_per_token)
    batching = f" in {found.batching}" if found.batching else ""
    out.console.print(
        f"{found.policy} on {found.workload}, {counted(found.documents, 'document')}"
        f"{lengths_text(found.document_tokens)} (replayed, {found.machine}, batch {found.batch}{batching})",
        markup=False,
    )
    rows = {
        "speed over the full model": estimate_text(found.net_speedup, times),
        **({} if found.gain is None else {"saved of plain decoding": gain_text(found.gain)}),
        "a token takes": f"{estimate_text(found.seconds_per_token, cost)}, full model {plain}",
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
    out.console.print(pairs("").rich(rows.items()))
    if found.shift:
        out.console.print(_shift_table().rich(_readings(found)))
    for note in found.notes:
        out.console.print(f"note: {note}", markup=False)


Reading = tuple[str, "Shift", bool]
"""What a policy reads at a check: of which texts, and whether the check is named."""


def _readings(found: Prediction) -> Iterator[Reading]:
    """Of every check the tuning documents above, these below."""
    for row in found.shift:
        yield "tuned on", row.tuned, True
        yield "here", row.other, False


def _shift_table() -> Table[Reading]:
    from offramp.report.formats import decimal, percent
    from offramp.report.table import Column, Table

    def quantile(place: int) -> Callable[[Reading], str]:
        return lambda row: decimal(row[1].quantiles[place], 3) if row[1].quantiles else ""

    def calibration(row: Reading) -> str:
        return "" if row[1].calibration is None else decimal(row[1].calibration, 3)

    return Table(
        (
            Column("Exit", lambda row: str(row[1].exit) if row[2] else ""),
            Column("Fact", lambda row: (row[1].fact or "top1") if row[2] else ""),
            Column("Texts", lambda row: row[0]),
            Column("5 %", quantile(0)),
            Column("median", quantile(2)),
            Column("95 %", quantile(4)),
            Column("Agreement", lambda row: row[1].agreement, percent),
            Column("max_prob less it", calibration),
        ),
        caption="What its checks read",
        words=3,
    )


def _to_json(found: Prediction) -> dict[str, Any]:
    from offramp.kit.typed import to_json

    return {**to_json(found), "floor": None if found.floor is None else str(found.floor)}
