"""`offramp hardware`: measure this machine on a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from annotated_types import Ge

from offramp.cli.command import command
from offramp.cli.console import Output
from offramp.errors import InputError
from offramp.kit.arguments import settled
from offramp.kit.defaults import HARDWARE_SECONDS
from offramp.kit.numbers import Count, Seconds, whole_number
from offramp.kit.request import Request, one_word
from offramp.kit.rules import Must, Rising
from offramp.tracing.asked import OnModel
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile
    from offramp.report.table import Table

hardware = typer.Typer(help="Measure this machine on a model.")


MOST_WITH_QUARTILES = 3


@hardware.callback(invoke_without_command=True)
def hardware_command(context: typer.Context) -> None:
    """Measure this machine on a model."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(InputError.exit_code)


@dataclass(frozen=True, kw_only=True)
class MachineTiming(OnModel, Request):
    """Time layers, head, probes and K,V repair in place: the hardware profile `local`, under a minute."""

    threads: Annotated[
        Count | None,
        Must(
            lambda threads: threads is None or threads <= (os.cpu_count() or 1),
            "no more than this machine's cores",
        ),
    ] = None
    """Threads of torch. By default what it takes."""
    batches: Annotated[str | Sequence[Count] | None, one_word] = None
    """Batch sizes to time, rising: by default 1,2,3,4,5,8, on an accelerator 1,2,4,8,16,32,64. Those between
    are interpolated, which can be far off: time those that matter."""
    seconds: Annotated[Seconds, Ge(1)] = HARDWARE_SECONDS
    """How long to measure; longer is steadier."""

    def settle(self) -> dict[str, Any]:
        """Batch sizes as numbers."""
        return {**super().settle(), "batches": self.sizes}

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The batch sizes, None for the usual ones. Raises InputError unless they rise from 1 or more."""
        if self.batches is None:
            return None
        words = self.batches.split(",") if isinstance(self.batches, str) else self.batches
        numbers = [number if (number := whole_number(str(word))) else word for word in words]
        sizes: tuple[int, ...] = settled("batches", numbers, Rising, "Rising", where="--batches")
        return sizes

    def carry_out(self) -> TimingsProfile:
        """The timings of the model on this machine. Raises BusyMachineError where others keep it busy."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        model = self.load()

        from offramp.timing.machine_profiler import measure_hardware

        with stage("timing decoding steps, part by part"):
            return measure_hardware(model, batches=self.sizes, budget_seconds=self.seconds)


def measure(asked: MachineTiming, out: Output) -> None:
    """Time the parts of a model, and keep the profile."""
    profile = asked.carry_out()

    from offramp.costs.hardware import save_local_profile

    path = save_local_profile(profile)
    parts = profile.details["samples"][str(profile.batches[0])]
    out.console.print(_table(profile).rich(parts))
    out.say(*_sentences(profile, path))
    out.finish({"profile": profile.to_json(), "file": str(path), "notes": list(profile.notes)})


command(hardware, "measure", MachineTiming, measure)


def _table(profile: TimingsProfile) -> Table[str]:
    """Milliseconds of each part by batch size: medians, with quartiles where they fit into a line."""
    from offramp.report.table import Column, Table

    samples: dict[str, Any] = profile.details["samples"]
    quartiles = len(profile.batches) <= MOST_WITH_QUARTILES

    def cell(batch: int) -> Callable[[str], str]:
        def text(part: str) -> str:
            median, low, high = (1e3 * samples[str(batch)][part][name] for name in ("median", "low", "high"))
            return f"{median:.3g} [{low:.3g}, {high:.3g}]" if quartiles else f"{median:.3g}"

        return text

    columns = [Column(f"batch {batch}", cell(batch)) for batch in profile.batches]
    return Table((Column("milliseconds", lambda part: part), *columns), words=1)


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
