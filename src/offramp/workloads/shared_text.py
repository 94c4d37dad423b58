"""Text that documents share, found by hashed shingles: also a short text inside a long one.

A text is read as words (letters and digits, or one other sign each, in lower case; spaces do not count).
Every SHINGLE consecutive words are hashed, and of every WINDOW consecutive hashes the least is kept, of
equal ones the last (winnowing: Schleimer, Wilkerson and Aiken, SIGMOD 2003, section 3). So whatever two texts
have in common, SHINGLE + WINDOW - 1 = 12 words or more of it, has left the same hash in both, and a text of
so many words that lies inside another has left all of its hashes there.

Two documents *share text* if

- their words are the same, or
- of the one with fewer hashes at least half (HALF) are also the other's, or
- they have RUN consecutive hashes in common, as any 50 common words give them (the length from which Lee et
  al., arXiv 2107.06499, section 4.1, call training text duplicated).

What more than FORM_SHARE of a workload's documents say, and more than FORM_LEAST of them, is its form and
not their text: the wording of a kind of arithmetic problem, a licence at the head of a file. It is left out
of the hashes, so documents that are nothing but form share text if they are the same.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from offramp.kit.rules import Must
from offramp.workloads.workload import Document, Workload

SHINGLE = 7
WINDOW = 6
HALF = 0.5
RUN = 7
FORM_SHARE = 0.02
FORM_LEAST = 3
FORM_DOCUMENTS = 2000
"""The form of a workload is learned from so many of its documents at most, the first ones."""

Sketch = NDArray[np.uint32]
"""Hashes of one text: that of all its words, in two numbers, then those kept of its shingles, in the order of
the text, to 32 bits each: of a million others one is equal by chance in 4,000."""

WHOLE = 2
"""Numbers of a sketch before those of its shingles."""

Hashes = NDArray[np.uint32] | NDArray[np.uint64]

_WORD = re.compile(r"\w+|[^\w\s]")
_MULTIPLIER = np.uint64(6364136223846793005)


@dataclass
class Sketcher:
    """Makes sketches."""

    form: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, dtype=np.uint32))
    """Hashes that are left out, ascending."""
    _places: dict[str, int] = field(default_factory=dict, repr=False)
    _hashes: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, dtype=np.uint64), repr=False)

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Sketcher:
        """A sketcher that knows the form of a workload's documents."""
        sketcher = cls()
        known = documents[:FORM_DOCUMENTS]
        kept = [np.unique(sketcher.sketch(_compared(document))[WHOLE:]) for document in known]
        hashes, found = np.unique(np.concatenate([*kept, sketcher.form]), return_counts=True)
        sketcher.form = hashes[found > max(FORM_LEAST, FORM_SHARE * len(known))]
        return sketcher

    def sketch(self, text: str) -> Sketch:
        """The hashes of a text."""
        words = _WORD.findall(text.lower())
        kept = _shortened(_winnowed(_mixed(_combined(self._hashed(words), SHINGLE))))
        kept = kept[~np.isin(kept, self.form)] if len(self.form) else kept
        return np.concatenate([_digests([" ".join(words)]).view("<u4"), kept])

    def sketches(self, documents: Iterable[Document]) -> tuple[Sketch, ...]:
        """The hashes of some documents' texts."""
        return tuple(self.sketch(_compared(document)) for document in documents)

    def _hashed(self, words: Sequence[str]) -> NDArray[np.uint64]:
        """A hash of every word: each word is hashed once, then looked up."""
        places = self._places
        found = np.fromiter(
            (places.setdefault(word, len(places)) for word in words), dtype=np.int64, count=len(words)
        )
        if len(places) > len(self._hashes):
            new = itertools.islice(places, len(self._hashes), None)
            self._hashes = np.concatenate([self._hashes, _digests(new)])
        return self._hashes[found]


def _compared(document: Document) -> str:
    """What documents are compared by: their text; of a pair with what is read; of a picture that alone, as
    answers about others are the same few words."""
    given = document.given
    if given is None or given.kind == "audio":
        return document.text
    return given.samples if given.kind == "image" else f"{given.text} {document.text}"


def sketches_of(workload: Workload, ids: Sequence[str]) -> tuple[Sketch, ...]:
    """The hashes of some of a workload's documents, which have these ids."""
    by_id = {document.id: document for document in workload.documents}
    return Sketcher.of(workload.documents).sketches(by_id[id] for id in ids)


def sharing(left: Sequence[Sketch], right: Sequence[Sketch]) -> list[tuple[int, int]]:
    """Every pair of places (in `left`, in `right`) whose documents share text, ascending."""
    pairs = {*_common(_wholes(left), _wholes(right))}
    pairs.update(_common(*([_runs(sketch[WHOLE:]) for sketch in side] for side in (left, right))))
    ours, theirs = ([np.unique(sketch[WHOLE:]) for sketch in side] for side in (left, right))
    for (one, other), count in _common(ours, theirs).items():
        if count >= HALF * min(len(ours[one]), len(theirs[other])):
            pairs.add((one, other))
    return sorted(pairs)


def shares_text(candidates: Sequence[Sketch], seen: Sequence[Sketch]) -> NDArray[np.bool_]:
    """Whether each candidate shares text with any document seen: bool [candidates]."""
    found = np.zeros(len(candidates), dtype=np.bool_)
    found[[place for place, _ in sharing(candidates, seen)]] = True
    return found


def without_shared_text(
    candidates: Sequence[Document], seen: Sequence[Sketch], sketcher: Sketcher | None = None
) -> tuple[Document, ...]:
    """The candidates that share no text with the documents seen.

    sketcher: of the workload that the candidates are of; by default they are all of it.
    """
    made = Sketcher.of(candidates) if sketcher is None else sketcher
    shared = shares_text(made.sketches(candidates), seen)
    return tuple(document for document, out in zip(candidates, shared, strict=True) if not out)


def text_groups(sketches: Sequence[Sketch]) -> NDArray[np.int64]:
    """The group of every document, int64 [documents]: the least place among those it shares text with.

    Sharing is passed on: a document that shares text with two others brings them into one group.
    """
    first = np.arange(len(sketches))

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = first[first[place]]
            place = int(first[place])
        return place

    for one, other in sharing(sketches, sketches):
        low, high = sorted((root(one), root(other)))
        first[high] = low
    return np.array([root(place) for place in range(len(sketches))], dtype=np.int64)


def groups_of_documents(*sources: Sequence[Document]) -> NDArray[np.int64]:
    """The group of every document of all sources, one source after the other: int64 [documents].

    The least place among the documents that it shares text with, itself included; sharing is passed on. The
    form of a source, what many of its documents say, is learned from its first ones and does not count.

    >>> said, other = "one two three four five six seven eight nine ten " * 4, "and something else " * 9
    >>> first = [offramp.Document("a", said), offramp.Document("b", other)]
    >>> offramp.text_groups(first, [offramp.Document("c", said)])
    array([0, 1, 0])
    """
    return text_groups(
        [sketch for documents in sources for sketch in Sketcher.of(documents).sketches(documents)]
    )


def write_sketch(sketch: Sketch) -> str:
    """A sketch as text for a file: base64 of its hashes, least byte first."""
    return base64.b64encode(sketch.astype("<u4").tobytes()).decode("ascii")


def read_sketch(text: str) -> Sketch:
    """The sketch that `write_sketch` wrote. Raises ValueError for another text."""
    sketch = np.frombuffer(base64.b64decode(text, validate=True), dtype="<u4").astype(np.uint32)
    if len(sketch) < WHOLE:
        raise ValueError("a sketch begins with the hash of the whole text")
    return sketch


def _is_sketch(text: str) -> bool:
    try:
        read_sketch(text)
    except ValueError:
        return False
    return True


SketchText = Annotated[str, Must(_is_sketch, "the sketch of a text")]
"""What `write_sketch` wrote, in a file."""


def _digests(texts: Iterable[str]) -> NDArray[np.uint64]:
    """BLAKE2b of every text, to 64 bits."""
    digests = b"".join(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a hash made to depend on all of them (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return mixed


def _combined(hashes: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """One hash of every `count` consecutive hashes, in their order; none if there are fewer."""
    places = max(0, len(hashes) - count + 1)
    combined = np.zeros(places, dtype=np.uint64)
    for offset in range(count if places else 0):
        combined = np.asarray(combined * _MULTIPLIER + hashes[offset : offset + places])
    return combined


def _winnowed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Of every WINDOW consecutive hashes the least, of equal ones the last; of fewer, the least of all."""
    if not len(hashes):
        return hashes
    windows = np.lib.stride_tricks.sliding_window_view(hashes, min(WINDOW, len(hashes)))
    last = windows.shape[1] - 1 - windows[:, ::-1].argmin(axis=1)
    return np.asarray(hashes[np.unique(np.arange(len(windows)) + last)])


def _shortened(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The upper half of every hash."""
    return (hashes >> np.uint64(32)).astype(np.uint32)


def _wholes(sketches: Sequence[Sketch]) -> list[NDArray[np.uint64]]:
    return [np.ascontiguousarray(sketch[:WHOLE]).view(np.uint64) for sketch in sketches]


def _runs(kept: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One hash of every RUN consecutive hashes, each once."""
    return np.unique(_mixed(_combined(kept.astype(np.uint64), RUN)))


def _common(left: Sequence[Hashes], right: Sequence[Hashes]) -> dict[tuple[int, int], int]:
    """How many hashes each pair of documents has in common, for pairs that have any. Hashes are distinct."""
    ours, of_ours = _flat(left)
    theirs, of_theirs = _flat(right)
    starts, ends = (np.searchsorted(theirs, ours, side=side) for side in ("left", "right"))
    counts = ends - starts
    one = np.repeat(of_ours, counts)
    skipped = np.repeat(np.cumsum(counts) - counts, counts)
    other = of_theirs[np.arange(len(one)) - skipped + np.repeat(starts, counts)]
    pairs, found = np.unique(one * max(1, len(right)) + other, return_counts=True)
    places = zip(*np.divmod(pairs, max(1, len(right))), found, strict=True)
    return {(int(a), int(b)): int(count) for a, b, count in places}


def _flat(documents: Sequence[Hashes]) -> tuple[Hashes, NDArray[np.int64]]:
    """All hashes ascending, and the place of the document that each is of."""
    hashes: Hashes = np.concatenate(list(documents)) if documents else np.empty(0, dtype=np.uint32)
    owner = np.repeat(np.arange(len(documents)), [len(hashes_of) for hashes_of in documents]).astype(np.int64)
    order = np.argsort(hashes, kind="stable")
    return hashes[order], owner[order]
