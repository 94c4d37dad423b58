"""Dealing works to the parts of a text, so that no two parts share any of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from offramp.errors import InputError
from offramp.files import sha256_of_text
from offramp.lab.text.work import PARTS, Part, Work
from offramp.workloads.shared_text import Sketch, Sketcher, text_groups

APART = 0.1
"""Of the characters of a source, the share that is kept for each part that weights are not fitted on. Works
that stay together and are more than this share are trained on."""

Dealt = Mapping[Part, tuple[Work, ...]]


def deal(works: Sequence[Work], seed: int) -> Dealt:
    """Every work in its part, each part in an order drawn by `seed`.

    Works that share text stay together (`offramp.workloads.shared_text`), whatever their source. The groups
    of each source come in the order of a hash: the first are for the report, the next for validation.

    Raises InputError if works that share text are asked for in different parts.
    """
    members: dict[int, list[Work]] = defaultdict(list)
    for work, least in zip(works, _groups(_sketches(works)), strict=True):
        members[least].append(work)
    by_source: dict[str, list[list[Work]]] = defaultdict(list)
    for group in members.values():
        by_source[group[0].source].append(group)
    parts: dict[Part, list[Work]] = {part: [] for part in PARTS}
    for groups in by_source.values():
        for part, dealt in _dealt(sorted(groups, key=lambda group: _draw(group[0], seed))):
            parts[part] += dealt
    return {part: tuple(sorted(found, key=lambda work: _draw(work, seed))) for part, found in parts.items()}


def _dealt(groups: Sequence[Sequence[Work]]) -> Iterator[tuple[Part, Sequence[Work]]]:
    """Groups of one source with their parts: the report is filled up first, then validation."""
    share = APART * sum(work.characters for group in groups for work in group)
    filled: dict[Part, int] = {"report": 0, "validation": 0}
    for group in groups:
        size = sum(work.characters for work in group)
        short: list[Part] = [part for part, taken in filled.items() if taken < share and size <= share]
        part = _asked_part(group) or (short[0] if short else "train")
        if part in filled:
            filled[part] += size
        yield part, group


def _sketches(works: Sequence[Work]) -> list[tuple[int, Sketch]]:
    """Of every document: the place of its work, and its hashes without the form of its source."""
    found: list[tuple[int, Sketch]] = []
    places: dict[str, list[int]] = defaultdict(list)
    for place, work in enumerate(works):
        places[work.source].append(place)
    for own in places.values():
        # By id: the form is learned from the first documents, and must not depend on the order of works.
        documents = sorted(
            ((place, one) for place in own for one in works[place].documents), key=lambda pair: pair[1].id
        )
        sketcher = Sketcher.of([document for _, document in documents])
        found += [(place, sketcher.sketch(document.text)) for place, document in documents]
    return found


def _groups(sketches: Sequence[tuple[int, Sketch]]) -> list[int]:
    """The group of every work, in the order of works: the least place among those it shares text with."""
    least = text_groups([sketch for _, sketch in sketches])
    joined: dict[int, int] = {}

    def root(place: int) -> int:
        while joined.setdefault(place, place) != place:
            place = joined[place]
        return place

    for (place, _), first in zip(sketches, least.tolist(), strict=True):
        low, high = sorted((root(place), root(sketches[first][0])))
        joined[high] = low
    return [root(place) for place in range(1 + max((place for place, _ in sketches), default=-1))]


def _asked_part(works: Iterable[Work]) -> Part | None:
    """Where somebody wants works that stay together. Raises InputError where that is in two parts."""
    asked = {work.part: work for work in works if work.part is not None}
    if len(asked) > 1:
        (first, left), (second, right) = list(asked.items())[:2]
        raise InputError(
            f"the parts {first} and {second} would share text: the works {left.id} and {right.id} do",
            where="part",
            fix="ask for one part for both, or leave one out: what is known by heart would pass for skill",
        )
    return next(iter(asked), None)


def _draw(work: Work, seed: int) -> str:
    return sha256_of_text(f"offramp lab {seed} {work.id}")


def within(works: Sequence[Work], most: int, seed: int) -> list[Work]:
    """Works of each source that hold no more characters than `most` together, one at least, as drawn."""
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for work in sorted(works, key=lambda work: _draw(work, seed)):
        if taken[work.source] == 0 or taken[work.source] + work.characters <= most:
            taken[work.source] += work.characters
            kept.append(work)
    return kept
