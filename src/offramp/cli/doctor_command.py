"""`offramp doctor`: whether this machine has what offramp needs."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from offramp.cli.console import Output
from offramp.errors import OfframpError
from offramp.files import remove
from offramp.kit.defaults import DEFAULT_MODEL
from offramp.kit.request import Request


@dataclass(frozen=True)
class Finding:
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


def _packages() -> list[Finding]:
    needed = {name: f"pip install {name}" for name in ("torch", "transformers", "pyarrow")}
    extras = {
        "gguf": "pip install 'offramp[gguf]' for .gguf files and the default model",
        "reasoning-gym": "pip install 'offramp[math]' for the math workload",
        "datasets": "pip install 'offramp[datasets]' for hf: workloads",
        "torchao": "pip install 'offramp[quantisation]' for the transforms int8 and int4",
        "ray": "pip install 'offramp[ray]' for offramp study run --engine ray",
        "lm_eval": "pip install 'offramp[harness]' for offramp-lm-eval",
    }
    findings = []
    for name, fix in {**needed, **extras}.items():
        try:
            findings.append(Finding(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, False, "not installed", fix))
    return findings


def _default_model() -> Finding:
    from offramp.models.source import BUNDLED

    try:
        return Finding("default model", True, str(BUNDLED[DEFAULT_MODEL].find()))
    except OfframpError as error:
        return Finding("default model", False, error.what, error.fix)


def _compiler() -> Finding:
    found = shutil.which("g++") or shutil.which("clang++")
    fix = "install g++: without it traces take about half as long again"
    return Finding("C++ compiler", found is not None, found or "none", fix)


def _cache() -> Finding:
    from offramp.kit.numbers import shown_size
    from offramp.models.gguf_file import cache_folder, converted_models
    from offramp.report.formats import counted

    folder = cache_folder()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        why = "may not be written" if existing.is_dir() else "is no folder"
        fix = "set OFFRAMP_CACHE to a folder that this user may write"
        return Finding("cache", False, f"{folder}: {existing} {why}", fix)
    free = shutil.disk_usage(existing).free / 2**30
    models = converted_models()
    held = f"{counted(len(models), 'converted model')}, {shown_size(sum(map(_size, models)))}"
    fix = "free 2 GiB (offramp doctor --clear-cache removes converted models), or set OFFRAMP_CACHE"
    clear = "; --clear-cache removes them" if models else ""
    return Finding("cache", free > 2, f"{folder} ({held}{clear}; {free:.0f} GiB free)", fix)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _clear_cache() -> str:
    """Remove converted models, and say how much that was."""
    from offramp.kit.numbers import shown_size
    from offramp.models.gguf_file import converted_models
    from offramp.report.formats import counted

    models = converted_models()
    size = sum(map(_size, models))
    for folder in models:
        remove(folder)
    return f"removed from the cache: {counted(len(models), 'converted model')}, {shown_size(size)}"


def _machine() -> Finding:
    from offramp.costs.load import OTHER_LOAD, too_busy
    from offramp.models.devices import AUTO, find_device
    from offramp.runs.provenance import describe_machine
    from offramp.timing.defects import Load
    from offramp.timing.machine_profiler import LOOKING

    machine, load = describe_machine(find_device(AUTO)), Load()
    time.sleep(LOOKING)
    others = load.describe()[OTHER_LOAD]
    busy = too_busy(machine, others)
    found = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, others keep "
        f"{others:.1f} busy; models compute on {machine.get('device_name', machine['device'])}"
    )
    fix = f"{busy}: nothing is timed then; wait for other programs, or leave them cores (OMP_NUM_THREADS=1)"
    return Finding("machine", busy is None, found, fix)
