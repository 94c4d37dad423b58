"""The contract of a workload, for authors of plug-ins to run on theirs."""

from __future__ import annotations

from collections.abc import Callable

from offramp.errors import WorkloadError
from offramp.kit.arguments import checked
from offramp.workloads.registry import require_usable
from offramp.workloads.workload import Workload, WorkloadSource


@checked
def check_workload(workload: Workload | Callable[[], Workload]) -> Workload:
    """Hold a workload, or a function that loads one, against what offramp relies on; returns the workload.

    There is at least one document; ids are distinct; every text is non-empty and can be written in UTF-8;
    name, licence and source are set; the mode is known, and only prompts go through a chat template. A
    function is called twice and must give the same documents in the same order, since a trace is resumed and
    repeated by its fingerprint.

    Raises WorkloadError naming the first rule that is broken.
    """
    if isinstance(workload, Workload):
        return _checked(workload)
    first, second = _checked(workload()), _checked(workload())
    for one, other in zip(first.documents, second.documents, strict=False):
        if one != other:
            raise WorkloadError(
                f"two loads differ from document {one.id!r} on",
                where=first.name,
                fix="fix the order, and the seed of whatever is drawn at random",
            )
    if first.fingerprint != second.fingerprint:
        raise WorkloadError(
            "two loads have different fingerprints",
            where=first.name,
            fix="return the same number of documents, mode and chat each time",
        )
    return first


@checked
def check_workload_source(source: WorkloadSource, argument: str = "") -> Workload:
    """Hold a registry entry against the contract: its workload, and what it says about itself.

    Raises WorkloadError naming the first rule that is broken.
    """
    for field in ("name", "documents", "licence", "description"):
        if not getattr(source, field).strip():
            raise WorkloadError(f"the source's {field} is not set", where=source.name or "a workload source")
    if source.argument and source.sizes:
        raise WorkloadError("a source has an argument or sizes, not both", where=source.name)
    if ":" in source.name:
        raise WorkloadError("a source's name holds a colon, which ends a name", where=source.name)
    workload = check_workload(lambda: source.open(argument or None))
    if workload.mode != source.mode:
        raise WorkloadError(
            f"the source says mode {source.mode!r}, its workload {workload.mode!r}", where=source.name
        )
    return workload


@checked
def _checked(workload: Workload) -> Workload:
    for field in ("name", "licence", "source"):
        if not getattr(workload, field).strip():
            raise WorkloadError(
                f"the workload's {field} is not set",
                where=workload.name or "a workload without a name",
                fix="say where the text comes from and under which licence",
            )
    require_usable(workload)
    return workload
