"""Accelerations that can be combined: transforms of the model, and ways to decode."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from offramp.errors import InputError
from offramp.kit.rules import suggest
from offramp.models.transforms.quantise import Quantised
from offramp.models.transforms.transform import TRANSFORMS, Transform, parse_transform
from offramp.timing.results import PLAIN_NAME

JOINED = " + "
"""Between the parts of a combination."""
EXITS, SPECULATE, PROMPT_LOOKUP = "exits", "speculate", "prompt_lookup"
OF_THE_POLICY = (EXITS, SPECULATE)
"""Ways to decode that need an exit policy."""
SHORT_LIST = "shortlist"
LLAMA_CPP = "llama.cpp"
DECODERS = (SHORT_LIST, EXITS, SPECULATE, PROMPT_LOOKUP, LLAMA_CPP)
COMBINE, BESIDE = "--combine", "--beside"
DECODER_GROUP, HEAD_GROUP, DRAFT_GROUP, ROUNDING_GROUP = "decoder", "output head", "drafts", "quantisation"
GROUPS = {SHORT_LIST: HEAD_GROUP, PROMPT_LOOKUP: DRAFT_GROUP}
"""Of ways to decode that stand beside another one."""
FIRST = ("prune",)
"""Transforms that are applied before others: what importance says of layers, it says of exact ones."""

WHY_EXCLUDED = {
    DECODER_GROUP: "each is a decoding loop of its own, and a token comes out of one of them (speculate is "
    "the exit policy with its tokens verified instead of kept)",
    ROUNDING_GROUP: "they round the same weights",
}
SAME_TRANSFORM = "a transform is applied once"


@dataclass(frozen=True)
class Acceleration:
    """One way to be faster."""

    name: str
    """As shown, unique among those of a run."""
    text: str
    """As it was asked for."""
    group: str
    """Of its alternatives, of which a combination holds one at most."""
    transform: Transform | None = None
    """What is done to the model; None for a way to decode."""


Parts = tuple[Acceleration, ...]


def read_accelerations(
    texts: Sequence[str], dtype: str | None = None, where: str = COMBINE
) -> tuple[Acceleration, ...]:
    """The accelerations of some texts: any of DECODERS, or a transform's.

    dtype: that models are loaded in, None if it is not known. where: the option that they are given to.

    Raises InputError for an unknown or repeated one, for none at all, and for a transform that does not
    parse, or that this machine cannot do.
    """
    if not texts:
        raise InputError(
            "there is nothing to combine",
            where=where,
            fix=f"give {where} int8 {where} prompt_lookup",
        )
    found = [_read(text, dtype, where) for text in texts]
    twice = [text for text, count in Counter(way.text for way in found).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice", where=where, fix="give it once")
    names = Counter(way.name for way in found)
    return tuple(replace(way, name=way.text) if names[way.name] > 1 else way for way in found)


def read_beside(texts: Sequence[str], dtype: str | None = None) -> tuple[Parts, ...]:
    """What decodes without exits, each a combination's text: "int8", "int8 + prompt_lookup", "llama.cpp".

    dtype: as of `read_accelerations`.

    Raises what that raises; InputError as well for exits, and for parts that are not combined.
    """
    found: list[Parts] = []
    for text in texts:
        parts = read_accelerations([part.strip() for part in text.split(JOINED)], dtype, BESIDE)
        with_exits = [part.text for part in parts if part.text in OF_THE_POLICY]
        if with_exits:
            raise InputError(
                f"{with_exits[0]} is early exit itself, and what stands beside a policy has none",
                where=BESIDE,
                fix="give it to offramp bench --combine, or another policy",
            )
        whole = combinations_of(parts)[-1]
        if len(whole) < len(parts):
            raise InputError(excluded_of(parts)[0], where=BESIDE, fix="give them apart")
        if name_of(whole) not in map(name_of, found):
            found.append(whole)
    return tuple(found)


def _read(text: str, dtype: str | None, where: str) -> Acceleration:
    if text in DECODERS:
        return Acceleration(text, text, GROUPS.get(text, DECODER_GROUP))
    kind = text.partition(":")[0]
    if kind not in TRANSFORMS:
        raise InputError(
            f"unknown acceleration {text!r}", where=where, fix=suggest(kind, (*DECODERS, *TRANSFORMS))
        )
    transform = parse_transform(text)
    transform.check(dtype)
    group = ROUNDING_GROUP if isinstance(transform, Quantised) else transform.name
    return Acceleration(transform.name, transform.text, group, transform)


def combinations_of(accelerations: Sequence[Acceleration]) -> list[Parts]:
    """Every set of accelerations with one of each group at most: none first, then by size.

    Within one, transforms stand in the order in which they are applied, ways to decode last.
    """
    ordered = sorted(accelerations, key=_place)
    groups: dict[str, list[Acceleration]] = {}
    for way in ordered:
        groups.setdefault(way.group, []).append(way)
    chosen = itertools.product(*([None, *members] for members in groups.values()))
    sets = [tuple(way for way in ways if way is not None) for ways in chosen]
    sets = [parts for parts in sets if not _clash(parts)]
    return sorted(sets, key=lambda parts: (len(parts), [ordered.index(part) for part in parts]))


def _place(way: Acceleration) -> int:
    if way.transform is None:
        return {SHORT_LIST: 2, PROMPT_LOOKUP: 4}.get(way.text, 3)
    return 0 if way.transform.name in FIRST else 1


def transforms_of(parts: Parts) -> Parts:
    """Those that change the model."""
    return tuple(part for part in parts if part.transform is not None)


def decoder_of(parts: Parts) -> str | None:
    """The way to decode, as in "shortlist + exits"; None for plain decoding."""
    return JOINED.join(part.text for part in parts if part.transform is None) or None


def _clash(parts: Parts) -> bool:
    """Whether parts of different groups exclude each other."""
    texts = {part.text for part in parts}
    drafts = SPECULATE in texts and bool(texts & {SHORT_LIST, PROMPT_LOOKUP})
    return drafts or (LLAMA_CPP in texts and len(texts) > 1)


def name_of(parts: Sequence[Acceleration]) -> str:
    """As shown: "int8 + exits"."""
    return JOINED.join(part.name for part in parts) or PLAIN_NAME


def excluded_of(accelerations: Sequence[Acceleration]) -> tuple[str, ...]:
    """One sentence for every group of alternatives that are not combined with each other."""
    groups: dict[str, list[str]] = {}
    for way in accelerations:
        groups.setdefault(way.group, []).append(way.name)
    apart = [
        f"{', '.join(names[:-1])} and {names[-1]} are not combined with each other: "
        + WHY_EXCLUDED.get(group, SAME_TRANSFORM)
        for group, names in groups.items()
        if len(names) > 1
    ]
    names_of = {way.text: way.name for way in accelerations}
    if {PROMPT_LOOKUP, SPECULATE} <= names_of.keys():
        drafted = "a token is drafted by one of them"
        apart.insert(0, f"{SPECULATE} is not combined with {PROMPT_LOOKUP}: {drafted}")
    if {SHORT_LIST, SPECULATE} <= names_of.keys():
        drafted = "its drafts are verified with the whole output head"
        apart.insert(0, f"{SPECULATE} is not combined with {SHORT_LIST}: {drafted}")
    others = [way.name for way in accelerations if way.group != DECODER_GROUP]
    if LLAMA_CPP in names_of and others:
        own = "it decodes the model's .gguf file as it is"
        apart.append(f"{LLAMA_CPP} is not combined with {' or '.join(others)}: {own}")
    return tuple(apart)
