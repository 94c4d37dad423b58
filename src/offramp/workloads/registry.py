"""The workloads known by name, those of plug-ins and of a model's own continuations among them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from weakref import WeakValueDictionary

from offramp.errors import InputError, OfframpError, WorkloadError
from offramp.kit.numbers import whole_number
from offramp.plug_ins import Known, asking, is_foreign, load_plug_in, refused, unfit
from offramp.workloads.audio import AUDIO
from offramp.workloads.images import IMAGES
from offramp.workloads.pairs import PAIRS
from offramp.workloads.prompts import CHAT, MATH
from offramp.workloads.standard_library import CODE, PROSE
from offramp.workloads.text_files import HUB_DATASET, JSON_LINES, TEXT
from offramp.workloads.workload import Document, Workload, WorkloadSource

CONTINUED = "continued"

FEWEST_TOKENS = 4

EXAMPLE = f"{CONTINUED}:32+64:code:short"


def split_continued(spec: str) -> tuple[str, str]:
    """What stands in front of a workload that is continued ("continued:32:", or nothing), and the rest."""
    name, _, argument = spec.partition(":")
    if name != CONTINUED:
        return "", spec
    tokens, colon, text = argument.partition(":")
    return f"{name}:{tokens}{colon}", text


def continued(prefix: str, text: str) -> Workload:
    """The documents of a workload, each cut to its first tokens, which the full model continues greedily.

    prefix, text: as `split_continued` gives them. Tokens of a document are counted
    with BOS if the model puts it there; a shorter text is continued whole.

    A workload of prompts is answered as it is; of each answer no more than M tokens are read.

    Raises WorkloadError for tokens that are no whole number or too few, or that do not go with the workload's
    mode, and as `load_workload` does.
    """
    prompt_tokens, new_tokens = sizes_of(prefix, text)
    workload = load_workload(text)
    if (workload.mode == "generation") != (prompt_tokens is None):
        prompts = workload.mode == "generation"
        raise WorkloadError(
            "prompts are answered whole" if prompts else "of a text it must be said how much is continued",
            where=f"workload {prefix}{text}",
            fix=f"write {text}, or {CONTINUED}:+64:{text} for 64 tokens of each answer at most"
            if prompts
            else f"write {CONTINUED}:32:{text}, say",
        )
    return replace(
        workload,
        name=f"{prefix}{workload.name}",
        mode="generation",
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        source=workload.source
        if prompt_tokens is None
        else f"the model's own text after the first {prompt_tokens} tokens of {workload.source}",
    )


def sizes_of(prefix: str, text: str) -> tuple[int | None, int | None]:
    """N and M of a prefix, None for one that is not given. Raises WorkloadError for what is unusable."""
    where = f"workload {prefix}{text}"
    first, plus, new = prefix.split(":")[1].partition("+")
    continued = whole_number(first, FEWEST_TOKENS) if first or not plus else None
    read = whole_number(new) if plus else None
    if (continued is None and (first or not plus)) or (read is None and plus):
        raise WorkloadError(
            f"{first + plus + new or 'nothing'} does not say how many tokens of a text are continued",
            where=where,
            fix=f"write {EXAMPLE}, which continues 32 and reads 64 at most, or leave +64 out; "
            f"{FEWEST_TOKENS} are continued at least",
        )
    if not text:
        raise WorkloadError(
            "no workload is named that is continued", where=where, fix=f"write {EXAMPLE}, say"
        )
    if split_continued(text)[0]:
        raise WorkloadError("a text is continued once", where=where, fix=f"write {EXAMPLE}, say")
    return continued, read


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
        return continued(prefix, text)
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
    sources = _sources()
    if name not in sources:
        raise _unknown(spec, name, sources)
    source = sources[name]
    with asking(source, f"the workload {name}", WorkloadError):
        workload: object = source.open(argument if colon else None)
    if not isinstance(workload, Workload):
        what = f"the workload {name} is an object of type {type(workload).__name__}, not a Workload"
        raise unfit(source, what, WorkloadError)
    if is_foreign(source) and workload.name.partition(":")[0] != name:
        what = f"the workload {name} calls itself {workload.name!r}, which does not begin with its name"
        raise unfit(source, what, WorkloadError)
    require_usable(workload)
    return workload


CONTINUATIONS = WorkloadSource(
    CONTINUED,
    lambda argument: load_workload(f"{CONTINUED}:{argument}"),
    mode="generation",
    documents="those of WORKLOAD",
    licence="of WORKLOAD",
    description="what the model writes itself after the first N tokens of each text, of which with +M no "
    f"more than M tokens are read, as in {EXAMPLE}; of prompts +M alone, as in {CONTINUED}:+64:math",
    argument="N+M:WORKLOAD",
)


def describe_workloads() -> tuple[WorkloadSource, ...]:
    """What `offramp list workloads` shows, one line per size; loads none of them."""
    sources = (*_sources().usable().values(), CONTINUATIONS)
    return tuple(described for source in sources for described in source.described)


def broken_workloads() -> Mapping[str, OfframpError]:
    """Why plug-ins of workloads cannot be used, by name."""
    return _sources().broken()


def require_usable(workload: Workload) -> None:
    """Raise WorkloadError unless there are documents, and each says something."""
    if not workload.documents:
        raise WorkloadError("the workload has no documents", where=workload.name)
    for document in workload.documents:
        if not document.text.strip():
            where = f"{workload.name}, document {document.id!r}"
            raise WorkloadError("a document is empty", where=where, fix="remove it or give it text")


def _sources() -> Known[WorkloadSource]:
    """Every source by name; those of plug-ins are loaded when they are looked up, which raises WorkloadError
    for one that is broken.
    """
    return Known(ENTRY_POINT_GROUP, {name: partial(_SOURCES.__getitem__, name) for name in _SOURCES}, _load)


def _load(point: EntryPoint) -> WorkloadSource:
    def fits(found: object) -> bool:
        if not isinstance(found, WorkloadSource):
            return False
        texts = (found.name, found.mode, found.documents, found.licence, found.description, found.argument)
        return all(isinstance(text, str) for text in texts)

    wanted = "a WorkloadSource whose name and all that is said of it are texts"
    source: WorkloadSource = load_plug_in(point, fits, "workload", wanted, WorkloadError)
    if source.name != point.name or source.name in (CONTINUED, GIVEN):
        what = f"the workload of the entry point {point.name!r} calls itself {source.name!r}"
        raise refused(point, what, WorkloadError)
    return source


def _unknown(spec: str, name: str, sources: Known[WorkloadSource]) -> WorkloadError:
    known = ", ".join(described.name for described in describe_workloads())
    near = difflib.get_close_matches(name, [*sources, CONTINUED], n=3)
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if any(letter.isspace() for letter in spec):
        hints.append("For texts of your own, in Python: offramp.workload_of([...]).")
    elif Path(spec).exists():
        hints.append(f"For a file or folder write txt:{spec} or jsonl:{spec}#field.")
    hints.append(f"Choose one of: {known}")
    shown = spec if len(spec) <= LONGEST_SHOWN else f"{spec[:LONGEST_SHOWN]}..."
    return WorkloadError(f"there is no workload {shown!r}", where=f"workload {shown}", fix=" ".join(hints))


for _source in (PROSE, CODE, CHAT, MATH, TEXT, JSON_LINES, PAIRS, AUDIO, IMAGES, HUB_DATASET):
    register_workload(_source)


def distinct_workloads(workloads: str | Workload | Sequence[str | Workload]) -> tuple[Workload, ...]:
    """The workloads, each once."""
    named = [workloads] if isinstance(workloads, (str, Workload)) else workloads
    loaded = [load_workload(work) if isinstance(work, str) else work for work in named]
    if not loaded:
        raise InputError("there is no workload to fit on", fix="give one, such as prose")
    return tuple({work.fingerprint: work for work in loaded}.values())


OF_THE_LIBRARY = ("prose", "prose:short", "code", "code:short")
"""Workloads made of Python's standard library, which is what people train on, too."""


def documents_seen(trained_on: Sequence[Document]) -> dict[str, tuple[str, ...]]:
    """Ids of documents of offramp's own workloads that share text with these, by the workload's fingerprint.

    What `offramp.record_training` writes beside a model, so that tuning leaves them out.
    """
    from offramp.workloads.shared_text import Sketcher, shares_text, sketches_of

    sketches = Sketcher().sketches(trained_on)
    found: dict[str, tuple[str, ...]] = {}
    for name in OF_THE_LIBRARY:
        workload = load_workload(name)
        ids = [document.id for document in workload.documents]
        shared = shares_text(sketches_of(workload, ids), sketches)
        found[workload.fingerprint] = tuple(id for id, out in zip(ids, shared, strict=True) if out)
    return found
