"""The texts that `offramp tune` was given: their traces, and what lies beside them in a run's folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.costs.machine import Machine
from offramp.errors import InputError
from offramp.kit.defaults import LOCAL
from offramp.runs.contents import RunContents, contents_at, machine_near
from offramp.runs.folder import find_traces

if TYPE_CHECKING:
    from offramp.tracing.trace import Trace


@dataclass(frozen=True)
class TracedText:
    """One text. heads: the file that its exits were read through; contents: of its run, None outside one."""

    name: str
    trace: Trace
    heads: Path | None
    contents: RunContents | None


def texts_at(folders: Iterable[Path], heads: Path | None) -> list[TracedText]:
    """The texts of traces and runs, each once. heads: given for all of them, None for those of their runs.

    Raises InputError for folders that hold no trace, or one that was read through other heads than are given;
    DamagedFileError for changed ones.
    """
    from offramp.heads.file import read_heads
    from offramp.policies.binding import require_heads
    from offramp.tracing.trace import Trace

    found = []
    for place in dict.fromkeys(place for folder in folders for place in find_traces(folder)):
        trace, contents = Trace.load(place), contents_at(place)
        own = None if contents is None else contents.heads
        if heads is not None:
            require_heads(trace, read_heads(heads))
        found.append(TracedText(str(trace.request["workload"]["name"]), trace, heads or own, contents))
    return found


def tuned_together(texts: Sequence[TracedText]) -> list[list[TracedText]]:
    """Which texts get one policy: all of them, or each its own, as in a run that fits heads for each text.

    Raises InputError for texts of no one run that were not traced alike.
    """
    from offramp.decoding.execution.tune import by_workload
    from offramp.policies.binding import base_of

    runs = {None if text.contents is None else text.contents.run for text in texts}
    alike = all(base_of(text.trace) == base_of(texts[0].trace) for text in texts)
    if not alike and len(runs) == 1 and None not in runs:
        return [[text] for text in texts]
    if len(texts) > 1:
        by_workload([text.trace for text in texts])
    return [list(texts)]


def machine_at_hand(text: TracedText, hardware: str, *, may_time: bool) -> Machine | None:
    """The machine that a text is priced on; None for this machine where it is yet to be timed.

    may_time: whether the model will be loaded. Raises InputError for a machine that is not known.
    """
    from offramp.policies.policy_cost import machine_for

    try:
        return machine_for(text.trace, machine_near(text.contents, hardware))
    except InputError:
        if hardware == LOCAL and may_time:
            return None
        raise
