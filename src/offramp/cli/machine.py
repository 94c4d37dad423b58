"""`offramp hardware`, `list` and `doctor`: what this machine takes, has, and lacks."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from annotated_types import Ge

from offramp.cli.command import Output, command, group
from offramp.defaults import DEFAULT_MODEL, HARDWARE_SECONDS
from offramp.errors import OfframpError
from offramp.files import remove
from offramp.kit.arguments import settled
from offramp.kit.numbers import Count, Seconds, whole_number
from offramp.kit.request import Request, argument, one_word
from offramp.kit.rules import Must, OneOf, Rising
from offramp.models.process import use_threads
from offramp.tracing.asked import OnModel
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.costs.timings import TimingsProfile
    from offramp.report.table import Table


hardware = group("Measure this machine on a model.")

MOST_WITH_QUARTILES = 3


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
    """Threads of torch. By default the fewest that decode as fast as all of them."""
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
        model = self.load()

        from offramp.timing.local_profile import measure_hardware
        from offramp.timing.threads import fewest_threads

        use_threads(self.threads or fewest_threads(model))
        with stage("timing decoding steps, part by part"):
            return measure_hardware(model, batches=self.sizes, budget_seconds=self.seconds)


def measure(asked: MachineTiming, out: Output) -> None:
    """Time the parts of a model, and keep the profile."""
    profile = asked.carry_out()

    from offramp.costs.machine_registry import save_local_profile

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


Rows = list[dict[str, str]]

NAME_WIDTH = 38


def _rows(things: Iterable[Any], *details: str) -> Rows:
    """Things with a name and a description, and what else each says of itself."""
    return [
        {
            "name": thing.name,
            "what it is": thing.description,
            **{detail: getattr(thing, detail) for detail in details},
        }
        for thing in things
    ]


def _models() -> Rows:
    from offramp.models.source import BUNDLED

    return _rows(BUNDLED.values(), "weights", "licence", "install")


def _workloads() -> Rows:
    from offramp.workloads.registry import describe_workloads

    return _rows(describe_workloads(), "mode", "documents", "licence")


def _transforms() -> Rows:
    from offramp.models.transforms.transform import describe_transforms

    return _rows(describe_transforms())


def _policies() -> Rows:
    from offramp.policies.grammar import policy_kinds

    rows = []
    for name, kind in policy_kinds().usable().items():
        parameters = ",".join(f"{known.name}={known.default or '…'}" for known in kind.parameters)
        what_it_is = str(kind.__doc__ or "").strip().partition("\n")[0]
        rows.append({"name": f"{name}:{parameters}" if parameters else name, "what it is": what_it_is})
    return rows


def _signals() -> Rows:
    from offramp.policies.signals import SIGNALS
    from offramp.tracing.facts import FACT_BY_NAME

    return [
        {
            "name": name,
            "what it is": f"{signal.source}; a token leaves when it is {signal.exit_when} the threshold",
            "unit": signal.unit,
            "probe": signal.probe,
            "recorded": FACT_BY_NAME[signal.fact].recorded_with or "always",
            "fact": signal.fact,
        }
        for name, signal in SIGNALS.items()
    ]


def _hardware() -> Rows:
    from offramp.costs.machine_registry import describe_machines

    return _rows(describe_machines(), "rates", "source")


LISTS: dict[str, Callable[[], Rows]] = {
    "models": _models,
    "workloads": _workloads,
    "transforms": _transforms,
    "policies": _policies,
    "signals": _signals,
    "hardware": _hardware,
}


@dataclass(frozen=True, kw_only=True)
class ListCommand(Request):
    """List models, workloads, transforms, policies, signals or hardware known by name.

    Wherever a hardware name fits, so does a .toml profile of your own.

    Roofline: kind = "roofline", name, description, source, bytes_per_second,
    launch_seconds, decision_seconds, and float32 and bfloat16 in the table
    flops_per_second.

    Timings: kind = "timings", name, source, dtype, unit = "milliseconds", layers,
    and a table of the array batch for each batch size: size, layer, head and, if
    known, token or overhead, key_value, lens, probes.
    """

    what: Annotated[str, OneOf("list", lambda: LISTS), argument]
    """models, workloads, transforms, policies, signals or hardware."""


def list_things(asked: ListCommand, out: Output) -> None:
    """Show one of the lists."""
    rows = LISTS[asked.what]() + _broken(asked.what)
    out.console.print(_listed().rich(rows))
    out.finish({asked.what: rows})


def _broken(what: str) -> Rows:
    """Plug-ins that cannot be used, and why."""
    from offramp.costs.machine_registry import broken_machines
    from offramp.models.transforms.transform import TRANSFORMS
    from offramp.policies.grammar import policy_kinds
    from offramp.workloads.registry import broken_workloads

    errors: dict[str, Callable[[], Mapping[str, OfframpError]]] = {
        "workloads": broken_workloads,
        "transforms": TRANSFORMS.broken,
        "policies": policy_kinds().broken,
        "hardware": broken_machines,
    }
    return [
        {"name": name, "what it is": f"cannot be used: {error.what}", "where": error.where}
        for name, error in errors.get(what, dict)().items()
    ]


def _listed() -> Table[dict[str, str]]:
    """Names beside what they are, with the details below, so that it can be read at 80 columns."""
    from offramp.report.table import Cell, Column, Table

    def described(row: dict[str, str]) -> Cell:
        name, what_it_is, *details = row.values()
        shown = [detail for detail in details if detail and detail != name]
        return Cell(what_it_is, below=" · ".join(shown))

    named: Column[dict[str, str]] = Column(" ", lambda row: _broken_at_commas(row["name"]))
    return Table((named, Column(" ", described)))


def _broken_at_commas(name: str) -> str:
    """A name in lines of at most NAME_WIDTH characters where its commas allow it."""
    lines = [""]
    for part in re.findall(r"[^,]*,|[^,]+$", name):
        if lines[-1] and len(lines[-1]) + len(part) > NAME_WIDTH:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


@dataclass(frozen=True)
class Looked:
    """One thing looked at: whether it is fine, what was found, and what to do if not."""

    name: str
    fine: bool
    found: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class DoctorCommand(Request):
    """Look at versions, the default model, the compiler, the cache and the machine."""

    clear_cache: bool = False
    """Remove converted models from the cache; they are made again when needed."""


def doctor(asked: DoctorCommand, out: Output) -> None:
    """Look at each, and say what to do about what is not fine."""
    from rich.markup import escape

    if asked.clear_cache:
        out.say(_clear_cache())
    findings = [*_packages(), _default_model(), _compiler(), _cache(), _machine()]
    for finding in findings:
        mark = "[green]ok[/]" if finding.fine else "[yellow]--[/]"
        out.console.print(f"{mark} {finding.name:<14} {escape(finding.found)}", soft_wrap=True)
        if not finding.fine:
            out.console.print(f"   [dim]{escape(finding.fix)}[/]", soft_wrap=True)
    out.finish({"findings": [asdict(finding) for finding in findings]})
    if not all(finding.fine for finding in findings if finding.name in ("torch", "transformers")):
        raise typer.Exit(1)


def _packages() -> list[Looked]:
    needed = {name: f"pip install {name}" for name in ("torch", "transformers", "pyarrow")}
    extras = {
        "gguf": "pip install 'offramp[gguf]' for .gguf files and the default model",
        "reasoning-gym": "pip install 'offramp[math]' for the math workload",
        "datasets": "pip install 'offramp[datasets]' for hf: workloads",
        "xllamacpp": "pip install 'offramp[native]' for offramp bench --combine llama.cpp",
        "ray": "pip install 'offramp[ray]' for offramp study run --engine ray",
        "lm_eval": "pip install 'offramp[harness]' for offramp-lm-eval",
        "jiwer": "pip install 'offramp[speech]' for the words that are wrong on audio: workloads",
    }
    findings = []
    for name, fix in {**needed, **extras}.items():
        try:
            findings.append(Looked(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Looked(name, False, "not installed", fix))
    return findings


def _default_model() -> Looked:
    from offramp.models.source import BUNDLED

    try:
        return Looked("default model", True, str(BUNDLED[DEFAULT_MODEL].find()))
    except OfframpError as error:
        return Looked("default model", False, error.what, error.fix)


def _compiler() -> Looked:
    found = shutil.which("g++") or shutil.which("clang++")
    fix = "install g++: without it traces take about half as long again"
    return Looked("C++ compiler", found is not None, found or "none", fix)


def _cache() -> Looked:
    from offramp.kit.numbers import shown_size
    from offramp.models.gguf_file import cache_folder, converted_models
    from offramp.report.formats import counted

    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = "may not be written" if existing.is_dir() else "is no folder"
        fix = "set OFFRAMP_CACHE to a folder that this user may write"
        return Looked("cache", False, f"{folder}: {existing} {why}", fix)
    free = shutil.disk_usage(existing).free / 2**30
    models = converted_models()
    held = f"{counted(_distinct(models), 'converted model')}, {shown_size(sum(map(_size, models)))}"
    fix = "free 2 GiB (offramp doctor --clear-cache removes converted models), or set OFFRAMP_CACHE"
    clear = "; --clear-cache removes them" if models else ""
    return Looked("cache", free > 2, f"{folder} ({held}{clear}; {free:.0f} GiB free)", fix)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _distinct(folders: list[Path]) -> int:
    """How many models the folders of converted ones and of descriptions are of."""
    from offramp.models.gguf_file import DESCRIBED

    return len({folder.name.removesuffix(DESCRIBED) for folder in folders})


def _clear_cache() -> str:
    """Remove converted models, and say how much that was."""
    from offramp.kit.numbers import shown_size
    from offramp.models.gguf_file import converted_models
    from offramp.report.formats import counted

    models = converted_models()
    size = sum(map(_size, models))
    for folder in models:
        remove(folder)
    return f"removed from the cache: {counted(_distinct(models), 'converted model')}, {shown_size(size)}"


def _machine() -> Looked:
    from offramp.costs.timings import OTHER_LOAD, too_busy
    from offramp.models.devices import AUTO, find_device
    from offramp.runs.stages import describe_machine
    from offramp.timing.defects import MachineLoad
    from offramp.timing.local_profile import LOOKING

    machine, load = describe_machine(find_device(AUTO)), MachineLoad()
    time.sleep(LOOKING)
    others = load.describe()[OTHER_LOAD]
    busy = too_busy(machine, others)
    found = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, others keep "
        f"{others:.1f} busy; models compute on {machine.get('device_name', machine['device'])}"
    )
    fix = f"{busy}: nothing is timed then; wait for other programs, or leave them cores (OMP_NUM_THREADS=1)"
    return Looked("machine", busy is None, found, fix)
