"""The registry of machines: built-in profiles, plug-ins, the user's own files, and this machine's timings."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from offramp.commands import command_for
from offramp.costs import aiconfigurator
from offramp.costs.machine import Machine, Roofline
from offramp.costs.profile_file import read_profile
from offramp.costs.timings import OTHER_LOAD, SCHEMA_VERSION, TimingsProfile, busy_machine
from offramp.defaults import LOCAL
from offramp.errors import InputError, OfframpError
from offramp.files import canonical_json, is_there, sha256_of_text
from offramp.kit.numbers import whole_number
from offramp.kit.rules import suggest
from offramp.kit.sealed_file import SealedFile
from offramp.models.devices import CPU, device_name, find_device
from offramp.models.gguf_file import cache_folder
from offramp.models.identity import ATTENTION
from offramp.plug_ins import Known, load_plug_in, refused

FILE = SealedFile(
    TimingsProfile,
    "the timings in {name} are damaged",
    "delete the file and measure again: offramp hardware measure MODEL",
    SCHEMA_VERSION,
)
FOLDER = "hardware"
STEPS = "steps"
"""The detail that says whose steps were timed."""
OWN_LOOP = "decoding loop, products of few rows its own way"
"""What it says now; profiles of other steps, as of an older loop, are passed over."""
RECIPE = "recipe"
"""The detail that holds the recipe of the study's task that measured a profile; others lack it."""
THREADS_VARIABLE = "OMP_NUM_THREADS"


def machine_facts(threads: int, device: str = CPU) -> dict[str, Any]:
    """What timings depend on beside the model: processor, cores, torch's threads and torch itself.

    device: that computes. Where it is an accelerator, that is the processor, and "host" the one that gives it
    its work, on which a step of a small model depends as much.

    Raises InputError for a device that is not here.
    """
    if device != CPU:
        name = device_name(find_device(device))
        return {**machine_facts(threads), "processor": name, "host": processor_name()}
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": importlib.metadata.version("torch"),
    }


def processor_name() -> str:
    """The processor's name where Linux tells it, and the architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def save_local_profile(profile: TimingsProfile) -> Path:
    """Keep a profile of this machine, in one step, in place of an older one of the same kind.

    profile: as `measure_hardware` gives it, with the model's fingerprint, the machine and the load in its
    details. One that states the recipe of a study's task is kept beside one that does not.
    Returns the file. Raises BusyMachineError for one that was timed under load (`TimingsProfile.unfit`).
    """
    if profile.unfit is not None:
        raise busy_machine(profile.unfit)
    details = profile.details
    # A study measures briefly: it must not take the place of a profile that was measured with more care.
    marks = [RECIPE] if RECIPE in details else []
    attention = _attention_of(profile)
    if attention is not None:
        marks.append(attention)
    key = sha256_of_text(canonical_json([details["machine"], *marks] if marks else details["machine"]))[:12]
    path = _folder() / f"{details['model']['fingerprint'][:16]}-{profile.dtype}-{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    FILE.write(path, profile)
    return path


def load_local_profile(
    model_fingerprint: str,
    dtype: str,
    *,
    device: str = CPU,
    attention: str | None = None,
    threads: int | None = None,
    model: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> TimingsProfile:
    """The profile of a model measured on this machine, with this version of torch.

    device: that the model computes on. attention: the implementation that was asked for, None for the
    family's own. threads: torch's; if not given, no more than OMP_NUM_THREADS says, rather those in use than
    others, else those of the profile measured last. model: its record, as traces keep it, for the error's
    command. recipe: if given, only a profile will do that a study's task of this very recipe measured; if
    not, one that no study measured comes first.

    Profiles of older versions, which timed something else or noted no load, and those timed under load are
    passed over.

    Raises InputError, naming the command that measures one, if there is none; DamagedFileError if the file
    was changed.
    """
    profiles = [
        profile
        for path in sorted(_folder().glob(f"{model_fingerprint[:16]}-{dtype}-*.json"))
        if (profile := FILE.read(path)).details["model"]["fingerprint"] == model_fingerprint
    ]
    fitting = [
        profile
        for profile in profiles
        if OTHER_LOAD in profile.details
        and profile.details.get(STEPS) == OWN_LOOP
        and _attention_of(profile) == attention
        and profile.unfit is None
        and (recipe is None or _states(profile, recipe))
        and profile.details["machine"] == machine_facts(_threads_of(profile, threads), device)
    ]
    if not fitting:
        others = "; ".join(sorted({_conditions_of(profile) for profile in profiles}))
        options = {"device": None if device == CPU else device}
        command = command_for("hardware measure", {**(model or {}), "dtype": dtype}, **options)
        if attention is not None:  # which no command asks for
            command = f"give hardware=offramp.measure_hardware(model), a model with {attention!r} attention"
        raise InputError(
            "there are no timings of this model on this machine"
            + (
                f" as it is now; those kept are of {others}, of an older offramp, or were timed under load"
                if others
                else ""
            ),
            where=f"hardware {LOCAL}, {dtype}"
            + ("" if threads is None else f", {threads} threads")
            + ("" if attention is None else f", {attention} attention"),
            fix=f"{command}, or choose from: offramp list hardware",
        )
    return max(fitting, key=_preferred)


def list_local_profiles() -> list[TimingsProfile]:
    """Every profile kept in the cache folder, of this machine or (in a shared folder) of others.

    Raises DamagedFileError if a file was changed.
    """
    return [FILE.read(path) for path in sorted(_folder().glob("*.json"))]


def kept_notes(machine: object) -> tuple[str, ...]:
    """What must be said of kept timings where no model is at hand to hold them against; nothing of others."""
    details = machine.details if isinstance(machine, TimingsProfile) else {}
    if OTHER_LOAD not in details:
        return ()
    measured = datetime.datetime.fromisoformat(str(details["measured_at"]))
    age = datetime.datetime.now(datetime.UTC) - measured.replace(tzinfo=measured.tzinfo or datetime.UTC)
    hours = max(age.total_seconds() / 3600, 0.0)
    old = f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours" if hours >= 2 else "under 2 hours"
    return (
        f"the timings are {old} old, of {_machine_text(details['machine'])}, while other work kept "
        f"{details[OTHER_LOAD]:.1f} processors busy; without the model they are not held against this "
        "machine as it is now",
    )


def _threads_of(profile: TimingsProfile, threads: int | None) -> int:
    """Of a profile, where that will do: so many, or where that is not given no more than are allowed here."""
    own = int(profile.details["machine"]["threads"])
    allowed = whole_number(os.environ.get(THREADS_VARIABLE, "").partition(",")[0], 0) or own
    return min(own, allowed) if threads is None else threads


def _preferred(profile: TimingsProfile) -> tuple[bool, bool, str]:
    """Rather one of the threads that torch uses, then one that no study measured, then the latest."""
    torch, details = sys.modules.get("torch"), profile.details
    in_use = torch is not None and details["machine"]["threads"] == torch.get_num_threads()
    return in_use, RECIPE not in details, str(details["measured_at"])


def _states(profile: TimingsProfile, recipe: Mapping[str, Any]) -> bool:
    """Whether a profile was measured by a study's task of a recipe, which may not have been JSON yet."""
    return canonical_json(profile.details.get(RECIPE)) == canonical_json(dict(recipe))


def _folder() -> Path:
    return cache_folder() / FOLDER


def _attention_of(profile: TimingsProfile) -> str | None:
    """The attention that was asked for when it was measured; older profiles state none."""
    attention: str | None = profile.details["model"].get(ATTENTION)
    return attention


def _conditions_of(profile: TimingsProfile) -> str:
    """The machine that a profile is of, and the attention if one was asked for."""
    attention = _attention_of(profile)
    machine = _machine_text(profile.details["machine"])
    return machine if attention is None else f"{machine}, with {attention} attention"


def _machine_text(machine: dict[str, Any]) -> str:
    return f"{machine['processor']} with {machine['threads']} threads and torch {machine['torch']}"


ENTRY_POINTS = "offramp.hardware"
PROFILES = Path(__file__).parent / "machines"


@dataclass(frozen=True)
class MachineDescription:
    """One line of `offramp list hardware`."""

    name: str
    description: str
    source: str
    rates: str = ""
    """Peak rates of a roofline, else empty."""


def machine_names() -> list[str]:
    """Names that `find_machine` knows: built-in profiles, plug-ins (group "offramp.hardware"), GPU systems
    with measured kernels, where their package is installed, and "local".
    """
    systems = [f"{aiconfigurator.PREFIX}{system}" for system in aiconfigurator.by_system()]
    return [*_built_in(), *sorted(_added()), *systems, LOCAL]


def _built_in() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def find_machine(
    name_or_path: str,
    *,
    model_fingerprint: str | None = None,
    dtype: str | None = None,
    device: str = CPU,
    attention: str | None = None,
    model: Mapping[str, Any] | None = None,
) -> Machine:
    """A machine by name, or the one that a TOML file describes (see `offramp.costs.profile_file`).

    Names that begin with "aic:" are those of `offramp.costs.aiconfigurator.find_tables`.

    model_fingerprint, dtype, device, attention: of the model that is to be priced (see `load_local_profile`);
    "local" is looked up by them.
    model: its record, as traces keep it, for the error's command.

    Raises InputError for an unknown name (with near matches), a file that is no profile, a broken plug-in, or
    "local" where this model has not been measured on this machine (with the command that measures it).
    """
    if name_or_path == LOCAL:
        if model_fingerprint is None or dtype is None:
            raise InputError(
                "the local profile belongs to a model, and it is not known which one is meant",
                where=LOCAL,
                fix="give a trace that offramp wrote, or choose one of: " + ", ".join(machine_names()[:-1]),
            )
        return load_local_profile(model_fingerprint, dtype, device=device, attention=attention, model=model)
    if name_or_path.startswith(aiconfigurator.PREFIX):
        return aiconfigurator.find_tables(name_or_path)
    if name_or_path in _built_in():
        return read_profile(PROFILES / f"{name_or_path}.toml")
    added = _added()
    if name_or_path in added:
        return added[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".toml" or is_there(name_or_path):
        return read_profile(path)
    names = machine_names()
    raise InputError(
        f"unknown hardware {name_or_path!r}",
        where=f"hardware {name_or_path}",
        fix=f"{suggest(name_or_path.lower(), names)}; or give the path of a .toml profile of your own (its "
        "keys: offramp list --help)",
    )


def describe_machines() -> list[MachineDescription]:
    """Every machine known by name that can be used, then the models that were measured on this one."""
    found = []
    broken = broken_machines()
    for name in machine_names()[:-1]:
        if name.startswith(aiconfigurator.PREFIX) or name in broken:
            continue
        machine = find_machine(name)
        what = getattr(machine, "description", machine.name)
        rates = machine.rates if isinstance(machine, Roofline) else ""
        found.append(MachineDescription(name, f"{what} ({machine.kind})", machine.source, rates))
    measured = [
        MachineDescription(LOCAL, f"{profile.name} ({profile.kind})", profile.source)
        for profile in list_local_profiles()
    ]
    nothing = MachineDescription(
        LOCAL, "no model is measured on this machine", "offramp hardware measure MODEL"
    )
    return found + (_measured_systems() or [NO_TABLES]) + (measured or [nothing])


NO_TABLES = MachineDescription(
    f"{aiconfigurator.PREFIX}SYSTEM",
    "measured kernel times of some ten GPU systems: not installed",
    aiconfigurator.INSTALL,
)


def _measured_systems() -> list[MachineDescription]:
    """GPU systems whose kernels were measured, with their engines; the one taken by itself comes first."""
    found = []
    for system, tables in aiconfigurator.by_system().items():
        name = f"{aiconfigurator.PREFIX}{system}"
        first, *others = (f"{version.engine} {version.version}" for version in tables)
        more = f"; with {name}/ENGINE also {', '.join(others)}" if others else ""
        flops, bandwidth = aiconfigurator.data_sheet(tables[0])
        found.append(
            MachineDescription(
                name,
                f"kernels measured with {first}{more} (timings)",
                f"{aiconfigurator.PACKAGE} {aiconfigurator.package_version()}",
                f"{flops / 1e12:,.4g} TFLOP/s bfloat16; {bandwidth / 1e9:,.6g} GB/s",
            )
        )
    return found


def broken_machines() -> Mapping[str, OfframpError]:
    """Why plug-ins of machines cannot be used, by name."""
    return _added().broken()


def _added() -> Known[Machine]:
    return Known(ENTRY_POINTS, {}, _load)


def _load(point: EntryPoint) -> Machine:
    def fits(found: object) -> bool:
        if isinstance(found, type) or not isinstance(found, Machine):
            return False
        texts = (found.name, *(getattr(found, name, "") for name in ("description", "source")))
        return all(isinstance(text, str) for text in texts)

    machine: Machine = load_plug_in(point, fits, "hardware", "a machine whose name and description are texts")
    if machine.name != point.name:
        what = f"the hardware of the entry point {point.name!r} calls itself {machine.name!r}"
        raise refused(point, what)
    return machine
