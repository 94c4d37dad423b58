"""`offramp tune`: the fastest policy that keeps a quality floor, with a certificate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.console import Output, stage
from offramp.cli.options import AsJson, TraceFolder
from offramp.cli.run_folder import find_trace
from offramp.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from offramp.scoring.estimate import Estimate
    from offramp.tuning.results import Tuned

# Points of the front that the terminal shows.
SHOWN_POINTS = 8


def tune(
    trace: TraceFolder,
    floor: Annotated[
        str,
        typer.Option(
            "--floor",
            help="What to keep: agreement=0.99, nll=0.02 or kl=0.02 (nats); of a transformed model also "
            "reference_agreement=0.95, with the untransformed one.",
        ),
    ],
    floor_clip: Annotated[
        float | None,
        typer.Option("--floor-clip", help="nll, kl: nats at which a token's loss is cut. By default 1."),
    ] = None,
    hardware: Annotated[
        str, typer.Option("--hardware", help="local, a name of offramp list hardware, or a .toml profile.")
    ] = "local",
    method: Annotated[
        str, typer.Option("--method", help="wsr, hb or crc; naive gives no guarantee.")
    ] = "wsr",
    delta: Annotated[float, typer.Option("--delta", help="Chance that the certificate is wrong.")] = 0.1,
    batch: Annotated[int, typer.Option("--batch", help="Sequences decoded side by side.")] = 1,
    kv: Annotated[
        str, typer.Option("--kv", help="Keys and values of skipped layers: propagate or recompute.")
    ] = "propagate",
    seed: Annotated[int, typer.Option("--seed", help="Draws the documents of each role.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy file to write.")] = Path(
        "policy.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Find the policy that takes the fewest seconds at a quality floor, and certify it. Needs no model."""
    from offramp.tracing.trace import Trace
    from offramp.tuning.bounds import find_method
    from offramp.tuning.certify import require_delta
    from offramp.tuning.losses import parse_floor
    from offramp.tuning.splits import require_seed
    from offramp.tuning.tune import tune as tune_policy
    from offramp.tuning.tuned_file import to_json, write_tuned

    out = Output(as_json)
    wanted = parse_floor(floor, floor_clip)
    find_method(method)
    require_delta(delta)
    require_seed(seed)
    _require_file(output)
    with stage("tuning"):
        tuned = tune_policy(
            Trace.load(find_trace(trace)),
            wanted,
            hardware,
            method=method,
            delta=delta,
            batch=batch,
            kv=kv,
            seed=seed,
        )
    write_tuned(output, tuned)
    _show(out, tuned, output)
    out.finish({**to_json(tuned), "file": str(output)})


def _require_file(path: Path) -> None:
    """Raise InputError for an output that cannot be a policy file."""
    if path.suffix != ".json":
        raise InputError("a policy file's name ends in .json", where=str(path), fix="choose another with -o")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "a folder" if path.is_dir() else "in a folder that does not exist"
        raise InputError(f"the output is {what}", where=str(path), fix="choose another file with -o")


def _show(out: Output, tuned: Tuned, output: Path) -> None:
    """The answer, what it rests on, and the front."""
    from offramp.tuning.answers import meaning_of

    out.console.print(tuned.answer, markup=False)
    for line in (*report_lines(tuned), *certificate_lines(tuned)):
        out.console.print(f"  {line}", markup=False)
    out.console.print(f"  the floor means: {meaning_of(tuned.floor)}", markup=False)
    if len(tuned.front) > 1:
        out.console.print(front_table(tuned))
    out.console.print(f"written: {output}", markup=False)


def certificate_lines(tuned: Tuned) -> list[str]:
    """The certificate in plain words."""
    from offramp.tuning.bounds import find_method
    from offramp.tuning.losses import loss_text

    certificate = tuned.certificate
    rule = find_method(certificate.method)
    roles = ", ".join(f"{count} {role}" for role, count in tuned.documents.items() if count)
    lines = [f"documents: {roles}"]
    if certificate.holds or certificate.passed:
        said = certificate.guarantee
        lines.append(said if rule.name == "naive" else f"certificate ({rule.name}): {said}")
        if certificate.empirical_risk is not None:
            lost = loss_text(tuned.floor, certificate.empirical_risk, ".4f")
            lines.append(f"mean loss on {certificate.documents} documents: {lost}")
        lines.append(f"assumed: {certificate.assumption}")
    if rule.name != "naive":
        lines.append(
            f"best floor that {certificate.documents} documents without a loss certify: "
            f"{tuned.floor.kind}={certificate.best_floor:.4f}; {tuned.floor} needs "
            f"{certificate.documents_needed} at least"
        )
    return lines


def report_lines(tuned: Tuned) -> list[str]:
    """Speed and quality on the report documents, with intervals or why there are none."""
    from offramp.report.formats import counted, estimate_text, gain_text, percent, times
    from offramp.tuning.losses import NATS

    def said(estimate: Estimate, number: Callable[[float], str]) -> str:
        why = f" (no interval: {estimate.no_interval})" if estimate.no_interval else ""
        return estimate_text(estimate, number) + why

    lockstep = f", in lockstep at batch {tuned.batch}" if tuned.batch > 1 else ""
    lines = [f"on {counted(tuned.documents['report'], 'report document')}{lockstep}:"]
    if tuned.floor.kind == "agreement":
        lines.append(f"  agreement {said(tuned.quality, percent)}")
    elif tuned.floor.clip is not None:
        lines.append(f"  {NATS[tuned.floor.kind]}, clipped {said(tuned.quality, _nats)}")
    if tuned.reference_agreement is not None:
        lines.append(f"  agreement with the untransformed model {said(tuned.reference_agreement, percent)}")
    lines.append(f"  speed over the full model {said(tuned.net_speedup, times)}")
    saved = gain_text(tuned.gain)
    return [*lines, f"  saved of plain decoding: {saved}"] if saved else lines


def _nats(value: float) -> str:
    return f"{value:.4f} nats"


def front_table(tuned: Tuned) -> Table:
    """A few points of the Pareto front, from cautious to bold."""
    from rich.table import Table
    from rich.text import Text

    from offramp.report.formats import percent, times
    from offramp.tuning.answers import ALONE

    batched = tuned.batch > 1
    title = "fastest policies on the search documents"
    caption = f"batch {tuned.batch} in lockstep: {ALONE}" if batched else None
    table = Table(title=title, caption=caption, box=None, padding=(0, 1))
    # A skip of each token alone would contradict the speed in lockstep.
    kept = tuned.floor.kind.replace("_", " ")
    for name in (kept, "speed", *(() if batched else ("layers skipped",)), "policy"):
        table.add_column(name, overflow="fold")
    step = max(1, -(-len(tuned.front) // SHOWN_POINTS))
    for point in tuned.front[::step]:
        quality = percent(point.quality) if tuned.floor.clip is None else _nats(point.quality)
        skip = () if batched else (percent(point.skip_ratio),)
        # Brackets of a policy are no markup.
        table.add_row(quality, times(point.net_speedup), *skip, Text(point.policy))
    return table
