"""The registry of machines: built-in profiles, plug-ins, the user's own files, and this machine's timings."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

from offramp.costs.local_store import list_local_profiles, load_local_profile
from offramp.costs.machine import Machine
from offramp.costs.profile_file import read_profile
from offramp.costs.roofline import Roofline
from offramp.errors import InputError
from offramp.plug_ins import load_plug_in, plug_ins

ENTRY_POINTS = "offramp.hardware"
LOCAL = "local"
PROFILES = Path(__file__).parent / "machines"


@dataclass(frozen=True)
class MachineDescription:
    """One line of `offramp list hardware`. rates: peak rates of a roofline, else empty."""

    name: str
    description: str
    source: str
    rates: str = ""


def machine_names() -> list[str]:
    """Names that `find_machine` knows: built-in profiles, plug-ins (group "offramp.hardware") and "local"."""
    return [*sorted(path.stem for path in PROFILES.glob("*.toml")), *sorted(plug_ins(ENTRY_POINTS)), LOCAL]


def find_machine(
    name_or_path: str,
    *,
    model_fingerprint: str | None = None,
    dtype: str | None = None,
    transforms: Iterable[str] = (),
) -> Machine:
    """A machine by name, or the one that a TOML file describes (see `offramp.costs.profile_file`).

    model_fingerprint, dtype: of the model that is to be priced; "local" is looked up by them. transforms:
    what was done to it, for the error's command.

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
        return load_local_profile(model_fingerprint, dtype, transforms=transforms)
    built_in = PROFILES / f"{name_or_path}.toml"
    if os.sep not in name_or_path and built_in.is_file():
        return read_profile(built_in)
    added = plug_ins(ENTRY_POINTS)
    if name_or_path in added:
        return _load(added[name_or_path])
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        return read_profile(path)
    names = machine_names()
    near = difflib.get_close_matches(name_or_path.lower(), names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"unknown hardware {name_or_path!r}",
        where=f"hardware {name_or_path}",
        fix=f"{hint}choose one of: {', '.join(names)}; or give the path of a .toml profile of your own (its "
        "keys: offramp list --help)",
    )


def describe_machines() -> list[MachineDescription]:
    """Every machine known by name, then the models that were measured on this one."""
    found = []
    for name in machine_names()[:-1]:
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
    return found + (measured or [nothing])


def _load(point: EntryPoint) -> Machine:
    def fits(found: object) -> bool:
        return not isinstance(found, type) and isinstance(found, Machine)

    machine: Machine = load_plug_in(point, fits, "hardware", "a machine")
    return machine
