"""`offramp.run`: what the command does, as one call that gives findings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from offramp.cli.run_stages import carry_out
from offramp.cli.run_study import RunOptions, read_floors
from offramp.errors import InputError, WorkloadError
from offramp.kit.defaults import DEFAULT_MODEL, DEFAULT_WORKLOADS, LOCAL, WORTH
from offramp.models.devices import AUTO
from offramp.models.given import name_object
from offramp.models.model import Model, not_wrapped
from offramp.report.run_findings import Findings
from offramp.tracing.exits_folder import exits_of
from offramp.tracing.loading import read_transforms
from offramp.tracing.progress import quietly
from offramp.tracing.request import DEFAULT_TOKENS
from offramp.workloads.given import read_workload
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Workload


def run(
    model: str | Model = DEFAULT_MODEL,
    workloads: str | Workload | Iterable[Any] | None = None,
    *,
    tokens: int = DEFAULT_TOKENS,
    exits: str | Path = "all",
    context: int | None = None,
    document_tokens: int | None = None,
    dtype: str = AUTO,
    device: str = AUTO,
    transforms: str | Sequence[str] = (),
    heads: str | Path | None = None,
    hardware: str = LOCAL,
    worth: float = WORTH,
    floors: Sequence[float] | float | None = None,
    decode: bool = True,
    minutes: float | None = None,
    trust_remote_code: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    repair: bool = False,
    progress: bool = False,
) -> Findings:
    """Would early exit pay? Traces a model, searches policies, certifies and times the best, writes a page.

    What `offramp run` does, with the same folder: a second call with more workloads does only what is new.

    model: a name as `offramp.load_model` takes it, or a model (`offramp.wrap`). workloads: a name, a workload
    (`offramp.workload_of` makes one of texts, token ids or conversations), or several; by default docstrings
    and functions. exits: layers, or the folder of trained exits, which are then the ones that are
    measured, and read through. floors: on agreement; by default 0.99, 0.95 and 0.9. minutes: of real
    decoding, all texts together. dtype, device, transforms: of a model that is named. output: the
    folder, by default runs/<model>-<key>. progress: say on standard error what goes on. Everything else as
    the options of the command.

    Raises what the command refuses: InputError for what does not fit together, ModelError for a model whose
    exits cannot be measured, OfframpError for what fails on the way.
    """
    if isinstance(model, Model):
        name, dtype, device = name_object(model), model.dtype, str(model.stack.device)
    elif isinstance(model, str):
        name = model
    else:
        raise not_wrapped(model)
    layers, heads = exits_of(exits, heads)
    options = RunOptions(
        model=name,
        tokens=tokens,
        exits=layers,
        context=context,
        document_tokens=document_tokens,
        device=device,
        dtype=dtype,
        transforms=tuple(one.text for one in read_transforms(transforms, dtype)),
        trust_remote_code=trust_remote_code,
        heads=heads,
        hardware=hardware,
        worth=worth,
        overwrite=overwrite,
        repair=repair,
        floors=read_floors(floors),
        decode=decode,
        minutes=minutes,
        stream=None,
        memory=None,
        workloads_given=workloads is not None,
    )
    folder = None if output is None else Path(output)
    options.check(folder)
    asked = DEFAULT_WORKLOADS if workloads is None else workloads
    listed = [read_workload(one) for one in ([asked] if isinstance(asked, (str, Workload)) else asked)]
    given = list({workload.name: workload for workload in listed}.values())
    _require_found_again(listed)
    evaluating = model.evaluating() if isinstance(model, Model) else contextlib.nullcontext()
    with quietly(not progress), evaluating:
        finished = carry_out(options, given, folder)
    return Findings(finished.result, finished.report.parent, finished.report)


def _require_found_again(workloads: Sequence[Workload]) -> None:
    """Refuse workloads that a study, which names its texts, would not find as they are. Raises InputError."""
    if not workloads:
        raise InputError("there is no workload", where="workloads=", fix="give a name, or a workload")
    for workload in workloads:
        try:
            same = load_workload(workload.name).fingerprint == workload.fingerprint
        except WorkloadError:
            same = False
        if not same:
            raise InputError(
                f"by the name {workload.name!r} another text is found, or none",
                where="workloads=",
                fix="give the texts themselves: offramp.workload_of([document.text for document in "
                "workload.documents], name=...)",
            )
