"""`offramp replay`: one policy on one trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson, Device, TraceFolder, idle_draft_length, refuse_idle, require_placement
from offramp.errors import InputError
from offramp.kit.defaults import DRAFT_LENGTH
from offramp.models.devices import AUTO
from offramp.runs.contents import contents_at, machine_near, trace_for
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from rich.table import Table

    from offramp.policies.cost_breakdown import CostBreakdown
    from offramp.policies.replay import ReplayResult
    from offramp.tracing.trace import Trace

COUNTED = {"bytes": "B", "flops": "FLOP"}
PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


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
        str,
        typer.Option(
            "--kv", help="Skipped layers' K and V: propagate, mapped, recompute, speculate, monotone."
        ),
    ] = "propagate",
    batch: Annotated[int, typer.Option("--batch", help="Sequences decoded together.")] = 1,
    batching: Annotated[
        str | None,
        typer.Option(
            "--batching",
            help="How rows of a batch leave: lockstep (the default) or rebatch.",
            show_default=False,
        ),
    ] = None,
    draft_length: Annotated[
        int | None,
        typer.Option(
            "--draft-length",
            help=f"Tokens drafted before a verification, with --kv speculate: {DRAFT_LENGTH} by default.",
            show_default=False,
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print every line of the cost breakdown.")
    ] = False,
    execute: Annotated[
        bool,
        typer.Option(
            "--execute",
            help="Also run the model on the same text, later tokens reading the K and V that the policy "
            "leaves: what decoding would do.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="With --execute: the model, by default the trace's.", show_default=False
        ),
    ] = None,
    heads: Annotated[
        Path | None,
        typer.Option("--heads", help="With --execute: the exit heads of the trace.", show_default=False),
    ] = None,
    device: Device = AUTO,
    as_json: AsJson = False,
) -> None:
    """Replay an exit policy on a trace: where tokens leave, what it saves and loses. Needs no model."""
    from offramp.policies.replay import replay as replay_policy
    from offramp.report.formats import counted
    from offramp.report.replayed import ORACLE
    from offramp.tracing.trace import Trace

    _refuse_idle_options(kv, batch, batching, draft_length)
    _refuse_idle_execution(execute, batch, model, heads, device)
    require_placement(device)
    batching = batching or "lockstep"
    out = Output(as_json)
    place = trace_for(trace, policy)
    loaded, contents = Trace.load(place), contents_at(place)
    result = replay_policy(
        loaded,
        policy,
        machine=machine_near(contents, hardware),
        kv=kv,
        batch=batch,
        batching=batching,
        draft_length=DRAFT_LENGTH if draft_length is None else draft_length,
    )
    grouping = f" in {batching}" if batch > 1 else ""
    out.console.print(
        f"{result.policy} on {counted(len(result.exits), 'token')} (replayed, batch {batch}{grouping})",
        markup=False,
    )
    out.console.print(_summary_table(result))
    if not result.reachable:
        out.console.print(f"  {ORACLE}")
    for note in result.notes:
        out.console.print(f"  note: {note}", markup=False)
    if explain:
        out.console.print(_breakdown_table(result.breakdown))
    breakdown = {"bill": result.breakdown.to_json()} if explain else {}
    if heads is None and contents is not None:
        heads = contents.heads
    rerun = {"rerun": _execute(out, loaded, policy, kv, model, heads, device)} if execute else {}
    out.finish({**_as_json(result), **breakdown, **rerun})


def _execute(
    out: Output, trace: Trace, policy: str, kv: str, name: str | None, heads: Path | None, device: str
) -> dict[str, object]:
    """The same policy with the keys and values that it leaves; shown, and as JSON."""
    from offramp.cli.traced_model import load_traced_model, read_traced_heads

    fitted = read_traced_heads(trace, heads)
    instead = "a replay still answers: leave --execute out"
    model = load_traced_model(trace, name, fitted, instead=instead, device=device)
    from offramp.decoding.rerun.rerunner import rerun
    from offramp.report.formats import percent
    from offramp.report.replayed import exit_counts

    with stage("running the text again"):
        found = rerun(model, trace, policy, kv, heads=fitted)
    out.console.print(f"rerun ({found.how}): K and V as {kv} leaves them", markup=False)
    out.console.print(f"  agreement with the full model  {percent(found.agreement)}", markup=False)
    out.console.print(f"  layers skipped                 {percent(found.skip_ratio)}", markup=False)
    if found.drift is not None:
        out.console.print(
            f"  drift: {percent(found.drift.exits_moved)} of the tokens leave elsewhere than in the replay, "
            f"{percent(found.drift.tokens_changed)} come out as another token",
            markup=False,
        )
    layers, counts = exit_counts(found.exits.tolist())
    return {
        "how": found.how,
        "kv": found.kv,
        "agreement": found.agreement,
        "skip_ratio": found.skip_ratio,
        "drift": None if found.drift is None else vars(found.drift),
        "tokens_by_exit": dict(zip(map(str, layers), counts, strict=True)),
    }


def _refuse_idle_execution(
    execute: bool, batch: int, model: str | None, heads: Path | None, device: str
) -> None:
    """Raise InputError for options of a rerun without one, and for a rerun in a batch."""
    without = "without --execute"
    refuse_idle(
        {
            "--model": (model is not None and not execute, without, "--execute"),
            "--heads": (heads is not None and not execute, without, "--execute"),
            "--device": (device != AUTO and not execute, without, "--execute"),
        }
    )
    if execute and batch > 1:
        raise InputError(
            "a rerun follows one sequence at a time", where="--execute", fix="leave --batch or --execute out"
        )


def _refuse_idle_options(kv: str, batch: int, batching: str | None, draft_length: int | None) -> None:
    """Raise InputError for an option that was given and would change nothing."""
    refuse_idle(
        {
            "--draft-length": idle_draft_length(kv, draft_length),
            "--batching": (batching is not None and batch == 1, "at batch 1", "--batch 2 or more"),
        }
    )


def _summary_table(result: ReplayResult) -> Table:
    from rich.table import Table

    from offramp.report.replayed import replay_facts

    table = Table.grid(padding=(0, 2))
    for name, value in replay_facts(result).items():
        table.add_row(f"  {name}", value)
    return table


def _breakdown_table(breakdown: CostBreakdown) -> Table:
    """The lines of a cost breakdown that cost something; their sum is the total."""
    from offramp.report.word_table import WordTable

    table = WordTable(title="The cost breakdown")
    for name in ("what", "where", "rows", "times", "each", "sum"):
        table.add_column(name, justify="left" if name in ("what", "where") else "right")
    for line in breakdown.lines:
        if not line.total:
            continue
        what = f"{line.part}, {line.probe}" if line.probe else line.part
        price, total = amount(line.price, breakdown.unit), amount(line.total, breakdown.unit)
        table.add_row(what, line.where, str(line.rows), f"{line.count:,}", price, total)
    table.add_row("total", "", "", "", "", amount(breakdown.total, breakdown.unit))
    table.add_row("full model", "", "", "", "", amount(breakdown.plain, breakdown.unit))
    table.add_row("full model / total", "", "", "", "", f"{breakdown.speedup:.4f}")
    return table


def amount(value: float, unit: str) -> str:
    """Bytes, FLOPs or seconds in the unit that suits their size, three digits: "56.6 MB", "6.1 µs"."""
    from offramp.report.formats import decimal, duration

    if unit == "seconds":
        return duration(value)
    prefix, scale = next(((name, size) for name, size in PREFIXES if value >= 0.9995 * size), PREFIXES[-1])
    shown = value / scale
    digits = 0 if shown >= 99.95 or not prefix else 1 if shown >= 9.995 else 2
    return f"{decimal(shown, digits)} {prefix}{COUNTED[unit]}"


def _as_json(result: ReplayResult) -> dict[str, object]:
    from offramp.report.replayed import exit_counts

    layers, counts = exit_counts(result.exits.tolist())
    return {
        "policy": result.policy,
        "reachable": result.reachable,
        "tokens": len(result.exits),
        "agreement": result.agreement,
        "reference_agreement": result.reference_agreement,
        "skip_ratio": result.skip_ratio,
        "basis": result.basis,
        "kv": result.kv,
        "batch": result.batch,
        "batching": result.batching,
        "predicted_speedup": result.predicted_speedup,
        "predicted_speedup_flops": result.predicted_speedup_flops,
        "predicted_seconds_per_token": result.seconds_per_token,
        "plain_seconds_per_token": result.plain_seconds_per_token,
        "gain": result.gain.to_json(),
        "speedup_without_probes": result.speedup_without_probes,
        "probe_share": result.probe_share,
        "probes_per_token": result.breakdown.probes_per_token,
        "nll_increase": result.nll_increase,
        "kl": result.kl,
        "notes": list(result.notes),
        "tokens_by_exit": dict(zip(map(str, layers), counts, strict=True)),
    }
