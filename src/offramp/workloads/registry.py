"""The workloads known by name, those of plug-ins among them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakValueDictionary

from offramp.errors import InputError, WorkloadError
from offramp.plug_ins import load_plug_in, plug_ins
from offramp.workloads.continued import CONTINUED, DESCRIBED, continued, split_continued
from offramp.workloads.hub_dataset import HUB_DATASET
from offramp.workloads.prompts import CHAT, MATH
from offramp.workloads.standard_library import CODE, PROSE
from offramp.workloads.text_files import JSON_LINES, TEXT
from offramp.workloads.workload import Workload, WorkloadDescription, WorkloadSource

ENTRY_POINT_GROUP = "offramp.workloads"

LONGEST_SHOWN = 60

GIVEN = "given"
"""In front of the names of workloads that were made of what a program holds (`offramp.workload_of`)."""

# Texts live as long as somebody else holds them: a trace does.
_given: WeakValueDictionary[str, Workload] = WeakValueDictionary()


def is_given(spec: str) -> bool:
    """Whether this process holds a workload of that name that was made of what a program gave."""
    return spec in _given


def remember(workload: Workload) -> None:
    """Let this process find a workload by its name from now on."""
    _given[workload.name] = workload


_SOURCES: dict[str, WorkloadSource] = {}


def register_workload(source: WorkloadSource) -> None:
    """Make a source known by its name.

    A package does the same by pointing an entry point of the group "offramp.workloads" at a `WorkloadSource`.

    Raises WorkloadError if another source has the name, or offramp reads it as something else.
    """
    if source.name in (CONTINUED, GIVEN) or _SOURCES.get(source.name, source) is not source:
        raise WorkloadError(
            f"there are two workload sources named {source.name!r}",
            fix="give one of them another name, or uninstall the package that brings it",
        )
    _SOURCES[source.name] = source


def load_workload(spec: str) -> Workload:
    """The workload that a text names: "prose", "prose:short", "txt:PATH", "jsonl:PATH#field", a plug-in's,
    or "continued:N:" in front of one of them.

    Raises WorkloadError for an unknown name (with near matches) or size, and for input that is not usable
    text.

    >>> offramp.load_workload("prose:short").mode
    'text'
    """
    prefix, text = split_continued(spec)
    if prefix:
        return continued(prefix, text, load_workload)
    name, colon, argument = spec.partition(":")
    if name == GIVEN:
        known = _given.get(spec)
        if known is not None:
            return known
        raise WorkloadError(
            f"there is no workload {spec!r} in this process",
            where=f"workload {spec}",
            fix="make it again: offramp.workload_of(...), with the same content and name",
        )
    # Plug-ins are loaded only when they are asked for: a broken one does not stop the others.
    sources = _SOURCES if name in _SOURCES else _sources()
    if name not in sources:
        raise _unknown(spec, name, sources)
    source = sources[name]
    workload = source.open(argument if colon else None)
    require_usable(workload)
    return workload


def describe_workloads() -> tuple[WorkloadDescription, ...]:
    """What `offramp list workloads` shows, one line per size; loads none of them."""
    return (*(described for source in _sources().values() for described in source.described), DESCRIBED)


def require_usable(workload: Workload) -> None:
    """Raise WorkloadError unless there are documents, and each says something."""
    if not workload.documents:
        raise WorkloadError("the workload has no documents", where=workload.name)
    for document in workload.documents:
        if not document.text.strip():
            where = f"{workload.name}, document {document.id!r}"
            raise WorkloadError("a document is empty", where=where, fix="remove it or give it text")


def _sources() -> dict[str, WorkloadSource]:
    """Every source by name, those of plug-ins included.

    Raises WorkloadError naming a plug-in that cannot be loaded.
    """
    for name, point in plug_ins(ENTRY_POINT_GROUP).items():
        if name not in _SOURCES:
            fits, wanted = (lambda found: isinstance(found, WorkloadSource)), "a WorkloadSource"
            register_workload(load_plug_in(point, fits, "workload", wanted, WorkloadError))
    return _SOURCES


def _unknown(spec: str, name: str, sources: dict[str, WorkloadSource]) -> WorkloadError:
    names = [described.name for source in sources.values() for described in source.described]
    known = ", ".join([*names, DESCRIBED.name])
    near = difflib.get_close_matches(name, [*sources, CONTINUED], n=3)
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if any(letter.isspace() for letter in spec):
        hints.append("For texts of your own, in Python: offramp.workload_of([...]).")
    elif Path(spec).exists():
        hints.append(f"For a file or folder write txt:{spec} or jsonl:{spec}#field.")
    hints.append(f"Choose one of: {known}")
    shown = spec if len(spec) <= LONGEST_SHOWN else f"{spec[:LONGEST_SHOWN]}..."
    return WorkloadError(f"there is no workload {shown!r}", where=f"workload {shown}", fix=" ".join(hints))


for _source in (PROSE, CODE, CHAT, MATH, TEXT, JSON_LINES, HUB_DATASET):
    register_workload(_source)


def distinct_workloads(workloads: str | Workload | Sequence[str | Workload]) -> tuple[Workload, ...]:
    """The workloads, each once."""
    named = [workloads] if isinstance(workloads, (str, Workload)) else workloads
    loaded = [load_workload(work) if isinstance(work, str) else work for work in named]
    if not loaded:
        raise InputError("there is no workload to fit on", fix="give one, such as prose")
    return tuple({work.fingerprint: work for work in loaded}.values())
