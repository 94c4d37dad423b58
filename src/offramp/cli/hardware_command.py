"""`offramp hardware`: measure this machine on a model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output
from offramp.cli.options import (
    AsJson,
    Device,
    ModelName,
    Precision,
    RemoteCode,
    Transforms,
    require_placement,
)
from offramp.errors import InputError
from offramp.kit.defaults import HARDWARE_SECONDS
from offramp.models.devices import AUTO
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile

hardware = typer.Typer(help="Measure this machine on a model.")


MOST_WITH_QUARTILES = 3


@hardware.callback(invoke_without_command=True)
def hardware_command(context: typer.Context) -> None:
    """Measure this machine on a model."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(InputError.exit_code)


@hardware.command("measure")
def measure(
    model: ModelName,
    device: Device = AUTO,
    dtype: Precision = AUTO,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Threads of torch. By default what it takes.", show_default=False),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(
            "--batches",
            help="Batch sizes to time, rising: by default 1,2,3,4,5,8, on an accelerator 1,2,4,8,16,32,64. "
            "Those between are interpolated, which can be far off: time those that matter.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", help="How long to measure; longer is steadier.", min=1.0)
    ] = HARDWARE_SECONDS,
    transform: Transforms = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Time layers, head, probes and K,V repair in place: the hardware profile `local`, under a minute."""
    from offramp.tracing.loading import find_model, read_transforms

    out = Output(as_json)
    sizes = None if batches is None else _read_batches(batches)
    require_placement(device, dtype)
    if threads is not None and not 1 <= threads <= (os.cpu_count() or 1):
        raise InputError(
            f"{threads} threads are not possible here",
            where="--threads",
            fix=f"choose from 1 to {os.cpu_count() or 1}",
        )

    transforms = read_transforms(transform, dtype)

    import torch

    from offramp.costs.hardware import save_local_profile
    from offramp.decoding.measurement.machine_profiler import measure_hardware

    if threads is not None:
        torch.set_num_threads(threads)
    with stage("loading the model and checking its exits"):
        loaded = find_model(
            model, transforms, dtype=dtype, trust_remote_code=trust_remote_code, device=device
        ).load()
    with stage("timing decoding steps, part by part"):
        profile = measure_hardware(loaded, batches=sizes, budget_seconds=seconds)
    path = save_local_profile(profile)
    out.console.print(_table(profile))
    for line in _sentences(profile, path):
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish({"profile": profile.to_json(), "file": str(path), "notes": list(profile.notes)})


def _read_batches(text: str) -> tuple[int, ...]:
    sizes = (
        tuple(int(size) for size in text.split(","))
        if re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text)
        else ()
    )
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise InputError(
            f"the batch sizes {text!r} do not rise from 1 or more", where="--batches", fix="write 1,2,4,8"
        )
    return sizes


def _table(profile: TimingsProfile) -> Any:
    """Milliseconds of every part by batch size: medians, with quartiles where they fit into a line."""
    from rich.table import Table

    table = Table("milliseconds", *[f"batch {batch}" for batch in profile.batches])
    samples: dict[str, Any] = profile.details["samples"]
    first = samples[str(profile.batches[0])]
    quartiles = len(profile.batches) <= MOST_WITH_QUARTILES
    for part in first:
        cells = [samples[str(batch)][part] for batch in profile.batches]
        table.add_row(
            part,
            *[
                f"{1e3 * cell['median']:.3g}"
                + (f" [{1e3 * cell['low']:.3g}, {1e3 * cell['high']:.3g}]" if quartiles else "")
                for cell in cells
            ],
        )
    return table


def _sentences(profile: TimingsProfile, path: Path) -> list[str]:
    details = profile.details
    machine, check = details["machine"], details["check"]
    near = " and ".join(map(str, details["positions"]))
    lines = [
        f"medians [quartiles] of {details['rounds']} rounds at positions near {near}, in "
        f"{details['seconds']:.0f} s; {machine['processor']}, {machine['threads']} of {machine['cores']} "
        f"cores, torch {machine['torch']}, {profile.dtype}; other work kept {details['other_load']:.1f} busy"
    ]
    parts = ", ".join(
        f"{100 * share:.0f} % at batch {batch}" for batch, share in check["parts_over_step"].items()
    )
    lines.append(
        f"the parts were timed to add up to {parts} of a plain step without a clock in it; prices are scaled "
        "to that"
    )
    if "generate_not_timed" in check:
        lines.append(f"generate() has no time of its own to compare with: {check['generate_not_timed']}")
    else:
        lines.append(
            f"a plain step at batch 1 takes {1e3 * check['plain_step_seconds']:.3g} ms by these parts, "
            f"{100 * check['plain_step_over_generate']:.0f} % of generate()'s "
            f"{1e3 * check['generate_seconds_per_token']:.3g} ms per token"
        )
    return [*lines, *profile.notes, f"kept as the hardware profile local: {path}"]
