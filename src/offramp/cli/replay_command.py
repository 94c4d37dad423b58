"""`offramp replay`: one policy on one trace."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson, TraceFolder
from offramp.cli.run_folder import find_trace

if TYPE_CHECKING:
    from rich.table import Table

    from offramp.policies.bill import Bill
    from offramp.policies.results import ReplayResult

# From bytes, FLOPs and seconds to what a line of a bill shows.
SHOWN_UNITS = {"bytes": ("MB", 1e6), "flops": ("MFLOP", 1e6), "seconds": ("ms", 1e-3)}


def replay(
    trace: TraceFolder,
    policy: Annotated[
        str,
        typer.Option(
            "--policy", "-p", help="static:exit=20, threshold:signal=...,value=...,exits=... or a .json."
        ),
    ],
    hardware: Annotated[
        str | None,
        typer.Option(
            "--hardware",
            help="Predict seconds on this machine: a name of offramp list hardware, or a .toml profile.",
            show_default=False,
        ),
    ] = None,
    kv: Annotated[
        str, typer.Option("--kv", help="Skipped layers' K and V: propagate, recompute, speculate, monotone.")
    ] = "propagate",
    batch: Annotated[int, typer.Option("--batch", help="Sequences decoded together.")] = 1,
    batching: Annotated[
        str, typer.Option("--batching", help="How rows of a batch leave: lockstep or rebatch.")
    ] = "lockstep",
    draft_length: Annotated[
        int, typer.Option("--draft-length", help="Tokens drafted before a verification, with --kv speculate.")
    ] = 4,
    explain: Annotated[bool, typer.Option("--explain", help="Print every line of the bill.")] = False,
    as_json: AsJson = False,
) -> None:
    """Replay an exit policy on a trace: where tokens leave, what it saves and loses. Needs no model."""
    from offramp.policies.replay import replay as replay_policy
    from offramp.report.formats import counted
    from offramp.tracing.trace import Trace

    out = Output(as_json)
    result = replay_policy(
        Trace.load(find_trace(trace)),
        policy,
        machine=hardware,
        kv=kv,
        batch=batch,
        batching=batching,
        draft_length=draft_length,
    )
    grouping = f" in {batching}" if batch > 1 else ""
    out.console.print(
        f"{result.policy} on {counted(len(result.exits), 'token')} (replayed, batch {batch}{grouping})",
        markup=False,
    )
    out.console.print(_summary_table(result))
    if not result.reachable:
        out.console.print("  This is an oracle: it looks at what no decoder knows before it decides.")
    for note in result.notes:
        out.console.print(f"  note: {note}", markup=False)
    if explain:
        out.console.print(_bill_table(result.bill))
    bill = {"bill": result.bill.to_json()} if explain else {}
    out.finish({**_as_json(result), **bill})


def _summary_table(result: ReplayResult) -> Table:
    from rich.table import Table

    from offramp.report.formats import decimal, percent, times

    layers, counts = exit_counts(result.exits.tolist())
    shares = [
        f"{percent(count / len(result.exits))} at exit {layer}"
        for layer, count in zip(layers, counts, strict=True)
    ]
    rows = {
        "tokens leave": ", ".join(shares),
        "agreement with the full model": percent(result.agreement),
        "layers skipped": percent(result.skip_ratio),
        "K and V of skipped layers": result.kv,
        f"predicted speed ({result.basis})": times(result.predicted_speedup),
        "predicted speed (FLOPs)": times(result.predicted_speedup_flops),
        "speed if probes were free": times(result.speedup_without_probes),
        "probes' share of the cost": percent(result.probe_share),
        "probes per token": decimal(float(result.probes.mean())),
        "NLL increase": f"{decimal(result.nll_increase, 4)} nats",
        "KL to the full model": f"{decimal(result.kl, 4)} nats",
    }
    if result.seconds_per_token is not None and result.plain_seconds_per_token is not None:
        rows["predicted time per token"] = (
            f"{decimal(1e3 * result.seconds_per_token, 4)} ms, "
            f"full model {decimal(1e3 * result.plain_seconds_per_token, 4)} ms"
        )
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
    return table


def _bill_table(bill: Bill) -> Table:
    """Every line of a bill; their sum is the total."""
    from rich.table import Table

    unit, scale = SHOWN_UNITS[bill.unit]
    table = Table(box=None, pad_edge=False, padding=(0, 1), title=f"The bill, {unit}", title_justify="left")
    for name in ("what", "where", "rows", "times", "each", "sum"):
        table.add_column(name, justify="left" if name in ("what", "where") else "right")
    for line in bill.lines:
        what = f"{line.part}, {line.probe}" if line.probe else line.part
        price, total = f"{line.price / scale:,.5g}", f"{line.total / scale:,.6g}"
        table.add_row(what, line.where, str(line.rows), f"{line.count:,}", price, total)
    table.add_row("total", "", "", "", "", f"{bill.total / scale:,.6g}")
    table.add_row("full model", "", "", "", "", f"{bill.plain / scale:,.6g}")
    table.add_row("full model / total", "", "", "", "", f"{bill.speedup:.4f}")
    return table


def _as_json(result: ReplayResult) -> dict[str, object]:
    layers, counts = exit_counts(result.exits.tolist())
    return {
        "policy": result.policy,
        "reachable": result.reachable,
        "tokens": len(result.exits),
        "agreement": result.agreement,
        "skip_ratio": result.skip_ratio,
        "basis": result.basis,
        "kv": result.kv,
        "batch": result.batch,
        "batching": result.batching,
        "predicted_speedup": result.predicted_speedup,
        "predicted_speedup_flops": result.predicted_speedup_flops,
        "predicted_seconds_per_token": result.seconds_per_token,
        "plain_seconds_per_token": result.plain_seconds_per_token,
        "speedup_without_probes": result.speedup_without_probes,
        "probe_share": result.probe_share,
        "probes_per_token": float(result.probes.mean()),
        "nll_increase": result.nll_increase,
        "kl": result.kl,
        "notes": list(result.notes),
        "tokens_by_exit": dict(zip(map(str, layers), counts, strict=True)),
    }


def exit_counts(exits: list[int]) -> tuple[list[int], list[int]]:
    """The exits that were taken, ascending, and how many tokens took each."""
    counts = Counter(exits)
    layers = sorted(counts)
    return layers, [counts[layer] for layer in layers]
